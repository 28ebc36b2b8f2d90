"""Both models on each part of the held-out radiographs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from xray_pipeline.base.records import Plain
from xray_pipeline.evaluation.bootstrap import Resampling, measure
from xray_pipeline.evaluation.cases import Cases
from xray_pipeline.evaluation.metric_table import Interval
from xray_pipeline.images.raster import VIEWS

SMALL_SLICE = 30
MOST_NAMED = 20
"""Deliveries, sources and scanners with a slice of their own: those with most patients. Evidence grows no further."""
NAMED_SCANNER = 10  # patients; the name is typed, and of a rare one it may say who was examined, where and by whom


@dataclass(frozen=True)
class Slice(Plain):
    """One part of the held-out radiographs: where `dimension` has `value` ("unknown" where it is not known).

    A metric that the part can't have (sensitivity without a positive radiograph) is absent. `champion` and
    `difference` are empty without a champion. `small`: fewer than 30 patients, so its intervals say little.
    """

    dimension: str
    value: str
    n: int
    patients: int
    small: bool
    candidate: Mapping[str, Interval]
    champion: Mapping[str, Interval] = field(default_factory=dict)
    difference: Mapping[str, Interval] = field(default_factory=dict)


def measured_slice(dimension: str, value: str, models: Sequence[Cases], resampling: Resampling) -> Slice:
    """Measure the candidate, and the champion where there is one, on the rows of one slice."""
    measured = measure(models, resampling)
    candidate, champion = (*measured.metrics, {})[:2]
    n, patients = len(models[0].truth), models[0].count
    return Slice(dimension, value, n, patients, patients < SMALL_SLICE, candidate, champion, measured.difference)


def slices(rows: pd.DataFrame, models: Sequence[Cases], resampling: Resampling) -> tuple[Slice, ...]:
    """Measure the candidate, and the champion where there is one, on each part of the held-out rows.

    The models' cases are in the order of `rows`, whose columns are those that `Dataset.rows` gives. Dimensions: label,
    source, delivery, scanner, view, age group, sex, mode and size. Every radiograph is in exactly one slice of each
    dimension.
    """
    return tuple(
        measured_slice(dimension, value, [cases.at(np.flatnonzero(values == value)) for cases in models], resampling)
        for dimension, values in slice_values(rows).items()
        for value in sorted(set(values), key=lambda v: (v == "unknown", v))
    )


def slice_values(rows: pd.DataFrame) -> dict[str, npt.NDArray[Any]]:
    """Return for each dimension the value of each row, "unknown" where it is not known.

    Age groups are 0-1, 1-5, 5-18, 18-40, 40-65 and 65+ years; size is the shorter side of the stored radiograph. What
    has no slice of its own is "other": a view that is not one of VIEWS, a scanner with fewer than NAMED_SCANNER
    patients, all deliveries, sources and scanners but the MOST_NAMED with most patients (of equals, the last by name).
    """
    plain = {
        name: rows[name].fillna("").astype(str).replace("", "unknown").to_numpy()
        for name in ("label", "source", "delivery", "scanner", "view", "sex", "mode")
    }
    shown = {name: _largest(plain[name], rows["patient"], 1) for name in ("source", "delivery")}
    shown |= {"scanner": _largest(plain["scanner"], rows["patient"], NAMED_SCANNER), "view": list(VIEWS)}
    for name, values in shown.items():
        plain[name] = np.where(np.isin(plain[name].astype(str), [*values, "unknown"]), plain[name], "other")
    ages = _bands(rows["age_years"], (1, 5, 18, 40, 65), "years")
    sides = _bands(rows[["width", "height"]].min(axis=1), (512, 1024, 2048), "px")
    return {**plain, "age group": ages, "size": sides}


def _largest(values: npt.NDArray[Any], patients: pd.Series[str], least: int) -> list[str]:
    """Return the values with most patients, each with at least so many."""
    count = patients.groupby(values).nunique().drop("unknown", errors="ignore")
    count = count[count >= least].sort_index(ascending=False).sort_values(ascending=False, kind="stable")
    return list(count.index[:MOST_NAMED])


def _bands(values: pd.Series[float], edges: Sequence[int], unit: str) -> npt.NDArray[Any]:
    bands = [*(f"{low}-{high} {unit}" for low, high in zip((0, *edges), edges, strict=False)), f"{edges[-1]}+ {unit}"]
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(dtype=float)
    named = np.array(bands, dtype=object)[np.searchsorted(edges, np.nan_to_num(numbers), side="right")]
    return np.where(np.isfinite(numbers), named, "unknown")
