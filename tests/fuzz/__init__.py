"""Whatever comes from outside: the right value or one of our named errors; never a traceback, a hang, or memory without
bound.

Outside is the server, the cache directory as it is found, the kernel's tables, and what users write. The examples are
the same in every run; `scripts/test --full` tries twenty times as many.
"""
