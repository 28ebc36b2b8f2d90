"""Where a report lies in the store."""

from __future__ import annotations

PAGE, CARD, EXAMPLES = "report.html", "model-card.md", "examples.npz"


def report_key(candidate: str, champion: int | None, name: str = PAGE) -> str:
    """Return the store's key of the report on a candidate against a champion, or of another file beside the page."""
    return f"reports/{candidate}/against-{champion or 'none'}/{name}"
