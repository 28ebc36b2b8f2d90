"""Predictions into an evaluation, and one model compared with another on the same radiographs.

The unit of every interval and test is the patient: 18 % of patients have several radiographs, and those are alike, so
counting radiographs as independent would make the intervals too narrow (see `bootstrap`). With two classes the last is
positive and is predicted when its probability reaches the model's own threshold; with more, the largest probability is
the prediction and each metric is the mean over one-vs-rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from xray_pipeline.base.errors import EvaluationError
from xray_pipeline.evaluation.bootstrap import Interval, differences, resample, sign_flip_p, with_intervals
from xray_pipeline.evaluation.cases import prepare, require_every_class

T = TypeVar("T")


@dataclass(frozen=True)
class Evaluation:
    """One model on one set of labelled radiographs.

    `snapshot` is "" for a folder; `rows` is the digest of which patients and labels were scored; `confusion[i][j]`
    counts radiographs of class i predicted as class j; `by_class` is empty for two classes.
    """

    model_digest: str
    snapshot: str
    n: int
    patients: int
    classes: tuple[str, ...]
    threshold: float
    confusion: tuple[tuple[int, ...], ...]
    metrics: Mapping[str, Interval]
    by_class: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)
    rows: str = ""
    resamples: int = 0
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return this as JSON-able values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Evaluation:
        """Inverse of `to_dict`. Raises EvaluationError for anything else."""
        return rebuilt(data, cls)


@dataclass(frozen=True)
class Comparison:
    """Candidate against champion on the same radiographs; every difference is candidate minus champion.

    `p_value` is one-sided: how often two equally good models would differ in accuracy at least this much in the
    candidate's favour (see `compare`). `confidence` is 1 - p_value.
    """

    candidate: str
    champion: str
    n: int
    patients: int
    differences: Mapping[str, Interval]
    only_candidate_right: int
    only_champion_right: int
    p_value: float
    rows: str = ""
    resamples: int = 0
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return this as JSON-able values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Comparison:
        """Inverse of `to_dict`. Raises EvaluationError for anything else."""
        return rebuilt(data, cls)


def evaluate(
    probabilities: npt.ArrayLike,
    labels: Sequence[str],
    patients: Sequence[str],
    classes: Sequence[str],
    threshold: float,
    *,
    resamples: int = 1000,
    seed: int = 0,
    model_digest: str = "",
    snapshot: str = "",
) -> Evaluation:
    """Score one model's probabilities [N, C] against N labels, with patient-clustered 95 % intervals.

    The order of the rows changes nothing. Raises EvaluationError for no rows, lengths that differ, a value that is not
    a probability, a label outside `classes`, a row without patient, and a class without any row.
    """
    (cases,) = prepare([probabilities], labels, patients, classes, [threshold])
    require_every_class(cases)
    (draws,) = resample([cases], resamples, seed)
    metrics, by_class = with_intervals(cases, draws)
    size = len(cases.classes)
    confusion = np.bincount(cases.truth * size + cases.predicted, minlength=size * size).reshape(size, size)
    return Evaluation(
        model_digest=model_digest,
        snapshot=snapshot,
        n=len(cases.truth),
        patients=cases.count,
        classes=cases.classes,
        threshold=float(threshold),
        confusion=tuple(map(tuple, confusion.tolist())),
        metrics=metrics,
        by_class=by_class,
        rows=cases.digest,
        resamples=resamples,
        seed=seed,
    )


def compare(
    candidate: npt.ArrayLike,
    champion: npt.ArrayLike,
    labels: Sequence[str],
    patients: Sequence[str],
    classes: Sequence[str],
    thresholds: tuple[float, float],
    *,
    resamples: int = 1000,
    seed: int = 0,
    digests: tuple[str, str] = ("", ""),
) -> Comparison:
    """Compare two models' probabilities [N, C] on the same rows, each at its own threshold (candidate's first).

    Intervals: the cluster bootstrap, both models under the same draws. `p_value`: the exact paired randomisation test
    with the patient as its unit (Fisher 1935; sign-flips of whole clusters, Winkler et al. 2015): if the models are
    equally good, exchanging their answers for all radiographs of a patient is as likely as not. With one radiograph a
    patient it is McNemar's exact test; for many patients it agrees with Obuchowski's (1998) clustered McNemar test.
    Raises EvaluationError as `evaluate` does.
    """
    ours, theirs = prepare([candidate, champion], labels, patients, classes, thresholds)
    require_every_class(ours)
    gaps = differences([ours, theirs], resample([ours, theirs], resamples, seed))
    gained = (ours.predicted == ours.truth).astype(np.int64) - (theirs.predicted == theirs.truth)
    balance = np.bincount(ours.patient, weights=gained, minlength=ours.count)
    return Comparison(
        candidate=digests[0],
        champion=digests[1],
        n=len(ours.truth),
        patients=ours.count,
        differences=gaps,
        only_candidate_right=int((gained > 0).sum()),
        only_champion_right=int((gained < 0).sum()),
        p_value=sign_flip_p(np.rint(balance).astype(np.int64)),
        rows=ours.digest,
        resamples=resamples,
        seed=seed,
    )


# --- small parts


def rebuilt(data: Mapping[str, Any], kind: type[T]) -> T:
    """Return the dataclass that these JSON-able values were made from. Raises EvaluationError for anything else."""
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise EvaluationError(f"this is no {kind.__name__.lower()} written by this version: {error}") from error
