"""Every engine behind a real mount, over HTTP and TLS: right bytes, each chunk once, and a warm start without a GET."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lazyfs.config import Config
from tests.mounts.contents import MIB, pages
from tests.mounts.mounting import Mounter, environment, is_mounted, run
from tests.servers.certificates import Certificates
from tests.servers.fast import FastS3Server

SIZE = 24 * MIB + 4097


@pytest.fixture(scope="module", params=["http", "https"])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[FastS3Server, Path]]:
    """A server with one file, and the authority to trust."""
    certificates = Certificates.at(tmp_path_factory.mktemp("certificates"))
    with FastS3Server(ssl_context=certificates.context() if request.param == "https" else None) as server:
        server.put("models", "weights.bin", pages(1, SIZE))
        yield server, certificates.ca


@pytest.mark.parametrize("engine", ["auto", "boto3", "awscrt"])
def test_cold_and_warm(served: tuple[FastS3Server, Path], mounter: Mounter, engine: str) -> None:
    server, ca = served
    for gets in (SIZE, 0):
        server.take_log()
        mount = mounter.mount(server, "s3://models", f"--s3-engine={engine}", f"--ca-bundle={ca}")
        assert (mount.path / "weights.bin").read_bytes() == pages(1, SIZE)
        restarts = mount.settle()["store"]["restarts"]
        mount.unmount()
        asked = [request.range or (0, 0) for request in server.take_log() if request.kind == "GET"]
        reached = 0
        for start, stop in sorted(asked):
            assert start <= reached, "bytes that nobody asked for"
            reached = max(reached, stop)
        assert reached == gets
        # On a machine that is slow, a GET may fall behind, which is asked for again from where it is.
        assert sum(stop - start for start, stop in asked) - gets <= restarts * Config().read_part_size


def test_who_is_not_trusted_is_not_asked(tmp_path: Path, mounter: Mounter) -> None:
    """A certificate of somebody else's authority ends the mount in one sentence, whatever is in the bucket."""
    ours, theirs = (Certificates.at(tmp_path / name) for name in ("ours", "theirs"))
    with FastS3Server(ssl_context=theirs.context()) as server:
        server.put("models", "weights.bin", b"x")
        place, cache = mounter.place(), f"--cache-dir={mounter.cache()}"
        options = [*mounter.options(server), cache, f"--ca-bundle={ours.ca}"]
        done = run(["mount", *options, "--", "s3://models", place], environment(mounter.work / "home", server))
        assert (done.returncode, len(done.stderr.strip().splitlines())) == (1, 1), done.stderr
        assert "certificate" in done.stderr.lower()
        assert not is_mounted(place)
        assert not server.take_log()
