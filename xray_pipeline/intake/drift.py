"""Does a delivery look like the dataset? A test with a stated rate of false alarms, its null measured by resampling.

Three channels: `pixels` (the numbers of appearance.py), `labels` (the mix of classes and, where the files tell it, of
age groups) and, on the machine that trains, `features` (a frozen network's). Each compares the delivery with what the
dataset holds: the two clouds of vectors by their energy distance (Székely and Rizzo 2013, "Energy statistics": zero
only for equal distributions, no bandwidth to choose), the shares of groups by a chi-square distance. How large a
distance is by chance is measured: deliveries of as many patients are drawn from delivery and dataset together,
thousands of times, whole patients at a time, because the radiographs of a patient are alike. If the delivery's patients
are like the dataset's, each of these draws is as likely as the delivery itself, so p = (1 + draws at least as far) / (1
+ draws) is exact (Phipson and Smyth 2010), whatever the distributions and sizes. The channels share the false alarms
evenly (Bonferroni), so together they raise one in no more than the stated share of deliveries.

Nothing is drawn by luck: the draws are seeded by the digests compared. The trade-offs: of a large dataset and delivery
only so many radiographs are looked at, which costs power and not truth; and a hospital whose nights differ among
themselves, one ward after another, is not exchangeable: there the alarms say so more often than the stated rate.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from xray_pipeline.base.settings import IntakeRules
from xray_pipeline.dataset.history import Reference
from xray_pipeline.images import appearance

CHANNELS: Final = ("pixels", "labels", "features")
MOST_NEW, MOST_KNOWN = 1000, 2000  # radiographs compared
AGE_GROUPS: Final = {1.0: "under 1", 6.0: "1 to 5", 18.0: "6 to 17", 65.0: "18 to 64", float("inf"): "65 and over"}
"""Groups of patients' ages by the age in years that ends each."""
_DRAWS_AT_LEVEL = 10  # expected draws beyond the level, which sets how many are made
_BLOCK = 512  # draws at a time

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Channel:
    """One comparison: its p value (None: not enough to say), the level below which it is an alarm, and in words."""

    name: str
    p: float | None
    level: float
    text: str

    @property
    def alarm(self) -> bool:
        """Whether the delivery differs from the dataset at this channel's level."""
        return self.p is not None and self.p <= self.level


@dataclass(frozen=True)
class Drift:
    """How one delivery compares with the dataset: patients compared on both sides, and each channel."""

    patients: int
    dataset_patients: int
    channels: tuple[Channel, ...]

    @property
    def alarms(self) -> tuple[str, ...]:
        """Names of the channels that raise an alarm."""
        return tuple(channel.name for channel in self.channels if channel.alarm)

    def to_dict(self) -> dict[str, Any]:
        """Return this as JSON-able values."""
        channels = [asdict(channel) for channel in self.channels]
        return {**asdict(self), "channels": channels, "alarms": list(self.alarms)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`."""
        channels = tuple(Channel(**channel) for channel in data["channels"])
        return cls(data["patients"], data["dataset_patients"], channels)


def level_of(rules: IntakeRules) -> float:
    """Return the level of each channel: its even share of the stated rate of false alarms."""
    return rules.drift_false_alarms / len(CHANNELS)


def of_table(table: pd.DataFrame, reference: Reference, rules: IntakeRules) -> Drift:
    """Compare the accepted rows of an intake table with the dataset's, by pixels and labels.

    Rows without statistics (of manifests that an earlier version wrote) don't count.
    """
    new, known = measured(table[table["verdict"] == "accepted"]), measured(reference.rows)
    if why := not_enough(new["patient"].nunique(), reference.patients, rules):
        return _unsaid(new["patient"].nunique(), reference.patients, ("pixels", "labels"), why, rules)
    new, known, draws = drawn(new, known, rules)
    here, there = (appearance.from_text(rows["statistics"]) for rows in (new, known))
    channels = (
        Channel("pixels", draws.vectors(here, there), level_of(rules), moved(here, there, appearance.NAMES)),
        Channel("labels", draws.labels(_groups(new), _groups(known)), level_of(rules), _mix(new, known)),
    )
    return Drift(new["patient"].nunique(), known["patient"].nunique(), channels)


def measured(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows whose pixels were measured."""
    return rows[np.array([appearance.is_text(text) for text in rows["statistics"]], dtype=bool)]


def of_features(new: pd.DataFrame, known: pd.DataFrame, vectors: Mapping[str, Vectors], rules: IntakeRules) -> Drift:
    """Compare rows (columns digest, patient) by the feature vectors [F] of their digests."""
    if why := not_enough(patients := new["patient"].nunique(), dataset := known["patient"].nunique(), rules):
        return _unsaid(patients, dataset, ("features",), why, rules)
    new, known, draws = drawn(new, known, rules)
    both = [np.stack([vectors[digest] for digest in rows["digest"]]) for rows in (new, known)]
    text = "the frozen features of the training radiographs"
    channel = Channel("features", draws.vectors(*both), level_of(rules), text)
    return Drift(new["patient"].nunique(), known["patient"].nunique(), (channel,))


def drawn(new: pd.DataFrame, known: pd.DataFrame, rules: IntakeRules) -> tuple[pd.DataFrame, pd.DataFrame, Draws]:
    """Return the rows (columns digest, patient) of a delivery and the dataset that are compared, and the draws."""
    new, known = sampled(new, MOST_NEW), sampled(known, MOST_KNOWN)
    draws = Draws(new["patient"], known["patient"], level_of(rules), seed_of(new["digest"], known["digest"]))
    return new, known, draws


def not_enough(patients: int, dataset_patients: int, rules: IntakeRules, dataset: str = "the dataset") -> str:
    """Say why nothing can be said of so few patients; "" when it can. `dataset` is what the delivery is compared to."""
    if dataset_patients < rules.drift_min_dataset:
        return f"not enough to say: {dataset} has {dataset_patients} patients, {rules.drift_min_dataset} are asked"
    if patients < rules.drift_min_patients:
        return f"not enough to say: the delivery has {patients} patients, {rules.drift_min_patients} are asked"
    return ""


def _unsaid(patients: int, dataset_patients: int, names: Sequence[str], why: str, rules: IntakeRules) -> Drift:
    channels = tuple(Channel(name, None, level_of(rules), why) for name in names)
    return Drift(patients, dataset_patients, channels)


def seed_of(*digests: Iterable[str]) -> int:
    """Return a seed that the compared digests decide, whatever their order."""
    parts = ["".join(sorted(part)) for part in digests]
    return int.from_bytes(hashlib.sha256("|".join(parts).encode()).digest()[:8], "big")


def sampled(rows: pd.DataFrame, most: int) -> pd.DataFrame:
    """Return at most so many rows, whole patients at a time, in an order that nothing but their ids decides."""
    if len(rows) <= most:
        return rows
    counts = rows.groupby("patient").size()
    # Ids are keyed hashes, but their first digits decide the split: hash once more.
    order = sorted(counts.index, key=lambda patient: hashlib.sha256(patient.encode()).digest())
    chosen = counts[order].cumsum() <= most
    return rows[rows["patient"].isin(chosen.index[chosen])]


class Draws:
    """Deliveries of as many patients as the one at hand, drawn from it and the dataset together.

    The first draw is the delivery itself; the level says how many others are made.
    """

    def __init__(self, new: Iterable[str], known: Iterable[str], level: float, seed: int) -> None:
        # New radiographs of a known patient count as another patient's: alarms become rarer by it, never more frequent.
        ids = [*(f"new {patient}" for patient in new), *(f"known {patient}" for patient in known)]
        self._codes, names = pd.factorize(np.array(ids, dtype=object), sort=True)
        self._count = len(names)
        self._here = np.array([name.startswith("new ") for name in names])
        self._images = np.bincount(self._codes, minlength=self._count).astype(np.float64)
        self._resamples = round(_DRAWS_AT_LEVEL / level) - 1
        self._seed = seed

    def vectors(self, new: Vectors, known: Vectors) -> float:
        """Return p for the energy distance of two clouds of vectors [N, K] and [M, K], each number standardised."""
        distances = _centred(np.concatenate([new, known]))
        order = np.argsort(self._codes, kind="stable")
        starts = np.searchsorted(self._codes[order], np.arange(self._count))
        by_patient = np.add.reduceat(distances[order], starts, axis=0)
        by_patient = np.add.reduceat(by_patient[:, order], starts, axis=1).astype(np.float32)
        rows, grand = by_patient.sum(1, dtype=np.float64), by_patient.sum(dtype=np.float64)

        def energy(drawn: NDArray[np.float32]) -> NDArray[np.float64]:
            inside = np.einsum("pb,pb->b", drawn, by_patient @ drawn).astype(np.float64)
            touched = rows @ drawn
            here = self._images @ drawn
            there = self._images.sum() - here
            outside = grand - 2 * touched + inside
            between = (touched - inside) / (here * there)
            return np.asarray(2 * between - inside / here**2 - outside / there**2)

        return self._p(energy)

    def labels(self, new: Iterable[str], known: Iterable[str]) -> float:
        """Return p for the chi-square distance of two mixes of labels, which may be any groups."""
        codes, names = pd.factorize(np.array([*new, *known], dtype=object))
        table = np.zeros((self._count, len(names)))
        np.add.at(table, (self._codes, codes), 1)
        shares = table.sum(0) / table.sum()

        def distance(drawn: NDArray[np.float32]) -> NDArray[np.float64]:
            here, images = table.T @ drawn, self._images @ drawn
            there = table.sum(0)[:, None] - here
            gap = here / images - there / (self._images.sum() - images)
            return np.asarray((gap**2 / shares[:, None]).sum(0))

        return self._p(distance)

    def _p(self, statistic: Any) -> float:
        rng = np.random.default_rng(self._seed)
        mine = float(statistic(self._here.astype(np.float32)[:, None])[0])
        beyond, size = 0, int(self._here.sum())
        for start in range(0, self._resamples, _BLOCK):
            block = min(_BLOCK, self._resamples - start)
            order = np.argpartition(rng.random((block, self._count), dtype=np.float32), size, axis=1)
            drawn = np.zeros((block, self._count), np.float32)
            np.put_along_axis(drawn, order[:, :size], 1, axis=1)
            # As far but for rounding is as far.
            beyond += int((statistic(drawn.T) >= mine - 1e-6 * abs(mine)).sum())
        return (1 + beyond) / (1 + self._resamples)


def _centred(vectors: Vectors) -> NDArray[np.float32]:
    """Return Euclidean distances [N, N] of standardised vectors, rows and columns centred, so that sums stay small."""
    spread = vectors.std(0)
    scaled = (vectors - vectors.mean(0)) / np.where(spread > 1e-6, spread, np.inf)
    squares = (scaled**2).sum(1)
    distances = np.sqrt(np.maximum(0, squares[:, None] + squares - 2 * (scaled @ scaled.T)))
    np.fill_diagonal(distances, 0)
    means = distances.mean(0)
    return np.asarray(distances - means - means[:, None] + distances.mean(), dtype=np.float32)


def moved(new: Vectors, known: Vectors, names: Sequence[str], most: int = 3) -> str:
    """Say which numbers differ most, in standard deviations of the dataset."""
    spread = np.maximum(known.std(0), 1e-6)
    shift = (new.mean(0) - known.mean(0)) / spread
    largest = np.argsort(-np.abs(shift), kind="stable")[:most]
    return "largest differences, in standard deviations: " + ", ".join(
        f"{names[i]} {min(99.0, max(-99.0, shift[i])):+.1f}" for i in largest
    )


def age_group(age: float) -> str:
    """Return the group of an age in years; "" for an unknown one (NaN)."""
    return next((name for end, name in AGE_GROUPS.items() if age < end), "")


def _groups(rows: pd.DataFrame) -> list[str]:
    """Return each radiograph's class and age group: ages are compared within the classes, so that both count once."""
    return [f"{label}, {age_group(age)}" for label, age in zip(rows["label"], rows["age_years"], strict=True)]


def _mix(new: pd.DataFrame, known: pd.DataFrame) -> str:
    """Say how the classes are mixed on both sides, and the ages where any is known."""
    mix = _shares(new["label"], known["label"])
    if new["age_years"].notna().any() or known["age_years"].notna().any():
        ages = (rows["age_years"].map(age_group).replace("", "unknown") for rows in (new, known))
        mix += "; ages: " + _shares(*ages)
    return mix


def _shares(new: pd.Series, known: pd.Series) -> str:
    here, there = (values.value_counts(normalize=True) for values in (new, known))
    names = sorted({*here.index, *there.index})
    return ", ".join(f"{n} {here.get(n, 0.0):.0%} here, {there.get(n, 0.0):.0%} in the dataset" for n in names)
