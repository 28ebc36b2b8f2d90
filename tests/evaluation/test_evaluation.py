"""Metrics against scikit-learn's, intervals and tests against theory, predictions kept and repaired."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from xray_pipeline.base.errors import EvaluationError
from xray_pipeline.base.storage import open_store
from xray_pipeline.evaluation import bootstrap
from xray_pipeline.evaluation.bootstrap import Resampling
from xray_pipeline.evaluation.cases import Answers, prepare
from xray_pipeline.evaluation.metric_table import NAMES
from xray_pipeline.evaluation.metrics import Comparison, Evaluation, evaluate
from xray_pipeline.evaluation.predictions import score
from xray_pipeline.evaluation.slices import MOST_NAMED, Slice, slices

TWO = ("NORMAL", "PNEUMONIA")
THREE = ("BACTERIA", "NORMAL", "VIRUS")


def made(n: int, classes: tuple[str, ...], seed: int, skill: float = 1.5) -> tuple[Any, list[str], list[str]]:
    """Probabilities, labels and patients; a patient's rows are alike; rounded, so that there are ties."""
    rng = np.random.default_rng(seed)
    patient = rng.integers(max(2, n // 2), size=n)
    owner_label = rng.integers(len(classes), size=n)
    truth = owner_label[patient]
    truth[: len(classes)] = range(len(classes))
    logits = rng.normal(size=(n, len(classes))) + rng.normal(size=(n, len(classes)))[patient]
    logits[np.arange(n), truth] += skill
    p = np.exp(logits).round(1) + 0.01
    return p / p.sum(1, keepdims=True), [classes[i] for i in truth], [f"patient{i}" for i in patient]


def evaluated(p: Any, labels: Any, patients: Any, classes: Any, threshold: float, draws: int = 100) -> Evaluation:
    """Evaluate one model."""
    (found,), comparison = evaluate(prepare([Answers(p, threshold)], labels, patients, classes), Resampling(draws))
    assert comparison is None
    return found


def versus(p: Any, q: Any, labels: Any, patients: Any, classes: Any, second: float = 0.5) -> Comparison:
    """Compare two models, the first at a threshold of .5."""
    cases = prepare([Answers(p, 0.5, "new"), Answers(q, second, "old")], labels, patients, classes)
    _, found = evaluate(cases, Resampling(100))
    assert found
    return found


def sklearn_metrics(p: Any, truth: Any, predicted: Any, classes: int, weight: Any = None) -> dict[str, float]:
    """What scikit-learn says, macro over one-vs-rest; of two classes the last is positive."""
    rated = [1] if classes == 2 else range(classes)
    w: dict[str, Any] = {"sample_weight": weight}

    def mean(one: Any) -> float:
        return float(np.mean([one(truth == c, predicted == c, p[:, c]) for c in rated]))

    return {
        "accuracy": sk.accuracy_score(truth, predicted, **w),
        "balanced_accuracy": sk.balanced_accuracy_score(truth, predicted, **w),
        "auc": mean(lambda y, _, s: sk.roc_auc_score(y, s, **w)),
        "average_precision": mean(lambda y, _, s: sk.average_precision_score(y, s, **w)),
        "sensitivity": mean(lambda y, hit, _: sk.recall_score(y, hit, **w)),
        "specificity": mean(lambda y, hit, _: sk.recall_score(~y, ~hit, **w)),
        "ppv": mean(lambda y, hit, _: sk.precision_score(y, hit, **w)),
        "npv": mean(lambda y, hit, _: sk.precision_score(~y, ~hit, **w)),
        "brier": mean(lambda y, _, s: sk.brier_score_loss(y, s, pos_label=True, **w)),
    }


@pytest.mark.parametrize("classes", [TWO, THREE])
@pytest.mark.parametrize("seed", range(3))
def test_point_values_are_scikit_learns(classes: tuple[str, ...], seed: int) -> None:
    p, labels, patients = made(150, classes, seed)
    found = evaluated(p, labels, patients, classes, 0.6)
    truth = np.array([classes.index(name) for name in labels])
    predicted = (p[:, 1] >= 0.6).astype(int) if len(classes) == 2 else p.argmax(1)
    expected = sklearn_metrics(p, truth, predicted, len(classes))
    assert {k: v.value for k, v in found.metrics.items() if k != "ece"} == pytest.approx(expected, abs=1e-12)
    assert found.confusion == tuple(map(tuple, sk.confusion_matrix(truth, predicted).tolist()))


@pytest.mark.parametrize("classes", [TWO, THREE])
def test_a_draw_is_measured_as_scikit_learn_measures_weighted_rows(classes: tuple[str, ...]) -> None:
    p, labels, patients = made(120, classes, 5)
    (cases,) = prepare([Answers(p, 0.5)], labels, patients, classes)
    weights = np.random.default_rng(1).integers(0, 4, size=(5, cases.count)).astype(float)
    found = bootstrap._Table(cases).measure(weights)
    for draw in range(5):
        weight = weights[draw][cases.patient]
        expected = sklearn_metrics(cases.probabilities, cases.truth, cases.predicted, len(classes), weight)
        assert {name: found[(-1, name)][draw] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_calibration_error_is_that_of_bins_of_equal_mass() -> None:
    _, labels, patients = made(300, TWO, 2)
    s = np.linspace(0.01, 0.99, 300)  # no ties: 15 bins of 20
    y = np.array(labels) == "PNEUMONIA"
    expected = np.mean([abs(a.mean() - b.mean()) for a, b in zip(np.split(s, 15), np.split(y, 15), strict=True)])
    found = evaluated(np.c_[1 - s, s], labels, patients, TWO, 0.5)
    assert found.metrics["ece"].value == pytest.approx(expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(20, 120), st.sampled_from([TWO, THREE]))
def test_the_order_of_rows_changes_nothing(seed: int, n: int, classes: tuple[str, ...]) -> None:
    p, labels, patients = made(n, classes, seed)
    q, _, _ = made(n, classes, seed + 1)
    order = np.random.default_rng(seed).permutation(n)
    again = p[order], [labels[i] for i in order], [patients[i] for i in order]
    assert evaluated(p, labels, patients, classes, 0.5) == evaluated(*again, classes, 0.5)
    assert versus(p, q, labels, patients, classes, 0.4) == versus(p[order], q[order], *again[1:], classes, 0.4)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(8, 150), st.sampled_from([TWO, THREE]))
@example(38, 19, TWO)  # an average precision of 1 + 2e-16
def test_every_interval_holds_its_value_and_stays_in_range(seed: int, n: int, classes: tuple[str, ...]) -> None:
    found = evaluated(*made(n, classes, seed), classes, 0.5)
    assert set(found.metrics) == set(NAMES)
    for interval in found.metrics.values():
        assert 0 <= interval.low <= interval.value <= interval.high <= 1 + 1e-12


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """Two radiographs a patient, always both right or both wrong: image-wise intervals would cover about 83 %."""
    rng = np.random.default_rng(3)
    covered, runs = 0, 150
    for _ in range(runs):
        y, right = np.repeat(rng.random(150) < 0.5, 2), np.repeat(rng.random(150) < 0.85, 2)
        s = np.where(y == right, 0.9, 0.1)
        patients = [str(i) for i in np.repeat(np.arange(150), 2)]
        found = evaluated(np.c_[1 - s, s], [TWO[int(i)] for i in y], patients, TWO, 0.5, 200)
        covered += found.metrics["accuracy"].low <= 0.85 <= found.metrics["accuracy"].high
    assert 0.89 < covered / runs <= 0.99


def test_a_perfect_score_is_not_certain() -> None:
    labels = ["NORMAL", "PNEUMONIA"] * 20
    s = np.array([0.1, 0.9] * 20)
    found = evaluated(np.c_[1 - s, s], labels, [str(i) for i in range(40)], TWO, 0.5)
    assert found.metrics["accuracy"].low == pytest.approx(stats.beta.ppf(0.025, 40, 1))
    assert found.metrics["sensitivity"].low == pytest.approx(stats.beta.ppf(0.025, 20, 1))


def test_a_mean_of_which_one_part_is_perfect_is_not_more_certain_than_its_parts() -> None:
    labels = ["NORMAL", "PNEUMONIA"] * 20
    s = np.array([0.1, 0.9] * 20)
    s[[0, 2, 4]] = 0.8
    found = evaluated(np.c_[1 - s, s], labels, [str(i) for i in range(40)], TWO, 0.5, 200).metrics
    balanced, sensitivity, specificity = (found[n] for n in ("balanced_accuracy", "sensitivity", "specificity"))
    assert sensitivity.value == 1
    assert balanced.low <= (sensitivity.low + specificity.low) / 2


def test_a_model_that_always_says_one_of_three_is_not_certain_to_be_right_about_a_third() -> None:
    labels = list(THREE) * 15
    found = evaluated(np.array([[0.2, 0.6, 0.2]] * 45), labels, [str(i) for i in range(45)], THREE, 0.5, 200)
    for name in ("balanced_accuracy", "sensitivity", "specificity"):
        assert found.metrics[name].low < found.metrics[name].value < found.metrics[name].high
    for one in found.by_class.values():
        assert one["balanced_accuracy"].low < 0.5 < one["balanced_accuracy"].high


def test_each_class_against_the_rest_is_a_two_class_evaluation() -> None:
    p, labels, patients = made(150, THREE, 3)
    found = evaluated(p, labels, patients, THREE, 0.5)
    assert set(found.by_class) == set(THREE)
    truth, predicted = np.array([THREE.index(name) for name in labels]), p.argmax(1)
    for c, name in enumerate(THREE):
        assert set(found.by_class[name]) == set(NAMES)
        y, hit = truth == c, predicted == c
        assert found.by_class[name]["accuracy"].value == pytest.approx(sk.accuracy_score(y, hit))
        assert found.by_class[name]["balanced_accuracy"].value == pytest.approx(sk.balanced_accuracy_score(y, hit))


def test_nothing_called_positive_gives_a_predictive_value_of_nought_to_one() -> None:
    labels = ["NORMAL", "PNEUMONIA"] * 20
    found = evaluated(np.full((40, 2), 0.5), labels, [str(i) for i in range(40)], TWO, 0.9)
    ppv = found.metrics["ppv"]
    assert (ppv.value, ppv.low, ppv.high) == (0, 0, 1)


def test_a_thousand_resamples_of_800_radiographs_take_well_under_a_second() -> None:
    p, labels, patients = made(800, TWO, 1)
    start = time.process_time()
    evaluated(p, labels, patients, TWO, 0.5, 1000)
    assert time.process_time() - start < 1


# --- what can't be scored is named

GOOD = made(10, TWO, 0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"p": np.empty((0, 2)), "labels": [], "patients": []}, "held-out split is empty"),
        ({"labels": ["NORMAL"] * 10}, "none of the 10 rows is PNEUMONIA"),
        ({"labels": ["COVID"] * 10}, "'COVID' is not one of the model's classes"),
        ({"p": np.full((10, 2), np.nan)}, "row 0 holds .*nan"),
        ({"p": np.full((10, 2), 0.7)}, "row 0 holds .*0.7"),
        ({"p": np.array([[1.5, -0.5]] * 10)}, "row 0 holds .*1.5"),
        ({"p": np.full((9, 2), 0.5)}, r"shape \(9, 2\), expected \(10, 2\)"),
        ({"patients": ["a"] * 9 + [""]}, "need 10 patients, none of them empty"),
        ({"threshold": float("nan")}, "threshold is not a number"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_scored_is_named(change: dict[str, Any], says: str) -> None:
    arguments = {"p": GOOD[0], "labels": GOOD[1], "patients": GOOD[2], "threshold": 0.5, **change}
    with pytest.raises(EvaluationError, match=says):
        evaluated(**arguments, classes=TWO)


# --- the paired comparison


def pair(candidate_right: Any, champion_right: Any, patients: Any) -> Comparison:
    """Compare two models that are right where told; labels alternate."""
    y = np.arange(len(candidate_right)) % 2 == 1
    a, b = (np.where(np.asarray(right) == y, 0.9, 0.1) for right in (candidate_right, champion_right))
    labels = [TWO[int(i)] for i in y]
    return versus(np.c_[1 - a, a], np.c_[1 - b, b], labels, [str(i) for i in patients], TWO)


def test_with_one_radiograph_a_patient_it_is_mcnemars_exact_test() -> None:
    candidate, champion = [True] * 12 + [False] * 5 + [True] * 40, [False] * 12 + [True] * 5 + [True] * 40
    found = pair(candidate, champion, range(57))
    assert (found.only_candidate_right, found.only_champion_right) == (12, 5)
    assert found.p_value == pytest.approx(stats.binomtest(12, 17, alternative="greater").pvalue)
    assert found.differences["accuracy"].value == pytest.approx(7 / 57)


def test_the_radiographs_of_one_patient_are_one_witness() -> None:
    candidate, champion = [True] * 12 + [True] * 40, [False] * 12 + [True] * 40
    apart = pair(candidate, champion, range(52))
    together = pair(candidate, champion, [0] * 12 + list(range(1, 41)))
    assert apart.p_value == pytest.approx(0.5**12)
    assert together.p_value == pytest.approx(0.5)


def test_for_many_patients_it_agrees_with_obuchowski() -> None:
    rng = np.random.default_rng(4)
    patients = np.repeat(np.arange(600), 3)
    tilt = rng.normal(size=600)[patients]
    ours, theirs = tilt + rng.normal(size=1800) > -1.1, tilt + rng.normal(size=1800) > -1.0
    balance = np.bincount(patients, weights=ours.astype(float) - theirs)
    z = balance.sum() / np.sqrt((balance**2).sum())  # Obuchowski 1998, variance under equality
    assert pair(ours, theirs, patients).p_value == pytest.approx(stats.norm.sf(z), abs=0.02)


def test_equally_good_models_seldom_seem_better() -> None:
    """The level holds: of 1,000 equal pairs, with clusters, at most about 5 % have p <= 0.05."""
    rng = np.random.default_rng(5)
    patients = np.repeat(np.arange(100), 2)
    found = []
    for _ in range(1000):
        base = rng.random(100)[patients]
        a, b = (base + 0.3 * rng.normal(size=200) > 0.2 for _ in range(2))
        found.append(bootstrap.sign_flip_p(np.bincount(patients, a.astype(float) - b).astype(int)))
    assert np.mean(np.array(found) <= 0.05) < 0.07


def test_a_model_against_itself_has_no_evidence() -> None:
    p, labels, patients = made(60, TWO, 9)
    found = versus(p, p, labels, patients, TWO)
    assert found.p_value == 1
    assert all((i.value, i.low, i.high) == (0, 0, 0) for i in found.differences.values())


# --- JSON, slices


def test_evaluation_and_comparison_survive_json() -> None:
    p, labels, patients = made(60, THREE, 2)
    q, _, _ = made(60, THREE, 3)
    cases = prepare([Answers(p, 0.5, "new"), Answers(q, 0.5, "old")], labels, patients, THREE)
    (found, other), compared = evaluate(cases, Resampling(100, seed=1), "snapshot")
    assert compared
    assert Evaluation.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert Comparison.from_dict(json.loads(json.dumps(compared.to_dict()))) == compared
    assert found.rows == other.rows == compared.rows
    assert (found.model_digest, other.model_digest) == (compared.candidate, compared.champion) == ("new", "old")
    assert (found.snapshot, found.resamples, found.seed) == ("snapshot", compared.resamples, compared.seed)
    with pytest.raises(EvaluationError, match="no evaluation"):
        Evaluation.from_dict({"n": 3})


def held_out(n: int) -> tuple[pd.DataFrame, Any]:
    p, labels, patients = made(n, TWO, 7)
    half = np.arange(n) % 2 == 0
    rows = pd.DataFrame(
        {
            "digest": [f"{i:064x}" for i in range(n)],
            "label": labels,
            "patient": patients,
            "source": np.where(np.array(labels) == "NORMAL", "IM", "bacteria"),
            "delivery": np.where(half, "monday", "tuesday"),
            "scanner": "",
            "view": "PA",
            "sex": np.where(half, "F", ""),
            "mode": "L",
            "age_years": np.where(half, 0.5, np.nan),
            "width": 600,
            "height": np.where(np.arange(n) < 5, 300, 3000),
        }
    )
    return rows, p


def parts(rows: pd.DataFrame, *tables: Any) -> tuple[Slice, ...]:
    """Measure models, each at a threshold of .5, on every slice."""
    cases = prepare([Answers(p, 0.5) for p in tables], rows["label"], rows["patient"], TWO)
    return slices(rows, cases, Resampling(100))


def test_many_deliveries_get_no_slice_each() -> None:
    rows, p = held_out(120)
    rows["delivery"] = [f"2026-01-{1 + number // 3:02d}" for number in range(120)]
    rows.loc[:9, "delivery"] = "backlog"
    found = [part for part in parts(rows, p) if part.dimension == "delivery"]
    named = {part.value: part.n for part in found}
    assert len(named) == MOST_NAMED + 1
    assert sum(named.values()) == 120
    assert named["backlog"] == 10  # the largest, then of equals the newest by name
    assert {"2026-01-40", "2026-01-22"} <= named.keys()
    assert "2026-01-10" not in named


def test_every_radiograph_is_in_one_slice_of_each_dimension() -> None:
    rows, p = held_out(120)
    found = parts(rows, p, np.roll(p, 1, axis=0))
    for dimension in {part.dimension for part in found}:
        assert sum(part.n for part in found if part.dimension == dimension) == 120
    named = {(part.dimension, part.value): part for part in found}
    assert named[("sex", "unknown")].n == named[("age group", "0-1 years")].n == 60
    assert named[("size", "0-512 px")].small
    assert not named[("view", "PA")].small
    assert named[("scanner", "unknown")].n == 120
    bacteria = named[("source", "bacteria")]
    assert "auc" not in bacteria.candidate
    assert "specificity" not in bacteria.champion
    assert {"accuracy", "sensitivity"} <= set(bacteria.difference)
    assert Slice.from_dict(json.loads(json.dumps(bacteria.to_dict()))) == bacteria


def test_no_slice_is_named_by_what_was_typed_for_a_few_patients() -> None:
    rows, p = held_out(120)
    number = rows["patient"].astype("category").cat.codes
    rows["scanner"] = np.select([number < 9, number < 19, number < 29], ["Dr DOE^JANE 1940", "ACME 1", ""], "ACME 2")
    rows["view"] = np.select([number < 9, number < 40, number < 50], ["DOE^JANE 1940", "PA", ""], "AP")
    found = parts(rows, p)
    assert {part.value for part in found if part.dimension == "scanner"} == {"ACME 1", "ACME 2", "other", "unknown"}
    assert {part.value for part in found if part.dimension == "view"} == {"AP", "PA", "other", "unknown"}
    for dimension in ("scanner", "view"):
        assert sum(part.n for part in found if part.dimension == dimension) == 120


def test_a_slice_of_everything_is_the_evaluation() -> None:
    rows, p = held_out(120)
    (everything,) = [part for part in parts(rows, p) if part.value == "PA"]
    whole = evaluated(p, list(rows["label"]), list(rows["patient"]), TWO, 0.5)
    assert dict(everything.candidate) == pytest.approx(whole.metrics)
    assert everything.difference == {}


# --- predictions are kept


@dataclass
class Mean:
    """A real, if poor, model: the mean brightness is the probability."""

    digest: str = "f" * 64
    classes: tuple[str, ...] = TWO
    seen: list[int] = field(default_factory=list)

    def probabilities(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        self.seen.append(len(pixels))
        s = pixels.reshape(len(pixels), -1).mean(1) / 255
        both: npt.NDArray[np.float64] = np.c_[1 - s, s]
        return both


def read(digest: str, suffix: str) -> bytes:
    return bytes([int(digest, 16) % 256])


class Folder:
    """Pixels of one grey each: the only byte of the file."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    def ensure(self, rows: pd.DataFrame, read: Any) -> None:
        self.kept |= {
            digest: read(digest, suffix) for digest, suffix in zip(rows["digest"], rows["suffix"], strict=True)
        }

    def get(self, digests: Any) -> npt.NDArray[np.uint8]:
        return np.stack([np.full((4, 4), self.kept[d][0], np.uint8) for d in digests])


def table(first: int, last: int) -> pd.DataFrame:
    return pd.DataFrame({"digest": [f"{i:064x}" for i in range(first, last)], "suffix": ".png"})


def test_only_new_radiographs_are_scored(tmp_path: Path) -> None:
    store, model, calls = open_store(tmp_path), Mean(), []
    score(model, table(0, 700), Folder(), read, store, lambda *call: calls.append(call))
    found = score(model, table(695, 720)[::-1], Folder(), read, store)
    assert model.seen == [512, 188, 20]
    assert calls == [(512, 700, "scoring"), (700, 700, "scoring")]
    assert list(found.columns) == ["digest", "p_NORMAL", "p_PNEUMONIA"]
    assert list(found["digest"]) == list(table(695, 720)["digest"][::-1])
    assert found["p_PNEUMONIA"].tolist() == [i % 256 / 255 for i in range(719, 694, -1)]


def test_a_broken_part_is_scored_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store, model = open_store(tmp_path), Mean()
    first = score(model, table(0, 30), Folder(), read, store)
    (part,) = (tmp_path / "predictions" / model.digest).iterdir()
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    again = score(model, table(0, 30), Folder(), read, store)
    pd.testing.assert_frame_equal(first, again)
    assert model.seen == [30, 30]
    assert "is broken" in caplog.text
    score(model, table(0, 30), Folder(), read, store)
    assert model.seen == [30, 30]


def test_models_do_not_share_predictions(tmp_path: Path) -> None:
    store, other = open_store(tmp_path), Mean(digest="e" * 64)
    score(Mean(), table(0, 5), Folder(), read, store)
    score(other, table(0, 5), Folder(), read, store)
    assert other.seen == [5]


def test_a_model_that_gives_nan_is_stopped_and_nothing_is_kept(tmp_path: Path) -> None:
    class Broken(Mean):
        def probabilities(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
            return np.full((len(pixels), 2), np.nan)

    with pytest.raises(EvaluationError, match="nan"):
        score(Broken(), table(0, 5), Folder(), read, open_store(tmp_path))
    assert list(open_store(tmp_path).list()) == []
