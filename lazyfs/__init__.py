"""lazyfs: model weights from object storage, mounted read-only and read by byte ranges, or had by name as plain files.

The rooms of the house, top to bottom (a room imports only rooms above it; a test holds the order):
errors, objects, config; stores; cache; reading; filesystem; models; service; cli. This module and `aio` are the front
door, for programs: what is behind it is imported when it is first asked for, since boto3 takes 0.3 s.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lazyfs.models.library import LibraryStatistics, Model
    from lazyfs.models.origins import DirectoryOrigin, HubOrigin, MLflowOrigin, Origin
    from lazyfs.service.modelcache import ModelCache

__version__ = "0.1.0"

__all__ = [
    "DirectoryOrigin",
    "HubOrigin",
    "LibraryStatistics",
    "MLflowOrigin",
    "Model",
    "ModelCache",
    "Origin",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """What a program imports from here."""
    if name == "ModelCache":
        from lazyfs.service.modelcache import ModelCache  # noqa: PLC0415

        return ModelCache
    if name in ("LibraryStatistics", "Model"):
        from lazyfs.models import library  # noqa: PLC0415

        return getattr(library, name)
    if name in ("DirectoryOrigin", "HubOrigin", "MLflowOrigin", "Origin"):
        from lazyfs.models import origins  # noqa: PLC0415

        return getattr(origins, name)
    raise AttributeError(f"module 'lazyfs' has no attribute {name!r}")
