"""The compose stack from the outside: `docker compose` with one project and secrets file, and Airflow's REST API.

Needs Python and an engine, nothing else: a host that runs containers has no other use for the project's environment.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]


class Failed(Exception):
    """The stack did not do what was asked; the message says what, and what it answered."""


@dataclass
class Compose:
    """One project of docker-compose.yaml."""

    project: str = "xray"
    env_file: Path = ROOT / ".env"
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    def __post_init__(self) -> None:
        """Read the settings. Raises Failed without a file of secrets."""
        if not self.env_file.exists():
            raise Failed(f"there is no {self.env_file}; run: make secrets")
        lines = self.env_file.read_text().splitlines()
        self.settings = dict(line.split("=", 1) for line in lines if re.match(r"[A-Z0-9_]+=", line))

    def command(self, *arguments: str) -> list[str]:
        """Return the command line of a compose command."""
        return ["docker", "compose", "--project-name", self.project, "--env-file", str(self.env_file), *arguments]

    def run(
        self,
        *arguments: str,
        stdin: IO[bytes] | None = None,
        stdout: IO[bytes] | int = subprocess.PIPE,
        check: bool = True,
        seconds: float = 600,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a compose command. Raises Failed when it takes too long, and with the end of its output when it fails and
        `check` is set."""
        try:
            done = subprocess.run(
                self.command(*arguments),
                stdin=stdin or subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE,
                cwd=ROOT, env=dict(self.environment), timeout=seconds, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise Failed(f"docker compose {' '.join(arguments)} did not end within {seconds:.0f} s") from error
        if check and done.returncode:
            said = ((done.stdout or b"") + done.stderr).decode(errors="replace")
            raise Failed(f"docker compose {' '.join(arguments)} ended with {done.returncode}:\n{said[-4000:]}")
        return done

    def text(self, *arguments: str, check: bool = True) -> str:
        """Return what a compose command prints."""
        return self.run(*arguments, check=check).stdout.decode().strip()

    def exec(self, service: str, *command: str, check: bool = True) -> str:
        """Return what a command prints in a running container."""
        return self.text("exec", "-T", service, *command, check=check)

    def sql(self, database: str, query: str) -> str:
        """Return the answer of PostgreSQL to a query, as the superuser; fields by | and rows by line."""
        psql = ("psql", "-U", "postgres", "-d", database, "-v", "ON_ERROR_STOP=1", "-At", "-c", query)
        return self.exec("postgres", *psql)

    def up(self, *services: str, build: bool = False) -> None:
        """Start services (default: all of the profile) and wait until they are healthy. Raises Failed with logs."""
        options = ["--detach", "--wait", "--wait-timeout", "900", *(["--build"] if build else [])]
        try:
            self.run("up", *options, *services, seconds=1500)
        except Failed as error:
            logs = self.run("logs", "--no-color", "--tail", "25", check=False).stdout.decode(errors="replace")
            raise Failed(f"{error}\n{logs[-12000:]}") from error

    def states(self) -> dict[str, str]:
        """Return the health of each service that runs: "healthy", "unhealthy", "starting" or "" without a check."""
        lines = self.text("ps", "--format", "json").splitlines()
        return {part["Service"]: part["Health"] for part in map(json.loads, lines)}

    def wait_healthy(self, service: str, seconds: float = 240) -> None:
        """Wait until a service is healthy. Raises Failed."""
        wait(lambda: self.states().get(service) == "healthy", f"{service} is not healthy", seconds)


def wait(ready: Callable[[], Any], otherwise: str, seconds: float, every: float = 2) -> Any:
    """Return what `ready` says once it is true. Raises Failed with `otherwise` after `seconds`."""
    until = time.monotonic() + seconds
    while not (answer := ready()):
        if time.monotonic() > until:
            raise Failed(f"{otherwise} after {seconds:.0f} s")
        time.sleep(every)
    return answer


def call(
    method: str, url: str, body: object = None, headers: Mapping[str, str] | None = None, seconds: float = 30
) -> tuple[int, bytes]:
    """Return status and body of an HTTP request, refusals too. Raises OSError when no answer comes."""
    data = None if body is None else json.dumps(body).encode()
    head = {"Content-Type": "application/json", **(headers or {})}
    request = urllib.request.Request(url, data, head, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=seconds) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


class Airflow:
    """Airflow's REST API as one person; asks again while the API server is away."""

    def __init__(self, url: str, user: str, password: str) -> None:
        self.url, self.user, self.password, self.token = url, user, password, ""

    def status(self, method: str, path: str, body: object = None) -> tuple[int, bytes]:
        """Return status and body, logged in. Raises Failed when the server stays away."""
        last: OSError | None = None
        for _ in range(60):
            try:
                if not self.token:
                    self.token = self._log_in()
                status, answer = call(
                    method, f"{self.url}/api/v2{path}", body, {"Authorization": f"Bearer {self.token}"}
                )
                if method == "GET" and status >= 500:  # its database may be restarting
                    raise OSError(f"{status} from {path}")
                return status, answer
            except OSError as error:
                last = error
                time.sleep(2)
        raise Failed(f"Airflow does not answer at {self.url}: {last}")

    def json(self, method: str, path: str, body: object = None) -> Any:
        """Return what the API answers. Raises Failed when it refuses."""
        status, answer = self.status(method, path, body)
        if status >= 400:
            raise Failed(f"Airflow answered {status} to {method} {path}: {answer[:500].decode(errors='replace')}")
        return json.loads(answer) if answer else None

    def trigger(self, dag: str, conf: Mapping[str, object]) -> str:
        """Start a run; return its id."""
        return str(self.json("POST", f"/dags/{dag}/dagRuns", {"logical_date": None, "conf": conf})["dag_run_id"])

    def state(self, dag: str, run: str) -> str:
        """Return the state of a run."""
        return str(self.json("GET", f"/dags/{dag}/dagRuns/{run}")["state"])

    def tasks(self, dag: str, run: str) -> dict[str, str]:
        """Return the state of each task of a run."""
        found = self.json("GET", f"/dags/{dag}/dagRuns/{run}/taskInstances?limit=200")["task_instances"]
        return {task["task_id"]: str(task["state"]) for task in found}

    def returned(self, dag: str, run: str, task: str) -> Any:
        """Return what a task returned."""
        path = f"/dags/{dag}/dagRuns/{run}/taskInstances/{task}/xcomEntries/return_value?deserialize=true"
        value = self.json("GET", path)["value"]
        return json.loads(value) if isinstance(value, str) else value

    def _log_in(self) -> str:
        status, answer = call("POST", f"{self.url}/auth/token", {"username": self.user, "password": self.password})
        if status >= 500:
            raise OSError(f"{status} from /auth/token")
        if status >= 400:
            raise Failed(f"Airflow refuses {self.user}: {status} {answer[:200].decode(errors='replace')}")
        return str(json.loads(answer)["access_token"])
