"""An installation of five candidates: version 1 was champion, 2 is, 3 was superseded, one was refused, 4 waits."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from candidates import DELIVERED, KEY, SMALL, promoted, trained
from mlflow_server import lay_database
from once import Once
from pydantic import SecretStr
from two_nights import lay_copy

from xray_pipeline.base import records
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import open_store
from xray_pipeline.models.mlflow_client import MlflowClient, use
from xray_pipeline.night.run import Run
from xray_pipeline.registry import decisions
from xray_pipeline.registry.mlflow_registry import Registry
from xray_pipeline.report.places import report_key
from xray_pipeline.training.candidate import Candidate, find_candidate

NAMES = ("first champion", "champion", "superseded", "refused", "challenger")
DECISION = {"verdict": "registered", "may_promote": True, "automatic": True, "compared_patients": 0}


@dataclass(frozen=True)
class OldSite:
    """A copy of the installation: its settings, which keep one newest candidate, its candidates by name, and a moment.

    At that moment (Unix seconds) all that was laid is just old enough to go, and what is written from now on is not.
    """

    settings: Settings
    candidates: dict[str, Candidate]
    later: float

    @property
    def client(self) -> MlflowClient:
        """The installation's MLflow."""
        return MlflowClient(use(self.settings.tracking_uri))

    @property
    def run(self) -> Run:
        """A run that somebody starts by hand."""
        return Run(self.settings, SMALL, "alice")


@pytest.fixture
def old_site(once: Once, grown: Settings, empty_mlflow: Path, tmp_path: Path) -> Callable[..., OldSite]:
    """Return what lays a copy of the installation in a folder of this name, with some settings changed."""
    made = once("grown-old", lambda home: _make(home, grown, empty_mlflow))

    def lay(name: str, **changed: Any) -> OldSite:
        home = tmp_path / name
        home.mkdir()
        lay_copy(made, home, {"store": "store", DELIVERED: "incoming", "artifacts": "artifacts"})
        settings = _settings(home).model_copy(update={"keep_candidates": 1, **changed})
        store, digests = open_store(settings.store), records.read(open_store(made), "names.json", dict[str, str])
        for name in NAMES:  # a copy is as old as it is, by the disk's clock, which ticks every few milliseconds
            Path(settings.store, "candidates", digests[name], "candidate.json").touch()
            time.sleep(0.02)
        candidates = {name: find_candidate(store, digest) for name, digest in digests.items()}
        return OldSite(settings, candidates, store.clock() + 86_400 * settings.keep_days)

    return lay


def overrides(name: str) -> dict[str, float]:
    """Return the values of the recipe by which a candidate differs from the others."""
    return {"epochs": 1, "penalty": 10.0 * (1 + NAMES.index(name))}


def _settings(home: Path) -> Settings:
    return Settings(home=home, settle_seconds=0, patient_key=SecretStr(KEY), bootstrap=100, stress_images=10)


def _make(home: Path, grown: Settings, empty: Path) -> None:
    settings = _settings(home)
    shutil.copytree(grown.store, settings.store)
    shutil.copytree(grown.incoming, home / DELIVERED)
    lay_database(empty, home)
    registry, made = Registry(settings), dict[str, Candidate]()
    for name in NAMES:
        candidate = made[name] = trained(settings, **overrides(name))
        said = {"who": "schedule", "why": "a test", "decision": DECISION}
        if name.endswith("champion"):
            promoted(settings, candidate, registry.ledger.state().champion)
        elif name == "refused":
            decisions.refuse(registry, candidate, **said, champion_before=2)  # type: ignore[arg-type]
        else:
            decisions.register(registry, candidate, **said, champion_before=2)  # type: ignore[arg-type]
        _lay_results(settings, registry, candidate)
    records.write(open_store(home), "names.json", {name: candidate.digest for name, candidate in made.items()})


def _lay_results(settings: Settings, registry: Registry, candidate: Candidate) -> None:
    """Lay what a night would leave of scoring, judging and telling of a candidate."""
    store = open_store(settings.store)
    store.write(report_key(candidate.digest, 1), b"<html>")
    for folder in (f"predictions/{candidate.model_digest}", f"stress/{candidate.model_digest}/as-they-are"):
        store.write(f"{folder}/{records.digest_of(b'scores')}.parquet", b"scores")
    store.write(f"candidates/{candidate.digest}/checkpoints/000000001-{'0' * 64}.pt", b"tensors")
    registry.attach(candidate.run_id, "report.html", "<html>")
