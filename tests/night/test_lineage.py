"""Where a candidate comes from is what training wrote down; what changed since the champion is named."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from xray_pipeline.base import records
from xray_pipeline.base.code import code_digest
from xray_pipeline.base.errors import EvaluationError
from xray_pipeline.base.storage import Store, open_store
from xray_pipeline.base.text import without_names
from xray_pipeline.gate.rules import PARTS
from xray_pipeline.night import lineage
from xray_pipeline.night.lineage import NOT_RECORDED, changed, facts
from xray_pipeline.training import candidate as training
from xray_pipeline.training.candidate import Candidate
from xray_pipeline.training.recipe import Recipe
from xray_pipeline.training.train import environment

PLACE = {
    "device": "cpu",
    "cpu": "AVX2",
    "threads": 2,
    "weights": "a" * 64,
    "code": "b" * 64,
    "versions": {"torch": "2.0", "numpy": "2.1"},
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path)


def trained(store: Store, name: str, /, snapshot: str = "s", places: Any = (PLACE,), **recipe: Any) -> Candidate:
    """Leave behind what training leaves."""
    how = Recipe(**recipe)
    digest = training.candidate_digest(snapshot, how, places[0]["weights"], places[0]["versions"]) + name
    candidate = Candidate(digest, f"run-{name}", "models:/m", "m", snapshot, how.digest(), 0.5)
    folder = store.child(f"candidates/{digest}")
    records.write(folder, "candidate.json", asdict(candidate))
    folder.write("recipe.json", how.model_dump_json().encode())
    records.write(folder, "environment.json", list(places))
    return candidate


def test_the_lineage_is_that_of_the_training_run(store: Store) -> None:
    found = facts(store, trained(store, "new", seed=7))
    assert found["pretrained weights (SHA-256 of the tensors)"] == "a" * 64
    assert found["training code (SHA-256 of the package)"] == "b" * 64
    assert found["code that evaluated"] == code_digest(*lineage.JUDGES)
    assert (found["seed of training"], found["trained on"]) == ("7", "cpu (AVX2, 2 threads)")
    assert (found["version of torch"], found["version of numpy"], found["MLflow run"]) == ("2.0", "2.1", "run-new")


def test_a_training_that_went_on_elsewhere_names_both_places(store: Store) -> None:
    found = facts(store, trained(store, "new", places=(PLACE, {**PLACE, "device": "NVIDIA H100"})))
    assert found["trained on"] == "cpu, then NVIDIA H100 (AVX2, 2 threads)"
    assert found["version of torch"] == "2.0"


def test_what_was_not_recorded_says_so(store: Store) -> None:
    candidate = trained(store, "new")
    store.delete(f"candidates/{candidate.digest}/environment.json")
    assert facts(store, candidate)["pretrained weights (SHA-256 of the tensors)"] == NOT_RECORDED
    store.delete(f"candidates/{candidate.digest}/recipe.json")
    with pytest.raises(EvaluationError, match="no recipe this version can read"):
        facts(store, candidate)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({}, ()),
        ({"name": "renamed"}, ()),
        ({"snapshot": "t"}, ("training data",)),
        ({"epochs": 3, "seed": 1}, ("recipe",)),
        ({"backbone": "resnet18"}, ("backbone",)),
        ({"side": 128, "threshold": "half"}, ("image preparation", "threshold rule")),
        ({"places": ({**PLACE, "weights": "c" * 64},)}, ("starting weights",)),
        ({"places": ({**PLACE, "code": "c" * 64},)}, ("software",)),
        ({"places": ({**PLACE, "versions": {"torch": "2.1"}},)}, ("software",)),
    ],
)
def test_what_changed_against_the_champion_is_named(
    store: Store, change: dict[str, Any], parts: tuple[str, ...]
) -> None:
    champion = trained(store, "old")
    assert changed(store, trained(store, "new", **change), champion.digest) == parts
    assert set(parts) <= set(PARTS)


def test_another_warm_start_is_another_start(store: Store) -> None:
    champion, warm = trained(store, "old", mode="partial"), trained(store, "new", mode="partial", warm_start=True)
    before = warm.digest.removesuffix("new")
    records.write(store, f"candidates/{before}/start.json", {"version": 3, "model": "m"})
    assert changed(store, warm, champion.digest) == ("recipe", "starting weights")
    assert facts(store, warm)["training started from"] == "version 3"


@pytest.mark.parametrize("of", ["champion", "candidate"])
@pytest.mark.parametrize("lost", ["start.json", "environment.json"])
def test_a_start_that_is_not_on_record_stops_no_evaluation(store: Store, lost: str, of: str) -> None:
    warm, cold = trained(store, "warm", mode="partial", warm_start=True), trained(store, "cold", mode="partial")
    before = warm.digest.removesuffix("warm")
    records.write(store, f"candidates/{before}/start.json", {"version": 3, "model": "m"})
    ours, theirs = (cold, warm) if of == "champion" else (warm, cold)
    assert changed(store, ours, theirs.digest) == ("recipe", "starting weights")
    store.delete(f"candidates/{before if lost == 'start.json' else warm.digest}/{lost}")
    assert changed(store, ours, theirs.digest) is None
    assert facts(store, warm)["training started from"] == NOT_RECORDED


@pytest.mark.parametrize("lost", ["candidate.json", "recipe.json", "environment.json"])
def test_without_the_champions_record_nothing_is_said_of_what_changed(store: Store, lost: str) -> None:
    champion = trained(store, "old")
    store.delete(f"candidates/{champion.digest}/{lost}")
    assert changed(store, trained(store, "new"), champion.digest) is None


def test_training_records_the_code_it_ran(store: Store) -> None:
    import torch

    assert environment(torch.device("cpu"), "w", "torch")["code"] == code_digest(*training.MAKERS)
    assert len(code_digest("base")) == 64


@pytest.mark.parametrize("name", ["DOE JOHN", "O'Neil", 'Jo "J" Doe', "both ' and \""])
def test_a_rejection_is_shown_without_the_names_it_quotes(name: str) -> None:
    said = without_names(f"a folder of delivery monday is named {name!r}; did you mean PNEUMONIA?")
    assert said == "a folder of delivery monday is named '...'; did you mean PNEUMONIA?"
