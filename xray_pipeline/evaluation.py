"""Predictions into an evaluation, and one model compared with another on the same radiographs.

The unit of every interval and test is the patient: 18 % of patients have several radiographs, and those are alike, so
counting radiographs as independent would make the intervals too narrow (see `bootstrap`). With two classes the last is
positive and is predicted when its probability reaches the model's own threshold; with more, the largest probability is
the prediction and each metric is the mean over one-vs-rest.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import pandas as pd
from pyarrow import ArrowInvalid
from sklearn import metrics as sk

from xray_pipeline.dataset import read_parquet
from xray_pipeline.errors import Damaged, EvaluationError
from xray_pipeline.formats.raster import VIEWS
from xray_pipeline.judging.bootstrap import (
    METRICS,
    Floats,
    Interval,
    check_probabilities,
    differences,
    prepare,
    require_every_class,
    resample,
    sign_flip_p,
    subset,
    with_intervals,
)
from xray_pipeline.records import digest_of, exactly
from xray_pipeline.storage import Store

__all__ = [
    "METRICS",
    "Comparison",
    "Evaluation",
    "Interval",
    "Slice",
    "compare",
    "evaluate",
    "predictions",
    "score",
    "slice_values",
    "slices",
]

log = logging.getLogger(__name__)

T = TypeVar("T")
Progress = Callable[[int, int, str], None]
Read = Callable[[str, str], bytes]

SMALL_SLICE = 30
NAMED_SCANNER = 10  # patients; the name is typed, and of a rare one it may say who was examined, where and by whom

_SCORE_BLOCK = 512  # radiographs scored between two commits of predictions


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
        return _rebuilt(data, cls)


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
        return _rebuilt(data, cls)


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
        return _rebuilt(data, cls)


class Scorer(Protocol):
    """What `score` needs of a model; `serving.Classifier` is one."""

    @property
    def digest(self) -> str: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    def probabilities(self, pixels: npt.NDArray[Any]) -> Floats: ...


class Pixels(Protocol):
    """Where `score` finds decoded radiographs, or features of them; `pixels.PixelCache` is one."""

    def ensure(self, rows: pd.DataFrame, read: Read) -> object: ...
    def get(self, digests: Sequence[str]) -> npt.NDArray[Any]: ...


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
    confusion = sk.confusion_matrix(cases.truth, cases.predicted, labels=range(len(cases.classes)))
    return Evaluation(
        model_digest=model_digest,
        snapshot=snapshot,
        n=len(cases.truth),
        patients=cases.count,
        classes=cases.classes,
        threshold=float(threshold),
        confusion=tuple(tuple(int(x) for x in row) for row in confusion),
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


def score(
    classifier: Scorer,
    rows: pd.DataFrame,
    pixels: Pixels,
    read: Read,
    store: Store,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Return one row per radiograph of `rows` (columns digest, suffix), in order: digest and p_<class> per class.

    Predictions are kept under predictions/<model digest>/, each part a Parquet file named by the SHA-256 of its bytes;
    only radiographs in no part are decoded (through `read`) and scored. A part whose bytes are not what its name says
    is dropped and its radiographs are scored again. Raises EvaluationError when the model gives anything but
    probabilities; DatasetError, StorageUnavailable.
    """

    def compute(block: pd.DataFrame) -> Floats:
        pixels.ensure(block, read)
        return classifier.probabilities(pixels.get(list(block["digest"])))

    return predictions(f"predictions/{classifier.digest}", classifier.classes, rows, compute, store, progress)


def predictions(
    folder: str,
    classes: Sequence[str],
    rows: pd.DataFrame,
    compute: Callable[[pd.DataFrame], Floats],
    store: Store,
    progress: Progress | None = None,
    what: str = "scoring",
) -> pd.DataFrame:
    """Return the predictions kept in `folder` of the store for `rows`, with `compute` called for rows that have none.

    As `score`, for any function from a block of rows to probabilities [len(block), C] that the folder's name names.
    """
    columns = [f"p_{name}" for name in classes]
    tables = [_kept(folder, columns, store)]
    missing = rows[~rows["digest"].isin(tables[0].index)].drop_duplicates("digest")
    if len(missing):
        log.info("%s %d of %d radiographs; the rest is kept from earlier", what, len(missing), len(rows))
    for start in range(0, len(missing), _SCORE_BLOCK):
        block = missing.iloc[start : start + _SCORE_BLOCK]
        found = compute(block)
        check_probabilities(found, len(block), len(classes))
        table = pd.DataFrame(found, columns=columns, index=pd.Index(block["digest"], name="digest"))
        buffer = io.BytesIO()
        table.reset_index().to_parquet(buffer, index=False)
        data = buffer.getvalue()
        store.write_if_absent(f"{folder}/{digest_of(data)}.parquet", data)
        tables.append(table)
        if progress:
            progress(start + len(block), len(missing), what)
    return pd.concat(tables).loc[list(rows["digest"])].reset_index()


def _kept(folder: str, columns: Sequence[str], store: Store) -> pd.DataFrame:
    """Read every whole part; drop the others. Two runs may have scored the same radiograph: the first part counts."""
    parts = [pd.DataFrame({c: pd.Series(dtype=float) for c in columns}, index=pd.Index([], dtype=str, name="digest"))]
    for key in sorted(entry.key for entry in store.list(folder)):
        try:
            data = exactly(store, key, key.rpartition("/")[2].removesuffix(".parquet"), "its name")
            found = read_parquet(data).set_index("digest")[list(columns)]
            check_probabilities(found.to_numpy(), len(found), len(columns))
        except (Damaged, EvaluationError, ArrowInvalid, OSError, KeyError) as error:
            log.warning("%s is broken; its radiographs are scored again: %s", key, error)
            store.delete(key)
        else:
            parts.append(found)
    found = pd.concat(parts)
    return found[~found.index.duplicated()]


# --- small parts


def _bands(values: pd.Series[float], edges: Sequence[int], unit: str) -> npt.NDArray[Any]:
    names = [
        *(f"{low}-{high} {unit}" for low, high in zip((0, *edges), edges, strict=False)),
        f"{edges[-1]}+ {unit}",
    ]
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(dtype=float)
    found = np.array(names, dtype=object)[np.searchsorted(edges, np.nan_to_num(numbers), side="right")]
    return np.where(np.isfinite(numbers), found, "unknown")


def _rebuilt(data: Mapping[str, Any], kind: type[T]) -> T:
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise EvaluationError(f"this is no {kind.__name__.lower()} written by this version: {error}") from error
