"""How a delivery's radiographs are spread beside the dataset's: the histograms that its page draws.

They are of the numbers that the drift check compares (`images/appearance`), so nothing is decoded for them. Shares, not
counts, are drawn, because a delivery is small beside the dataset.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from xray_pipeline.dataset.history import Reference
from xray_pipeline.images import appearance
from xray_pipeline.intake.drift import AGE_GROUPS, MOST_KNOWN, MOST_NEW, Vectors, age_group, measured, sampled

_BINS: Final = 20


@dataclass(frozen=True)
class Bar:
    """One bar: what it is of, and the shares (0 to 1) of the delivery's and of the dataset's radiographs in it."""

    label: str
    here: float
    dataset: float


@dataclass(frozen=True)
class Histogram:
    """Bars from left to right: groups where it is `grouped`, else the bins of a number. `said` sums them up."""

    title: str
    bars: tuple[Bar, ...]
    said: str
    grouped: bool = False

    @property
    def top(self) -> float:
        """The largest share that a bar has."""
        return max([bar.here for bar in self.bars] + [bar.dataset for bar in self.bars])


def histograms(accepted: pd.DataFrame, reference: Reference) -> list[Histogram]:
    """Return the histograms of a delivery's accepted rows beside the dataset's radiographs (`History.reference`).

    Of the pixels as many radiographs are looked at as the drift check compares. Ages are left out where none is known.
    """
    here, known = (
        appearance.from_text(sampled(measured(rows), most)["statistics"])
        for rows, most in ((accepted, MOST_NEW), (reference.rows, MOST_KNOWN))
    )
    if not len(here):
        return []
    drawn = [
        _of_number("Brightness (mean grey level: 0 black, 1 white)", "brightness", here, known, "{:.2f}".format),
        _of_number("Contrast (standard deviation of the grey levels)", "contrast", here, known, "{:.2f}".format),
        _of_number("Shorter side in pixels", "size", here, known, lambda octaves: f"{2**octaves:,.0f}"),
        _of_groups("Classes", labels := accepted["label"].value_counts(), reference.labels, _names(labels, reference)),
    ]
    if accepted["age_years"].notna().any():
        mine, theirs = map(_by_group, (accepted["age_years"].value_counts(dropna=False), reference.ages))
        drawn.append(_of_groups("Ages in years", mine, theirs, [*AGE_GROUPS.values(), "unknown"]))
    return drawn


def _names(labels: pd.Series, reference: Reference) -> list[str]:
    return sorted({*labels.index, *reference.labels.index})


def _by_group(ages: pd.Series) -> pd.Series:
    """Return counts by age as counts by group."""
    return ages.groupby([age_group(age) or "unknown" for age in ages.index]).sum()


def _of_number(title: str, name: str, here: Vectors, known: Vectors, shown: Callable[[float], str]) -> Histogram:
    """Bin one of the numbers of `appearance`, over the range that both sides have together."""
    mine, theirs = (vectors[:, appearance.NAMES.index(name)].astype(np.float64) for vectors in (here, known))
    both = np.concatenate([mine, theirs])
    edges = np.linspace(both.min(), max(both.max(), both.min() + 1e-3), _BINS + 1)
    shares = [(np.histogram(values, edges)[0] / max(1, len(values))).tolist() for values in (mine, theirs)]
    bins = zip(edges[:-1], edges[1:], *shares, strict=True)
    bars = tuple(Bar(f"{shown(start)} to {shown(stop)}", ours, others) for start, stop, ours, others in bins)
    said = f"median {shown(float(np.median(mine)))}"
    return Histogram(title, bars, said + (f", in the dataset {shown(float(np.median(theirs)))}" if len(theirs) else ""))


def _of_groups(title: str, mine: pd.Series, theirs: pd.Series, names: Sequence[str]) -> Histogram:
    here, known = (counts / max(1, counts.sum()) for counts in (mine, theirs))
    bars = tuple(Bar(name, float(here.get(name, 0.0)), float(known.get(name, 0.0))) for name in names)
    said = ", ".join(f"{bar.label} {bar.here:.0%} (dataset {bar.dataset:.0%})" for bar in bars)
    return Histogram(title, bars, said, grouped=True)
