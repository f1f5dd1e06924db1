"""Loading a model of safetensors shards: cold (R5), and warm after a remount (R6)."""

import shutil
import time
from collections import Counter
from collections.abc import Iterator

from lazyfs.config import Config
from scripts.benchmarks.results import Line, at_most
from scripts.benchmarks.rows import Row
from scripts.benchmarks.stage import BUCKET, CONNECTIONS, MODEL, PART, SHAPED, Stage, WrongBytes


def check(stage: Stage, loaded: dict[str, int]) -> None:
    """`WrongBytes` unless the tensors are those of the model itself."""
    if loaded["digest"] != stage.work("load", directory=str(stage.model))["digest"]:
        raise WrongBytes("a tensor has other bytes than the model's")


class Load(Row):
    """Every tensor through the mount, against downloading all shards and loading them then."""

    name = "R5"

    def run(self, stage: Stage) -> Iterator[Line]:
        """As soon as the tensors are there, and how soon the first one is."""
        ours, theirs, first, fetched = [], [], [], []
        reads, demand = [], []
        for turn in range(stage.repeat):
            keys = stage.prepare_model()
            with stage.fresh(SHAPED) as mount:
                loaded = stage.work("load", directory=str(mount.path / MODEL))
                counted = mount.settle()
                reads.append(counted["reads"]["count"])
                demand.append(counted["store"]["demand_bytes"] >> 20)
                if turn == 0:
                    check(stage, loaded)
            ours.append(loaded["seconds"])
            first.append(loaded["first"] * 1000)
            stage.prepare_model()
            target = stage.scratch / "downloaded"
            target.mkdir()
            got = stage.work(
                "fetch_and_load",
                endpoint=stage.endpoint,
                bucket=BUCKET,
                keys=keys,
                directory=str(target),
                connections=CONNECTIONS,
                part=PART,
            )
            shutil.rmtree(target)
            theirs.append(got["seconds"])
            fetched.append(got["fetched"])
        size = sum(path.stat().st_size for path in stage.model.iterdir())
        yield Line(
            row=self.name,
            workload=f"safetensors load, cold, shaped, {size >> 20} MiB / boto3 download, then load",
            unit="s",
            ours=ours,
            theirs=theirs,
            bound=at_most(0.6),
            note=f"download alone {min(fetched):.2f} s; daemon had {', '.join(map(str, reads))} reads, "
            f"fetched {', '.join(map(str, demand))} MiB urgently",
        )
        yield Line(
            row=self.name,
            workload="  first tensor / time to first byte",
            unit="ms",
            ours=first,
            theirs=[SHAPED.first_byte_delay * 1000],
            bound=at_most(10),
        )


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
