"""Files as objects, in parts: an upload that was broken off goes on where it was.

Its job: cut a file into parts, find those that an earlier upload of the same bytes has left, and send the rest. Who was
here before is asked of the server alone, so that another machine can go on. Must not know models.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import trio
from awscrt.checksums import combine_crc64nvme, crc64nvme

from lazyfs.errors import NotFound, StoreError
from lazyfs.objects import MIB, Checksums
from lazyfs.stores.s3 import S3Store
from lazyfs.stores.together import together
from lazyfs.stores.writer import SHA256, Writer, spelled, sums

PART_SIZE = 16 * MIB
"""Bytes of a part, which is held in memory while it is sent, and sent again when a connection breaks."""

MOST_PARTS = 10_000
"""Of an upload (S3's bound)."""

Told = Callable[[int], None]
"""Told of so many bytes more that are there."""


@dataclass(frozen=True, slots=True)
class _Part:
    """Bytes [start, stop) of a file, as part `number` from 1 on."""

    number: int
    start: int
    stop: int


class Uploader(Writer):
    """Writes files to the bucket of a store. A request holds `part_size` bytes of memory, or a 10,000th of a file."""

    def __init__(
        self, store: S3Store, *, retry_budget: float, connections: int = 16, part_size: int = PART_SIZE
    ) -> None:
        super().__init__(store, retry_budget=retry_budget, connections=connections)
        self._part_size = part_size
        self.resumed_bytes = 0
        """Of parts that an earlier upload had sent."""

    async def upload(self, key: str, path: str, size: int, checksums: Checksums, told: Told = lambda _: None) -> str:
        """Store a file of `size` bytes that come to `checksums`; its ETag. `StoreError` if they do not any more."""
        parts = list(self._parts(size))
        if len(parts) <= 1:
            data = await self._read(path, _Part(1, 0, size))
            if crc64nvme(data) != checksums.crc64nvme:
                raise _changed(path)
            etag = await self.put(key, data, sha256=checksums.sha256)
            told(size)
            return etag
        try:
            return await self._in_parts(key, path, parts, checksums, told)
        except NotFound:
            # Somebody ended the upload: this very call, if the answer to that got lost on the way.
            found = await self.stored(key)
            if found is not None and (found.size, found.sha256) == (size, checksums.sha256):
                return found.etag
            return await self._in_parts(key, path, parts, checksums, lambda _: None)

    def _parts(self, size: int) -> Iterator[_Part]:
        step = max(self._part_size, -(-size // MOST_PARTS // MIB) * MIB)
        for number, start in enumerate(range(0, size, step), 1):
            yield _Part(number, start, min(start + step, size))

    async def _in_parts(
        self, key: str, path: str, parts: Sequence[_Part], checksums: Checksums, told: Told
    ) -> str:
        upload_id, done = await self._resumed(key, path, parts)
        for part in parts:
            if part.number in done:
                self.resumed_bytes += part.stop - part.start
                told(part.stop - part.start)
        if not upload_id:
            upload_id = await self._begin(key, checksums)

        async def send(part: _Part) -> None:
            data = await self._read(path, part)
            where = {"Key": key, "UploadId": upload_id, "PartNumber": part.number}
            answer = await self._checked(
                f"upload part {part.number} of {key!r}",
                lambda crc: self._asking("upload_part", **where, Body=data, **sums(data, crc)),
            )
            done[part.number] = (str(answer["ETag"]), crc64nvme(data))
            self.sent_bytes += len(data)
            told(len(data))

        await together((partial(send, part) for part in parts if part.number not in done), at_once=self._at_once)
        total = 0
        for part in parts:
            total = combine_crc64nvme(total, done[part.number][1], part.stop - part.start)
        if total != checksums.crc64nvme:
            raise _changed(path)
        return await self._end(key, upload_id, done, total)

    async def _begin(self, key: str, checksums: Checksums) -> str:
        kind = {"ChecksumAlgorithm": "CRC64NVME", "ChecksumType": "FULL_OBJECT"}
        metadata = {SHA256: checksums.sha256}
        answer = await self._checked(
            f"begin an upload of {key!r}",
            lambda crc: self._asking("create_multipart_upload", Key=key, Metadata=metadata, **(kind if crc else {})),
        )
        return str(answer["UploadId"])

    async def _end(self, key: str, upload_id: str, done: dict[int, tuple[str, int]], total: int) -> str:
        whole = {"ChecksumCRC64NVME": spelled(total), "ChecksumType": "FULL_OBJECT"}

        def asking(crc: bool) -> Callable[[], dict[str, str]]:
            parts = [
                {"PartNumber": number, "ETag": etag, **({"ChecksumCRC64NVME": spelled(part)} if crc else {})}
                for number, (etag, part) in sorted(done.items())
            ]
            where = {"Key": key, "UploadId": upload_id, "MultipartUpload": {"Parts": parts}}
            return self._asking("complete_multipart_upload", **where, **(whole if crc else {}))

        return str((await self._checked(f"end the upload of {key!r}", asking))["ETag"])

    async def _resumed(self, key: str, path: str, parts: Sequence[_Part]) -> tuple[str, dict[int, tuple[str, int]]]:
        """The newest upload of this key that was not ended, and its parts with their checksums, if all of them are
        bytes of this file; else no upload."""
        found = [upload_id for name, upload_id in await self._uploads(key) if name == key]
        if not found:
            return "", {}
        asking = self._paging("list_parts", "Parts", Key=key, UploadId=found[-1])
        try:
            sent = await self._patiently(f"list the parts of {key!r}", asking)
        except NotFound:
            return "", {}
        by_number = {part.number: part for part in parts}
        done: dict[int, tuple[str, int]] = {}

        async def compare(number: int, etag: str, crc: str) -> None:
            if number not in by_number:
                return
            data = await self._read(path, by_number[number])
            mine = crc64nvme(data)
            # Where keys of KMS encrypt, an ETag is no MD5: then the file is sent anew, if there is no checksum either.
            md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
            if (crc and crc == spelled(mine)) or (not crc and etag.strip('"') == md5):
                done[number] = (etag, mine)

        steps = (partial(compare, p["PartNumber"], p["ETag"], p.get("ChecksumCRC64NVME", "")) for p in sent)
        await together(steps, at_once=self._at_once)
        return (found[-1], done) if len(done) == len(sent) else ("", {})

    async def _read(self, path: str, part: _Part) -> bytes:
        return await trio.to_thread.run_sync(_read, path, part.start, part.stop, limiter=self._limiter)


def _read(path: str, start: int, stop: int) -> bytes:
    """Bytes [start, stop) of a file. `StoreError` if it cannot be read, or ends before."""
    data = b""
    try:
        with open(path, "rb", buffering=0) as file:
            while len(data) < stop - start:
                more = os.pread(file.fileno(), stop - start - len(data), start + len(data))
                if not more:
                    raise _changed(path)
                data += more
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from None
    return data


def _changed(path: str) -> StoreError:
    return StoreError(f"{path} changed while it was uploaded; publish it again when nothing writes to it")
