"""How the intake of many deliveries spreads over workers: the same work with one Celery worker and with two.

    PYTHONPATH=tests/builders:scripts python benchmarks/cluster.py [--deliveries 6] [--patients 60] [--json FILE]

A real cluster on loopback (PostgreSQL, Redis, Airflow, S3, MLflow; see tests/builders/cluster_stack.py). Each round
lays other deliveries of equal size and triggers a night; measured is the time from the start of its first
`check_delivery` to the end of its last one. A worker runs one task at a time and a task decodes with one thread, so a
worker stands for one core. There is no GPU worker: the night is stopped once its intake is through. The ratio is
within one run; scheduler, API server, database and S3 take their share of the same cores, so it stays below 2.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import boto3
import phantom
from cluster_stack import Cluster, run_cluster
from s3_server import BUCKET

DAG = "xray_retrain"


def measure(cluster: Cluster, folder: Path, workers: int, deliveries: int, patients: int) -> dict[str, Any]:
    """Lay deliveries, run their intake with the workers that are up, and return how long it took."""
    name = f"round-{workers}"
    client = boto3.client("s3", endpoint_url=cluster.s3.endpoint)
    for number in range(deliveries):
        seed = 100 * workers + number
        (laid,) = phantom.lay(folder / name / str(number), deliveries=1, patients=patients, seed=seed)
        for path in (path for path in laid.rglob("*") if path.is_file()):
            key = f"{name}/{workers}-{number}/{path.relative_to(laid)}"
            client.upload_file(str(path), BUCKET, key)
    airflow = cluster.airflow
    run = airflow.trigger(DAG, {"incoming": f"s3://{BUCKET}/{name}"})
    while True:
        tasks = [task for task in airflow.tasks(DAG, run) if task["task_id"] == "check_delivery"]
        if len(tasks) == deliveries and all(task["state"] in ("success", "failed") for task in tasks):
            break
        time.sleep(0.5)
    airflow.call("PATCH", f"/dags/{DAG}/dagRuns/{run}", {"state": "failed"})
    starts, ends = ([datetime.fromisoformat(task[key]) for task in tasks] for key in ("start_date", "end_date"))
    return {
        "workers": workers,
        "deliveries": deliveries,
        "failed": sum(task["state"] == "failed" for task in tasks),
        "seconds": (max(ends) - min(starts)).total_seconds(),
        "seconds_of_all_checks": sum((end - start).total_seconds() for start, end in zip(starts, ends, strict=True)),
        "taken_by": {n: len(w.task_logs(DAG, run, "check_delivery")) for n, w in cluster.workers.items()},
    }


@contextmanager
def cluster() -> Iterator[tuple[Cluster, Path]]:
    """A cluster without workers, and a folder for deliveries."""
    with tempfile.TemporaryDirectory(prefix="xray-cluster-") as name:
        settings = {"XRAY_PATIENT_KEY": "a benchmark's key, no secret", "XRAY_WORKERS": "1", "XRAY_DEVICE": "cpu"}
        with run_cluster(Path(name, "cluster"), settings) as running:
            yield running, Path(name)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deliveries", type=int, default=6)
    parser.add_argument("--patients", type=int, default=60, help="of each delivery; about 1.3 radiographs each")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    with cluster() as (running, folder):
        rounds = []
        for count in (1, 2):
            running.start(f"light-{count}", "default")
            running.airflow.prepare(DAG)
            rounds.append(measure(running, folder, count, asked.deliveries, asked.patients))
    result = {
        "cores": os.cpu_count(),
        "rounds": rounds,
        "speed_up": rounds[0]["seconds"] / rounds[1]["seconds"],
    }
    text = json.dumps(result, indent=1)
    print(text)
    if asked.json:
        asked.json.write_text(text)


if __name__ == "__main__":
    main()
