"""Both models on each part of the held-out radiographs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from xray_pipeline.evaluation.bootstrap import Interval, differences, resample, with_intervals
from xray_pipeline.evaluation.cases import prepare, subset
from xray_pipeline.evaluation.metrics import rebuilt
from xray_pipeline.images.raster import VIEWS

SMALL_SLICE = 30


NAMED_SCANNER = 10  # patients; the name is typed, and of a rare one it may say who was examined, where and by whom


@dataclass(frozen=True)
class Slice:
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

    def to_dict(self) -> dict[str, Any]:
        """Return this as JSON-able values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Slice:
        """Inverse of `to_dict`. Raises EvaluationError for anything else."""
        return rebuilt(data, cls)


def slices(
    rows: pd.DataFrame,
    candidate: npt.ArrayLike,
    champion: npt.ArrayLike | None,
    classes: Sequence[str],
    thresholds: Sequence[float],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[Slice, ...]:
    """Measure both models on each part of the held-out rows, aligned with `rows` (columns as `Dataset.rows` gives).

    Dimensions: label, source, delivery, scanner, view, age group, sex, mode and size. Every radiograph is in exactly
    one slice of each dimension. Raises EvaluationError as `evaluate` does, but a slice may hold one class only.
    """
    tables = [candidate] if champion is None else [candidate, champion]
    models = prepare(tables, rows["label"], rows["patient"], classes, thresholds, in_order=False)
    found = []
    for dimension, values in slice_values(rows).items():
        for value in sorted(set(values), key=lambda v: (v == "unknown", v)):
            parts = [subset(model, np.flatnonzero(values == value)) for model in models]
            draws = resample(parts, resamples, seed)
            measured = [with_intervals(*pair)[0] for pair in zip(parts, draws, strict=True)]
            n, patients = len(parts[0].truth), parts[0].count
            against = measured[1] if champion is not None else {}
            difference = differences(parts, draws) if champion is not None else {}
            small = patients < SMALL_SLICE
            found.append(Slice(dimension, value, n, patients, small, measured[0], against, difference))
    return tuple(found)


def slice_values(rows: pd.DataFrame) -> dict[str, npt.NDArray[Any]]:
    """Return for each dimension the value of each row, "unknown" where it is not known.

    Age groups are 0-1, 1-5, 5-18, 18-40, 40-65 and 65+ years; size is the shorter side of the stored radiograph. A
    view that is not one of VIEWS is "other", and so is a scanner with fewer than NAMED_SCANNER patients.
    """
    plain = {
        name: rows[name].fillna("").astype(str).replace("", "unknown").to_numpy()
        for name in ("label", "source", "delivery", "scanner", "view", "sex", "mode")
    }
    patients = rows["patient"].groupby(plain["scanner"]).transform("nunique").to_numpy()
    named = {"scanner": patients >= NAMED_SCANNER, "view": np.isin(plain["view"].astype(str), VIEWS)}
    for name, shown in named.items():
        plain[name] = np.where(shown | (plain[name] == "unknown"), plain[name], "other")
    ages = _bands(rows["age_years"], (1, 5, 18, 40, 65), "years")
    sides = _bands(rows[["width", "height"]].min(axis=1), (512, 1024, 2048), "px")
    return {**plain, "age group": ages, "size": sides}


def _bands(values: pd.Series[float], edges: Sequence[int], unit: str) -> npt.NDArray[Any]:
    names = [
        *(f"{low}-{high} {unit}" for low, high in zip((0, *edges), edges, strict=False)),
        f"{edges[-1]}+ {unit}",
    ]
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(dtype=float)
    found = np.array(names, dtype=object)[np.searchsorted(edges, np.nan_to_num(numbers), side="right")]
    return np.where(np.isfinite(numbers), found, "unknown")
