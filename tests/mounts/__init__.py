"""The promises, tried on real kernel mounts of the real command against real S3 servers.

`mounting` starts and ends mounts, `reader` is the process that reads from them, `contents` makes bytes that say where
they come from. A test gets `mounter` from `conftest`, and whatever it mounts is gone after it, whatever happened.
"""
