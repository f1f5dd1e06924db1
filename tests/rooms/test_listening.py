"""Where the pages are served: addresses as users write them, and sockets in each other's way."""

import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lazyfs.config import Config
from lazyfs.errors import SetupError, UsageError
from lazyfs.service.listening import Listening
from lazyfs.words import Address, parse_address


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a name that leaves room for that of a socket."""
    with tempfile.TemporaryDirectory(prefix="lazyfs-", dir="/tmp") as name:
        yield Path(name)


@pytest.mark.parametrize(
    ("words", "address"),
    [
        ("127.0.0.1:9567", Address("127.0.0.1", 9567)),
        (" localhost:0 ", Address("127.0.0.1", 0)),
        ("[::1]:80", Address("::1", 80)),
        ("0.0.0.0:9567", Address("0.0.0.0", 9567)),
        ("unix:/run/lazyfs.sock", Address("", 0, "/run/lazyfs.sock")),
    ],
)
def test_addresses(words: str, address: Address) -> None:
    assert parse_address(words) == address


@pytest.mark.parametrize(
    "words",
    [
        "", "9567", ":9567", "*:9567", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1", "[127.0.0.1]:80",
        "::1:80", "[::1]", "300.0.0.1:80", "example.org:80", "http://127.0.0.1:80", "unix:", "unix:relative",
        "unix:/" + "x" * 107, "unix:/a\0b", "127.0.0.1:٣",
    ],
)  # fmt: skip
def test_what_is_no_address(words: str) -> None:
    """P14: nobody listens to the network by leaving an address out."""
    with pytest.raises(UsageError, match=r"; write .*(unix:)"):
        parse_address(words)


def test_a_collector_by_its_url() -> None:
    """No password in it, which every process could read."""
    for url, words in (("http://user:canary@h", "must not hold"), ("collector:4318", "must start with http")):
        with pytest.raises(UsageError, match=words) as caught:
            Config(otlp_endpoint=url)
        assert "canary" not in str(caught.value)


def test_a_port_that_the_kernel_chooses_is_told() -> None:
    for host, url in (("127.0.0.1", "http://127.0.0.1:"), ("::1", "http://[::1]:")):
        listening = Listening(Address(host, 0))
        with listening.socket as made:
            assert listening.where == f"{url}{made.getsockname()[1]}"
            assert made.getsockname()[0] == host


def test_a_port_that_is_taken() -> None:
    words = r"cannot listen at http://127.0.0.1:\d+: Address already in use; choose"
    with Listening(Address("127.0.0.1", 0)).socket as taken, pytest.raises(SetupError, match=words):
        Listening(Address(*taken.getsockname()))


def test_a_unix_socket_is_its_owners(short: Path) -> None:
    """And is gone with who made it, but not one that somebody else put there."""
    path = short / "socket"
    listening = Listening(Address("", 0, str(path)))
    with listening.socket:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with pytest.raises(SetupError, match="another process listens there"):
            Listening(Address("", 0, str(path)))
    again = Listening(Address("", 0, str(path)))  # what a daemon that was killed left is cleared
    listening.close()
    assert path.exists(), "the socket of another"
    again.socket.close()
    again.close()
    assert not path.exists()


@pytest.mark.parametrize("kind", ["file", "link", "folder is missing"])
def test_something_else_is_left_alone(short: Path, kind: str) -> None:
    """Whatever stands at the place of a unix socket."""
    path = short / "there"
    if kind == "file":
        path.write_text("precious")
    elif kind == "link":
        path.symlink_to(short / "elsewhere")
    else:
        path = short / "missing" / "socket"
    with pytest.raises(SetupError, match=f"cannot listen at {path}: .*; choose another"):
        Listening(Address("", 0, str(path)))
    assert kind != "file" or path.read_text() == "precious"
    assert not (short / "elsewhere").exists()


def test_a_socket_nobody_listens_at(short: Path) -> None:
    """Left by one that was killed."""
    path = short / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with Listening(Address("", 0, str(path))).socket:
        pass
