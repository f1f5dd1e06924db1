"""Loading a model of safetensors shards: cold (R5), and warm after a remount (R6)."""

import shutil
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from lazyfs.config import Config
from scripts.benchmarks.results import Line, at_most
from scripts.benchmarks.rows import Row, in_turns
from scripts.benchmarks.stage import BUCKET, CONNECTIONS, MIB, MODEL, PART, SHAPED, TLS_SHAPED, Stage, WrongBytes


def check(stage: Stage, loaded: dict[str, int]) -> None:
    """`WrongBytes` unless the tensors are those of the model itself."""
    if loaded["digest"] != stage.work("load", directory=str(stage.model))["digest"]:
        raise WrongBytes("a tensor has other bytes than the model's")


class Load(Row):
    """Every tensor through the mount, against downloading all shards and loading them then."""

    name = "R5"
    shape = SHAPED

    def run(self, stage: Stage) -> Iterator[Line]:
        """As soon as the tensors are there, and how soon the first one is."""
        ours, theirs = in_turns(
            stage.repeat, lambda turn: self._load(stage, turn), lambda _: self._fetch_and_load(stage)
        )
        size = sum(path.stat().st_size for path in stage.model.iterdir())
        reads, urgent = (", ".join(str(one[name]) for one in ours) for name in ("reads", "urgent"))
        yield Line(
            row=self.name,
            workload=f"safetensors load, cold, {self.shape.name}, {size >> 20} MiB / boto3 download, then load",
            unit="s",
            ours=[one["seconds"] for one in ours],
            theirs=[one["seconds"] for one in theirs],
            bound=at_most(0.6),
            note=f"download alone {min(one['fetched'] for one in theirs):.2f} s; daemon had {reads} reads, "
            f"fetched {urgent} MiB urgently",
        )
        yield Line(
            row=self.name,
            workload="  loading what boto3 had downloaded, from the page cache / that and the download",
            unit="s",
            ours=[one["seconds"] - one["fetched"] for one in theirs],
            theirs=[one["seconds"] for one in theirs],
            note="what a mount that answers at once would have",
        )
        yield Line(
            row=self.name,
            workload="  first tensor / time to first byte",
            unit="ms",
            ours=[one["first"] * 1000 for one in ours],
            theirs=[self.shape.first_byte_delay * 1000],
            bound=at_most(10),
        )

    def _load(self, stage: Stage, turn: int) -> dict[str, Any]:
        stage.prepare_model()
        with stage.fresh(self.shape) as mount:
            loaded = stage.work("load", directory=str(mount.path / MODEL))
            counted = mount.settle()
            if turn == 0:
                check(stage, loaded)
        return {**loaded, "reads": counted["reads"]["count"], "urgent": counted["store"]["demand_bytes"] >> 20}

    def _fetch_and_load(self, stage: Stage) -> dict[str, Any]:
        keys = stage.prepare_model()
        stage.shape(self.shape)
        target = stage.scratch / "downloaded"
        target.mkdir()
        wanted = {"bucket": BUCKET, "keys": keys, "connections": CONNECTIONS, "part": PART}
        try:
            return stage.work("fetch_and_load", endpoint=stage.endpoint, directory=str(target), **wanted)
        finally:
            shutil.rmtree(target)


class LoadTls(Load):
    """The same over TLS, boto3 too."""

    name = "R5-TLS"
    shape = TLS_SHAPED


class Ranks(Row):
    """Processes that load each its part of every tensor, side by side and cold, against one that loads all."""

    name = "ranks"
    ranks = 4

    def run(self, stage: Stage) -> Iterator[Line]:
        """No bound: together they want what one wants, and each byte is to be fetched once."""
        ours, theirs = in_turns(
            stage.repeat, lambda turn: self._load(stage, turn, self.ranks), lambda turn: self._load(stage, turn, 1)
        )
        size = sum(path.stat().st_size for path in stage.model.iterdir())
        yield Line(
            row=self.name,
            workload=f"{self.ranks} ranks load their parts of tensors, cold, shaped, {size >> 20} MiB / one loads all",
            unit="s",
            ours=[one["seconds"] for one in ours],
            theirs=[one["seconds"] for one in theirs],
            note="reads that waited: " + ", ".join(str(one["waits"]) for one in ours),
        )
        yield Line(
            row=self.name,
            workload="  fetched for that / bytes of the model",
            unit="MiB",
            ours=[one["fetched"] / MIB for one in ours],
            theirs=[size / MIB],
            bound=at_most(1.01),
        )

    def _load(self, stage: Stage, turn: int, ranks: int) -> dict[str, Any]:
        stage.prepare_model()
        with stage.fresh(SHAPED) as mount:
            loaded = stage.work("load_parts", directory=str(mount.path / MODEL), ranks=ranks)
            waits = mount.settle()["chunks"]["waits"]
            fetched = stage.fetched()
        whole = stage.work("load_parts", directory=str(stage.model), ranks=ranks) if turn == 0 else loaded
        if loaded["sums"] != whole["sums"]:
            raise WrongBytes("a part of a tensor has other bytes than the model's")
        return {**loaded, "waits": waits, "fetched": fetched}


class WarmLoad(Row):
    """A second start on the same node sends nothing."""

    name = "R6"

    def run(self, stage: Stage) -> Iterator[Line]:
        """Load, unmount, mount, load."""
        stage.prepare_model()
        with stage.new_cache() as cache:
            stage.shape(SHAPED)
            listed = time.monotonic()
            with stage.mounted(cache) as mount:
                stage.work("load", directory=str(mount.path / MODEL))
                unkept = mount.settle()["chunks"]["unkept"]
            stage.requests()
            with stage.mounted(cache) as mount:
                loaded = stage.work("load", directory=str(mount.path / MODEL))
                listed = time.monotonic() - listed
                check(stage, loaded)
            kinds = Counter(request.kind for request in stage.requests())
        for kind in ("GET", "HEAD", "LIST"):
            excused = kind == "LIST" and listed > Config().metadata_ttl
            yield Line(
                row=self.name,
                workload=f"warm reload, remounted: {kind} requests",
                ours=[kinds[kind]],
                bound=None if excused else at_most(0),
                note=f"{unkept} chunks had not been kept on disk" if kind == "GET" else "",
            )
