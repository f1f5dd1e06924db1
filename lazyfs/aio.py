"""`lazyfs.ModelCache` for trio."""

from lazyfs.service.modelcache import AsyncModelCache as ModelCache

__all__ = ["ModelCache"]
