"""What the rows of an intake table add up to, for the result and the page of a delivery."""

from __future__ import annotations

from typing import Any, Final

import pandas as pd

from xray_pipeline.dataset.revisions import CONFLICT

_NEAR_COPIES: Final = {"copy-across-split": "across the split", CONFLICT: "two labels", "": "same side"}
"""What is said of a file that has a near copy, by the reason in its row."""
_LISTED = 1000  # near copies listed in a result


def by_value(frame: pd.DataFrame, column: str) -> dict[str, int]:
    """Return how many rows have each value of a column, by value."""
    return {str(value): int(count) for value, count in sorted(frame[column].value_counts().items())}


def png_depths(table: pd.DataFrame) -> dict[str, int]:
    """Return how many 16-bit PNGs of an intake table hold values of how many bits, and so are scaled if not of 16."""
    return by_value(table[(table["format"] == "png") & (table["mode"] == "I;16")], "bits")


def near_copies(table: pd.DataFrame) -> dict[str, Any]:
    """Return the near copies of an intake table as JSON-able values: `across_split` and `two_labels` count files that
    are quarantined for it, `same_side` accepted ones.

    `listed` has the first 1,000 as {"row", "of", "verdict", "why"}: `of` is "row N" (of this delivery) or "dataset
    <digest, 12 digits>", and `why` says which of the three it is.
    """
    near = table[(table["near_copy"] != "") & table["reason"].isin(list(_NEAR_COPIES))]
    compared = table[(table["verdict"] == "accepted") | (table["near_copy"] != "") | (table["reason"] == CONFLICT)]
    row_of = {digest: f"row {row}" for row, digest in compared["digest"][::-1].items()}
    first = near.head(_LISTED)
    listed = [
        {
            "row": int(row),
            "of": row_of.get(copy, f"dataset {copy[:12]}"),
            "verdict": verdict,
            "why": _NEAR_COPIES[reason],
        }
        for row, copy, verdict, reason in first[["near_copy", "verdict", "reason"]].itertuples(name=None)
    ]
    across, differing, same = (int((near["reason"] == reason).sum()) for reason in _NEAR_COPIES)
    return {"across_split": across, "two_labels": differing, "same_side": same, "listed": listed}
