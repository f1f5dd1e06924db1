"""Making models and loading them, in a reader's process: what each library reads from one directory and from another.

A loader takes a directory and gives the names of tensors with their bytes.
"""

import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

SHARDS = 3
LAYERS = 4
"""Tensors of each shard, of a MiB and an odd half."""

Tensors = Iterator[tuple[str, bytes]]


def shard_name(number: int) -> str:
    """As hubs name them."""
    return f"model-{number:05d}-of-{SHARDS:05d}.safetensors"


def _arrays(seed: int) -> dict[str, np.ndarray[Any, Any]]:
    dice = np.random.default_rng(seed)
    return {f"layer.{seed}.{n}.weight": dice.standard_normal((413, 977), dtype="<f4") for n in range(LAYERS)}


def make(directory: str) -> None:
    """Write a model in every format; the torch one only where torch is."""
    # Only a reader's process has use for these.
    import gguf  # noqa: PLC0415
    import safetensors.numpy  # noqa: PLC0415

    root, where = Path(directory), {}
    for number in range(1, SHARDS + 1):
        arrays = _arrays(number)
        safetensors.numpy.save_file(arrays, root / shard_name(number), metadata={"format": "pt"})
        where.update(dict.fromkeys(arrays, shard_name(number)))
    (root / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    np.save(root / "table.npy", np.random.default_rng(9).standard_normal((4096, 1024), dtype="<f4"))
    writer = gguf.GGUFWriter(root / "model.gguf", "llama")
    for name, array in _arrays(7).items():
        writer.add_tensor(name, array)
        writer.add_tensor(name + ".half", array.astype("<f2"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    try:
        import torch  # noqa: PLC0415
    except ImportError:
        return
    torch.save({name: torch.from_numpy(array) for name, array in _arrays(8).items()}, root / "model.pt")
    torch.save({f"n{n}": torch.full((1000, 7), n, dtype=torch.bfloat16) for n in range(LAYERS)}, root / "half.pt")


def _safetensors_load_file(root: Path) -> Tensors:
    import safetensors.numpy  # noqa: PLC0415

    for number in range(1, SHARDS + 1):
        for name, array in safetensors.numpy.load_file(root / shard_name(number)).items():
            yield name, array.tobytes()


def _safe_open(root: Path, **options: Any) -> Tensors:
    import safetensors  # noqa: PLC0415

    for number in range(SHARDS, 0, -1):
        with safetensors.safe_open(root / shard_name(number), framework="np", **options) as file:
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                yield name, file.get_tensor(name).tobytes()
                yield name + "[slice]", file.get_slice(name)[100:200].tobytes()


def _safe_open_pread(root: Path) -> Tensors:
    """The back end that does not map, where this version has one."""
    try:
        yield from _safe_open(root, backend="pread")
    except TypeError:
        yield from _safe_open(root)


def _numpy_mapped(root: Path) -> Tensors:
    array = np.load(root / "table.npy", mmap_mode="r")
    for row in range(0, len(array), 400):
        yield str(row), array[row].tobytes()
    yield "all", np.ascontiguousarray(array).tobytes()


def _numpy_plain(root: Path) -> Tensors:
    for number, column in enumerate(np.load(root / "table.npy").T[:8]):
        yield str(number), column.tobytes()


def _gguf(root: Path) -> Tensors:
    import gguf  # noqa: PLC0415

    for tensor in gguf.GGUFReader(root / "model.gguf").tensors:
        yield tensor.name, tensor.data.tobytes()


def _torch(root: Path, **options: Any) -> Tensors:
    import torch  # noqa: PLC0415

    for file in ("model.pt", "half.pt"):
        for name, tensor in torch.load(root / file, weights_only=True, **options).items():
            yield name, tensor.contiguous().view(torch.uint8).numpy().tobytes()


def _torch_mapped(root: Path) -> Tensors:
    yield from _torch(root, mmap=True)


def _torch_safetensors(root: Path) -> Tensors:
    import safetensors.torch  # noqa: PLC0415

    for number in range(1, SHARDS + 1):
        for name, tensor in safetensors.torch.load_file(root / shard_name(number)).items():
            yield name, tensor.numpy().tobytes()


LOADERS: dict[str, Callable[[Path], Tensors]] = {
    "safetensors-load-file": _safetensors_load_file,
    "safetensors-safe-open": _safe_open,
    "safetensors-pread": _safe_open_pread,
    "numpy-mapped": _numpy_mapped,
    "numpy": _numpy_plain,
    "gguf": _gguf,
    "torch": _torch,
    "torch-mapped": _torch_mapped,
    "torch-safetensors": _torch_safetensors,
}


def compare(loader: str, local: str, mounted: str) -> int:
    """How many tensors are the same in both directories; AssertionError for one that is not."""
    load, count = LOADERS[loader], 0
    for (name, expected), (found_name, found) in zip(load(Path(local)), load(Path(mounted)), strict=True):
        assert (found_name, len(found)) == (name, len(expected))
        assert found == expected, f"{loader}: {name} differs"
        count += 1
    return count


def by_index(local: str, mounted: str) -> int:
    """Load each tensor by the index of shards; how many there are."""
    import safetensors  # noqa: PLC0415

    expected = {name: data for number in range(1, SHARDS + 1) for name, data in _arrays(number).items()}
    where = json.loads((Path(mounted) / "model.safetensors.index.json").read_text())["weight_map"]
    assert where == json.loads((Path(local) / "model.safetensors.index.json").read_text())["weight_map"]
    for name, shard in sorted(where.items(), key=lambda pair: pickle.dumps(pair[0])):
        with safetensors.safe_open(Path(mounted) / shard, framework="np") as file:
            assert file.get_tensor(name).tobytes() == expected[name].tobytes()
    return len(where)
