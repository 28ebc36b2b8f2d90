"""Answers into an evaluation, and one model compared with another on the same radiographs.

The unit of every interval and test is the patient: 18 % of patients have several radiographs, and those are alike, so
counting radiographs as independent would make the intervals too narrow (see `bootstrap`). With two classes the last is
positive and is predicted when its probability reaches the model's own threshold; with more, the largest probability is
the prediction and each metric is the mean over one-vs-rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from xray_pipeline.base.records import Plain
from xray_pipeline.evaluation.bootstrap import Measured, Resampling, measure, sign_flip_p
from xray_pipeline.evaluation.cases import Cases, require_every_class
from xray_pipeline.evaluation.metric_table import Interval


@dataclass(frozen=True)
class Evaluation(Plain):
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


@dataclass(frozen=True)
class Comparison(Plain):
    """Candidate against champion on the same radiographs; every difference is candidate minus champion.

    `p_value` is one-sided: how often two equally good models would differ in accuracy at least this much in the
    candidate's favour (see `compared`).
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


def evaluate(
    models: Sequence[Cases], resampling: Resampling, snapshot: str = ""
) -> tuple[tuple[Evaluation, ...], Comparison | None]:
    """Measure one model, or a candidate and then its champion on the same rows; compare the two where there are two.

    The order of the rows changes nothing. Raises EvaluationError for a class without any row.
    """
    require_every_class(models[0])
    measured = measure(models, resampling)
    evaluations = tuple(_evaluation(measured, index, snapshot) for index in range(len(models)))
    return evaluations, compared(measured) if len(models) > 1 else None


def _evaluation(measured: Measured, index: int, snapshot: str) -> Evaluation:
    cases = measured.models[index]
    size = len(cases.classes)
    confusion = np.bincount(cases.truth * size + cases.predicted, minlength=size * size).reshape(size, size)
    return Evaluation(
        model_digest=cases.model,
        snapshot=snapshot,
        n=len(cases.truth),
        patients=cases.count,
        classes=cases.classes,
        threshold=cases.threshold,
        confusion=tuple(map(tuple, confusion.tolist())),
        metrics=measured.metrics[index],
        by_class=measured.by_class[index],
        rows=cases.rows,
        **asdict(measured.resampling),
    )


def compared(measured: Measured) -> Comparison:
    """Compare two measured models, each at its own threshold.

    Intervals: the cluster bootstrap, both models under the same draws. `p_value`: the exact paired randomisation test
    with the patient as its unit (Fisher 1935; sign-flips of whole clusters, Winkler et al. 2015): if the models are
    equally good, exchanging their answers for all radiographs of a patient is as likely as not. With one radiograph a
    patient it is McNemar's exact test; for many patients it agrees with Obuchowski's (1998) clustered McNemar test.
    """
    ours, theirs = measured.models
    gained = (ours.predicted == ours.truth).astype(np.int64) - (theirs.predicted == theirs.truth)
    balance = np.bincount(ours.patient, weights=gained, minlength=ours.count)
    return Comparison(
        candidate=ours.model,
        champion=theirs.model,
        n=len(ours.truth),
        patients=ours.count,
        differences=measured.difference,
        only_candidate_right=int((gained > 0).sum()),
        only_champion_right=int((gained < 0).sum()),
        p_value=sign_flip_p(np.rint(balance).astype(np.int64)),
        rows=ours.rows,
        **asdict(measured.resampling),
    )
