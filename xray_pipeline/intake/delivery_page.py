"""The page that shows why a delivery is fit or rejected: one HTML file that names rows by number, never a path or a
patient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import pandas as pd

from xray_pipeline.base.pages import template
from xray_pipeline.dataset.fingerprints import picture_of
from xray_pipeline.dataset.history import EMPTY
from xray_pipeline.dataset.split import SIDES
from xray_pipeline.dataset.table import of_rows
from xray_pipeline.intake import tallies
from xray_pipeline.intake.deliveries import Delivery, Inventory
from xray_pipeline.intake.drift import Drift
from xray_pipeline.intake.expectations import Observation
from xray_pipeline.intake.histograms import histograms
from xray_pipeline.intake.layout import LITTER
from xray_pipeline.intake.rules import QUARANTINED

_EXAMPLES: Final = 12  # row numbers shown for one reason


def unjudged(delivery: Delivery, why: str) -> str:
    """Return the page of a delivery that can't be judged as a whole; it holds no file's row."""
    return page(Inventory(delivery, of_rows([]), EMPTY.reference(0)), (), Drift(0, 0, ()), why=why)


def page(
    inventory: Inventory, findings: Sequence[Observation], drift: Drift, holds_up: bool = False, why: str = ""
) -> str:
    """Return the page of a delivery that was judged by these findings, or not at all, and `why`.

    `holds_up` is as in `alarms.Terms`.
    """
    table = inventory.table
    accepted = table[table["verdict"] == "accepted"]
    broken = [finding for finding in findings if not finding.success]
    failures, warnings = ([finding for finding in broken if finding.stops is stops] for stops in (True, False))
    split = pd.crosstab(accepted["label"], accepted["side"]).reindex(columns=list(SIDES), fill_value=0)
    return template("intake", "delivery.html.j2").render(
        delivery=inventory.delivery,
        why=why,
        fit=not (failures or why),
        findings=findings,
        failures=failures,
        warnings=[finding for finding in warnings if not finding.channel],
        alarms=[finding for finding in warnings if finding.channel],
        holds_up=holds_up,
        drift=drift,
        files=len(table) - int((table["reason"] == LITTER).sum()),
        accepted=len(accepted),
        patients=accepted["patient"].nunique(),
        reasons=_reasons(table),
        histograms=histograms(accepted, inventory.reference),
        near=tallies.near_copies(table),
        examples=_EXAMPLES,
        sides=SIDES,
        split=[(str(label), [int(count) for count in row]) for label, row in split.iterrows()],
        patients_by_side=[int(accepted.loc[accepted["side"] == side, "patient"].nunique()) for side in SIDES],
        kinds=_kinds(accepted),
        scaled=[(bits, count) for bits, count in tallies.png_depths(accepted).items() if bits != "16"],
        sizes=_sizes(accepted),
        known=_known(accepted),
        bookkeeping=inventory.bookkeeping,
        notes=inventory.notes,
    )


def _reasons(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return each reason with its rule, what to do about it, how many files have it, and the first of their rows, each
    with its thumbnail where the file could be decoded."""
    # One column: a copy of all rows would hold every thumbnail.
    reasons = table.loc[table["verdict"] != "accepted", "reason"]
    return [
        {
            "code": code,
            **QUARANTINED[code]._asdict(),
            "count": count,
            "rows": [
                (int(row), picture_of(table.at[row, "thumbnail"])) for row in reasons.index[reasons == code][:_EXAMPLES]
            ],
        }
        for code, count in sorted(reasons.value_counts().items(), key=lambda item: (-item[1], item[0]))
    ]


def _kinds(accepted: pd.DataFrame) -> list[tuple[str, str, int, int]]:
    grouped = accepted.groupby(["format", "mode", "bits"]).size()
    return [(str(kind[0]), str(kind[1]), int(kind[2]), int(count)) for kind, count in grouped.items()]


def _sizes(accepted: pd.DataFrame) -> list[tuple[str, int, int, int]]:
    """Return (what, smallest, median, largest) in pixels; nothing without accepted files."""
    if accepted.empty:
        return []
    return [
        (name, int(accepted[name].min()), int(accepted[name].median()), int(accepted[name].max()))
        for name in ("width", "height")
    ]


def _known(accepted: pd.DataFrame) -> list[tuple[str, int]]:
    """Return how many accepted files say what of the exposure and the patient."""
    known = [(column, int((accepted[column] != "").sum())) for column in ("view", "sex", "scanner")]
    return [*known, ("age", int(accepted["age_years"].notna().sum()))]
