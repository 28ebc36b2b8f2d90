"""A real MLflow server on loopback for the tests that need one: SQLite, proxied artifacts, ended by its group."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from once import Once
from ports import free_port
from services import QUIET, Failed, logged, tail, wait_for

from xray_pipeline.models.mlflow_client import MlflowClient

ROOT = Path(__file__).resolve().parents[2]
DATABASE = "mlflow.db"


@dataclass(frozen=True)
class MlflowServer:
    """Where the server answers, where its files are, and its first process (the leader of its group)."""

    uri: str
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def artifacts(self) -> Path:
        """The folder the server keeps artifacts in."""
        return self.folder / "artifacts"


@contextmanager
def running(command: Sequence[str], health: str, log: Path, seconds: float = 120) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server of MLflow's until the block ends; wait for `health` to answer first."""
    environment = {
        **os.environ,
        **QUIET,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # MLflow starts uvicorn by name
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with logged(command, log, environment, grace=0) as process:
        wait_for(health, process, log, seconds=seconds)
        yield process


@contextmanager
def run_mlflow(folder: Path, port: int | None = None, database: str = "") -> Iterator[MlflowServer]:
    """Start `mlflow server` on `folder`, where its database (unless another is given) and artifacts are and stay."""
    port = port or free_port()
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", database or f"sqlite:///{folder / DATABASE}"),
        *("--artifacts-destination", str(folder / "artifacts")),
    ]
    uri = f"http://127.0.0.1:{port}"
    with running(command, f"{uri}/health", folder / "mlflow.log") as process:
        yield MlflowServer(uri, folder, process)


@contextmanager
def run_postgres() -> Iterator[str]:
    """Start a PostgreSQL server of our own; yield the URI of an empty database. Skips where there is none."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs or importlib.util.find_spec("psycopg") is None:
        pytest.skip("no PostgreSQL server or no psycopg is installed")
    user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
    with tempfile.TemporaryDirectory(prefix="postgres-") as temporary:
        folder, port = Path(temporary), free_port()
        if user:
            shutil.chown(folder, user)
        subprocess.run(
            [programs[-1] / "initdb", "-D", folder / "data", "-U", "mlflow", "-A", "trust", "--no-sync"],
            check=True, user=user, cwd=folder, capture_output=True,
        )  # fmt: skip
        options = ["-p", str(port), "-c", f"unix_socket_directories={folder}", "-c", "listen_addresses=127.0.0.1"]
        command = [programs[-1] / "postgres", "-D", folder / "data", *options, "-c", "fsync=off"]
        log = folder / "postgres.log"
        with logged(command, log, os.environ, grace=0, user=user) as process:
            ready = [programs[-1] / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
            until = time.monotonic() + 120
            while subprocess.run(ready, check=False).returncode != 0:
                if process.poll() is not None or time.monotonic() > until:
                    raise Failed(f"PostgreSQL does not answer: {tail(log)}")
                time.sleep(0.1)
            yield f"postgresql://mlflow@127.0.0.1:{port}/postgres"


@pytest.fixture(scope="session")
def empty_mlflow(once: Once) -> Path:
    """The file of a database in which nothing is logged: to make one takes many migrations, to copy it nothing."""
    folder = once("empty-mlflow", lambda made: MlflowClient(f"sqlite:///{made / DATABASE}").search_experiments())
    return folder / DATABASE


def lay_database(empty: Path, folder: Path) -> None:
    """Lay an empty database where an installation in `folder` has it."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(empty, folder / DATABASE)


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> Iterator[MlflowServer]:
    """One real MLflow server for all tests; each test uses a registered model of its own."""
    folder = tmp_path_factory.mktemp("mlflow")
    lay_database(empty_mlflow, folder)
    with run_mlflow(folder) as server:
        yield server
