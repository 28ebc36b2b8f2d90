"""Text for people."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

APPROVE, REJECT = "Approve", "Reject"
"""What a person who is asked may answer."""
ACTIONS = {"acknowledge": "acknowledge its drift alarms", "rejudge": "judge it anew"}
"""What a person may do about a delivery, each in words."""
BARRED = "Not to be promoted."
"""The reason after which a decision says what stands against promoting a version that is registered."""
SHORTEST_REASON = 3
"""Characters of a reason, at least."""


def shortened(text: str, most: int) -> str:
    """A text of at most so many characters; what is cut ends with an ellipsis."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def several(count: int, noun: str, plural: str = "") -> str:
    """A number of things: 1 radiograph, 1,204 radiographs."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return "; did you mean X?" for the one of the names that is nearest to a mistyped one, "" where none is near."""
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def without_passwords(text: str) -> str:
    """Return a message without the passwords that addresses in it (`scheme://user:password@host`) may hold."""
    return re.sub(r"(://[^\s:/@]*):[^\s/]*@", r"\1:***@", text)


def without_names(why: str) -> str:
    """Return a sentence on a delivery without what it quotes: a folder or a label may be a patient's name."""
    return re.sub(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", "'...'", why)
