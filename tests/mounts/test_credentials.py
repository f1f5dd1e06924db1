"""P17, P4: credentials that expire while a mount reads: it goes on without a restart, and what is cached outlives them.

The server takes the key of the moment and answers ExpiredToken to every other. Time plays no part: the test says when a
key expires, by requests counted at the server; and all credentials say that they are good for a minute more, which for
botocore is so short that it asks for new ones at each request.
"""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mounts.contents import MIB, pages
from tests.mounts.mounting import Mounter, environment, outlive_moment, wait_until
from tests.mounts.providers import BASE_KEY, CONTAINER_TOKEN, Providers
from tests.mounts.reader import Reader, ReaderDied
from tests.mounts.test_cache import sum_of
from tests.servers.fast import FastS3Server
from tests.servers.faults import Fault
from tests.servers.records import Request

DATA = pages(1, 32 * MIB)
EACH = 6
"""GETs after which a key expires."""

LATE = 3
"""Requests that are refused before there is a new key where credentials come from."""


def expires(seconds: float) -> str:
    """A time as AWS writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))


def _replace(file: Path, text: str) -> None:
    # At once: who reads it must not see a half.
    new = file.with_suffix(".new")
    new.write_text(text)
    new.rename(file)


class Rotation:
    """Who gives keys and who takes them: `issued` is in the credentials, `taken` at the server."""

    def __init__(self, server: FastS3Server, file: Path) -> None:
        self._lock = threading.Lock()
        self._file = file
        self.issued = self.taken = 1
        self.rotating = True
        self.gets = self.late = self.refused = 0
        self.keys: set[int] = set()
        self.issue(1)
        server.fault = self._judge

    def issue(self, number: int) -> None:
        """New credentials are there from now on, and a new web identity."""
        self.issued = number
        _replace(self._file.with_name("token"), f"who-we-are-{number}")
        fields = {"Version": 1, "AccessKeyId": f"AKIA{number}", "SecretAccessKey": "canary-secret"}
        fields |= {"SessionToken": f"canary-token-{number}", "Expiration": expires(60)}
        _replace(self._file, json.dumps(fields))

    def _judge(self, request: Request) -> Fault | None:
        found = re.search(r"Credential=AKIA(\d+)/", request.headers.get("authorization", ""))
        with self._lock:
            if found is None or int(found[1]) != self.taken:
                self.refused += 1
                self.late += 1
                if self.rotating and self.late == LATE:
                    self.issue(self.taken)
                return Fault(status=400, code="ExpiredToken")
            assert request.headers["x-amz-security-token"] == f"canary-token-{self.taken}"
            self.keys.add(self.taken)
            self.gets += request.kind == "GET"
            if self.rotating and request.kind == "GET" and self.gets % EACH == 0:
                self.taken += 1
                self.late = 0
            return None


@pytest.fixture
def rotation(s3: FastS3Server, tmp_path: Path) -> Rotation:
    """Keys that change under a server with one file, which is too long for one key."""
    s3.put("models", "weights", DATA)
    s3.put("models", "other", DATA[: 4 * MIB])
    return Rotation(s3, tmp_path / "credentials.json")


@pytest.fixture
def providers(tmp_path: Path) -> Iterator[Providers]:
    """Where they come from."""
    made = Providers(tmp_path / "credentials.json", tmp_path / "token")
    yield made
    made.close()


def by_process(work: Path) -> dict[str, str]:
    """An environment in which a command gives the credentials; `work` has them in a file."""
    config = work / "aws-config"
    config.write_text(f"[default]\ncredential_process = cat {work}/credentials.json\n")
    return environment(work / "home", None, AWS_CONFIG_FILE=str(config))


def by_web_identity(work: Path, providers: Providers) -> dict[str, str]:
    """STS gives them, to who shows the token in a file, which changes as they do."""
    more = {"AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/models", "AWS_ROLE_SESSION_NAME": "lazyfs"}
    more |= {"AWS_WEB_IDENTITY_TOKEN_FILE": str(work / "token"), "AWS_ENDPOINT_URL_STS": providers.url}
    return environment(work / "home", None, **more)


def by_assumed_role(work: Path, providers: Providers) -> dict[str, str]:
    """STS gives them, to who has the key of the profile that may assume the role."""
    config = work / "aws-config"
    config.write_text(
        "[default]\nrole_arn = arn:aws:iam::123456789012:role/models\nsource_profile = base\nregion = us-east-1\n"
        f"[profile base]\naws_access_key_id = {BASE_KEY}\naws_secret_access_key = canary-base\n"
    )
    more = {"AWS_CONFIG_FILE": str(config), "AWS_ENDPOINT_URL_STS": providers.url}
    return environment(work / "home", None, **more)


def by_role_of_environment(work: Path, providers: Providers) -> dict[str, str]:
    """The same, where the key is in the environment, of which the profile speaks as its credential_source."""
    config = work / "aws-config"
    config.write_text(
        "[profile models]\nrole_arn = arn:aws:iam::123456789012:role/models\ncredential_source = Environment\n"
        "region = us-east-1\n"
    )
    more = {"AWS_CONFIG_FILE": str(config), "AWS_ENDPOINT_URL_STS": providers.url, "LAZYFS_PROFILE": "models"}
    more |= {"AWS_ACCESS_KEY_ID": BASE_KEY, "AWS_SECRET_ACCESS_KEY": "canary-base"}
    return environment(work / "home", None, **more)


def by_container(work: Path, providers: Providers) -> dict[str, str]:
    """The endpoint of a container gives them, as on ECS and by EKS Pod Identity."""
    more = {"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{providers.url}/container"}
    return environment(work / "home", None, AWS_CONTAINER_AUTHORIZATION_TOKEN=CONTAINER_TOKEN, **more)


def by_instance(work: Path, providers: Providers) -> dict[str, str]:
    """The metadata service of an instance gives them, version 2."""
    more = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": providers.url, "AWS_EC2_METADATA_DISABLED": "false"}
    return environment(work / "home", None, **more)


def by_command(work: Path, _: Providers) -> dict[str, str]:
    """A command prints them."""
    return by_process(work)


CHANGING: dict[str, tuple[Callable[[Path, Providers], dict[str, str]], str]] = {
    "process": (by_command, ""),
    "web identity": (by_web_identity, "AssumeRoleWithWebIdentity"),
    "assumed role": (by_assumed_role, "AssumeRole"),
    "role of the environment": (by_role_of_environment, "AssumeRole"),
    "container": (by_container, "container"),
}
"""Where they come from: the environment, and what is asked for there."""

OPTIONS = ("--read-part-size=1MiB", "--max-connections=4", "--log-level=debug")


@pytest.mark.parametrize("provider", CHANGING)
def test_keys_expire_under_a_mapped_reader(
    s3: FastS3Server, mounter: Mounter, reader: Reader, rotation: Rotation, providers: Providers, provider: str
) -> None:
    """Five keys and more for one file: it is read to its end, by the daemon that began it, and nothing failed."""
    env, asked = CHANGING[provider][0](mounter.work, providers), CHANGING[provider][1]
    mount = mounter.mount(s3, "s3://models", *OPTIONS, env=env)
    assert reader.call("mapped_digest", str(mount.path / "weights"), "sequential") == sum_of(DATA)[1]
    assert len(rotation.keys) >= 5
    assert rotation.refused >= LATE * (len(rotation.keys) - 1)
    stats = mount.settle()
    assert (stats["failures"], stats["pid"], stats["chunks"]["corrupt"]) == (0, mount.pid, 0)
    assert stats["store"]["retries"] >= rotation.refused - 1
    assert stats["store"]["bytes_received"] == len(DATA), "nothing was fetched twice"
    assert providers.asked.keys() == ({asked} if asked else set())
    assert provider != "web identity" or len(providers.identities) >= 5, "the token in the file is read anew"
    assert mount.unmount() == 0
    assert "canary" not in mount.logged()


def test_an_instance_has_credentials(
    s3: FastS3Server, mounter: Mounter, reader: Reader, rotation: Rotation, providers: Providers
) -> None:
    """Of its role, asked for as version 2 of the metadata service wants it. They do not expire here: botocore holds
    those that an instance has for good for ten minutes more than they say."""
    rotation.rotating = False
    mount = mounter.mount(s3, "s3://models", *OPTIONS, env=by_instance(mounter.work, providers))
    assert reader.call("digest", str(mount.path / "weights")) == sum_of(DATA)
    assert providers.asked.keys() == {"session", "instance"}
    assert rotation.keys == {1}
    assert mount.settle()["failures"] == 0
    assert "canary" not in mount.logged()


def test_what_is_cached_outlives_the_credentials(
    s3: FastS3Server, mounter: Mounter, reader: Reader, rotation: Rotation
) -> None:
    """The command that gives them is broken, and S3 refuses the last: what was read is read again, by name, mapped and
    with a listing that is too old; what was not read fails after the retry budget, as EIO and not as a changed file;
    and all of it works again when there are credentials again."""
    expect = ["cannot list '', going on with", "read failed with EIO: .*weights", "Refreshing temporary credentials"]
    expect += [r"^(Traceback|  |\w+(\.\w+)*(Error|Exception)|During handling|The above exception|$)"]
    rotation.rotating = False
    options = (*OPTIONS, "--metadata-ttl=0s", "--retry-budget=1s")
    mount = mounter.mount(s3, "s3://models", *options, env=by_process(mounter.work), expect=expect)
    assert reader.call("digest", str(mount.path / "other")) == sum_of(DATA[: 4 * MIB])
    fd = reader.call("open_file", str(mount.path / "weights"))
    assert reader.call("pread", fd, 4096, 0) == DATA[:4096]
    mount.settle()
    credentials = mounter.work / "credentials.json"
    credentials.unlink()
    rotation.taken = 2
    outlive_moment()
    assert reader.call("digest", str(mount.path / "other")) == sum_of(DATA[: 4 * MIB])
    assert reader.call("mapped_digest", str(mount.path / "other"), "random") == sum_of(DATA[: 4 * MIB])[1]
    with pytest.raises(OSError, match="Input/output error"):
        reader.call("pread", fd, 4096, 30 * MIB)
    rotation.issue(2)
    assert reader.call("pread", fd, 4096, 30 * MIB) == DATA[30 * MIB : 30 * MIB + 4096]
    assert reader.call("digest", str(mount.path / "weights")) == sum_of(DATA)
    assert mount.stats()["pid"] == mount.pid
    assert "canary" not in mount.logged()


def test_a_warm_start_needs_no_credentials(
    s3: FastS3Server, mounter: Mounter, reader: Reader, rotation: Rotation
) -> None:
    """P4: the command that gives them is broken when the mount starts. What is cached is read, what is not fails after
    the retry budget, and both go on when there are credentials."""
    expect = ["there are no credentials yet", "cannot list '', going on with", "read failed with EIO: .*weights"]
    rotation.rotating = False
    options = (*OPTIONS, "--metadata-ttl=0s", "--retry-budget=1s")
    mount = mounter.mount(s3, "s3://models", *options, env=by_process(mounter.work))
    assert reader.call("digest", str(mount.path / "other")) == sum_of(DATA[: 4 * MIB])
    mount.settle()
    wait_until(lambda: mount.stats()["verified"]["under_way"] == 0, "it is verified")
    assert mount.unmount() == 0
    (mounter.work / "credentials.json").unlink()
    again = mounter.mount(s3, "s3://models", *options, env=by_process(mounter.work), expect=expect)
    assert reader.call("digest", str(again.path / "other")) == sum_of(DATA[: 4 * MIB])
    with pytest.raises(OSError, match="Input/output error"):
        reader.call("digest", str(again.path / "weights"))
    rotation.issue(rotation.taken)
    assert reader.call("digest", str(again.path / "weights")) == sum_of(DATA)
    assert again.unmount() == 0


def test_credentials_that_are_expired_when_they_come(
    s3: FastS3Server, mounter: Mounter, reader: Reader, rotation: Rotation
) -> None:
    """As from a clock that goes wrong: asked again, like every trouble that passes, and no defect of ours."""
    expect = ["Credentials were refreshed, but"]
    rotation.rotating = False
    mount = mounter.mount(s3, "s3://models", *OPTIONS, env=by_process(mounter.work), expect=expect)
    credentials = mounter.work / "credentials.json"
    good = credentials.read_text()
    fields = json.loads(good) | {"Expiration": expires(-60)}
    new = credentials.with_suffix(".new")
    new.write_text(json.dumps(fields))
    new.rename(credentials)
    refused = threading.Event()

    def renew() -> None:
        while not refused.wait(0.01):
            if "refreshed credentials are still expired" in mount.logged():
                credentials.write_text(good)
                return

    renewing = threading.Thread(target=renew)
    renewing.start()
    try:
        assert reader.call("digest", str(mount.path / "weights")) == sum_of(DATA)
    except ReaderDied:
        pytest.fail("the reader died of it")
    finally:
        refused.set()
        renewing.join()
    assert mount.stats()["failures"] == 0
    assert mount.stats()["store"]["retries"] >= 1
