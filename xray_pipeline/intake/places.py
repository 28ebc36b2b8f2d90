"""Where the intake keeps what it says of a delivery."""

from __future__ import annotations

from xray_pipeline.base.storage import Store

PAGE, VERDICT = "page.html", "checked.json"


def intake_key(delivery: str, name: str) -> str:
    """Return the store's key of a file of a delivery's intake."""
    return f"intake/{delivery}/{name}"


def judged(store: Store) -> set[str]:
    """Return the keys of the deliveries that the intake has a page of.

    The verdict is away while one is judged anew; the page stays. Raises StorageUnavailable.
    """
    return {entry.key.split("/")[1] for entry in store.list("intake") if entry.key.endswith(f"/{PAGE}")}
