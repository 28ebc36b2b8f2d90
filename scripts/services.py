"""A real MLflow server and `airflow standalone` on 127.0.0.1, for the demo, the screenshots and the browser tests.

Both are ended by their sessions: `standalone` leaves its scheduler and API server behind when only it is told to stop.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import psutil

from xray_pipeline.base.children import child

ROOT = Path(__file__).resolve().parents[1]
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "GX_ANALYTICS_ENABLED": "false",
    "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
}
"""Nothing is sent anywhere."""


@dataclass(frozen=True)
class Stack:
    """The running services: where they answer, who may log in, and the environment they run in."""

    folder: Path
    mlflow: str
    airflow: str
    user: str
    password: str
    environment: dict[str, str]


class Failed(Exception):
    """A service did not come up, or a run failed; the message holds the end of its log."""


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that nobody listens on at this moment."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


@contextmanager
def running(folder: Path, settings: dict[str, str], told: Callable[[str], None] = lambda _: None) -> Iterator[Stack]:
    """Start both services with their files in `folder` and XRAY_* `settings`; end them when the block ends.

    SIGTERM and SIGHUP (a closed terminal) end the block as Ctrl-C does, for the main thread. `told` hears what is
    being done. Raises Failed.
    """
    mlflow_port, airflow_port = free_ports(2)
    mlflow, airflow = f"http://127.0.0.1:{mlflow_port}", f"http://127.0.0.1:{airflow_port}"
    user, password = "admin", secrets.token_urlsafe(12)
    passwords = folder / "passwords.json"
    with os.fdopen(os.open(passwords, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump({user: password}, file)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("XRAY_", "AIRFLOW", "MLFLOW_"))},
        **QUIET,
        **_airflow_settings(folder, airflow_port, passwords),
        **settings,
        "XRAY_TRACKING_URI": mlflow,
        "PATH": f"{_airflow_without_log_servers(folder)}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with _on_signals(_leave, signal.SIGTERM, signal.SIGHUP), ExitStack() as services:
        try:
            server = services.enter_context(
                logged(_mlflow_command(folder, mlflow_port), folder / "mlflow.log", environment)
            )
            told("starting the MLflow server")
            standalone = services.enter_context(logged(["airflow", "standalone"], folder / "airflow.log", environment))
            wait_for(f"{mlflow}/health", server, folder / "mlflow.log")
            told("starting Airflow")
            wait_for(f"{airflow}/api/v2/monitor/health", standalone, folder / "airflow.log", is_healthy)
            yield Stack(folder, mlflow, airflow, user, password, environment)
        finally:
            # A second Ctrl-C must not leave half of them behind.
            with _on_signals(signal.SIG_IGN, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                services.close()


def _mlflow_command(folder: Path, port: int) -> list[str]:
    store = [f"--backend-store-uri=sqlite:///{folder / 'mlflow.db'}", f"--artifacts-destination={folder / 'artifacts'}"]
    return ["mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1", *store]


def _airflow_settings(folder: Path, port: int, passwords: Path) -> dict[str, str]:
    return {
        "AIRFLOW_HOME": str(folder / "airflow"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{port}",
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "30",
        "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "1",
    }


def _airflow_without_log_servers(folder: Path) -> Path:
    """Make a folder with an `airflow` for `standalone` to start its parts with, and return it.

    Scheduler and triggerer serve their logs on fixed ports of every network interface unless told not to; on one
    machine the API server reads the files.
    """
    script = folder / "bin" / "airflow"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(
        "#!/bin/sh\n"
        'case "$1" in scheduler | triggerer) set -- "$@" --skip-serve-logs ;; esac\n'
        f'exec "{Path(sys.executable).parent}/airflow" "$@"\n'
    )
    script.chmod(0o755)
    return script.parent


@contextmanager
def logged(
    command: Sequence[str | Path], log: Path, environment: Mapping[str, str], grace: float = 5, **options: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program, as `child` does, whose output goes to the end of a log and which works in the log's folder."""
    with (
        log.open("ab") as output,
        child(
            command, grace, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=log.parent, **options
        ) as process,
    ):
        yield process


@contextmanager
def _on_signals(handler: Callable[[int, Any], Any] | signal.Handlers, *numbers: signal.Signals) -> Iterator[None]:
    """Handle signals so until the block ends."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, handled in before.items():
            signal.signal(number, handled)


def _leave(number: int, _: object) -> None:
    sys.exit(128 + number)


def is_healthy(answer: httpx.Response) -> bool:
    """Whether Airflow says of all its parts that they are well."""
    return answer.status_code == 200 and all(
        answer.json()[part]["status"] == "healthy" for part in ("metadatabase", "scheduler", "dag_processor")
    )


def wait_for(
    url: str,
    process: subprocess.Popen[bytes],
    log: Path,
    ready: Callable[[httpx.Response], bool] = lambda answer: answer.status_code == 200,
    seconds: float = 240,
) -> None:
    """Wait until a server answers as it should. Raises Failed with the end of its log when it ends or does not."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if process.poll() is not None:
            raise Failed(f"{log.stem} ended with {process.returncode}: {tail(log)}")
        with suppress(httpx.HTTPError):  # not up yet
            if ready(httpx.get(url, timeout=5)):
                return
        time.sleep(0.2)
    raise Failed(f"{log.stem} did not answer at {url} within {seconds:.0f} s: {tail(log)}")


def tail(log: Path, lines: int = 25) -> str:
    """Return the last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


class Airflow:
    """Airflow's REST API, logged in."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        answer = httpx.post(
            f"{stack.airflow}/auth/token", json={"username": stack.user, "password": stack.password}, timeout=30
        )
        answer.raise_for_status()
        headers = {"Authorization": f"Bearer {answer.json()['access_token']}"}
        self.client = httpx.Client(base_url=f"{stack.airflow}/api/v2", headers=headers, timeout=120)

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Call the API; return its JSON. Raises Failed with the answer when it refuses."""
        answer = self.client.request(method, path, json=body)
        if answer.is_error:
            raise Failed(f"Airflow answered {answer.status_code} to {method} {path}: {answer.text[:500]}")
        return answer.json() if answer.content else None

    def prepare(self, *dags: str, seconds: float = 90) -> None:
        """Make the pool `gpu` and let the DAGs run, once they are parsed."""
        pools = self.call("GET", "/pools")["pools"]
        if not any(pool["name"] == "gpu" for pool in pools):
            self.call(
                "POST", "/pools", {"name": "gpu", "slots": 1, "description": "one GPU", "include_deferred": False}
            )
        for dag in dags:
            until = time.monotonic() + seconds
            while self.client.get(f"/dags/{dag}").status_code == 404:
                if time.monotonic() > until:
                    errors = self.call("GET", "/importErrors")["import_errors"]
                    raise Failed(f"DAG {dag} was not found; import errors: {errors}")
                time.sleep(0.5)
            self.call("PATCH", f"/dags/{dag}?update_mask=is_paused", {"is_paused": False})

    def trigger(self, dag: str, conf: dict[str, Any]) -> str:
        """Start a run; return its id."""
        return str(self.call("POST", f"/dags/{dag}/dagRuns", {"logical_date": None, "conf": conf})["dag_run_id"])

    def state(self, dag: str, run: str) -> str:
        """Return the state of a run."""
        return str(self.call("GET", f"/dags/{dag}/dagRuns/{run}")["state"])

    def tasks(self, dag: str, run: str) -> list[dict[str, Any]]:
        """Return the task instances of a run."""
        found: list[dict[str, Any]] = self.call("GET", f"/dags/{dag}/dagRuns/{run}/taskInstances?limit=100")[
            "task_instances"
        ]
        return found

    def finished(self, dag: str, run: str, seconds: float = 600) -> None:
        """Wait for a run to end well. Raises Failed with the end of a failing task's log."""
        state = self.reached(lambda: self.state(dag, run), ("success", "failed"), seconds)
        if state == "failed":
            raise Failed(f"{dag} ended failed: {self.failed_log(dag, run)}")

    def reached(self, look: Callable[[], str], states: Sequence[str], seconds: float = 120) -> str:
        """Look until one of these states is found; return it. Raises Failed after so many seconds."""
        until = time.monotonic() + seconds
        while (found := look()) not in states:
            if time.monotonic() > until:
                raise Failed(f"it is still {found} after {seconds:.0f} s")
            time.sleep(0.5)
        return found

    def beats(self, count: int, seconds: float = 300) -> None:
        """Wait for so many heartbeats of the scheduler, which comes round to what has happened between two of them."""
        seen: set[str] = set()

        def look() -> str:
            seen.add(self.call("GET", "/monitor/health")["scheduler"]["latest_scheduler_heartbeat"])
            return "over" if len(seen) > count else "waiting"

        self.reached(look, ("over",), seconds)

    def task_state(self, dag: str, run: str, task: str) -> str:
        """Return the state of a task that is not mapped."""
        return str(self.call("GET", f"/dags/{dag}/dagRuns/{quote(run)}/taskInstances/{task}")["state"])

    def paused(self, dag: str, run: str, task: str, seconds: float = 600) -> str:
        """Wait until a task waits for a person and the scheduler has seen that it does; return the state it reached.

        Airflow takes a task for lost that is answered before the scheduler saw its process end
        (apache/airflow#72716): a person is slower.
        """
        ends = ("deferred", "failed", "skipped", "upstream_failed")
        state = self.reached(lambda: self.task_state(dag, run, task), ends, seconds)
        if state == "deferred":
            pid = self.call("GET", f"/dags/{dag}/dagRuns/{quote(run)}/taskInstances/{task}")["pid"]
            self.reached(lambda: "alive" if psutil.pid_exists(pid) else "ended", ("ended",), seconds)
            self.beats(5)
        return state

    def newest_run(self, dag: str, count: int = 1, seconds: float = 120) -> str:
        """Wait until a DAG has `count` runs; return the newest one's id."""
        found: dict[str, Any] = {}

        def look() -> str:
            found.update(self.call("GET", f"/dags/{dag}/dagRuns?order_by=-run_after&limit=1"))
            return "there" if found["total_entries"] >= count else "fewer"

        self.reached(look, ("there",), seconds)
        return str(found["dag_runs"][0]["dag_run_id"])

    def failed_log(self, dag: str, run: str) -> str:
        """Return the end of the first failing task's log."""
        failed = [task for task in self.tasks(dag, run) if task["state"] == "failed"]
        if not failed:
            return "no task failed; see airflow.log"
        task = failed[0]
        path = f"/dags/{dag}/dagRuns/{quote(run)}/taskInstances/{task['task_id']}/logs/{task['try_number']}"
        events = self.call("GET", f"{path}?map_index={task['map_index']}&full_content=true")["content"]
        lines = [str(event.get("event", event)) if isinstance(event, dict) else str(event) for event in events]
        return f"task {task['task_id']}\n" + "\n".join(lines[-25:])

    def answer(self, dag: str, run: str, task: str, option: str, reason: str) -> None:
        """Answer what a task asks in Required Actions, as who is logged in."""
        path = f"/dags/{dag}/dagRuns/{quote(run)}/taskInstances/{task}/-1/hitlDetails"
        self.call("PATCH", path, {"chosen_options": [option], "params_input": {"reason": reason}})

    def returned(self, dag: str, run: str, task: str) -> Any:
        """Return what a task returned."""
        path = f"/dags/{dag}/dagRuns/{run}/taskInstances/{task}/xcomEntries/return_value"
        value = self.call("GET", f"{path}?deserialize=true")["value"]
        return json.loads(value) if isinstance(value, str) else value
