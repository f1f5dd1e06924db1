"""`mount.lazyfs`: mount(8)'s arguments in the words of `lazyfs mount`."""

import pytest

from lazyfs.cli.mount_helper import split_options, translate
from lazyfs.errors import UsageError


def test_options_become_flags() -> None:
    """Underscores are dashes, words of mount(8) are dropped, a flag may have a value."""
    options = "rw,_netdev,nofail,x-systemd.automount,allow_other,max_cache_size=2GiB,no_sign_request=false"
    assert translate(["s3://bucket/x/", "/srv/models", "-o", options]) == [
        "--allow-other",
        "--max-cache-size=2GiB",
        "--no-no-sign-request",
        "--",
        "s3://bucket/x/",
        "/srv/models",
    ]


def test_the_forms_mount_uses() -> None:
    """Options joined to -o, several of them, flags without meaning here, a type."""
    options = ["-oregion=eu-west-1", "-o", "config=/etc/l.toml"]
    arguments = ["-s", "-v", "-t", "lazyfs", "s3://bucket", "/mnt", *options, "-n"]
    assert translate(arguments) == ["--region=eu-west-1", "--config=/etc/l.toml", "--", "s3://bucket", "/mnt"]


def test_a_comma_in_a_value() -> None:
    """Written with a backslash before it."""
    assert split_options(r"a=1\,2,b,c=x\\y") == ["a=1,2", "b", "c=x\\y"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["s3://bucket", "/mnt", "-o", "max_cash_size=1"], "max_cash_size=1"),
        (["s3://bucket"], "a source and a directory"),
        (["s3://bucket", "/mnt", "/more"], "a source and a directory"),
    ],
)
def test_what_is_not_known_is_refused(arguments: list[str], said: str) -> None:
    """A word that is neither ours nor mount(8)'s must not be ignored: it may be a bound that was misspelt."""
    with pytest.raises(UsageError, match=said):
        translate(arguments)
