"""What the kept features say of a snapshot, from a real backbone on phantoms."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from phantoms import deliver

from xray_pipeline.base.settings import IntakeRules, Settings
from xray_pipeline.dataset.store import Dataset, Snapshot
from xray_pipeline.intake import alarms
from xray_pipeline.night import intake_steps, review, screening
from xray_pipeline.night.run import Run
from xray_pipeline.training.recipe import load_recipe

RECIPE = load_recipe("head", {"weights": "none", "views": 1, "side": 64, "levels": False})


def contents(folder: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def run(settings: Settings) -> Run:
    return Run(settings.model_copy(update={"rules": IntakeRules(drift_min_dataset=40)}))


def grow(run: Run, name: str, numbers: range, inverted: bool = False) -> Snapshot:
    deliver(run.settings, name, numbers, inverted)
    intake_steps.check_delivery(run, name)
    intake_steps.commit_deliveries(run, [name])
    found = Dataset(run.settings).snapshot()
    assert found is not None
    return found


def test_features_of_each_delivery_are_compared_once_and_suspects_listed(run: Run) -> None:
    store = run.store()
    first = grow(run, "first", range(70))
    assert alarms.standing(store, first.manifests) is None
    assert review.listed(store, first.digest) is None
    screening.screen(run, first, RECIPE)
    assert alarms.standing(store, first.manifests) == ()

    second = grow(run, "second", range(100, 125), inverted=True)
    screening.screen(run, second, RECIPE)
    assert alarms.standing(store, second.manifests) == ("second: features and pixels",)
    listed = review.listed(store, second.digest)
    assert listed is not None
    rows = Dataset(run.settings).rows(second)
    assert {s.digest for s in listed} <= set(rows.loc[rows["side"] != "held-out", "digest"])

    before = contents(Path(run.settings.store))
    screening.screen(run, second, RECIPE)
    assert contents(Path(run.settings.store)) == before


def test_several_new_deliveries_are_compared_in_order_not_with_each_other(run: Run) -> None:
    grow(run, "a", range(70))
    snapshot = grow(run, "b", range(100, 130), inverted=True)
    screening.screen(run, snapshot, RECIPE)
    assert alarms.of_delivery(run.store(), "a") == ()
    assert "features" in alarms.of_delivery(run.store(), "b")
