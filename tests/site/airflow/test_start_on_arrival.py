"""A delivery starts a night by itself: real Airflow, whose triggerer is killed while the delivery arrives."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import phantom
import psutil
import pytest
from services import Airflow, Stack, logged, running
from two_nights import SETTINGS

from xray_pipeline.base.settings import Settings
from xray_pipeline.dataset.store import Dataset

pytestmark = [pytest.mark.timeout(1800), pytest.mark.slow]

WITHIN = 300.0
"""Seconds from a delivery's arrival to its commit."""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Stack, Path]]:
    """Airflow and MLflow with nights on arrival, and a delivery to come."""
    (tmp_path / "incoming").mkdir()
    (waiting,) = phantom.lay(tmp_path / "waiting", deliveries=1, patients=60, seed=0)
    settings = {f"XRAY_{name.upper()}": str(value) for name, value in SETTINGS.items()}
    settings |= {"XRAY_HOME": str(tmp_path), "XRAY_SCHEDULE": "arrival", "XRAY_SETTLE_SECONDS": "20"}
    with running(tmp_path, settings) as stack:
        Airflow(stack).prepare("xray_retrain")
        yield stack, waiting


def triggerers(stack: Stack) -> list[psutil.Process]:
    """The processes of this Airflow's triggerer."""
    home, found = stack.environment["AIRFLOW_HOME"], []
    for process in psutil.process_iter(["cmdline", "uids"]):
        try:
            if "triggerer" in " ".join(process.info["cmdline"] or ()) and process.environ().get("AIRFLOW_HOME") == home:
                found.append(process)
        except psutil.Error:
            continue
    return found


def runs(airflow: Airflow) -> list[dict[str, str]]:
    found: list[dict[str, str]] = airflow.call("GET", "/dags/xray_retrain/dagRuns?limit=100")["dag_runs"]
    return found


def test_a_delivery_is_taken_soon_after_it_arrived_though_the_triggerer_died(site: tuple[Stack, Path]) -> None:
    stack, waiting = site
    airflow, folder = Airflow(stack), Path(stack.environment["XRAY_HOME"])
    arrived = time.monotonic()
    waiting.rename(folder / "incoming" / waiting.name)
    killed = triggerers(stack)
    assert killed
    for process in killed:
        process.kill()
    environment = {**os.environ, **stack.environment}
    command = ["airflow", "triggerer", "--skip-serve-logs"]
    with logged(command, folder / "triggerer.log", environment):
        dataset = Dataset(Settings(home=folder, patient_key=SETTINGS["patient_key"]))
        while waiting.name not in dataset.manifests():
            assert time.monotonic() - arrived < 3 * WITHIN, [run["state"] for run in runs(airflow)]
            time.sleep(1)
        took = time.monotonic() - arrived
        print(f"in the dataset {took:.0f} s after it arrived")
        (run,) = runs(airflow)
        assert run["run_type"] == "asset_triggered"
        airflow.reached(lambda: airflow.state("xray_retrain", run["dag_run_id"]), ("success", "failed"), 900)
        time.sleep(130)  # two looks more: nothing waits, and nothing begins
        assert [one["dag_run_id"] for one in runs(airflow)] == [run["dag_run_id"]]
    assert took < WITHIN
