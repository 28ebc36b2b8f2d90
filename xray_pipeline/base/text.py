"""Text for people."""

from __future__ import annotations

APPROVE, REJECT = "Approve", "Reject"
"""What a person who is asked may answer."""


def shortened(text: str, most: int) -> str:
    """A text of at most so many characters; what is cut ends with an ellipsis."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
