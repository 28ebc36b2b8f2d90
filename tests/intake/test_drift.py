"""The drift test: exact under its null, blind to order, silent on small numbers, loud about what it must see."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pandas as pd
import phantom
import pytest
from references import reference

from xray_pipeline.base.settings import IntakeRules
from xray_pipeline.images import appearance
from xray_pipeline.intake import drift
from xray_pipeline.intake.drift import Draws, Drift, age_group, level_of, of_features, sampled

RULES = IntakeRules(drift_min_dataset=60)


def named(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def rows(
    vectors: np.ndarray, first: int = 0, images: int = 2, label: str = "", age: float = float("nan")
) -> pd.DataFrame:
    """Radiographs of made-up patients, `images` each."""
    numbers = np.arange(first, first + len(vectors))
    return pd.DataFrame(
        {
            "digest": [named(n) for n in numbers],
            "patient": [named(n // images)[:32] for n in numbers],
            "label": [label or ("NORMAL", "PNEUMONIA")[int(n % 3 > 0)] for n in numbers // images],
            "statistics": [appearance.to_text(vector) for vector in vectors],
            "verdict": "accepted",
            "age_years": age,
        }
    )


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    """Phantoms of 150 patients, one each."""
    people = [phantom.Patient(f"p{n}", "", 0.6 * (n % 3 > 0), n, 1, n % 2, "") for n in range(150)]
    return [phantom.radiograph(one, 1) for one in people]


def of_table(new: pd.DataFrame, known: pd.DataFrame, rules: IntakeRules) -> Drift:
    return drift.of_table(new, reference(known), rules)


def measured(pictures: list[np.ndarray], first: int = 0, **more: Any) -> pd.DataFrame:
    return rows(np.stack([appearance.measure(one) for one in pictures]), first, 1, **more)


@pytest.fixture(scope="module")
def dataset(pictures: list[np.ndarray]) -> pd.DataFrame:
    return measured(pictures[:110])


# what must raise it


@pytest.mark.parametrize(
    "change",
    [
        lambda one: 65535 - one,
        lambda one: np.minimum(65535, one.astype(np.int64) + 9000).astype(np.uint16),
        lambda one: one // 4,
        lambda one: one[: one.shape[0] // 2, : one.shape[1] // 2],
        lambda one: np.clip(one + np.random.default_rng(0).normal(0, 6000, one.shape), 0, 65535).astype(np.uint16),
    ],
    ids=["inverted", "brighter", "darker", "cropped", "noisy"],
)
def test_a_strange_scanner_raises_the_alarm(pictures: list[np.ndarray], dataset: pd.DataFrame, change: Any) -> None:
    found = of_table(measured([change(one) for one in pictures[110:140]], 110), dataset, RULES)
    assert found.alarms == ("pixels",)


def test_the_dataset_s_own_kind_raises_none(pictures: list[np.ndarray], dataset: pd.DataFrame) -> None:
    found = of_table(measured(pictures[110:140], 110), dataset, RULES)
    assert found.alarms == ()
    assert [channel.p is not None for channel in found.channels] == [True, True]


def test_another_mix_of_classes_raises_the_alarm_in_words(pictures: list[np.ndarray], dataset: pd.DataFrame) -> None:
    found = of_table(measured(pictures[110:140], 110, label="NORMAL"), dataset, RULES)
    assert "labels" in found.alarms
    assert "NORMAL 100% here, 34% in the dataset" in found.channels[1].text


def test_adults_among_children_raise_the_alarm_in_words(pictures: list[np.ndarray]) -> None:
    children = measured(pictures[:110], age=3.0)
    found = of_table(measured(pictures[110:], 110, age=45.0), children, RULES)
    assert found.alarms == ("labels",)
    assert "18 to 64 100% here, 0% in the dataset" in found.channels[1].text
    assert of_table(measured(pictures[110:], 110, age=4.0), children, RULES).alarms == ()


@pytest.mark.parametrize(("age", "group"), [(0.5, "under 1"), (1, "1 to 5"), (18, "18 to 64"), (float("nan"), "")])
def test_an_age_has_a_group(age: float, group: str) -> None:
    assert age_group(age) == group


def test_features_are_compared_by_the_same_test(dataset: pd.DataFrame) -> None:
    rng = np.random.default_rng(1)
    new = dataset.iloc[:30]
    kept = dataset.iloc[30:]
    vectors = {digest: rng.normal(size=64).astype(np.float32) for digest in dataset["digest"]}
    assert of_features(new, kept, vectors, RULES).alarms == ()
    moved = {digest: vectors[digest] + np.float32(0.8) for digest in new["digest"]}
    assert of_features(new, kept, vectors | moved, RULES).alarms == ("features",)


# what must not


@pytest.mark.parametrize(("new", "kept"), [(9, 100), (0, 100), (50, 59), (50, 0), (0, 0)])
def test_of_few_patients_nothing_is_said(new: int, kept: int) -> None:
    rng = np.random.default_rng(0)
    strange = rows(rng.normal(9, 1, (new, 32)).astype(np.float32), 1000, 1) if new else rows(np.empty((0, 32)))
    found = of_table(strange, rows(rng.normal(size=(kept, 32)).astype(np.float32), 0, 1), RULES)
    assert found.alarms == ()
    assert all(channel.p is None and "not enough to say" in channel.text for channel in found.channels)


def test_rows_of_manifests_without_the_numbers_do_not_count(dataset: pd.DataFrame) -> None:
    found = of_table(dataset.iloc[:20], dataset.assign(statistics=np.nan), RULES)
    assert found.dataset_patients == 0
    assert found.alarms == ()


def test_p_is_uniform_where_nothing_differs_and_patients_have_many_images() -> None:
    """Under the null P(p <= x) <= x; images of a patient that are alike must not turn into evidence."""
    rng = np.random.default_rng(4)
    found = []
    for _ in range(300):
        patients = np.repeat(np.arange(60), 3)
        vectors = (rng.normal(size=(60, 4))[patients] + 0.1 * rng.normal(size=(180, 4))).astype(np.float32)
        names = [str(p) for p in patients]
        draws = Draws(names[:36], names[36:], 0.1, int(rng.integers(2**32)))
        found.append(draws.vectors(vectors[:36], vectors[36:]))
    # 300 values: three standard errors above 0.1 and 0.5
    assert np.mean(np.array(found) <= 0.1) < 0.152
    assert 0.41 < np.mean(np.array(found) <= 0.5) < 0.59


def test_the_channels_share_the_stated_rate() -> None:
    assert 3 * level_of(IntakeRules()) == pytest.approx(0.01)


# deterministic


def test_order_does_not_matter_and_a_repeat_gives_the_same(dataset: pd.DataFrame) -> None:
    new, kept = dataset.iloc[:30], dataset.iloc[30:]
    first = of_table(new, kept, RULES)
    assert of_table(new, kept, RULES) == first
    again = of_table(new.sample(frac=1, random_state=1), kept.sample(frac=1, random_state=2), RULES)
    for one, two in zip(first.channels, again.channels, strict=True):
        # The sums are the same but for rounding.
        assert one.p is not None
        assert two.p == pytest.approx(one.p, abs=2e-3)


def test_kept_as_json_it_comes_back(dataset: pd.DataFrame) -> None:
    found = of_table(dataset.iloc[:30], dataset.iloc[30:], RULES)
    assert Drift.from_dict(found.to_dict()) == found


def test_of_many_radiographs_whole_patients_are_taken() -> None:
    many = rows(np.zeros((600, 32), np.float32))
    some = sampled(many, 101)
    assert len(some) == 100
    assert (some.groupby("patient").size() == 2).all()
    assert list(sampled(many.sample(frac=1, random_state=0), 101)["digest"].sort_values()) == list(
        some["digest"].sort_values()
    )
