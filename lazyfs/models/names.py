"""A model and its version, and where their files are: keys in a bucket, names on a disk. Pure.

`<prefix>/<model>/<version>/<files>`. The last piece is the version; a model may have several, as `org/name` on a hub.
Every piece becomes a name in a path on somebody's disk, so what could lead elsewhere, or hide, is refused here.
"""

import hashlib
from dataclasses import dataclass

from lazyfs.errors import UsageError

MANIFEST = "lazyfs-manifest.json"
"""Beside the files of a version, written last: a version without one is not there."""

LONGEST_NAME = 255
"""Bytes of one name, as every filesystem of Linux has it; LONGEST_KEY of a whole key, as S3 has it."""
LONGEST_KEY = 1024


@dataclass(frozen=True, slots=True, order=True)
class ModelVersion:
    """One version of one model. `UsageError` for names that cannot be."""

    model: str
    version: str

    def __post_init__(self) -> None:
        for what, text in (("model", self.model), ("version", self.version)):
            if problem := flaw(text):
                raise UsageError(f"{text!r} cannot be the name of a {what}: {problem}")
        if "/" in self.version:
            raise UsageError(f"{self.version!r} cannot be a version: it holds a slash; write model/version")

    def __str__(self) -> str:
        return f"{self.model}/{self.version}"

    def prefix(self, root: str) -> str:
        """Of the keys of its files, `root` being empty or ending in `/`."""
        return f"{root}{self.model}/{self.version}/"

    @property
    def folder(self) -> str:
        """A name for the model on disk, another for each model: `org/name` is `org--name`."""
        name = self.model.replace("/", "--")
        if "--" in self.model or len(name.encode()) > LONGEST_NAME:
            digest = hashlib.sha256(self.model.encode()).hexdigest()
            name = f"{name.encode()[:200].decode(errors='ignore')}-{digest[:12]}"
        return name


def parse(text: str) -> ModelVersion:
    """`model/version`, or `org/model/version`."""
    model, slash, version = text.strip("/").rpartition("/")
    if not slash:
        raise UsageError(f"{text!r} names no version; write model/version, like llama-3-8b/v1")
    return ModelVersion(model, version)


def flaw(path: str) -> str:
    """What is wrong with a relative path of a model's file, or with its name, in words; empty if nothing is."""
    try:
        raw = path.encode()
    except UnicodeEncodeError:
        return "it is not UTF-8, as every key in S3 is"
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in path):
        return "it holds a control character"
    if len(raw) > LONGEST_KEY:
        return f"it is longer than the {LONGEST_KEY} bytes that a key in S3 may have"
    for piece in path.split("/"):
        if piece in ("", ".", ".."):
            return f"a piece of it is {piece!r}" if piece else "it is empty, or a piece of it between slashes is"
        if len(piece.encode()) > LONGEST_NAME:
            return f"a piece of it is longer than {LONGEST_NAME} bytes"
        if piece == MANIFEST:
            return f"{MANIFEST} is what the list of a version's files is called"
    return ""
