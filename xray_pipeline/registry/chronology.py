"""When entries were made, as far as their clocks tell; their order is known in any case.

A clock that is wrong is found by the others: times that rise with the order are believed, the fewest others are not,
and what was made between two believed times was made at any moment between them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from xray_pipeline.base.errors import LedgerError

SKEW = timedelta(minutes=5)
"""How far apart clocks may be that are taken for right."""


def text(moment: datetime) -> str:
    """Return an aware time as ISO 8601 in UTC, which sorts as text. Raises LedgerError without a time zone."""
    if moment.tzinfo is None:
        raise LedgerError(f"{moment.isoformat()} has no time zone; add one, such as +00:00")
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def stamp(now: str, store: datetime, before: str, idle_days: int) -> str:
    """Return the time to write on the entry that follows one of time `before` ("" for none); `store` is its own time.

    It is the clock's, but within `SKEW` never earlier than `before`. Raises LedgerError for a clock that is ahead.
    """
    if now > text(store + SKEW):
        raise LedgerError(
            f"this machine's clock says {now[:19]}Z, the store's own {text(store)[:19]}Z; set the clock right, then "
            f"repeat"
        )
    if not before:
        return now
    gap = datetime.fromisoformat(now) - datetime.fromisoformat(before)
    if gap > timedelta(days=idle_days):
        raise LedgerError(
            f"this machine's clock says {now[:19]}Z, {gap.days:,} days after the newest entry; set the clock right or, "
            f"if nothing was decided for so long, XRAY_IDLE_DAYS={gap.days + 1}, then repeat"
        )
    return before if timedelta(0) < -gap <= SKEW else now


def made_by(times: Sequence[str], until: str, now: str) -> tuple[int, int]:
    """Return how many entries, whose `times` are in the order they were made, were made by `until`: surely, at most."""
    if until >= now:
        return len(times), len(times)
    believed = _believed(times, now)
    earliest: list[str] = []
    for at, good in zip(times, believed, strict=True):
        earliest.append(at if good else earliest[-1] if earliest else "")
    latest: list[str] = []
    for at, good in zip(reversed(times), reversed(believed), strict=True):
        latest.append(at if good else latest[-1] if latest else now)
    return bisect_right(latest[::-1], until), bisect_right(earliest, until)


def _believed(times: Sequence[str], now: str) -> list[bool]:
    """Say which times are part of every longest series that rises with the order and ends by `now`.

    Lengths of rising series by patience sorting (Fredman, 1975), from the front and from the back.
    """
    front = _lengths([at if at <= now else None for at in times])
    mirrored = [None if at > now else at.translate(_MIRROR) for at in reversed(times)]
    back = _lengths(mirrored)[::-1]
    longest = max(front, default=0)
    members = [bool(a) and a + b - 1 == longest for a, b in zip(front, back, strict=True)]
    rivals = Counter(a for a, member in zip(front, members, strict=True) if member)
    return [member and rivals[a] == 1 for a, member in zip(front, members, strict=True)]


_MIRROR = str.maketrans("0123456789", "9876543210")  # times of equal form then sort the other way round


def _lengths(times: Sequence[str | None]) -> list[int]:
    """Return the length of the longest series that never falls and ends at each time; 0 for None."""
    ends: list[str] = []
    lengths = []
    for at in times:
        place = -1 if at is None else bisect_right(ends, at)
        if at is not None:
            ends[place : place + 1] = [at]
        lengths.append(place + 1)
    return lengths
