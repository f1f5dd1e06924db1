"""What `scripts/bench` runs: how fast lazyfs is, always beside something that was measured in the same minute.

Its job: one row for each promise about speed. A row is a small class (`rows.Row`) that makes mounts, lets worker
processes read, and gives lines of the table; a new one goes into a module here and into `__main__.ROWS`. Must not know
lazyfs from the inside (but for `starting`, which fills an index): a mount is the real command, measured from outside
(`daemon`), and whatever is timed runs in a process of its own (`worker`). `stage` has what rows share: the S3 servers,
the files, the scratch directory; `peers` mounts other filesystems.

A machine's own speed says little and changes from minute to minute, so a figure is a ratio of two measurements made one
right after the other, A B A B (`rows.in_turns`); what counts is the median of those ratios.
"""
