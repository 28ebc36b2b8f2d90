"""What models answered beside the truth, checked."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from xray_pipeline.base.errors import EvaluationError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Answers:
    """What one model says of some radiographs: probabilities [N, C], the threshold it ships with, its digest."""

    probabilities: npt.ArrayLike
    threshold: float
    model: str = ""


@dataclass(frozen=True, eq=False)
class Cases:
    """One model's answers with the truth; `rows` is the digest of patients and labels, "" for a part of them."""

    probabilities: Floats  # [N, C]
    truth: Ints  # [N]
    patient: Ints  # [N], 0 .. count-1
    count: int
    classes: tuple[str, ...]
    threshold: float
    model: str
    rows: str

    @cached_property
    def predicted(self) -> Ints:
        """The class named for each row [N], as `named` says."""
        return named(self.probabilities, self.threshold)

    def rated(self) -> range:
        """The classes taken against the rest: the positive one of two, or each."""
        return range(1, 2) if len(self.classes) == 2 else range(len(self.classes))

    def at(self, where: Ints) -> Cases:
        """Return the rows at some positions as cases of their own."""
        distinct, patient = np.unique(self.patient[where], return_inverse=True)
        p, truth = self.probabilities[where], self.truth[where]
        return replace(self, probabilities=p, truth=truth, patient=patient, count=len(distinct), rows="")


def named(probabilities: Floats, threshold: float) -> Ints:
    """Return the class named for each row [N] of probabilities [N, C]: by the threshold of two, else the likeliest."""
    of_two = probabilities.shape[1] == 2
    return (probabilities[:, 1] >= threshold).astype(np.int64) if of_two else probabilities.argmax(axis=1)


def prepare(
    models: Sequence[Answers], labels: Sequence[str], patients: Sequence[str], classes: Sequence[str]
) -> list[Cases]:
    """Check each model's answers against the same N labels and patients.

    Raises EvaluationError for no rows, lengths that differ, a value that is no probability, a label outside `classes`,
    an empty patient, a threshold that is not a number.
    """
    names, owners = np.asarray(list(labels), dtype=str), np.asarray(list(patients), dtype=str)
    if len(names) == 0:
        raise EvaluationError("there is no radiograph to evaluate on; the held-out split is empty")
    tables = [np.asarray(model.probabilities, dtype=np.float64) for model in models]
    for table in tables:
        check_probabilities(table, len(names), len(classes))
    if len(owners) != len(names) or (owners == "").any():
        raise EvaluationError(f"{len(names)} rows need {len(names)} patients, none of them empty")
    thresholds = [float(model.threshold) for model in models]
    if len(classes) == 2 and not np.isfinite(thresholds).all():
        raise EvaluationError(f"an operating threshold is not a number: {tuple(thresholds)}; train the model again")
    index = {name: i for i, name in enumerate(classes)}
    unknown = sorted(set(names.tolist()) - set(index))
    if unknown:
        raise EvaluationError(f"label {unknown[0]!r} is not one of the model's classes {tuple(classes)}")
    truth = np.array([index[name] for name in names.tolist()], dtype=np.int64)
    distinct, owner = np.unique(owners, return_inverse=True)
    rows = _rows_digest(distinct, truth, owner, classes)
    return [
        Cases(table, truth, owner, len(distinct), tuple(classes), threshold, model.model, rows)
        for model, table, threshold in zip(models, tables, thresholds, strict=True)
    ]


def check_probabilities(p: Floats, rows: int, classes: int) -> None:
    """Raise EvaluationError unless `p` is [rows, classes] of finite values >= 0 that sum to 1 in each row."""
    if p.shape != (rows, classes):
        raise EvaluationError(f"probabilities have shape {p.shape}, expected {(rows, classes)}: rows x classes")
    bad = ~(np.isfinite(p).all(axis=1) & (p >= 0).all(axis=1) & (np.abs(p.sum(axis=1) - 1) < 1e-3))
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise EvaluationError(
            f"row {row} holds {p[row].tolist()}, not probabilities that sum to 1 ({int(bad.sum())} of {rows} rows)"
        )


def require_every_class(cases: Cases) -> None:
    """Raise EvaluationError, naming it, for a class without any row."""
    counts = np.bincount(cases.truth, minlength=len(cases.classes))
    if (counts == 0).any():
        absent = [name for name, count in zip(cases.classes, counts, strict=True) if count == 0]
        raise EvaluationError(
            f"none of the {len(cases.truth)} rows is {' or '.join(absent)}: sensitivity and AUC need every class"
        )


def _rows_digest(distinct: npt.NDArray[Any], truth: Ints, patient: Ints, classes: Sequence[str]) -> str:
    order = np.lexsort((truth, patient))
    lines = [f"{distinct[patient[i]]}\t{classes[truth[i]]}" for i in order]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
