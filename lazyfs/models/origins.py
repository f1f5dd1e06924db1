"""Where a version comes from when neither this disk nor the bucket has it: a directory, a hub, or what the user writes.

An origin need not be quick or patient: what it brings once is kept here and in the bucket. Must not know either.
"""

import importlib
import shutil
from pathlib import Path
from typing import Any, Protocol

from lazyfs.errors import SetupError, StoreError, UsageError
from lazyfs.models.names import ModelVersion


class Origin(Protocol):
    """Has versions of models."""

    def fetch(self, model: str, version: str, into: Path) -> Path | None:
        """The directory, or file, of a version: `into`, an empty directory, filled with it; or where it is already, and
        then it is copied. None if there is no such version. Called in a thread; may raise `LazyfsError`, or what it
        likes, which is told as it is."""
        ...


class DirectoryOrigin:
    """A directory that holds `model/version/` directories, as on a shared disk."""

    def __init__(self, root: str | Path) -> None:
        self._root = Path(root)

    def fetch(self, model: str, version: str, into: Path) -> Path | None:
        """See `Origin.fetch`; nothing is written into `into`."""
        of = ModelVersion(model, version)
        if not self._root.is_dir():
            raise SetupError(f"the origin {self._root} is not a directory; mount or create it")
        path = self._root / of.model / of.version
        return path if path.exists() else None


class HubOrigin:
    """The Hugging Face hub, by its own library (`pip install huggingface_hub`): the model is a repository, the version
    a revision. Its token and its endpoint are found as that library finds them."""

    def __init__(self, *, token: str | None = None, allow_patterns: list[str] | None = None) -> None:
        """`allow_patterns`: of the files to bring, all of them by default."""
        self._token = token
        self._patterns = allow_patterns

    def fetch(self, model: str, version: str, into: Path) -> Path | None:
        """See `Origin.fetch`."""
        try:
            hub: Any = importlib.import_module("huggingface_hub")
            errors: Any = importlib.import_module("huggingface_hub.errors")
        except ImportError:
            raise UsageError(
                "the origin is the Hugging Face hub, and its library is not here: pip install huggingface_hub"
            ) from None
        try:
            hub.snapshot_download(
                repo_id=model,
                revision=version,
                local_dir=str(into / "hub"),
                token=self._token,
                allow_patterns=self._patterns,
            )
        except errors.GatedRepoError as error:  # which is a RepositoryNotFoundError, too
            raise SetupError(f"the hub does not give {model} to this token; accept its terms there: {error}") from error
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
            return None
        except (errors.HfHubHTTPError, OSError, ValueError) as error:
            raise StoreError(f"the hub did not give {model} at {version}: {type(error).__name__}: {error}") from error
        shutil.rmtree(into / "hub" / ".cache", ignore_errors=True)  # the library's own books
        return into / "hub"
