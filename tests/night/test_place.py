"""Store, ledger and registry are compared before anything is written: a store that is not mounted is not begun anew."""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from laid import FILES, ingest, lay
from mlflow_server import MlflowServer
from small_models import Candidate
from typer.testing import CliRunner

from xray_pipeline.base.errors import DatasetError, RegistryError, RegistryUnavailable
from xray_pipeline.base.settings import Settings
from xray_pipeline.command import main as cli
from xray_pipeline.night import health, intake_steps, promotion, repair, versions, whole
from xray_pipeline.night.run import Run
from xray_pipeline.registry import decisions as operations
from xray_pipeline.registry.entries import Move
from xray_pipeline.registry.ledger import Ledger

DECISION = {"verdict": "registered", "may_promote": True, "automatic": True}


@pytest.fixture
def run(mlflow_server: MlflowServer, settings: Settings, model: Candidate) -> Run:
    """A site with a committed delivery, a rejected one, and version 1 registered; another delivery waits."""
    where = {"tracking_uri": mlflow_server.uri, "model_name": f"m{uuid.uuid4().hex}"}
    run = Run(settings.model_copy(update=where), who="alice")
    lay(run.settings, "first", FILES)
    ingest(run)
    operations.register(run.registry(), model, who="night", why="better", decision=DECISION, champion_before=None)
    lay(run.settings, "second", {"NORMAL/patient9_1.jpg": (FILES["NORMAL/patient1_1.jpg"])})
    return run


def contents(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def unmounted(run: Run) -> None:
    """What is left is the folder that the disk was mounted on."""
    Path(run.settings.store).rename(run.settings.home / "the disk")
    Path(run.settings.store).mkdir()


def anothers(run: Run) -> None:
    """The disk of another site is mounted in its place."""
    unmounted(run)
    other = run.settings.home / "other"
    settings = run.settings.model_copy(update={"home": other, "tracking_uri": f"sqlite:///{other}/none.db"})
    ingest(Run(settings))
    Ledger(Run(settings).store()).append(Move("refused", who="night", why="worse", candidate="b" * 64))


def half(run: Run) -> None:
    """The dataset lies on a disk of its own, which is not mounted."""
    (Path(run.settings.store) / "dataset").rename(run.settings.home / "the disk")


COMMANDS: dict[str, Callable[[Run], Any]] = {
    "find": intake_steps.find_deliveries,
    "check": lambda run: intake_steps.check_delivery(run, "second"),
    "check by name": lambda run: intake_steps.check_delivery(run, "second", named=True),
    "commit": lambda run: intake_steps.commit_deliveries(run, ["second"]),
    "whole night": whole.whole,
    "rejudge": lambda run: intake_steps.rejudge(run, "first"),
    "repair": repair.repair,
    "adopt": lambda run: promotion.adopt(run, False, "because"),
    "promote": lambda run: promotion.request(run, 1),
    "rollback": lambda run: promotion.rollback(run, 1, "because", untried=True),
    "compare": lambda run: versions.compare(run, 1, 2),
    "reopen": lambda run: promotion.reopen(run, 1, "because"),
    "answer": lambda run: promotion.record_answer(
        run, promotion.Request(1, None, "", "", ""), {"chosen_options": ["Reject"]}, "run"
    ),
}


@pytest.mark.parametrize("wrong", [unmounted, anothers])
def test_nothing_is_written_to_a_store_that_is_not_the_registrys(run: Run, wrong: Callable[[Run], None]) -> None:
    wrong(run)
    before = contents(Path(run.settings.store))
    words = "is the store not mounted? Mount it" if wrong is unmounted else "belongs to ledger"
    for command in COMMANDS.values():
        for again in (run, Run(run.settings)):  # the same process, and another
            with pytest.raises(RegistryError, match=re.escape(words)):
                command(again)
            assert contents(Path(run.settings.store)) == before


def test_a_ledger_without_its_dataset_is_no_fresh_start(run: Run) -> None:
    half(run)
    before = contents(Path(run.settings.store))
    words = r"holds a ledger but no dataset/dataset.json: is all of the store mounted"
    for command in ("find", "check", "commit", "whole night", "rejudge", "repair"):
        with pytest.raises(DatasetError, match=words):
            COMMANDS[command](run)
        assert contents(Path(run.settings.store)) == before
    (ill,) = [part for part in health.check(run.settings) if not part.well]
    assert "is all of the store mounted?" in ill.text


def test_acknowledging_in_the_wrong_store_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    unmounted(run)
    for name in ("home", "tracking_uri", "model_name"):
        monkeypatch.setenv(f"XRAY_{name.upper()}", str(getattr(run.settings, name)))
    done = CliRunner().invoke(cli.app, ["acknowledge", "first", "--reason", "seen"])
    assert isinstance(done.exception, RegistryError)
    assert contents(Path(run.settings.store)) == []


def test_health_says_what_is_wrong_before_the_night(run: Run) -> None:
    unmounted(run)
    (ill,) = [part for part in health.check(run.settings) if not part.well]
    assert (ill.part, "is the store not mounted?" in ill.text) == ("registry", True)


def test_the_right_store_again_is_taken(run: Run) -> None:
    unmounted(run)
    with pytest.raises(RegistryError):
        intake_steps.find_deliveries(run)
    Path(run.settings.store).rmdir()
    shutil.move(run.settings.home / "the disk", run.settings.store)
    assert intake_steps.find_deliveries(run) == ["second"]


def test_a_registry_that_can_not_be_asked_is_not_taken_for_an_empty_one(run: Run, monkeypatch: Any) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = Run(run.settings.model_copy(update={"tracking_uri": "http://127.0.0.1:9"}))
    before = contents(Path(run.settings.store))
    with pytest.raises(RegistryUnavailable):
        intake_steps.find_deliveries(away)
    assert contents(Path(run.settings.store)) == before


def test_a_lost_registry_beside_a_ledger_is_noticed(run: Run) -> None:
    lost = Run(run.settings.model_copy(update={"tracking_uri": f"sqlite:///{run.settings.home}/lost.db"}))
    with pytest.raises(RegistryError, match="the ledger knows 1 versions"):
        intake_steps.find_deliveries(lost)


def test_a_first_night_makes_no_database(settings: Settings) -> None:
    lay(settings, "first", FILES)
    ingest(Run(settings))
    assert not (settings.home / "mlflow.db").exists()
