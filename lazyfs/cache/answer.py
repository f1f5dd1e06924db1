"""What a claim of space on disk is answered with. Pure; `ledger.py` says when."""

import enum


class Answer(enum.Enum):
    """To a claim; true if it was granted.

    NO_ROOM: beyond the bound. BLOCKED: a grave is in its place, or an earlier claim of this daemon was never settled;
    tidying up ends both. STALE: the object file has another generation by now.
    """

    GRANTED = "granted"
    NO_ROOM = "no room"
    BLOCKED = "blocked"
    STALE = "stale"

    def __bool__(self) -> bool:
        return self is Answer.GRANTED
