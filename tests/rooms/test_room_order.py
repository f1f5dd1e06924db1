"""The order of the rooms, read from the imports."""

import ast
import functools
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lazyfs

ROOT = Path(lazyfs.__file__).parent
MODULES = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py"))

ORDER = ("nouns", "stores", "cache", "archives", "reading", "filesystem", "models", "service", "cli", "door")
DOOR = {"__init__.py", "aio.py", "fastapi.py"}
"""What programs import: it gives them names out of any room, and no room imports those from it."""

NOUNS = {"__init__", "errors", "objects", "dense", "moments", "words", "config", "tallies"}

ONLY_IN = {
    "boto3": ("stores/client.py",),
    "botocore": (
        "stores/border.py",
        "stores/client.py",
        "stores/history.py",
        "stores/lister.py",
        "stores/probe.py",
        "stores/s3.py",
        "stores/signing.py",
    ),
    "urllib3": ("stores/border.py",),
    "indexed_gzip": ("archives/gz.py",),
    "lmdb": ("cache/index.py",),
    "zstandard": ("archives/zst.py",),
    "pyfuse3": ("filesystem/fuse.py", "filesystem/guard.py", "filesystem/session.py"),
    "prometheus_client": ("service/metrics.py", "service/otlp.py"),
    "opentelemetry": ("service/otlp.py",),
    "fastapi": ("fastapi.py",),
    "h11": ("service/http.py",),
    "click": ("cli/",),
    "rich": ("cli/page.py", "cli/top.py"),
}
"""Library and where it may be imported; a folder ends in a slash."""

LONGEST = 360
"""Lines of a module. Past about 300 the noun is split; this says when it is high time."""


def room_of(parts: tuple[str, ...]) -> str:
    """The room of a module, given by its path below lazyfs."""
    if not parts or (len(parts) == 1 and parts[0] in NOUNS):
        return "nouns"
    return "cli" if parts[0] == "__main__" else parts[0]


@functools.cache
def imported(module: str) -> tuple[str, ...]:
    """The dotted names that a module imports, wherever in it."""
    return tuple(_imported(module))


def _imported(module: str) -> Iterator[str]:
    for node in ast.walk(ast.parse((ROOT / module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of_import(name: str) -> str:
    """The room of a dotted name in lazyfs, whose last parts may not be modules."""
    parts = tuple(name.split(".")[1:])
    while parts and not (ROOT.joinpath(*parts).is_dir() or ROOT.joinpath(*parts).with_suffix(".py").is_file()):
        parts = parts[:-1]
    return room_of(parts)


@pytest.mark.parametrize("module", MODULES)
def test_a_room_imports_only_rooms_above_it(module: str) -> None:
    room = "door" if module in DOOR else room_of(Path(module).with_suffix("").parts)
    below = ORDER[ORDER.index(room) + 1 :]
    wrong = [name for name in imported(module) if name.split(".")[0] == "lazyfs" and room_of_import(name) in below]
    assert wrong == []


@pytest.mark.parametrize("module", MODULES)
def test_a_library_is_imported_where_it_is_translated(module: str) -> None:
    libraries = {name.split(".")[0] for name in imported(module)} & ONLY_IN.keys()
    assert [name for name in libraries if not module.startswith(ONLY_IN[name])] == []


@pytest.mark.parametrize(
    "module", [name for name in MODULES if name.startswith("reading/") or Path(name).stem in NOUNS - {"__init__"}]
)
def test_pure_rooms_need_no_library(module: str) -> None:
    roots = {name.split(".")[0] for name in imported(module)}
    assert roots - sys.stdlib_module_names == roots & {"lazyfs"}


def test_the_table_of_libraries_is_not_out_of_date() -> None:
    for library, where in ONLY_IN.items():
        users = {m for m in MODULES if library in {name.split(".")[0] for name in imported(m)}}
        assert all(any(user.startswith(place) for user in users) for place in where), library


@pytest.mark.parametrize("module", MODULES)
def test_a_module_opens_with_its_charter_and_is_not_too_long(module: str) -> None:
    text = (ROOT / module).read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text))
    assert len(text.splitlines()) <= LONGEST
