"""Source of lazyfs changed as it is imported: to a smaller scale, or broken on purpose.

At 1/256 a chunk is 4 KiB, a span 32 KiB and a segment 256 KiB: the same arithmetic as ever, for a 256th of the copying.
Whatever is imported before `install` is not changed, so this is for a process of its own. Must not know lazyfs beyond
the text of the lines it replaces.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from typing import NamedTuple


class Edit(NamedTuple):
    """In this module, `old`, which is there exactly once, becomes `new`."""

    module: str
    old: str
    new: str


SMALL = (
    Edit("lazyfs.objects", "\nKIB = 1024\n", "\nKIB = 4\n"),
    # Two powers of two that are not written as multiples of a KiB: 64 KiB and 8 MiB.
    Edit("lazyfs.reading.strides", "\n_CELL = 16\n", "\n_CELL = 8\n"),
    Edit("lazyfs.reading.table", "\n_REGION = 23\n", "\n_REGION = 15\n"),
)
"""All that has a size in bytes becomes a 256th of itself."""


class _Edited(SourceFileLoader):
    def __init__(self, fullname: str, path: str, edits: Sequence[Edit]) -> None:
        super().__init__(fullname, path)
        self._edits = edits

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        text = self.get_data(path).decode("utf-8")
        for edit in self._edits:
            if text.count(edit.old) != 1:
                raise AssertionError(f"{edit.module} has not exactly one {edit.old!r}: the edit is out of date")
            text = text.replace(edit.old, edit.new)
        return compile(text, path, "exec", dont_inherit=True)


class _Finder(MetaPathFinder):
    def __init__(self, edits: Sequence[Edit]) -> None:
        self._edits = edits

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        edits = [edit for edit in self._edits if edit.module == fullname]
        spec = PathFinder.find_spec(fullname, path, target) if edits else None
        if spec is not None and spec.origin is not None:
            spec.loader = _Edited(fullname, spec.origin, edits)
        return spec


def install(edits: Sequence[Edit]) -> None:
    """Make these edits in what is imported from now on."""
    early = {edit.module for edit in edits} & sys.modules.keys()
    if early:
        raise AssertionError(f"imported before it could be edited: {', '.join(sorted(early))}")
    sys.meta_path.insert(0, _Finder(edits))
