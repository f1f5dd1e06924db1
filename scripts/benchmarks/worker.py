"""What is timed, each program in a process of its own: `python -m scripts.benchmarks.worker NAME ARGUMENTS`.

Arguments come as one JSON object, and what was measured is printed as one. Imports and the making of clients are never
in a time. Must not know lazyfs: a path is a path, whatever is mounted there.
"""

import json
import mmap
import multiprocessing
import os
import queue
import random
import resource
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

MIB = 2**20


def read(path: str) -> dict[str, Any]:
    """Read the file through, 1 MiB at a time, into one buffer."""
    buffer = bytearray(MIB)
    count = 0
    started = time.perf_counter()
    with open(path, "rb", buffering=0) as file:
        while got := file.readinto(buffer):
            count += got
    return {"seconds": time.perf_counter() - started, "bytes": count}


def compare(path: str, original: str) -> dict[str, Any]:
    """Whether two files have the same bytes; `differs` is the first MiB that does not, or -1."""
    ours, theirs = bytearray(MIB), bytearray(MIB)
    with open(path, "rb", buffering=0) as one, open(original, "rb", buffering=0) as other:
        number = 0
        while True:
            got, expected = one.readinto(ours), other.readinto(theirs)
            if got != expected or ours != theirs:
                return {"differs": number}
            if not got:
                return {"differs": -1}
            number += 1


def _client(url: str, access_key: str, secret_key: str, region: str, ca_bundle: str | None, connections: int) -> Any:
    import boto3  # noqa: PLC0415 - the other programs do without its 30 MB
    from botocore.config import Config  # noqa: PLC0415

    return boto3.client(
        "s3",
        endpoint_url=url,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        region_name=region,
        verify=ca_bundle,
        config=Config(s3={"addressing_style": "path"}, max_pool_connections=connections),
    )


def download(endpoint: dict[str, Any], bucket: str, key: str, size: int, connections: int, part: int) -> dict[str, Any]:
    """Every byte of an object by boto3 into memory that is used again: one thread and one buffer for each connection,
    ranges of `part` bytes in order."""
    client = _client(**endpoint, connections=connections)
    ranges: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
    for start in range(0, size, part):
        ranges.put((start, min(start + part, size)))
    buffers = [mmap.mmap(-1, part) for _ in range(connections)]
    for buffer in buffers:
        for offset in range(0, part, mmap.PAGESIZE):
            buffer[offset] = 1
    received = [0] * connections

    def work(index: int) -> None:
        whole = memoryview(buffers[index])
        while True:
            try:
                start, stop = ranges.get_nowait()
            except queue.Empty:
                return
            answer = client.get_object(Bucket=bucket, Key=key, Range=f"bytes={start}-{stop - 1}")
            view = whole[: stop - start]
            offset = 0
            while offset < len(view) and (count := answer["Body"].readinto(view[offset : offset + MIB])):
                offset += count
            answer["Body"].close()
            received[index] += offset

    threads = [threading.Thread(target=work, args=(index,)) for index in range(connections)]
    cpu = _cpu()
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"seconds": time.perf_counter() - started, "bytes": sum(received), "cpu": _cpu() - cpu}


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def load(directory: str) -> dict[str, Any]:
    """Every tensor of every safetensors file, each byte touched: seconds to the first and to all, and a digest."""
    import numpy as np  # noqa: PLC0415 - as boto3
    from safetensors import safe_open  # noqa: PLC0415

    started = time.perf_counter()
    first, digest, count = 0.0, 0, 0
    for path in sorted(Path(directory).glob("*.safetensors")):
        with safe_open(path, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a mapping
                count += 1
                words = tensors.get_tensor(name).reshape(-1).view(np.uint64)
                digest = (digest + count * int(np.add.reduce(words))) % 2**64
                first = first or time.perf_counter() - started
    return {"seconds": time.perf_counter() - started, "first": first, "digest": digest, "tensors": count}


def load_parts(directory: str, ranks: int) -> dict[str, Any]:
    """As many processes load the same safetensors files, and of each tensor each its own part, as the ranks of a
    tensor-parallel model do; the checksum of what each has."""
    import numpy as np  # noqa: PLC0415 - as boto3
    from safetensors import safe_open  # noqa: PLC0415

    paths = sorted(Path(directory).glob("*.safetensors"))

    def parts(rank: int) -> Iterator[Any]:
        for path in paths:
            with safe_open(path, framework="numpy") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - not a mapping
                    found = tensors.get_slice(name)
                    rows = found.get_shape()[0]
                    begin, end = (rows * place // ranks for place in (rank, rank + 1))
                    yield np.ascontiguousarray(found[begin:end]).reshape(-1).view(np.uint8).data

    seconds, sums = _together(ranks, lambda rank: lambda: _sum(parts(rank)))
    return {"seconds": seconds, "sums": sums}


def fetch_and_load(
    endpoint: dict[str, Any], bucket: str, keys: list[str], directory: str, connections: int, part: int
) -> dict[str, Any]:
    """What people do without a mount: download all files at once with boto3's transfer manager, then load them."""
    from boto3.s3.transfer import TransferConfig, create_transfer_manager  # noqa: PLC0415 - as boto3
    from safetensors import safe_open as _  # noqa: F401, PLC0415 - not in the time of `load`

    client = _client(**endpoint, connections=connections)
    config = TransferConfig(
        max_concurrency=connections,
        multipart_threshold=part,
        multipart_chunksize=part,
        preferred_transfer_client="classic",
    )
    started = time.perf_counter()
    with create_transfer_manager(client, config) as manager:
        for one in [manager.download(bucket, key, f"{directory}/{key.rpartition('/')[2]}") for key in keys]:
            one.result()
    fetched = time.perf_counter() - started
    loaded = load(directory)
    return {**loaded, "seconds": time.perf_counter() - started, "first": fetched + loaded["first"], "fetched": fetched}


def touch(path: str, count: int, seed: int, advice: str) -> dict[str, Any]:
    """One byte of each of `count` random pages of the mapped file: seconds of each touch, and the pages' checksums,
    which are made at the end."""
    rng = random.Random(seed)
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    mapped.madvise(getattr(mmap, advice))
    pages = [rng.randrange(len(mapped) // mmap.PAGESIZE) for _ in range(count)]
    seconds = []
    for page in pages:
        started = time.perf_counter()
        mapped[page * mmap.PAGESIZE]
        seconds.append(time.perf_counter() - started)
    sums = [zlib.crc32(mapped[page * mmap.PAGESIZE : (page + 1) * mmap.PAGESIZE]) for page in pages]
    return {"seconds": seconds, "pages": pages, "sums": sums}


def direct(path: str, size: int, span: int, count: int) -> dict[str, Any]:
    """`count` reads of `size` bytes within the first `span` bytes, with O_DIRECT; seconds of each."""
    rng = random.Random(0)
    buffer = mmap.mmap(-1, size)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    seconds = []
    for offset in [rng.randrange(span // size) * size for _ in range(count)]:
        started = time.perf_counter()
        if os.preadv(descriptor, [buffer], offset) != size:
            raise OSError("a short read")
        seconds.append(time.perf_counter() - started)
    return {"seconds": seconds}


def first(path: str) -> dict[str, Any]:
    """Seconds from open to the first 4 KiB, in which the first byte is."""
    started = time.perf_counter()
    descriptor = os.open(path, os.O_RDONLY)
    got = os.read(descriptor, mmap.PAGESIZE)
    return {"seconds": time.perf_counter() - started, "sum": zlib.crc32(got)}


def slices(path: str, readers: int) -> dict[str, Any]:
    """As many processes map the file, each walks its own slice of it; the checksum of each slice."""

    def work(index: int) -> Callable[[], int]:
        with open(path, "rb") as file:
            mapped = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
        start, stop = (len(mapped) * place // readers for place in (index, index + 1))
        return lambda: _sum(mapped[at : min(at + MIB, stop)] for at in range(start, stop, MIB))

    seconds, sums = _together(readers, work)
    return {"seconds": seconds, "bytes": os.stat(path).st_size, "sums": sums}


def walk(path: str, readers: list[list[list[int]]], mapped: bool) -> dict[str, Any]:
    """Processes that read through one descriptor, or one mapping, that they share.

    Each does its steps [start, stop, stride, size]: `size` bytes from each of range(start, stop, stride). The checksum
    of what each read, and the bytes of all.
    """
    descriptor = os.open(path, os.O_RDONLY)
    memory = memoryview(mmap.mmap(descriptor, 0, prot=mmap.PROT_READ))

    def work(index: int) -> Callable[[], int]:
        plan = [(at, size) for start, stop, stride, size in readers[index] for at in range(start, stop, stride)]
        if mapped:
            return lambda: _sum(memory[at : at + size] for at, size in plan)
        buffer = memoryview(bytearray(max(size for _, size in plan)))
        return lambda: _sum(_filled(descriptor, buffer[:size], at) for at, size in plan)

    seconds, sums = _together(len(readers), work)
    count = sum(len(range(*step[:3])) * step[3] for plan in readers for step in plan)
    return {"seconds": seconds, "bytes": count, "sums": sums}


def _filled(descriptor: int, buffer: memoryview, offset: int) -> memoryview:
    if os.preadv(descriptor, [buffer], offset) != len(buffer):
        raise OSError("a short read")
    return buffer


def _sum(views: Iterable[Any]) -> int:
    """The checksum of all bytes. It is made at 40 GB/s, so it costs a timed walk nothing that shows."""
    from awscrt.checksums import crc64nvme  # noqa: PLC0415 - as boto3

    found = 0
    for view in views:
        found = crc64nvme(view, found)
    return found


def _together(count: int, work: Callable[[int], Callable[[], int]]) -> tuple[float, list[int]]:
    """Fork as many processes. Each gets its work ready, and when all have, all do it at once. Seconds that it took, and
    what each found. A process that fails is an OSError."""
    _sum([b""])  # imports before anything is timed
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(count + 1)
    found: Any = context.SimpleQueue()

    def child(index: int) -> None:
        ready = work(index)
        barrier.wait()
        found.put((index, ready(), time.monotonic()))

    processes = [context.Process(target=child, args=(index,), daemon=True) for index in range(count)]
    for process in processes:
        process.start()
    barrier.wait(60)
    started = time.monotonic()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise OSError("a reader failed")
    results = sorted(found.get() for _ in processes)
    return max(ended for _, _, ended in results) - started, [result for _, result, _ in results]


def hold(paths: list[str], size: int, keep: bool, pid: int) -> dict[str, Any]:
    """Read the first `size` bytes of each file; the memory that process `pid` has then, with all of them open (`keep`)
    or the last one only."""
    buffer = memoryview(bytearray(MIB))
    descriptor = -1
    for path in paths:
        if descriptor >= 0 and not keep:
            os.close(descriptor)
        descriptor = os.open(path, os.O_RDONLY)
        for start in range(0, size, MIB):
            _filled(descriptor, buffer[: size - start], start)
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {"resident": int(fields["VmRSS"].split()[0]) * 1024}


PROGRAMS: dict[str, Callable[..., dict[str, Any]]] = {
    program.__name__: program
    for program in (read, compare, download, load, load_parts, fetch_and_load, touch, direct, first, slices, walk, hold)
}


if __name__ == "__main__":
    print(json.dumps(PROGRAMS[sys.argv[1]](**json.loads(sys.argv[2]))))
