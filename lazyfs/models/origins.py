"""Where a version comes from when neither this disk nor the bucket has it: a directory, a hub, a registry of models, or
what the user writes.

An origin need not be quick or patient: what it brings once is kept here and in the bucket. Must not know either.
"""

import importlib
import re
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


class MLflowOrigin:
    """MLflow's registry of models, by its own library (`pip install mlflow-skinny`, or mlflow): the model is a
    registered model, the version its number. Registry and credentials are found as that library finds them
    (MLFLOW_TRACKING_URI, `mlflow.set_tracking_uri`): it takes addresses for one download, and looks `models:/` up
    elsewhere all the same."""

    def fetch(self, model: str, version: str, into: Path) -> Path | None:
        """See `Origin.fetch`. Aliases and stages are refused: they move, and what is brought stays."""
        if not re.fullmatch(r"[1-9][0-9]{0,8}", version):
            raise UsageError(
                f"{version!r} is no version of {model} in MLflow's registry, where they are numbers; give the number, "
                "for an alias or a stage stands for another one tomorrow"
            )
        try:
            mlflow: Any = importlib.import_module("mlflow")
            artifacts: Any = importlib.import_module("mlflow.artifacts")
        except ImportError:
            raise UsageError(
                "the origin is MLflow's registry, and its library is not here: pip install mlflow-skinny"
            ) from None
        try:
            mlflow.MlflowClient().get_model_version(model, version)
        except mlflow.exceptions.MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise StoreError(f"MLflow's registry did not answer for {model}/{version}: {_line(error)}") from error
        target = into / "mlflow"
        target.mkdir()
        try:
            found = artifacts.download_artifacts(artifact_uri=f"models:/{model}/{version}", dst_path=str(target))
        except (mlflow.exceptions.MlflowException, OSError, ValueError) as error:
            raise StoreError(f"MLflow did not give {model}/{version}: {_line(error)}") from error
        # Of artifacts that are gone it makes an empty directory.
        if not any(one.is_file() for one in (Path(found), *Path(found).rglob("*"))):
            raise StoreError(f"MLflow's registry has {model}/{version}, and its artifacts are gone or empty")
        return Path(found)


def _line(error: Exception) -> str:
    """What somebody else's failure says, in one line of bounded length."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
