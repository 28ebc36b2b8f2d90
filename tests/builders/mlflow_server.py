"""A real MLflow server on loopback for the tests that need one: SQLite, proxied artifacts, ended by its group."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from ports import free_port

ROOT = Path(__file__).resolve().parents[2]


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
    """Run a server in a process group of its own until the block ends; wait for `health` to answer first.

    A watcher in the group reads from us and ends the group when we die, even by SIGKILL.
    """
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # MLflow starts uvicorn by name
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with log.open("ab") as output:
        process = subprocess.Popen(
            ["sh", "-c", _WATCHED, "sh", *command], stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True, env=environment, cwd=log.parent,
        )  # fmt: skip
    try:
        _wait(health, process, log, seconds)
        yield process
    finally:
        end_group(process)


_WATCHED = 'exec 3<&0; (read line <&3; kill -9 0) & exec "$@" </dev/null 3<&-'


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that it started, by its group."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        process.wait()


@contextmanager
def run_mlflow(folder: Path, port: int | None = None, database: str = "") -> Iterator[MlflowServer]:
    """Start `mlflow server` on `folder`, where its database (unless another is given) and artifacts are and stay."""
    port = port or free_port()
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", database or f"sqlite:///{folder / 'mlflow.db'}"),
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
        with (folder / "postgres.log").open("wb") as log:
            process = subprocess.Popen(
                command, user=user, cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            ready = [programs[-1] / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
            until = time.monotonic() + 120
            while subprocess.run(ready, check=False).returncode != 0:
                if process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(f"PostgreSQL does not answer: {(folder / 'postgres.log').read_text()[-2000:]}")
                time.sleep(0.1)
            yield f"postgresql://mlflow@127.0.0.1:{port}/postgres"
        finally:
            end_group(process)


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """One real MLflow server for all tests; each test uses a registered model of its own."""
    with run_mlflow(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


def _wait(url: str, process: subprocess.Popen[bytes], log: Path, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}: {log.read_text()[-2000:]}")
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"{url} did not answer within {seconds:.0f} s: {log.read_text()[-2000:]}")
