"""Where bytes come from: one file per origin, all behind the Protocol of `base.py`. Knows no chunks, cache or
kernel."""
