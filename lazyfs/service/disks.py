"""The disk cache of a mount as the configuration says, over a lower layer where there is one.

Must not know what is done with it.
"""

from pathlib import Path

from lazyfs.cache.directory import CacheDirectory
from lazyfs.cache.disk import Disk
from lazyfs.cache.layers import LayeredDisk
from lazyfs.cache.lower import lower_layer
from lazyfs.config import Config
from lazyfs.errors import SetupError, UsageError
from lazyfs.service.machine import default_cache_dir


def disk_of(config: Config, mountpoint: str = "") -> Disk:
    """Open it. `SetupError` for a directory that cannot be used, and for one that the mount at `mountpoint` would hide;
    a lower layer that cannot is one warning."""
    named = Path(config.cache_dir).absolute() if config.cache_dir else None
    place = named or default_cache_dir()
    if mountpoint and place.resolve().is_relative_to(mountpoint):
        raise SetupError(f"the cache directory {place} is in the mountpoint {mountpoint}; choose another --cache-dir")
    lower = None
    if config.lower_cache_dir:
        below = Path(config.lower_cache_dir).resolve()
        if below == place.resolve():
            raise UsageError("--lower-cache-dir is --cache-dir itself; what is below is only read, so name another")
        lower = lower_layer(below)
    directory = CacheDirectory(place, create=named is None)
    if lower is None:
        return Disk(directory, max_size=config.max_cache_size, min_free=config.min_free_space)
    return LayeredDisk(directory, max_size=config.max_cache_size, min_free=config.min_free_space, lower=lower)
