"""What `scripts/demo` runs: mount, load a model lazily, show what it cost, remount, load it again warm."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from tests.servers.swift import SwiftServer

SHARDS = 4
LAYERS = 8
"""Layers of a shard. With WIDTH 1024 a layer is 8 MiB, a shard 64 MiB, the model 256 MiB."""
WIDTH = 1024


def say(text: str) -> None:
    """One line for the person who watches."""
    print(text, flush=True)


def mib(count: int) -> str:
    """Bytes in MiB."""
    return f"{count / 2**20:.1f} MiB"


def make_model(directory: Path) -> None:
    """A small but real multi-shard safetensors model, as the hub lays them out: shards and an index."""
    rng = np.random.default_rng(0)
    weight_map: dict[str, str] = {}
    for shard in range(SHARDS):
        name = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        tensors = {
            f"layers.{shard * LAYERS + layer}.{part}": rng.standard_normal((WIDTH, WIDTH), dtype=np.float32)
            for layer in range(LAYERS)
            for part in ("attention.weight", "mlp.weight")
        }
        save_file(tensors, directory / name)
        weight_map |= dict.fromkeys(tensors, name)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def lazyfs(*arguments: str) -> str:
    """Run the lazyfs command; its output. Its own sentence ends the demo if it fails."""
    done = subprocess.run([sys.executable, "-m", "lazyfs", *arguments], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(done.returncode)
    return done.stdout


@contextmanager
def mounted(source: str, mountpoint: Path, options: list[str]) -> Iterator[None]:
    """A mount for a while."""
    started = time.perf_counter()
    lazyfs("mount", *options, "--", source, str(mountpoint))
    say(f"  mounted {source} in {time.perf_counter() - started:.2f} s")
    try:
        yield
    finally:
        lazyfs("unmount", str(mountpoint))


def stats(mountpoint: Path) -> dict[str, Any]:
    """The mount's counters."""
    found: dict[str, Any] = json.loads(lazyfs("stats", "--json", str(mountpoint)))
    return found


def touch_all(shards: list[Path]) -> tuple[float, float, int]:
    """Load every tensor of every shard through its memory map: seconds to the first, seconds to all, and how many."""
    started = time.perf_counter()
    first, count = 0.0, 0
    for shard in shards:
        with safe_open(shard, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a mapping
                tensors.get_tensor(name).max()
                count += 1
                first = first or time.perf_counter() - started
    return first, time.perf_counter() - started, count


def read_all(files: list[Path]) -> tuple[float, float, int]:
    """The same for files that are not safetensors: read them through."""
    started = time.perf_counter()
    first = 0.0
    buffer = bytearray(2**20)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                first = first or time.perf_counter() - started
    return first, time.perf_counter() - started, len(files)


def show(title: str, mountpoint: Path) -> None:
    """Load everything below the mountpoint and say what it cost."""
    files = sorted(path for path in mountpoint.rglob("*") if path.is_file())
    shards = [path for path in files if path.suffix == ".safetensors"]
    size = sum(path.stat().st_size for path in shards or files)
    before = stats(mountpoint)["store"]
    if title == "cold" and shards:
        with safe_open(shards[0], framework="numpy") as tensors:
            name = next(iter(tensors.keys()))
            shape = tensors.get_slice(name).get_shape()
        opened = stats(mountpoint)["store"]["bytes_received"] - before["bytes_received"]
        say(f"  opened {shards[0].name}: {name} is {shape}; fetched {mib(opened)} of {mib(size)}")
    first, seconds, count = touch_all(shards) if shards else read_all(files)
    after = stats(mountpoint)["store"]
    what = "tensors" if shards else "files"
    say(f"  {title}: first of {count} {what} after {first * 1000:.0f} ms, all after {seconds:.2f} s")
    say(
        f"  {title}: fetched {mib(after['bytes_received'] - before['bytes_received'])} for {mib(size)} of model; "
        f"requests: {after['get_requests'] - before['get_requests']} GET, {after['head_requests']} HEAD, "
        f"{after['list_requests']} LIST since the mount"
    )


def demonstrate(source: str, options: list[str], scratch: Path) -> None:
    """Cold, then warm from the disk cache after a remount."""
    mountpoint = scratch / "models"
    mountpoint.mkdir()
    if not any(option.startswith("--cache-dir") for option in options):
        (scratch / "cache").mkdir(mode=0o700)
        options = [*options, f"--cache-dir={scratch / 'cache'}"]
    options = [*options, f"--log-file={scratch / 'log'}"]
    say("\nCold: nothing is on this machine yet.")
    with mounted(source, mountpoint, options):
        show("cold", mountpoint)
    say("\nWarm: unmounted and mounted again, bytes come from the cache on disk.")
    with mounted(source, mountpoint, options):
        show("warm", mountpoint)


def main() -> None:
    """The user's bucket where one is named, else a server and a model of our own."""
    with tempfile.TemporaryDirectory(prefix="lazyfs-demo-") as place:
        scratch = Path(place)
        if len(sys.argv) > 1:
            demonstrate(sys.argv[1], sys.argv[2:], scratch)
            return
        say(f"Starting OpenStack Swift with its S3 API, and uploading a model of {SHARDS} shards.")
        (scratch / "model").mkdir()
        (scratch / "swift").mkdir()
        make_model(scratch / "model")
        with SwiftServer(scratch / "swift") as server:
            client = server.client()
            client.create_bucket(Bucket="models")
            for path in sorted((scratch / "model").iterdir()):
                client.upload_file(str(path), "models", f"tiny-llm/v1/{path.name}")
            for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_CA_BUNDLE"):
                os.environ.pop(name, None)
            os.environ |= {"AWS_ACCESS_KEY_ID": server.access_key, "AWS_SECRET_ACCESS_KEY": server.secret_key}
            demonstrate("s3://models/tiny-llm/v1/", [f"--endpoint-url={server.url}"], scratch)
    say("\nNext: scripts/demo s3://your-bucket/prefix/ does the same with your model.")


if __name__ == "__main__":
    main()
