"""A night on several machines: tasks spread over workers, training goes on after the GPU worker is lost, and neither
secrets nor anything of a patient is left where it does not belong."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import boto3
import httpx
import phantom
import planted
import pytest
from cluster_stack import VIEWER, Cluster, Worker, run_cluster
from s3_server import BUCKET
from two_nights import SETTINGS

from xray_pipeline.airflow_ui.links import PREFIX
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import open_store
from xray_pipeline.night import health
from xray_pipeline.registry.mlflow_registry import Registry
from xray_pipeline.registry.verify import check

pytestmark = pytest.mark.timeout(1500)  # services, five Airflow processes and two nights on whatever cores there are

DAG = "xray_retrain"
PATIENTS = 200
EPOCHS = 200


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    waiting = tmp_path_factory.mktemp("waiting")
    laid = phantom.lay(waiting, deliveries=2, patients=PATIENTS, seed=0)
    laid += [
        planted.fit(waiting / "ward-1"),
        planted.rejected(waiting / "ward-2"),
        planted.unreadable(waiting / "ward-3"),
    ]
    quick = {f"XRAY_{name.upper()}": str(value) for name, value in SETTINGS.items()}
    with run_cluster(tmp_path_factory.mktemp("cluster"), quick) as running:
        for delivery in laid:
            upload(running, delivery)
        for name, queue in (("light-1", "default"), ("light-2", "default"), ("gpu-1", "gpu")):
            running.start(name, queue)
        running.airflow.prepare(DAG)
        yield running


@pytest.fixture(scope="module")
def night(cluster: Cluster) -> str:
    """The first night's run."""
    run = cluster.airflow.trigger(DAG, {"promotion": "auto"})
    assert cluster.wait(DAG, run) == "success", cluster.airflow.tasks(DAG, run)
    return run


@pytest.fixture(scope="module")
def interrupted(cluster: Cluster, night: str) -> tuple[str, int, Worker]:
    """A second night whose GPU worker was killed in training: its run, the last step seen before, the spare worker."""
    run = cluster.airflow.trigger(DAG, {"promotion": "auto", "epochs": EPOCHS})
    reached = wait_for_checkpoint(cluster, at_least=5)
    cluster.workers["gpu-1"].kill()
    spare = cluster.start("gpu-2", "gpu")
    assert cluster.wait(DAG, run) == "success", cluster.airflow.tasks(DAG, run)
    return run, reached, spare


def upload(cluster: Cluster, delivery: Path) -> None:
    client = boto3.client("s3", endpoint_url=cluster.s3.endpoint)
    for path in sorted(path for path in delivery.rglob("*") if path.is_file()):
        client.upload_file(str(path), BUCKET, f"incoming/{delivery.name}/{path.relative_to(delivery)}")


def wait_for_checkpoint(cluster: Cluster, at_least: int, seconds: float = 300) -> int:
    """Wait until an unfinished candidate's newest checkpoint is of this step or later; return its step."""
    store = open_store(cluster.settings["XRAY_STORE"], cluster.xray())
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        kept = [entry.key for entry in store.list("candidates") if "/checkpoints/" in entry.key]
        steps = [int(key.rpartition("/")[2].partition("-")[0]) for key in kept]
        if steps and max(steps) >= at_least:
            return max(steps)
        time.sleep(0.1)
    raise AssertionError(f"no checkpoint of step {at_least} within {seconds:.0f} s")


def test_a_night_succeeds(cluster: Cluster, night: str) -> None:
    said = cluster.airflow.returned(DAG, night, "conclude")
    assert said["decision"]["verdict"] in ("registered", "refused"), said
    assert {d["name"]: d["state"] for d in said["deliveries"]} == {
        "2026-01-01": "ingested",
        "2026-01-02": "ingested",
        "ward-1": "ingested",
        "ward-2": "rejected",
        "ward-3": "rejected",
    }


def test_checks_spread_over_the_light_workers(cluster: Cluster, night: str) -> None:
    checks = {name: len(worker.task_logs(DAG, night, "check_delivery")) for name, worker in cluster.workers.items()}
    assert checks["light-1"] > 0
    assert checks["light-2"] > 0
    assert checks["light-1"] + checks["light-2"] == 5


def test_only_a_gpu_worker_trains(cluster: Cluster, night: str) -> None:
    assert [name for name, worker in cluster.workers.items() if worker.task_logs(DAG, night, "train")] == ["gpu-1"]
    assert {w.queue for w in cluster.workers.values() if any(w.cache.glob("features-*"))} == {"gpu"}


def test_training_is_tried_again_on_another_worker(cluster: Cluster, interrupted: tuple[str, int, Worker]) -> None:
    run, _, spare = interrupted
    task = next(task for task in cluster.airflow.tasks(DAG, run) if task["task_id"] == "train")
    assert task["try_number"] == 2
    assert list(spare.task_logs(DAG, run, "train")) == ["attempt=2.log"]


def test_training_goes_on_from_the_checkpoint_in_s3(cluster: Cluster, interrupted: tuple[str, int, Worker]) -> None:
    run, reached, spare = interrupted
    log = spare.task_logs(DAG, run, "train")["attempt=2.log"]
    resumed = re.search(r"going on from round (\d+)", log)
    assert resumed is not None, log[-3000:]
    assert reached <= int(resumed[1]) < EPOCHS
    assert f"epoch {reached}:" not in log


def test_what_must_hold_holds_after_the_loss(cluster: Cluster, interrupted: tuple[str, int, Worker]) -> None:
    assert [finding for finding in check(Registry(cluster.xray())) if not finding.holds] == []


def test_log_lines_name_run_and_delivery(cluster: Cluster, night: str) -> None:
    logs = [
        log for worker in cluster.workers.values() for log in worker.task_logs(DAG, night, "check_delivery").values()
    ]
    lines = [json.loads(line) for log in logs for line in log.splitlines()]
    ours = [line for line in lines if line["logger"] == "xray_pipeline.night.intake_steps"]
    assert {line["run_id"] for line in ours} == {night}
    assert {line["delivery"] for line in ours} == {"2026-01-01", "2026-01-02", "ward-1", "ward-2", "ward-3"}


def test_log_lines_name_the_candidate(cluster: Cluster, night: str) -> None:
    (log,) = cluster.workers["gpu-1"].task_logs(DAG, night, "evaluate").values()
    lines = [json.loads(line) for line in log.splitlines()]
    candidates = {line["candidate"] for line in lines if line["logger"] == "xray_pipeline.night.model_steps"}
    assert candidates == {cluster.airflow.returned(DAG, night, "train")["candidate"]}


# Health


def watched(cluster: Cluster, password: str = VIEWER[1]) -> Settings:
    asking = {"airflow_url": cluster.stack.airflow, "airflow_user": VIEWER[0], "airflow_password": password}
    return Settings(**{**cluster.xray().model_dump(), "schedule": "0 2 * * *", **asking})


def ill(found: list[health.Health]) -> list[health.Health]:
    """The parts that are not well, but for drift: deliveries of a few dozen phantoms may differ by chance."""
    return [part for part in found if not part.well and part.part != "drift"]


def test_a_running_installation_is_well(cluster: Cluster, night: str) -> None:
    found = health.check(watched(cluster))
    assert ill(found) == []
    assert [part.part for part in found][-2:] == ["airflow", "night"]


def test_nights_that_no_longer_succeed_are_named(cluster: Cluster, night: str) -> None:
    found = health.check(watched(cluster), datetime.now(UTC) + timedelta(hours=50))
    (night_part,) = ill(found)
    assert "has not, see the runs of xray_retrain" in night_part.text


def test_a_wrong_password_is_named_without_being_shown(cluster: Cluster) -> None:
    (airflow,) = ill(health.check(watched(cluster, password="wrong-one")))
    assert "answered 401" in airflow.text
    assert "wrong-one" not in airflow.text


# Doors


PRIVATE = r"dataset/(manifests|drafts)/|intake/[^/]+/table\.parquet$"
"""What may name patients: an intake table is the manifest before it is committed."""


def contents(cluster: Cluster, without: str) -> Iterator[tuple[str, bytes]]:
    """Everything that two nights left behind, but the incoming deliveries: files, S3, databases.

    Objects of the store whose key matches `without` are left out.
    """
    yield from planted.files(cluster.stack.folder, without=("s3/", "passwords.json", "redis/redis.conf"))
    for prefix in ("store", "mlflow"):
        store = open_store(f"s3://{BUCKET}/{prefix}", cluster.xray())
        for entry in store.list():
            if not re.match(without, entry.key):
                data = store.read(entry.key)
                yield f"s3 {prefix}/{entry.key}", entry.key.encode() + b"\n" + planted.readable(entry.key, data)
    for name, uri in cluster.databases.items():
        yield from ((f"{name}, {table}", rows) for table, rows in planted.database(uri))


def test_the_search_finds_what_is_planted(cluster: Cluster, night: str) -> None:
    store = open_store(f"s3://{BUCKET}/store", cluster.xray())
    key = next(entry.key for entry in store.list("intake") if entry.key.endswith("ward-1/table.parquet"))
    assert planted.places(planted.PATIENT, [(key, planted.readable(key, store.read(key)))])


def test_nothing_of_a_patient_is_outside_the_dataset(
    cluster: Cluster, night: str, interrupted: tuple[str, int, Worker]
) -> None:
    assert planted.places(planted.PATIENT, contents(cluster, PRIVATE)) == []


def test_no_secret_is_written_anywhere(cluster: Cluster, night: str, interrupted: tuple[str, int, Worker]) -> None:
    secrets = {name: value for name, value in cluster.secrets.items() if len(value) > 7}
    assert {"XRAY_PATIENT_KEY", "AWS_SECRET_ACCESS_KEY", "AIRFLOW__CORE__FERNET_KEY", "admin"} <= set(secrets)
    pattern = re.compile(b"|".join(re.escape(value.encode()) for value in secrets.values()))
    assert planted.places(pattern, contents(cluster, without=r"(?!)")) == []
    for name, value in secrets.items():  # the search is not blind
        assert planted.places(pattern, [(name, planted.readable(name, f"a {value} in a log".encode()))])


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"/api/v2/dags/{DAG}/dagRuns"),
        ("POST", f"/api/v2/dags/{DAG}/dagRuns"),
        ("POST", "/api/v2/dags/xray_promote/dagRuns"),
        ("POST", "/api/v2/dags/xray_rollback/dagRuns"),
        ("GET", "/api/v2/connections"),
        ("GET", "/api/v2/config"),
        ("GET", f"{PREFIX}/champion"),
        ("GET", f"{PREFIX}/page.js"),
        ("GET", f"{PREFIX}/nights"),
        ("GET", f"{PREFIX}/deliveries"),
        ("GET", f"{PREFIX}/deliveries/day1"),
        ("GET", f"{PREFIX}/deliveries/day1/intake"),
        ("POST", "/api/v2/dags/xray_delivery/dagRuns"),
        ("POST", "/api/v2/dags/xray_watch/dagRuns"),
        ("GET", f"{PREFIX}/reports/{'0' * 64}/none"),
        ("GET", f"{PREFIX}/runs/{DAG}/any"),
        ("GET", f"/execution/dags/{DAG}"),
        ("GET", f"/execution/xcoms/{DAG}/any/conclude/return_value"),
    ],
)
def test_airflow_answers_nobody_without_a_token(cluster: Cluster, method: str, path: str) -> None:
    answer = httpx.request(method, f"{cluster.stack.airflow}{path}", json={"logical_date": None}, timeout=30)
    assert answer.status_code in (401, 403), answer.text


@pytest.mark.parametrize(
    "path",
    [
        "/reports/../none",
        "/reports/..%2f..%2fledger%2f00000000.json/none",
        f"/reports/{'0' * 64}/..%2f..%2f..%2fdataset%2fdataset.json",
        "/runs/..%2f..%2fetc/passwd",
        f"/runs/{DAG}/..%2f..%2f..%2fetc%2fpasswd",
        "/..%2f..%2f..%2f..%2fetc%2fpasswd",
    ],
)
def test_a_path_given_to_the_plugin_leads_nowhere(cluster: Cluster, night: str, path: str) -> None:
    answer = cluster.airflow.client.get(f"{cluster.stack.airflow}{PREFIX}{path}")
    assert answer.status_code in (403, 404, 422), answer.text
    assert "root:" not in answer.text
    assert "patient_key" not in answer.text


def test_the_plugin_shows_the_nights_report_to_who_may_see_it(cluster: Cluster, night: str) -> None:
    answer = cluster.airflow.client.get(f"{cluster.stack.airflow}{PREFIX}/runs/{DAG}/{quote(night, safe='')}")
    assert answer.status_code == 200, answer.text
    assert planted.PATIENT.search(answer.content) is None


def as_viewer(cluster: Cluster, method: str, path: str, body: dict[str, Any]) -> int:
    login = {"username": VIEWER[0], "password": VIEWER[1]}
    token = httpx.post(f"{cluster.stack.airflow}/auth/token", json=login, timeout=30).json()["access_token"]
    headers = {"Authorization": f"Bearer {token}"}
    answer = httpx.request(method, f"{cluster.stack.airflow}/api/v2{path}", json=body, headers=headers, timeout=30)
    return answer.status_code


def test_a_viewer_may_look(cluster: Cluster) -> None:
    token = {"username": VIEWER[0], "password": VIEWER[1]}
    answer = httpx.post(f"{cluster.stack.airflow}/auth/token", json=token, timeout=30)
    headers = {"Authorization": f"Bearer {answer.json()['access_token']}"}
    assert httpx.get(f"{cluster.stack.airflow}/api/v2/dags", headers=headers, timeout=30).status_code == 200


@pytest.mark.parametrize("dag", ["xray_retrain", "xray_promote", "xray_rollback", "xray_watch"])
def test_a_viewer_may_not_start_anything(cluster: Cluster, dag: str) -> None:
    body = {"logical_date": None, "conf": {"version": 1, "reason": "because"}}
    assert as_viewer(cluster, "POST", f"/dags/{dag}/dagRuns", body) == 403


def test_a_viewer_may_not_answer_an_approval(cluster: Cluster) -> None:
    path = "/dags/xray_promote/dagRuns/any/taskInstances/approve/-1/hitlDetails"
    body = {"chosen_options": ["Approve"], "params_input": {"reason": "because"}}
    assert as_viewer(cluster, "PATCH", path, body) == 403
