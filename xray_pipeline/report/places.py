"""Where a report lies in the store."""

from __future__ import annotations

PAGE, CARD, EXAMPLES = "report.html", "model-card.md", "examples.npz"


def report_key(candidate: str, champion: int | None, name: str = PAGE) -> str:
    """Return the store's key of the report on a candidate against a champion, or of another file beside the page."""
    return f"reports/{candidate}/against-{champion or 'none'}/{name}"


def comparison_key(candidate: str, champion: int, snapshot: str) -> str:
    """Return the store's key of the page on a candidate beside a version on the held-out radiographs of a snapshot."""
    return report_key(candidate, champion, f"on-{snapshot[:12]}.html")
