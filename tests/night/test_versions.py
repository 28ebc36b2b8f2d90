"""Registered versions beside each other, scored on the newest held-out radiographs."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from candidates import trained
from samples import jpeg, picture
from typer.testing import CliRunner

from xray_pipeline.base.errors import ConfigError, DatasetError, LedgerError
from xray_pipeline.base.settings import Settings
from xray_pipeline.command import main as cli
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.night import intake_steps, scores, versions
from xray_pipeline.night.gather import new_deliveries
from xray_pipeline.night.pair import pair
from xray_pipeline.night.run import Run
from xray_pipeline.registry import decisions
from xray_pipeline.registry.entries import Move
from xray_pipeline.registry.ledger import Ledger
from xray_pipeline.registry.mlflow_registry import Registry

DECISION = {"verdict": "registered", "may_promote": True, "automatic": True, "compared_patients": 0}
SAID: dict[str, Any] = {"who": "a test", "why": "a test", "decision": DECISION}


@pytest.fixture
def two(grown: Settings, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Version 1 is champion, version 2 waits; commands find the same site."""
    registry = Registry(grown)
    decisions.register(registry, trained(grown), champion_before=None, **SAID)
    decisions.promote(registry, 1, expected_champion=None, **SAID)
    decisions.register(registry, trained(grown, seed=1, epochs=1), champion_before=1, **SAID)
    monkeypatch.setenv("XRAY_HOME", str(grown.home))
    monkeypatch.setenv("XRAY_BOOTSTRAP", str(grown.bootstrap))
    monkeypatch.setenv("XRAY_PATIENT_KEY", grown.patient_key.get_secret_value())
    return Run(grown)


def deliver(run: Run) -> None:
    """Lay and commit a second delivery, with more held-out patients."""
    for label, bright in (("NORMAL", 0), ("PNEUMONIA", 120)):
        folder = Path(run.settings.incoming) / "second" / label
        folder.mkdir(parents=True)
        for seed in range(20):
            pixels = picture(seed + 5000 + bright).astype(np.int64)
            pixels[30:60, 20:50] += bright
            data = jpeg(np.clip(pixels, 0, 255).astype(np.uint8))
            (folder / f"patient{seed + 5000 + bright}_1.jpeg").write_bytes(data)
    for key in intake_steps.find_deliveries(run):
        intake_steps.check_delivery(run, key)
        intake_steps.commit_deliveries(run, [key])


def held_out(run: Run) -> int:
    dataset = Dataset(run.settings)
    snapshot = dataset.snapshot()
    assert snapshot is not None
    return int((dataset.rows(snapshot)["side"] == "held-out").sum())


def ahead(of: scores.Scores) -> float:
    assert of.comparison is not None
    return of.comparison.differences["accuracy"].value


def test_two_versions_are_scored_on_the_same_newest_radiographs_once(two: Run) -> None:
    first = versions.score(two, [2, 1])
    assert (first.versions, first.evaluations[0].n) == ((2, 1), held_out(two))
    ours, theirs = (one.metrics["accuracy"].value for one in first.evaluations)
    assert ahead(first) == pytest.approx(ours - theirs)
    assert ahead(versions.score(two, [1, 2])) == pytest.approx(theirs - ours)
    assert versions.score(two, [2, 1]) == first  # its moment, too: nothing was measured again
    deliver(two)
    state = Ledger(two.store()).state()
    assert scores.last_scores(two.store(), state, [2, 1]) == first  # what a page shows names its snapshot
    later = versions.refresh(two)
    assert later is not None
    assert (later.versions, later.evaluations[0].n) == ((2, 1), held_out(two))
    assert later.evaluations[1].n == later.evaluations[0].n > first.evaluations[0].n
    assert later.evaluations[0].snapshot != first.evaluations[0].snapshot
    assert scores.last_scores(two.store(), state, [2, 1]) == later
    (damaged,) = [e.key for e in two.store().list("scores") if later.scored in two.store().read(e.key).decode()][:1]
    two.store().write(damaged, two.store().read(damaged).replace(b'"n": ', b'"n": 1'))
    assert scores.last_scores(two.store(), state, [2, 1]) is None
    assert replace(versions.score(two, [2, 1]), scored=later.scored) == later


def test_the_command_compares_any_two_versions(two: Run) -> None:
    said = CliRunner().invoke(cli.app, ["compare", "1", "2"])
    assert said.exit_code == 3, said.output  # done, but two that are hardly trained: the policy says no
    assert said.output.startswith(f"on {held_out(two)} held-out radiographs of ")
    assert "Accuracy" in said.output
    found = json.loads(CliRunner().invoke(cli.app, ["compare", "1", "2", "--json"]).output)
    assert found["versions"] == [1, 2]
    assert set(found["comparison"]["differences"]["accuracy"]) == {"value", "low", "high"}
    assert not found["decision"]["may_promote"]
    page = two.store().read(found["report"]).decode()
    assert "version 2, which stands in the champion's place here though it is not the model in production" in page
    assert "Version 2 named " in page
    assert page.count("in production") == 1
    kinds = [entry.kind for entry in Ledger(two.store()).entries()]
    assert kinds == ["registered", "promoted", "registered"]  # nothing was decided
    assert [one["n"] for one in found["evaluations"]] == [held_out(two)] * 2
    for wrong, why in (("9", "version 9 was never registered; there are: 1, 2"), ("1", "name two")):
        unknown = CliRunner().invoke(cli.app, ["compare", "1", wrong])
        assert unknown.exit_code == 1
        assert why in str(unknown.exception)
    assert versions.compare(two, None, None).scores.versions == (2, 1)  # the challenger against the champion


def test_what_came_after_a_version_is_nothing_that_it_learnt_from(two: Run) -> None:
    deliver(two)
    state, registry = Ledger(two.store()).state(), two.registry()
    both = pair(two, registry, state.registered[2].candidate, 1, snapshot=versions.newest_snapshot(two))
    assert set(both.snapshot.manifests) == {"first", "second"}
    assert new_deliveries(two, registry, both) == []


def test_a_version_that_was_never_registered_is_named_before_anything_is_scored(settings: Settings) -> None:
    run = Run(settings)
    with pytest.raises(LedgerError, match="version 1 was never registered; there are: none"):
        versions.score(run, [1, 2])
    with pytest.raises(ConfigError, match="there is no challenger; name two versions"):
        versions.compare(run, None, None)
    ledger = Ledger(run.store())
    ledger.append(Move("registered", who="a", why="b", version=4, candidate="c" * 64))
    with pytest.raises(LedgerError, match="version 5 was never registered; there are: 4"):
        versions.registered(ledger.state(), 5)
    with pytest.raises(DatasetError, match="holds a ledger but no dataset"):
        versions.score(run, [4])
    assert not (settings.home / "mlflow.db").exists()
    assert scores.last_scores(run.store(), ledger.state(), [4, 5]) is None
    assert scores.last_scores(run.store(), ledger.state(), [4]) is None


def test_without_a_champion_nothing_is_scored_and_no_database_is_made(settings: Settings) -> None:
    assert versions.refresh(Run(settings)) is None
    assert not (settings.home / "mlflow.db").exists()


def test_reading_figures_imports_no_network() -> None:
    code = "import sys, xray_pipeline.night.scores; assert not {'torch', 'mlflow', 'airflow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
