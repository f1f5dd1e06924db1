"""What was found of an object as a whole: which digest held, or what is wrong. Pure, and how it is laid out in bytes.

Must not know how a digest is had.
"""

import json
from dataclasses import asdict, dataclass

from lazyfs.objects import Checksums, ObjectVersion

NONE = "none"
"""What `held` says when the source has no digest to compare with."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What all bytes of an object must come to, and who says so: `witness` names the digest's own version, for a digest
    that is stored beside the object may be replaced, and then the question is open again."""

    checksums: Checksums
    witness: str = "s3"
    said_by: str = ""
    """Where it stands, if that is not the witness: a witness may have nothing to say of an object."""
    quiet: bool = False
    """Nobody expects a digest of this object, so that a missing one is not worth a warning."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`held` is the digest that agreed (sha256, crc64nvme), NONE, or empty: then `wrong` says in words what did not.

    It holds for the bytes of one generation of the object file; a wrong one for the version, whatever is fetched.
    """

    held: str
    generation: int
    witness: str
    sha256: str = ""
    wrong: str = ""


def pack(verdict: Verdict) -> bytes:
    """A verdict as bytes."""
    return json.dumps(asdict(verdict)).encode("ascii")


def unpack(packed: bytes | None) -> Verdict | None:
    """The verdict, or None for anything that is not one."""
    if packed is None or len(packed) > 4096:
        return None
    try:
        found = json.loads(packed)
        texts = {name: found[name] for name in ("held", "witness", "sha256", "wrong")}
        generation = found["generation"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not all(isinstance(text, str) for text in texts.values()) or not isinstance(generation, int):
        return None
    return Verdict(generation=generation, **texts)


def difference(version: ObjectVersion, expected: Expected, found: Checksums) -> str:
    """In words what is wrong; empty if all digests that both have agree."""
    known = expected.checksums
    for name, wanted, got in (
        ("SHA-256", known.sha256, found.sha256),
        ("CRC64NVME", _hex(known.crc64nvme), _hex(found.crc64nvme)),
    ):
        if wanted and got and wanted != got:
            said_by = expected.said_by or expected.witness
            who = "S3" if said_by == "s3" else said_by
            return f"the {name} of {version.key!r} is {got}, and {who} says {wanted}"
    return ""


def _hex(checksum: int | None) -> str:
    return "" if checksum is None else f"{checksum:016x}"
