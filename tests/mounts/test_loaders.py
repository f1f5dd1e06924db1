"""Models load through a mount as they do from a local disk, whatever the library: tensor by tensor, byte by byte."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.mounts import loading
from tests.mounts.mounting import Mount, Mounter
from tests.mounts.reader import Reader
from tests.servers.fast import FastS3Server


@dataclass(frozen=True)
class Model:
    """A model on the local disk, and the same through a mount."""

    local: Path
    mount: Mount


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """One model in all formats, in a cold mount that all tests share."""
    local = tmp_path_factory.mktemp("model")
    mounter = Mounter(tmp_path_factory.mktemp("loaders"))
    with Reader() as maker:  # torch stays out of this process
        maker.call("tests.mounts.loading:make", str(local))
    with FastS3Server() as server:
        for path in sorted(local.iterdir()):
            server.add_file("models", f"llm/{path.name}", path)
        yield Model(local, mounter.mount(server, "s3://models/llm/"))
        mounter.end()


@pytest.mark.parametrize("loader", loading.LOADERS)
def test_loads_the_same(model: Model, reader: Reader, loader: str) -> None:
    """First cold, or warm by other tests' doing, then once more."""
    if loader.startswith("torch"):
        pytest.importorskip("torch", reason="torch is not installed")
    for _ in range(2):
        places = str(model.local), str(model.mount.path)
        compared = reader.call("tests.mounts.loading:compare", loader, *places, timeout=100)
        assert compared >= 5, "nothing was compared"


def test_the_index_of_shards_agrees(model: Model, reader: Reader) -> None:
    """As transformers does: which shard holds a tensor is read from the mount, and so is the tensor."""
    assert reader.call("tests.mounts.loading:by_index", str(model.local), str(model.mount.path)) == 3 * loading.LAYERS
