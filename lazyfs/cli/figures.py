"""The numbers of `lazyfs top`, worked out of two looks at a mount. Pure. Must not know how they are shown."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Report = Mapping[str, Any]

TIERS = ("memory", "disk", "store")


@dataclass(frozen=True, slots=True)
class Look:
    """What a mount said at one moment: `stats` as `user.lazyfs.stats`, `activity` as `user.lazyfs.activity` have it."""

    stats: Report
    activity: Report

    @property
    def pid(self) -> int:
        """Of the daemon."""
        return int(self.stats["pid"])


def figures(before: Look, now: Look) -> dict[str, Any]:
    """What `lazyfs top --json` prints: rates in bytes a second since `before`, shares from 0 to 1, or None where there
    was nothing to have a share of."""
    # Of another daemon nothing can be subtracted: somebody has mounted anew.
    if before.pid != now.pid:
        before = now
    seconds = now.activity["at"] - before.activity["at"]
    stats, activity = now.stats, now.activity

    def rate(then: int, until: int) -> float:
        return round((until - then) / seconds, 1) if seconds > 0 else 0.0

    earlier = {file["path"]: file["read"] for file in before.activity["files"]}
    files = [
        # One that was opened anew counts from nothing.
        {**file, "rate": rate(min(earlier.get(file["path"], file["read"]), file["read"]), file["read"])}
        for file in activity["files"]
    ]
    counters = activity["counters"]
    return {
        "source": stats["source"],
        "mountpoint": stats["mountpoint"],
        "pid": stats["pid"],
        "uptime": stats["uptime"],
        "seconds": round(seconds, 3),
        "rates": {name: rate(before.activity["counters"][name], counters[name]) for name in counters},
        "totals": dict(counters),
        "hits": {"now": hits(before.stats, stats), "ever": hits(None, stats)},
        "store": stats["store"],
        "memory": stats["memory"],
        "disk": stats["disk"],
        "failures": stats["failures"],
        "open_files": activity["open_files"],
        "streams": sum(file["streams"] for file in files),
        "ahead": sum(file["ahead"] for file in files),
        "files": sorted(files, key=lambda file: (-file["rate"], not file["handles"])),
        "requests_under_way": activity["requests_under_way"],
        "requests": activity["requests"],
        "words": activity["words"],
    }


def hits(before: Report | None, now: Report) -> dict[str, float | None]:
    """`at_once`: the share of the chunks that readers wanted that were in memory when they came. `memory`, `disk` and
    `store`: where the chunks that readers got were: those that nothing had to bring again, and those brought."""
    used, waits, disk, store = (
        now["chunks"][name] - (before["chunks"][name] if before else 0)
        for name in ("memory_hits", "waits", "disk_hits", "misses")
    )
    # A chunk that is brought is used once at least, or soon will be; each further use is memory's.
    memory = max(0, used - disk - store)
    every = memory + disk + store
    shares = [round(count / every, 4) if every else None for count in (memory, disk, store)]
    return {"at_once": round(max(0, used - waits) / used, 4) if used else None, **dict(zip(TIERS, shares, strict=True))}
