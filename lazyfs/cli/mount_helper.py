"""`mount.lazyfs`: what mount(8) runs for `mount -t lazyfs SOURCE DIR -o ...` and for lines in fstab.

It gets `SOURCE DIR [-sfnv] [-N namespace] [-o options] [-t type]`, says nothing when all is well, and returns when the
mount is ready.
"""

import dataclasses
import os
import sys

from lazyfs.cli.background import fail
from lazyfs.cli.main import cli
from lazyfs.cli.settings import flag_name
from lazyfs.cli.sources import NAMELESS
from lazyfs.config import Config
from lazyfs.errors import UsageError
from lazyfs.words import parse_flag

# fmt: off
IGNORED = frozenset({
    "rw", "ro", "defaults", "auto", "noauto", "user", "users", "nouser", "owner", "group", "nofail", "_netdev",
    "nosuid", "suid", "nodev", "dev", "exec", "relatime", "norelatime", "noatime", "atime", "nodiratime",
    "strictatime", "lazytime", "async", "sync", "dirsync", "nomand", "silent", "loud", "default_permissions",
})
# fmt: on
"""Words of mount(8) and fstab that say nothing to us: a mount is always ro, nosuid, nodev, noatime."""


def main() -> None:
    """Entry point of the `mount.lazyfs` script."""
    try:
        arguments = translate(sys.argv[1:])
    except UsageError as error:
        fail(error, 1)
        return
    # mount(8) hands on an environment without these; botocore and the default cache place need them.
    os.environ.setdefault("HOME", os.path.expanduser("~"))
    os.environ.setdefault("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    cli(["mount", *arguments])


def translate(arguments: list[str]) -> list[str]:
    """mount(8)'s arguments as those of `lazyfs mount`. `UsageError` for a word that is neither ours nor mount(8)'s."""
    places: list[str] = []
    words: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == "-o":
            words += split_options(next(rest, ""))
        elif argument.startswith("-o"):
            words += split_options(argument[2:])
        elif argument in ("-t", "-N"):
            next(rest, None)
        elif not argument.startswith("-"):
            places.append(argument)
    if len(places) != 2:
        raise UsageError("mount.lazyfs takes a source and a directory: mount -t lazyfs s3://bucket/prefix/ /dir")
    settings = {flag_name(field.name): field.metadata["parse"] is parse_flag for field in dataclasses.fields(Config)}
    flags = []
    for word in words:
        name, equals, value = word.partition("=")
        name = flag_name(name)
        if name in ("config", "source", "source-option") and equals:
            flags.append(f"--{name}={value}")
        elif settings.get(name):
            flags.append(f"--{name}" if parse_flag(value) else f"--no-{name}")
        elif name in settings:
            flags.append(f"--{name}={value}")
        elif word not in IGNORED and not word.startswith(("x-", "comment=", "uhelper=")):
            raise UsageError(f"mount.lazyfs does not know the option {word!r}; `lazyfs mount --help` lists them")
    # Something must stand before the directory, also where options or a file name the sources: lazyfs or none, of which
    # mount(8) makes a path where there is a file of that name.
    word = places[0].rpartition("/")[2] if places[0].startswith("/") else places[0]
    return [*flags, "--", *(places[1:] if word in NAMELESS else places)]


def split_options(text: str) -> list[str]:
    """The words of an `-o` list; a comma inside a value is written with a backslash before it."""
    words, word, escaped = [], "", False
    for letter in text:
        if escaped or (letter not in ",\\"):
            word, escaped = word + letter, False
        elif letter == "\\":
            escaped = True
        else:
            words.append(word)
            word = ""
    return [w for w in [*words, word] if w]
