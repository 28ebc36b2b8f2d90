"""A night on several machines: tasks spread over workers, and training goes on after the GPU worker is lost."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from cluster_stack import Cluster, run_cluster
from s3_server import BUCKET

from xray_pipeline import phantom
from xray_pipeline.registry import Registry
from xray_pipeline.storage import open_store
from xray_pipeline.verify import check

pytestmark = pytest.mark.timeout(600)  # services, five Airflow processes and two nights on whatever cores there are

DAG = "xray_retrain"
PATIENTS = 300


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    settings = {"XRAY_PATIENT_KEY": "demo key, not a secret", "XRAY_DEVICE": "cpu"}  # always the same split
    with run_cluster(folder, settings) as running:
        for delivery in phantom.lay(folder / "waiting", deliveries=2, patients=PATIENTS, seed=0):
            upload(running, delivery)
        running.start("light-1", "default")
        running.start("light-2", "default")
        running.start("gpu-1", "gpu")
        running.airflow.prepare(DAG)
        yield running


def upload(cluster: Cluster, delivery: Path) -> None:
    client = boto3.client("s3", endpoint_url=cluster.s3.endpoint)
    for path in sorted(path for path in delivery.rglob("*") if path.is_file() and not path.is_symlink()):
        client.upload_file(str(path), BUCKET, f"incoming/{delivery.name}/{path.relative_to(delivery)}")


def test_a_night_spreads_over_workers(cluster: Cluster) -> None:
    run = cluster.airflow.trigger(DAG, {"promotion": "auto"})
    assert cluster.wait(DAG, run) == "success", cluster.airflow.tasks(DAG, run)

    said = cluster.airflow.returned(DAG, run, "conclude")
    assert said["alias"] == "champion", said
    workers = cluster.workers
    checks = {name: worker.task_logs(DAG, run, "check_delivery") for name, worker in workers.items()}
    assert sum(map(len, checks.values())) == 2, checks.keys()
    assert not checks["gpu-1"]
    assert [name for name, worker in workers.items() if worker.task_logs(DAG, run, "train")] == ["gpu-1"]
    assert not any(any(worker.cache.rglob("features-*")) for worker in workers.values() if worker.queue != "gpu")


def test_training_goes_on_after_its_worker_is_lost(cluster: Cluster) -> None:
    run = cluster.airflow.trigger(DAG, {"promotion": "auto", "epochs": 60})
    lost = cluster.workers["gpu-1"]
    reached = wait_for_checkpoint(cluster, at_least=5)
    lost.kill()
    spare = cluster.start("gpu-2", "gpu")
    assert cluster.wait(DAG, run) == "success", cluster.airflow.tasks(DAG, run)

    task = next(task for task in cluster.airflow.tasks(DAG, run) if task["task_id"] == "train")
    assert task["try_number"] == 2
    logs = spare.task_logs(DAG, run, "train")
    assert list(logs) == ["attempt=2.log"]
    resumed = re.search(r"going on from round (\d+)", logs["attempt=2.log"])
    assert resumed is not None, logs["attempt=2.log"][-3000:]
    assert reached - 1 <= int(resumed[1]) < 60
    assert f"epoch {resumed[1]}:" not in logs["attempt=2.log"]
    findings = check(Registry(cluster.xray()))
    assert all(finding.holds for finding in findings), findings


def wait_for_checkpoint(cluster: Cluster, at_least: int, seconds: float = 120) -> int:
    """Wait until an unfinished candidate's newest checkpoint is of this step or later; return its step."""
    store = open_store(cluster.settings["XRAY_STORE"], cluster.xray())
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        kept = [entry.key for entry in store.list("candidates") if "/checkpoints/" in entry.key]
        steps = [int(key.rpartition("/")[2].partition("-")[0]) for key in kept]
        if steps and max(steps) >= at_least:
            return max(steps)
        time.sleep(0.1)
    raise AssertionError(f"no checkpoint within {seconds:.0f} s: {json.dumps([e.key for e in store.list()][:50])}")
