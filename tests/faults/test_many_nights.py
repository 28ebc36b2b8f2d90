"""Night after night by real processes that end in every way a process ends, at random moments; none is spared.

Three nights here; `NIGHTS=60` for more. TEST_SEED brings the same ones again, as far as real processes can.
"""

from __future__ import annotations

import os
import random
import signal
import time
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

from candidates import KEY
from forks import forked
from mlflow_server import lay_database
from pydantic import SecretStr
from samples import jpeg, picture
from small_models import Candidate, logged

from xray_pipeline.base.settings import Settings
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.night import intake_steps
from xray_pipeline.night.run import Run
from xray_pipeline.registry import decisions, manual_changes
from xray_pipeline.registry.mlflow_registry import Registry
from xray_pipeline.registry.verify import check

NIGHTS = int(os.environ.get("NIGHTS", "3"))
ENDS = (signal.SIGKILL, signal.SIGINT, signal.SIGHUP, signal.SIGTERM)
DECISION = {"verdict": "registered", "may_promote": True, "automatic": True}


def deliver(settings: Settings, number: int) -> None:
    """Bring two radiographs of a new patient each."""
    for label in settings.classes:
        folder = Path(settings.incoming) / f"night-{number:03d}" / label
        folder.mkdir(parents=True)
        seed = 2 * number + settings.classes.index(label)
        (folder / f"patient{seed:04d}_1.jpeg").write_bytes(jpeg(picture(seed)))


def night(settings: Settings, model: Candidate, number: int) -> None:
    """Commit what was delivered, then register and promote a candidate of this night, made of a model that is there."""
    run = Run(settings, name=f"night-{number}")
    keys = intake_steps.find_deliveries(run)
    intake_steps.check_deliveries(run, keys)
    intake_steps.commit_deliveries(run, keys)
    registry = run.registry()
    champion = manual_changes.reconcile(registry).champion
    said = {"who": "schedule", "why": "better", "decision": DECISION}
    candidate = replace(model, digest=f"{number:064x}")
    entry = decisions.register(registry, candidate, champion_before=champion, **said)
    assert entry.version is not None
    told = {**said, "expected_champion": entry.champion_before, "request": f"auto {number}"}
    decisions.promote(registry, entry.version, **told)


def ended(process: BaseProcess, after: float, number: signal.Signals) -> bool:
    """Send a running process a signal after some seconds; return whether it was still at work."""
    process.start()
    process.join(after)
    at_work = process.is_alive() and process.pid is not None
    if at_work:
        os.kill(process.pid or 0, number)
    process.join(60)
    assert process.exitcode is not None
    return at_work


def test_whatever_ends_a_night_the_next_try_makes_it_whole(tmp_path: Path, empty_mlflow: Path) -> None:
    settings = Settings(home=tmp_path / "home", settle_seconds=0, patient_key=SecretStr(KEY), device="cpu")
    lay_database(empty_mlflow, settings.home)
    model, chance = logged(settings), random.Random(int(os.environ["TEST_SEED"]))
    seconds, stopped = 3.0, 0
    for number in range(1, NIGHTS + 1):
        deliver(settings, number)
        for _ in range(2):
            process = forked(night, settings, model, number)
            stopped += ended(process, chance.uniform(0.05, seconds), chance.choice(ENDS))
        twins = [forked(night, settings, model, number) for _ in range(2)]  # a task that is started twice
        began = time.monotonic()
        for twin in twins:
            twin.start()
        for twin in twins:
            twin.join(120)
        seconds = time.monotonic() - began
        assert any(twin.exitcode == 0 for twin in twins)
        registry = Registry(settings)
        assert [f"{f.invariant} {f.text}" for f in check(registry) if not f.holds] == []
        state = registry.ledger.state()
        assert state.registered[state.champion or 0].candidate == f"{number:064x}"
        dataset = Dataset(settings)
        assert dataset.manifests() == [f"night-{n:03d}" for n in range(1, number + 1)]
        assert dataset.altered() == []
    kinds = [entry.kind for entry in registry.ledger.entries()]
    assert kinds == ["registered", "promoted"] * NIGHTS
    snapshot = dataset.snapshot()
    assert snapshot is not None
    assert snapshot.images == 2 * NIGHTS
    assert stopped > NIGHTS // 2
