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

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from xray_pipeline.evaluation.suspected import Suspect

FOLDS, PENALTY, ITERATIONS = 5, 60.0, 40
NEIGHBOURS, MOST_NEIGHBOURS, DIMENSIONS = 5, 4000, 64
FAR = 6.0
"""Robust standard deviations (1.4826 median absolute deviations) beyond the median of the log distance: an outlier."""


def find(rows: pd.DataFrame, features: NDArray[np.float32], classes: Sequence[str]) -> tuple[Suspect, ...]:
    """Return the suspects among rows (columns digest, patient, label), worst first, mislabels before outliers.

    `features` [N, F] are aligned with the rows, whose order does not count. Nothing is said of fewer patients than
    twice the folds, or of a class with fewer patients than there are folds.
    """
    by_class = rows.groupby("label")["patient"].nunique()
    if rows["patient"].nunique() < 2 * FOLDS or any(by_class.get(name, 0) < FOLDS for name in classes):
        return ()
    order = np.argsort(rows["digest"].to_numpy().astype(str))
    rows, features = rows.iloc[order], features[order]
    truth = np.array([list(classes).index(label) for label in rows["label"]])
    probabilities = cross_validated(features, truth, rows["patient"])
    says, where = probabilities.argmax(1), np.arange(len(truth))
    margin = probabilities.max(1) - probabilities[where, truth]
    distances = far(features, rows["patient"])

    def suspects(kind: str, at: NDArray[np.int64], scores: NDArray[np.float64]) -> list[Suspect]:
        found = [
            Suspect(
                rows["digest"].iloc[i],
                kind,
                classes[truth[i]],
                classes[says[i]],
                float(probabilities[i, says[i]]),
                round(float(scores[i]), 4),
            )
            for i in at
        ]
        return sorted(found, key=lambda suspect: (-suspect.score, suspect.digest))

    mislabels = suspects("mislabel", mislabelled(probabilities, truth), margin)
    return (*mislabels, *suspects("outlier", np.flatnonzero(distances > FAR), distances))


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
    features: NDArray[np.float32], truth: NDArray[np.int64], patients: pd.Series[str]
) -> NDArray[np.float64]:
    """Return probabilities [N, C] of a `head` that did not see the row's patient."""
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    found: NDArray[np.float64] = cross_val_predict(
        head(int(truth.max())), features, truth, groups=patients, cv=folds, method="predict_proba"
    )
    return found


def head(last: int) -> Pipeline:
    """Return a balanced, L2-penalised head of `last` + 1 classes on standardised features, to be fitted.

    The objective is that of recipe `head` on one view of each radiograph. With two classes scikit-learn fits the
    difference of the two logits alone, whose squares sum to twice as much.
    """
    strength = PENALTY / 2 if last == 1 else PENALTY
    fitted = LogisticRegression(C=1 / strength, class_weight="balanced", max_iter=ITERATIONS)
    return make_pipeline(StandardScaler(), fitted)


def far(features: NDArray[np.float32], patients: pd.Series[str]) -> NDArray[np.float64]:
    """Return how unusually far each row's neighbours are, in robust standard deviations of the log distance.

    Distance is to the fifth nearest radiograph of another patient among at most 4,000, in the 64 directions of largest
    variance of the standardised features.
    """
    codes = pd.factorize(patients.to_numpy())[0]
    size = min(DIMENSIONS, *features.shape)
    reduced = make_pipeline(StandardScaler(), PCA(size, svd_solver="randomized", random_state=0)).fit_transform(
        features
    )
    pool = np.random.default_rng(0).permutation(len(codes))[:MOST_NEIGHBOURS]
    asked = min(len(pool), NEIGHBOURS + int(np.bincount(codes[pool]).max()))  # a patient's own don't count
    distances, near = NearestNeighbors(n_neighbors=asked).fit(reduced[pool]).kneighbors(reduced)
    distances[codes[pool][near] == codes[:, None]] = np.inf
    fifth = np.sort(distances, axis=1)[:, min(NEIGHBOURS, asked) - 1]
    logs = np.log(np.maximum(fifth, 1e-6))
    middle = np.median(logs)
    spread = 1.4826 * np.median(np.abs(logs - middle))
    return np.asarray((logs - middle) / max(float(spread), 1e-6))
