"""What a mount tells of a file that somebody wants a copy of: what its bytes come to, and where all of them are.

Must not know what becomes of the copy. Loop thread only; may send one HEAD.
"""

from typing import Any

from lazyfs.cache.chunks import ChunkCache
from lazyfs.cache.digest import from_sums
from lazyfs.cache.disk import Disk
from lazyfs.cache.verdicts import NONE
from lazyfs.cache.verifier import Verifier
from lazyfs.errors import Corrupt
from lazyfs.objects import Checksums, ObjectVersion
from lazyfs.service.witnesses import StoredDigests


async def described(
    version: ObjectVersion, *, disk: Disk, chunks: ChunkCache, verifier: Verifier, digests: StoredDigests
) -> dict[str, Any]:
    """`sha256` and `crc64nvme` (hexadecimal, empty for not known) that a copy must come to; `digest`, the one that its
    source has (`sha256`, `crc64nvme`, `none`): without one the checksum is that of the bytes as they came here. `file`:
    the object file, if all of it is on disk, else empty. What was compared here already is not asked for again.

    `Corrupt` for a file that is refused, `StoreError` if its digest cannot be asked for."""
    verdict = verifier.verdict(version)
    if verdict is not None and verdict.wrong and verdict.witness == digests.witness(version):
        raise Corrupt(verdict.wrong)
    if not version.size:
        return {"sha256": "", "crc64nvme": f"{0:016x}", "digest": NONE, "file": ""}
    generation = disk.generation(version)
    combined = None if generation is None else await chunks.workers.look(from_sums, disk, version, {})
    if combined is not None and verdict is not None and verifier.settled(version):
        known, digest = Checksums(verdict.sha256, combined.crc64nvme), verdict.held
    else:
        known = (await digests.expected(version)).checksums
        digest = known.strongest or NONE
    crc = known.crc64nvme if known.crc64nvme is not None or combined is None else combined.crc64nvme
    return {
        "sha256": known.sha256,
        "crc64nvme": "" if crc is None else f"{crc:016x}",
        "digest": digest,
        "file": disk.path(version),
    }
