"""Airflow on several machines, as real processes on loopback: PostgreSQL, Redis, Celery workers, S3, MLflow.

Every worker has a folder of its own (cache, logs, home, temporary files); what workers share is S3 and nothing else.
Workers can be started and killed one by one, as machines come and go. Used by tests/cluster and benchmarks/cluster.py.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from mlflow_server import run_postgres, running
from ports import free_port
from s3_server import ACCESS_KEY, BUCKET, SECRET_KEY, S3Server, run_s3, s3_credentials
from services import QUIET, Airflow, Failed, Stack, is_healthy, logged, tail, wait_for

from xray_pipeline.base import children
from xray_pipeline.base.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
HEARTBEAT_TIMEOUT = 30
"""Seconds without a sign of life after which a task's worker counts as dead; Airflow's own value is 300."""

VIEWER = ("viewer", secrets.token_urlsafe(12))
"""A user of role viewer, and the password."""


@dataclass
class Worker:
    """One Celery worker and its folder: `logs` are the task logs, `cache` its pixels and features."""

    name: str
    queue: str
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def cache(self) -> Path:
        """Decoded pixels and features of this machine."""
        return self.folder / "cache"

    def task_logs(self, dag: str, run: str, task: str) -> dict[str, str]:
        """Return the logs of a task's attempts that this worker ran, by path below the run's folder."""
        folder = self.folder / "logs" / f"dag_id={dag}" / f"run_id={run}" / f"task_id={task}"
        return {str(path.relative_to(folder)): path.read_text(errors="replace") for path in folder.rglob("*.log")}

    def kill(self) -> None:
        """Kill the worker and all that it started at once, as a machine that loses power."""
        children.end(self.process)


@dataclass
class Cluster:
    """The running services, and the settings that every worker shares."""

    stack: Stack
    s3: S3Server
    settings: dict[str, str]
    databases: dict[str, str]
    machines: ExitStack
    workers: dict[str, Worker] = field(default_factory=dict)

    @property
    def airflow(self) -> Airflow:
        """Airflow's REST API, logged in."""
        return Airflow(self.stack)

    def xray(self) -> Settings:
        """Return the settings that the workers have, with a home that is nobody's."""
        values = {name.removeprefix("XRAY_").lower(): value for name, value in self.settings.items()}
        return Settings(home=self.stack.folder / "reader", **values)  # type: ignore[arg-type]

    @property
    def secrets(self) -> dict[str, str]:
        """Every secret value that the processes are given, by the name of its variable."""
        names = re.compile(r"_KEY$|SECRET|PASSWORD$|JWT|BROKER|SQL_ALCHEMY|RESULT_BACKEND")
        given = {name: value for name, value in self.stack.environment.items() if names.search(name)}
        given = {name: urlsplit(value).password or value for name, value in given.items()}
        return {**given, "admin": self.stack.password}

    def start(self, name: str, queue: str) -> Worker:
        """Start a worker for one queue; it takes one task at a time."""
        folder = self.stack.folder / name
        for part in ("logs", "cache", "tmp", "airflow"):
            (folder / part).mkdir(parents=True)
        environment = {
            **self.stack.environment,
            "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(folder / "logs"),
            "XRAY_HOME": str(folder / "home"),
            "XRAY_CACHE": str(folder / "cache"),
            "TMPDIR": str(folder / "tmp"),
            "OMP_NUM_THREADS": "1",
        }
        command = ["celery", "worker", "-q", queue, "-c", "1", "-H", f"{name}@localhost", "--skip-serve-logs"]
        quick = ["--without-gossip", "--without-mingle", "--pid", str(folder / "pid")]
        process = self.machines.enter_context(
            logged([BIN / "airflow", *command, *quick], folder / "worker.log", environment)
        )
        self.workers[name] = Worker(name, queue, folder, process)
        return self.workers[name]

    def wait(self, dag: str, run: str, seconds: float = 600) -> str:
        """Wait for the end of a run; return its state. Raises Failed with the workers' logs after `seconds`."""
        until = time.monotonic() + seconds
        airflow = self.airflow
        while (state := airflow.state(dag, run)) in ("queued", "running"):
            if time.monotonic() > until:
                logs = "\n".join(f"{name}: {tail(w.folder / 'worker.log')}" for name, w in self.workers.items())
                raise Failed(f"{dag} {run} is {state} after {seconds:.0f} s: {airflow.tasks(dag, run)}\n{logs}")
            time.sleep(0.5)
        return state


@contextmanager
def run_cluster(folder: Path, settings: Mapping[str, str]) -> Iterator[Cluster]:
    """Start everything but the workers, with XRAY_* `settings` beside the store, incoming and registry; end it by pid.

    Skips the test where PostgreSQL, Redis or the Celery executor is not installed.
    """
    _needed()
    with (
        s3_credentials(),
        run_s3(_made(folder / "s3")) as s3,
        run_postgres() as unprotected,
        _redis(_made(folder / "redis")) as broker,
        pytest.MonkeyPatch.context() as patch,
    ):
        database = unprotected.replace(
            "mlflow@", f"mlflow:{secrets.token_urlsafe(12)}@"
        )  # it takes any: a secret to find
        _create_databases(database, "airflow", "mlflow")
        patch.setenv("MLFLOW_S3_ENDPOINT_URL", s3.endpoint)
        port = free_port()
        tracking = f"http://127.0.0.1:{port}"
        server = [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
            *("--backend-store-uri", _named(database, "mlflow")),
            *("--artifacts-destination", f"s3://{BUCKET}/mlflow"),
        ]
        with running(server, f"{tracking}/health", _made(folder / "mlflow") / "mlflow.log"):
            shared = {
                "XRAY_INCOMING": f"s3://{BUCKET}/incoming",
                "XRAY_STORE": f"s3://{BUCKET}/store",
                "XRAY_S3_ENDPOINT": s3.endpoint,
                "XRAY_TRACKING_URI": tracking,
                "XRAY_SETTLE_SECONDS": "0",
                "XRAY_SCHEDULE": "none",
                **settings,
            }
            databases = {name: _named(database, name) for name in ("airflow", "mlflow")}
            with _airflow(folder, databases["airflow"], broker, shared) as stack, ExitStack() as machines:
                yield Cluster(stack, s3, shared, databases, machines)


@contextmanager
def _airflow(folder: Path, database: str, broker: str, shared: Mapping[str, str]) -> Iterator[Stack]:
    """Start API server, scheduler and DAG processor on a fresh database, and wait until they are healthy."""
    home = _made(folder / "airflow")
    port = free_port()
    user, password = "admin", secrets.token_urlsafe(12)
    (folder / "passwords.json").write_text(json.dumps({user: password, VIEWER[0]: VIEWER[1]}))
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("XRAY_", "AIRFLOW", "AWS_"))},
        **QUIET,
        **_airflow_settings(home, database, broker, port, folder / "passwords.json"),
        **shared,
        "XRAY_HOME": str(_made(folder / "control")),
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    subprocess.run([BIN / "airflow", "db", "migrate"], env=environment, check=True, capture_output=True, timeout=300)
    parts = {
        "api-server": ["api-server", "--workers", "1"],
        "scheduler": ["scheduler", "--skip-serve-logs"],
        "dag-processor": ["dag-processor"],
    }
    address = f"http://127.0.0.1:{port}"
    with ExitStack() as running_parts:
        started = [
            (running_parts.enter_context(logged([BIN / "airflow", *command], log, environment)), log)
            for log, command in ((home / f"{name}.log", command) for name, command in parts.items())
        ]
        for process, log in started:
            wait_for(f"{address}/api/v2/monitor/health", process, log, is_healthy)
        yield Stack(folder, shared["XRAY_TRACKING_URI"], address, user, password, environment)


def _airflow_settings(home: Path, database: str, broker: str, port: int, passwords: Path) -> dict[str, str]:
    alchemy = database.replace("postgresql://", "postgresql+psycopg2://")
    return {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
        "AIRFLOW__CORE__FERNET_KEY": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"admin:admin,{VIEWER[0]}:viewer",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": alchemy,
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{port}",
        "AIRFLOW__API__SECRET_KEY": secrets.token_hex(32),
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(32),
        "AIRFLOW__CELERY__BROKER_URL": broker,
        "AIRFLOW__CELERY__RESULT_BACKEND": f"db+{alchemy}",
        "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_SEC": "2",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": str(HEARTBEAT_TIMEOUT),
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "3",
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "300",
    }


def _needed() -> None:
    if shutil.which("redis-server") is None:
        pytest.skip("no redis-server; Debian: apt install redis-server")
    if importlib.util.find_spec("celery") is None:
        pytest.skip("the Celery executor is not installed")


@contextmanager
def _redis(folder: Path) -> Iterator[str]:
    """Start a Redis with a password; yield the broker's address."""
    port, password = free_port(), secrets.token_urlsafe(12)
    config = folder / "redis.conf"
    config.write_text(f'bind 127.0.0.1\nport {port}\ndir {folder}\nsave ""\nrequirepass {password}\n')
    with logged(["redis-server", config], folder / "redis.log", os.environ):
        yield f"redis://:{password}@127.0.0.1:{port}/0"


def _create_databases(uri: str, *names: str) -> None:
    import psycopg

    with psycopg.connect(uri, autocommit=True) as connection:
        for name in names:
            connection.execute(f'CREATE DATABASE "{name}"')  # type: ignore[arg-type]


def _named(uri: str, database: str) -> str:
    return f"{uri.rpartition('/')[0]}/{database}"


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
