"""The rooms of lazyfs, each by itself, and the few pairs that only make sense together. No kernel mounts.

Fakes stand at the edge only: `memory_store` is a Store, everything behind it is real, on temporary directories.
"""
