"""Radiographs that a person should look at again: probable mislabels and outliers. Listed, never removed.

A radiograph is a probable mislabel when a head trained without its patient is as sure of another class as it usually is
of radiographs that carry that class: the rule of confident learning (Northcutt, Jiang and Chuang 2021, "Confident
learning: estimating uncertainty in dataset labels", J. Artif. Intell. Res. 70), with thresholds per class so that
neither imbalance nor a head that is too sure of itself decides. It is an outlier when its nearest neighbours in
feature space, other patients' radiographs, are unusually far (Ramaswamy, Rastogi and Shim 2000). Both see the same kept
features as recipe `head`, so nothing is decoded or passed through a network for them.

Held-out radiographs are left alone: correcting only those labels that a model disagrees with would flatter the model.
The trade-off: the head is linear, so a pattern that is wrong throughout is not suspect.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

FOLDS, PENALTY, ITERATIONS = 5, 60.0, 40
NEIGHBOURS, MOST_NEIGHBOURS, DIMENSIONS = 5, 4000, 64
FAR = 6.0
"""Robust standard deviations (1.4826 median absolute deviations) beyond the median of the log distance: an outlier."""


@dataclass(frozen=True)
class Suspect:
    """One radiograph to look at: `says` is the class that a head trained without its patient gives, with `p` for it.

    `kind` is "mislabel" or "outlier"; `score` sorts a kind, larger is worse: p(says) - p(label), or how many robust
    standard deviations its neighbours are too far.
    """

    digest: str
    kind: str
    label: str
    says: str
    p: float
    score: float


def find(rows: pd.DataFrame, features: NDArray[np.float32], classes: Sequence[str]) -> tuple[Suspect, ...]:
    """Return the suspects among rows (columns digest, patient, label), worst first, mislabels before outliers.

    `features` [N, F] are aligned with the rows. The same input gives the same suspects. Nothing is said of fewer
    patients than twice the folds, or of a class whose patients don't reach every fold's training part.
    """
    truth = np.array([list(classes).index(label) for label in rows["label"]])
    fold = _folds(rows["patient"])
    complete = all(set(truth[fold != k]) == set(range(len(classes))) for k in range(FOLDS))
    if rows["patient"].nunique() < 2 * FOLDS or not complete:
        return ()
    standard = _standardised(features)
    probabilities = cross_validated(standard, truth, fold, len(classes))
    says = probabilities.argmax(1)
    distances = far(standard, rows["patient"])

    def suspect(at: int, kind: str, score: float) -> Suspect:
        other = int(says[at])
        return Suspect(
            rows["digest"].iloc[at],
            kind,
            classes[truth[at]],
            classes[other],
            float(probabilities[at, other]),
            round(score, 4),
        )

    where = np.arange(len(truth))
    margin = probabilities.max(1) - probabilities[where, truth]
    wrong = mislabelled(probabilities, truth)
    mislabels = sorted((suspect(int(i), "mislabel", float(margin[i])) for i in wrong), key=_worst)
    outliers = sorted(
        (suspect(int(i), "outlier", float(distances[i])) for i in np.flatnonzero(distances > FAR)), key=_worst
    )
    return (*mislabels, *outliers)


def _worst(suspect: Suspect) -> tuple[float, str]:
    return -suspect.score, suspect.digest


def mislabelled(probabilities: NDArray[np.float64], truth: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the indices that confident learning counts off the diagonal, of out-of-fold probabilities [N, C].

    A radiograph counts for the likeliest of those classes whose threshold it reaches: the mean probability of a class
    among the radiographs that carry it (Northcutt et al. 2021, equation 2).
    """
    classes = probabilities.shape[1]
    threshold = np.array([probabilities[truth == c, c].mean() if (truth == c).any() else 2.0 for c in range(classes)])
    reached = np.where(probabilities >= threshold, probabilities, -1.0)
    counted = reached.argmax(1)
    return np.flatnonzero((reached.max(1) >= 0) & (counted != truth))


def cross_validated(
    standard: NDArray[np.float32], truth: NDArray[np.int64], fold: NDArray[np.int64], classes: int
) -> NDArray[np.float64]:
    """Return probabilities [N, C] of a balanced, L2-penalised softmax head that did not see the row's fold.

    The fit is that of recipe `head` on one view of each radiograph, in the space that the rows span when that is
    smaller than the features.
    """
    torch.manual_seed(0)
    rows = torch.from_numpy(standard)
    found = np.empty((len(truth), classes))
    for k in range(int(fold.max()) + 1):
        inside, outside = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        if len(outside):
            weight, bias = _head(rows[inside], torch.from_numpy(truth[inside]), classes)
            logits = torch.nn.functional.linear(rows[outside], weight, bias)
            found[outside] = torch.softmax(logits.double(), 1).numpy()
    return found


def _head(rows: torch.Tensor, labels: torch.Tensor, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    counts = torch.bincount(labels, minlength=classes).float()
    loss = torch.nn.CrossEntropyLoss(counts.sum() / (classes * counts))
    weight = torch.zeros(classes, rows.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def objective() -> torch.Tensor:
        optimizer.zero_grad()
        entropy: torch.Tensor = loss(torch.nn.functional.linear(rows, weight, bias), labels)
        total: torch.Tensor = entropy + PENALTY / (2 * len(labels)) * weight.square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimizer.step(objective)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


def far(standard: NDArray[np.float32], patients: pd.Series[str]) -> NDArray[np.float64]:
    """Return how unusually far each row's neighbours are, in robust standard deviations of the log distance.

    Distance is to the fifth nearest radiograph of another patient among at most 4,000, in the 64 directions of largest
    variance.
    """
    codes, names = pd.factorize(patients.to_numpy(), sort=True)
    reduced = _reduced(standard)
    order = sorted(range(len(codes)), key=lambda i: (hashlib.sha256(str(names[codes[i]]).encode()).digest(), i))
    others = np.array(order[:MOST_NEIGHBOURS])
    pool = torch.from_numpy(reduced[others])
    found = np.empty(len(codes))
    for start in range(0, len(codes), 1024):
        part = slice(start, start + 1024)
        distances = torch.cdist(torch.from_numpy(reduced[part]), pool)
        distances[torch.from_numpy(codes[part, None] == codes[others][None])] = torch.inf
        nearest = distances.topk(min(NEIGHBOURS, len(others)), largest=False).values
        found[part] = nearest[:, -1].numpy()
    logs = np.log(np.maximum(found, 1e-6))
    middle = np.median(logs)
    spread = 1.4826 * np.median(np.abs(logs - middle))
    return np.asarray((logs - middle) / max(float(spread), 1e-6))


def _reduced(standard: NDArray[np.float32]) -> NDArray[np.float32]:
    rows = torch.from_numpy(standard)
    size = min(DIMENSIONS, *rows.shape)
    torch.manual_seed(0)
    _, _, directions = torch.pca_lowrank(rows, q=size, center=False, niter=2)
    return np.asarray((rows @ directions).numpy())


def _standardised(features: NDArray[np.float32]) -> NDArray[np.float32]:
    spread = features.std(0)
    return np.asarray((features - features.mean(0)) / np.where(spread > 1e-6, spread, np.inf), dtype=np.float32)


def _folds(patients: pd.Series[str]) -> NDArray[np.int64]:
    """Return the fold of each row: a hash of the patient, so a patient is in one fold whatever else is there."""
    fold = {name: hashlib.sha256(f"fold {name}".encode()).digest()[0] % FOLDS for name in patients.unique()}
    return np.array([fold[name] for name in patients])
