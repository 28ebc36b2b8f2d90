"""The list of suspects finds flipped labels and strange pictures, and spares what is in order."""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd
import pytest

from xray_pipeline.evaluation import suspects
from xray_pipeline.evaluation.suspects import find, mislabelled

CLASSES = ("NORMAL", "PNEUMONIA", "OTHER")


def named(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def made(images: int = 600, classes: int = 2, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
    """Features in which classes are 3 standard deviations apart on each of 6 axes; two radiographs a patient."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(classes, size=images // 2).repeat(2)
    features = rng.normal(size=(images, 24))
    features[:, :6] += 3 * truth[:, None]
    digests = [named(n) for n in range(images)]
    patients = [named(n // 2)[:32] for n in range(images)]
    labels = [CLASSES[c] for c in truth]
    return pd.DataFrame({"digest": digests, "patient": patients, "label": labels}), features.astype(np.float32)


def flipped(rows: pd.DataFrame, at: list[int]) -> pd.DataFrame:
    rows = rows.copy()
    for index in at:
        rows.loc[index, "label"] = CLASSES[1 - CLASSES.index(rows.loc[index, "label"])]
    return rows


def test_flipped_labels_lead_the_list() -> None:
    rows, features = made()
    at = [3, 77, 240, 598]
    found = find(flipped(rows, at), features, CLASSES[:2])
    mislabels = [s for s in found if s.kind == "mislabel"]
    assert {s.digest for s in mislabels} >= {named(n) for n in at}
    assert {s.digest for s in mislabels[:3]} <= {named(n) for n in at}
    assert len(mislabels) <= 10
    assert all(s.label != s.says for s in mislabels)


def test_of_right_labels_hardly_any_is_listed() -> None:
    assert len([s for s in find(*made(), CLASSES[:2]) if s.kind == "mislabel"]) <= 3


def test_three_classes_work_too() -> None:
    rows, features = made(900, 3)
    found = find(flipped(rows, [10]), features, CLASSES)
    assert named(10) in {s.digest for s in found}


def test_a_head_never_saw_another_radiograph_of_the_patient() -> None:
    """Features that tell the patient and nothing else: a head that has seen one would know the label of the other."""
    rng = np.random.default_rng(0)
    rows, _ = made(200)
    labels = rng.integers(2, size=100).repeat(2)
    features = np.kron(np.eye(100), np.ones((2, 1))).astype(np.float32)
    probabilities = suspects.cross_validated(features, labels, rows["patient"])
    assert np.abs(probabilities[:, 1] - 0.5).max() < 0.2


def test_a_strange_radiograph_is_an_outlier_and_a_patient_s_own_copy_does_not_hide_it() -> None:
    rows, features = made()
    features[20] += 40
    features[21] = features[20] + 0.001  # the same patient
    found = [s for s in find(rows, features, CLASSES[:2]) if s.kind == "outlier"]
    assert {s.digest for s in found[:2]} == {named(20), named(21)}


def test_the_same_input_gives_the_same_list_in_any_order() -> None:
    rows, features = made()
    rows = flipped(rows, [3, 77])
    found = find(rows, features, CLASSES[:2])
    assert find(rows, features, CLASSES[:2]) == found
    order = np.random.default_rng(0).permutation(len(rows))
    again = find(rows.iloc[order].reset_index(drop=True), features[order], CLASSES[:2])
    assert [s.digest for s in again if s.score > 0.5] == [s.digest for s in found if s.score > 0.5]


def test_few_patients_or_one_class_give_no_list() -> None:
    rows, features = made()
    assert find(rows.iloc[:12], features[:12], CLASSES[:2]) == ()
    one = rows["label"] == "NORMAL"
    assert find(rows[one], features[one.to_numpy()], CLASSES[:2]) == ()


def test_the_rule_of_confident_learning_by_hand() -> None:
    """Thresholds are the mean probabilities of a class among those that carry it."""
    truth = np.array([0, 0, 0, 1, 1, 1])
    first = np.array([0.9, 0.9, 0.3, 0.95, 0.4, 0.1])
    probabilities = np.c_[first, 1 - first]
    # Class 0: mean(.9, .9, .3) = .7; class 1: mean(.05, .6, .9) = .517. Row 2 reaches class 1, row 3 reaches class 0.
    assert list(mislabelled(probabilities, truth)) == [2, 3]


@pytest.mark.parametrize("truth", [[0, 0], [1, 1]])
def test_a_class_that_nothing_carries_is_never_the_right_one(truth: list[int]) -> None:
    assert list(mislabelled(np.array([[0.5, 0.5], [0.4, 0.6]]), np.array(truth))) == []
