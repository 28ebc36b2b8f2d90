"""`make smoke`: a throw-away copy of the whole stack, driven from the outside as people drive it.

Lays phantom deliveries in S3, runs a night over Airflow's REST API, has a viewer refused and an operator approve,
checks the champion; crashes every container in turn while nights run, each with a delivery of its own; changes a secret
of each kind; takes a backup, destroys every volume and restores it. After each part the invariants are checked. The
copy has a project, an image, secrets, volumes and ports of its own: an installation on the same host is not touched.
Needs Python and an engine with Compose.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import backup
import make_env
from stack import ROOT, Airflow, Compose, Failed, call, wait

PROJECT = "xray-smoke"
DAG, PROMOTE = "xray_retrain", "xray_promote"
BUCKETS = ("incoming", "xray", "mlflow")
ACTIVE = ("queued", "running")
During = Callable[[dict[str, str]], None]
CRASHED: dict[str, tuple[str, ...]] = {
    "worker": ("check_delivery",),
    "worker-cpu": ("train",),
    "seaweedfs": ("train", "evaluate"),
    "scheduler": ("check_delivery", "commit_deliveries"),
    "mlflow": ("train", "evaluate"),
    "postgres": ("train", "evaluate"),
    "redis": ("check_delivery", "commit_deliveries", "train"),
    "api-server": ("train", "evaluate"),
    "dag-processor": (),
    "triggerer": (),
}
"""Services in the order in which they crash, each during one of these tasks; without any, during whatever runs."""
ROTATED = (
    *("AIRFLOW_OPERATOR_PASSWORD", "AIRFLOW_JWT_SECRET", "AIRFLOW_SESSION_SECRET", "AIRFLOW_DB_PASSWORD"),
    *("MLFLOW_PIPELINE_PASSWORD", "MLFLOW_DB_PASSWORD", "REDIS_PASSWORD", "S3_PIPELINE_SECRET", "S3_MLFLOW_SECRET"),
)
SETTINGS = {
    "COMPOSE_PROFILES": "cpu",
    "COMPOSE_FILE": "docker-compose.yaml",  # without an installation's override
    "SETTINGS_FILE": "/dev/null",
    "XRAY_IMAGE_TAG": "smoke",
    "XRAY_APPROVERS": '["2"]',  # the operator; accounts are numbered in the order the init job makes them
    "MLFLOW_URL": "https://mlflow.hospital.example",
    "XRAY_SCHEDULE": "none",
    "XRAY_SETTLE_SECONDS": "0",
    "XRAY_PATIENT_KEY": "smoke key, not a secret",  # always the same split, so the same figures
    "MLFLOW_WORKERS": "1",
    "WORKER_CONCURRENCY": "1",
    "WORKER_CPUS": str(os.cpu_count() or 1),
    "GPU_WORKER_CPUS": str(os.cpu_count() or 1),
    "TASK_HEARTBEAT_TIMEOUT": "60",
}


class Smoke:
    """The checks, in order; each says what it found, the first that fails ends the run."""

    def __init__(self, stack: Compose) -> None:
        self.stack = stack
        ports = stack.settings
        self.airflow_url = f"http://127.0.0.1:{ports['AIRFLOW_PORT']}"
        self.mlflow_url = f"http://127.0.0.1:{ports['MLFLOW_PORT']}"
        self.s3_url = f"http://127.0.0.1:{ports['S3_PORT']}"
        self.passed = 0
        self.last: dict[str, object] = {}  # what the last night was asked with
        self.start = time.monotonic()
        self.operator = Airflow(self.airflow_url, "operator", ports["AIRFLOW_OPERATOR_PASSWORD"])
        self.viewer = Airflow(self.airflow_url, "viewer", ports["AIRFLOW_VIEWER_PASSWORD"])

    def ok(self, what: str) -> None:
        """Say that a check holds."""
        self.passed += 1
        print(f"{time.monotonic() - self.start:6.0f} s  ok: {what}", flush=True)

    def expect(self, what: str, wanted: object, found: object) -> None:
        """Check that something is as it must be. Raises Failed."""
        if found != wanted:
            raise Failed(f"{what}: expected {wanted!r}, found {found!r}")
        self.ok(what)

    # Doors

    def doors(self) -> None:
        """Nobody gets in without an account, and nobody further than the account goes. Raises Failed."""
        url = f"{self.airflow_url}/api/v2/dags/{DAG}/dagRuns"
        self.expect("Airflow without an account: 401", 401, call("GET", url)[0])
        trigger: dict[str, Any] = {"logical_date": None, "conf": {}}
        status = self.viewer.status("POST", f"/dags/{DAG}/dagRuns", trigger)[0]
        self.expect("a viewer can't trigger the night: 403", 403, status)
        for dag in (PROMOTE, "xray_rollback"):
            path = f"/dags/{dag}/dagRuns"
            self.expect(f"a viewer can't trigger {dag}: 403", 403, self.viewer.status("POST", path, trigger)[0])
        self.expect("an operator can't read connections: 403", 403, self.operator.status("GET", "/connections")[0])
        page = f"{self.airflow_url}/xray/champion"
        self.expect("the plugin's pages without an account: 401", 401, call("GET", page)[0])
        search = f"{self.mlflow_url}/api/2.0/mlflow/registered-models/search"
        self.expect("MLflow without an account: 401", 401, call("GET", search)[0])
        self.expect("MLflow under another host's name: 403", 403, call("GET", search, headers={"Host": "evil"})[0])
        for origin, status in (("https://evil.example", 403), (self.stack.settings["MLFLOW_URL"], 401)):
            asked = call("POST", f"{self.mlflow_url}/api/2.0/mlflow/runs/search", {}, {"Origin": origin})[0]
            self.expect(f"MLflow's API from a page of {origin}: {status}", status, asked)
        for bucket in BUCKETS:
            self.expect(f"bucket {bucket} without a key: 403", 403, call("GET", f"{self.s3_url}/{bucket}/")[0])
        slots = self.stack.sql("airflow", "select pool, slots from slot_pool order by pool").split()
        self.expect("a pool has a slot for each task that its workers run at once", ["default_pool|1", "gpu|1"], slots)
        for service in ("worker", "worker-cpu"):
            self.expect(f"{service} reaches what it needs, no database, not the outside", "", self.reach(service))
        self.expect("every port is on 127.0.0.1", {"127.0.0.1"}, self.published())

    def reach(self, service: str) -> str:
        """Return what is wrong with what a service can reach, "" when nothing is."""
        return self.stack.exec(service, "python", "-c", REACH)

    def published(self) -> set[str]:
        """Return the addresses that ports are published on."""
        parts = map(json.loads, self.stack.text("ps", "--format", "json").splitlines())
        return {port["URL"] for part in parts for port in part["Publishers"] or [] if port["PublishedPort"]}

    # Nights

    def deliver(self, patients: int, seed: int = 0) -> None:
        """Lay a delivery of phantoms in the bucket where they arrive."""
        how = ("--patients", str(patients), "--seed", str(seed), "--name", f"delivery-{seed}")
        self.tools("objects", "deliver", *how)
        self.ok("a delivery is laid in S3")

    def tools(self, *command: str) -> str:
        """Run a tool in a container of its own; return what it prints."""
        return self.stack.text("run", "--rm", "--no-deps", "-T", "tools", *command)

    def night(self, conf: Mapping[str, object], during: During = lambda _: None) -> tuple[str, str]:
        """Run a night to its end; return its id and state. `during` gets the tasks' states while one runs."""
        run, self.last = self.operator.trigger(DAG, conf), dict(conf)
        until = time.monotonic() + 1800
        while (state := self.operator.state(DAG, run)) in ACTIVE:
            if time.monotonic() > until:
                raise Failed(f"the night is {state} after 1800 s: {self.operator.tasks(DAG, run)}")
            tasks = self.operator.tasks(DAG, run)
            if "running" in tasks.values():
                during(tasks)
            time.sleep(1)
        return run, state

    def whole_night(self, **conf: object) -> dict[str, Any]:
        """Run a night that must succeed; return what it concluded. Raises Failed with its tasks."""
        run, state = self.night(conf)
        if state != "success":
            raise Failed(f"the night ended {state}: {self.operator.tasks(DAG, run)}\n{self.task_logs(run)}")
        said: dict[str, Any] = self.operator.returned(DAG, run, "conclude")
        return said

    def task_logs(self, run: str) -> str:
        """Return the end of a night's task logs."""
        script = f"cd /opt/airflow/logs && find . -path '*{run}*' -name '*.log' | xargs tail -n 6"
        return self.stack.exec("worker", "sh", "-c", script, check=False)[-6000:]

    def first_night(self) -> None:
        """The first night registers a version, which waits as challenger. Raises Failed."""
        said = self.whole_night()
        self.expect("the night registers version 1", 1, said["version"])
        self.expect("which waits for a person", "challenger", said["alias"])

    def approval(self) -> None:
        """A viewer can't approve; an operator does; the version is the champion. Raises Failed."""
        run, task = wait(self.asked, "xray_promote asks nobody", 900)
        self.ok("xray_promote asks for approval")
        path = f"/dags/{PROMOTE}/dagRuns/{run}/taskInstances/{task}/-1/hitlDetails"
        detail = self.operator.json("GET", path)
        yes = next(option for option in detail["options"] if option.lower().startswith("approve"))
        answer = {"chosen_options": [yes], "params_input": {"reason": "smoke test: the figures are good"}}
        self.expect("a viewer can't approve: 403", 403, self.viewer.status("PATCH", path, answer)[0])
        admin = Airflow(self.airflow_url, "admin", self.stack.settings["AIRFLOW_ADMIN_PASSWORD"])
        self.expect("nor can whom XRAY_APPROVERS leaves out: 403", 403, admin.status("PATCH", path, answer)[0])
        self.operator.json("PATCH", path, answer)
        state = wait(lambda: self.ended(PROMOTE, run), "xray_promote does not end", 600)
        self.expect("xray_promote ends well", "success", state)
        history = self.history()
        self.expect("version 1 is the champion", 1, history["champion"])
        last = [entry for entry in history["entries"] if entry["kind"] in ("approved", "promoted")]
        self.expect("the ledger names who approved", True, any(entry["who"] == "operator" for entry in last))
        self.expect("a viewer can't move an alias in MLflow: 403", 403, self.move_alias())

    def asked(self) -> tuple[str, str] | None:
        """Return run and task of a question that waits for an answer."""
        runs = self.operator.json("GET", f"/dags/{PROMOTE}/dagRuns?limit=20&order_by=-run_after")["dag_runs"]
        for run in (found["dag_run_id"] for found in runs if found["state"] in ACTIVE):
            for task, state in self.operator.tasks(PROMOTE, run).items():
                path = f"/dags/{PROMOTE}/dagRuns/{run}/taskInstances/{task}/-1/hitlDetails"
                if state in ("awaiting_input", "deferred") and self.operator.status("GET", path)[0] == 200:
                    return run, task
        return None

    def ended(self, dag: str, run: str) -> str:
        """Return how a run ended, "" while it has not."""
        state = self.operator.state(dag, run)
        return "" if state in ACTIVE else state

    def move_alias(self) -> int:
        """Return the status MLflow answers a viewer who moves the alias of production with."""
        credentials = f"viewer:{self.stack.settings['MLFLOW_VIEWER_PASSWORD']}"
        head = {"Authorization": "Basic " + base64.b64encode(credentials.encode()).decode()}
        body = {"name": "chest-xray", "alias": "champion", "version": "1"}
        return call("POST", f"{self.mlflow_url}/api/2.0/mlflow/registered-models/alias", body, head)[0]

    # What must hold

    def history(self) -> dict[str, Any]:
        """Return what the ledger says, asked in a container."""
        found: dict[str, Any] = json.loads(self.stack.exec("worker", "xray", "history", "--json"))
        return found

    def entries(self) -> list[str]:
        """Return the digests of the ledger's entries."""
        return [entry["digest"] for entry in self.history()["entries"]]

    def holds(self, when: str) -> None:
        """Check the invariants with the project's own checker, and those it leaves to the dataset. Raises Failed."""
        findings = json.loads(self.stack.exec("worker", "xray", "verify", "--json", check=False) or "[]")
        broken = [f"{finding['invariant']}: {finding['text']}" for finding in findings if not finding["holds"]]
        if broken or not findings:
            raise Failed(f"{when}: {broken or 'xray verify said nothing'}")
        data = json.loads(self.stack.exec("worker", "python", "/opt/xray/compose/invariants.py"))
        if data["broken"]:
            raise Failed(f"{when}: {data['broken']}")
        self.ok(f"{when}: I1 to I4, I6, I7 by xray verify; {data['text']}")

    def unchanged_night(self) -> None:
        """The last night once more, without anything new, changes nothing (I5)."""
        before = self.entries()
        said = self.whole_night(**self.last)
        self.expect("a night without anything new changes nothing (I5)", before, self.entries())
        self.expect("and registers nothing", None, said["version"])

    def well(self) -> None:
        """`docker compose run --rm health` finds everything well, Airflow and the last night too. Raises Failed.

        But for drift: deliveries of a few dozen phantoms may differ from the dataset by chance.
        """
        parts = json.loads(self.stack.text("run", "--rm", "-T", "health", "--json", check=False))
        ill = [part for part in parts if not part["well"] and part["part"] != "drift"]
        self.expect("xray health finds all parts well", [], ill)
        self.expect("and looked at Airflow and the night", True, {"airflow", "night"} <= {p["part"] for p in parts})

    def silent(self) -> None:
        """No log of any container or task names a patient or holds a secret (I8)."""
        logs = self.stack.text("logs", "--no-color", "--no-log-prefix")
        logs += self.stack.exec("worker", "sh", "-c", "find /opt/airflow/logs -name '*.log' -exec cat {} +")
        xcoms = self.stack.sql("airflow", "SELECT value FROM xcom")
        self.expect("no log and no XCom names a patient (I8)", None, re.search(r"patient\d{4}", logs + xcoms))
        values = {name: self.stack.settings[name] for name in make_env.SECRETS}
        shown = [name for name, value in values.items() if value in logs + xcoms]
        self.expect("no log and no XCom holds a secret", [], shown)

    # Faults

    def crashes(self) -> None:
        """Each container in turn crashes while a night runs; the engine starts it again, the nights end well."""
        left = dict(CRASHED)
        done = -1

        def one_more(tasks: dict[str, str]) -> None:
            nonlocal done
            running = {task for task, state in tasks.items() if state == "running"}
            now = sum(state in ("success", "skipped") for state in tasks.values())
            service = next((one for one, during in left.items() if not during or running & set(during)), None)
            if service and now > done:  # once for each step at most, so that a step has tries left
                done = now
                del left[service]
                self.crash(service)
                self.ok(f"{service} crashed during {', '.join(sorted(running))}, was started again and is healthy")

        for seed in range(101, 111):
            if not left:
                break
            done = -1
            self.deliver(60, seed)
            run, state = self.night({"seed": seed}, one_more)
            if state != "success":  # a task may use up its tries; the next night goes on where it stood
                print(f"         the night ended {state}: {self.operator.tasks(DAG, run)}", flush=True)
                self.whole_night(seed=seed)
            self.ok("the night ends well")
            self.holds("after the crashes")
        self.expect("every container crashed once", {}, left)
        self.unchanged_night()

    def crash(self, service: str) -> None:
        """Kill every process in a container from within; wait until the engine's restart policy made it healthy."""
        before = self.started(service)
        self.stack.exec(service, "sh", "-c", "kill -9 -1", check=False)
        wait(lambda: self.started(service) != before, f"{service} is not started again", 120, every=0.5)
        self.stack.wait_healthy(service)

    def started(self, service: str) -> str:
        """Return when the container of a service was started last."""
        container = self.stack.text("ps", "--all", "--quiet", service)
        asked = ["docker", "inspect", "--format", "{{.State.StartedAt}}", container]
        return subprocess.run(asked, env=dict(self.stack.environment), capture_output=True, text=True).stdout

    # Secrets

    def rotated(self) -> None:
        """A secret of each kind is changed in .env; after `up` the new one is in use and the old one is not."""
        old = dict(self.stack.settings)
        lines = [line for line in self.stack.env_file.read_text().splitlines() if line.split("=")[0] not in ROTATED]
        self.stack.env_file.write_text("\n".join(lines))
        make_env.make(self.stack.env_file, {})
        self.stack = Compose(PROJECT, self.stack.env_file, self.stack.environment)
        changed = {name for name, value in old.items() if self.stack.settings[name] != value}
        self.expect("secrets are changed in .env", set(ROTATED), changed)
        self.stack.up()
        refused = {"username": "operator", "password": old["AIRFLOW_OPERATOR_PASSWORD"]}
        self.expect("the old password is refused", 401, call("POST", f"{self.airflow_url}/auth/token", refused)[0])
        self.operator = Airflow(self.airflow_url, "operator", self.stack.settings["AIRFLOW_OPERATOR_PASSWORD"])
        self.viewer.token = ""
        self.holds("with changed secrets")

    # Backup

    def restored(self, folder: Path) -> None:
        """A backup, put into new volumes, gives the same history, champion and artifacts. Raises Failed."""
        wait(lambda: self.stack.sql("airflow", backup.BUSY) == "0", "tasks don't end", 300)
        before = self.entries()
        backup.backup(self.stack, folder)
        self.ok(f"backup of {sum(path.stat().st_size for path in folder.iterdir()) / 1e6:.0f} MB")
        self.stack.run("down", "--volumes", "--timeout", "10")
        backup.restore(self.stack, folder)
        self.operator.token = ""
        self.expect("the restored ledger is the one that was backed up", before, self.entries())
        self.holds("after the restore")
        self.unchanged_night()


REACH = """
import socket
def reaches(host, port):
    try:
        socket.create_connection((host, port), 3).close()
        return True
    except OSError:
        return False
wanted = {("api-server", 8080), ("redis", 6379), ("seaweedfs", 8333), ("mlflow", 5000)}
closed = {("postgres", 5432), ("seaweedfs", 8888), ("seaweedfs", 9333), ("seaweedfs", 8080)}
bad = [f"{h}:{p} is out of reach" for h, p in wanted if not reaches(h, p)]
bad += [f"{h}:{p} is within reach" for h, p in closed if reaches(h, p)]
routes = [line.split()[1] for line in open("/proc/net/route").readlines()[1:]]
bad += ["there is a way outside"] if "00000000" in routes else []
print("; ".join(bad))
"""


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


def refuses_without_secrets() -> None:
    """Compose starts nothing without its secrets. Raises Failed when it would."""
    with tempfile.NamedTemporaryFile(suffix=".env") as empty:
        stack = Compose(PROJECT, Path(empty.name), bare_environment())
        done = stack.run("config", "--quiet", check=False)
    if done.returncode == 0 or b"make secrets" not in done.stderr:
        raise Failed("docker compose does not refuse to start without secrets")


def bare_environment() -> Mapping[str, str]:
    """Return this environment without variables that docker-compose.yaml would read instead of the file's."""
    ours = (*make_env.SECRETS, *SETTINGS, "COMPOSE_")
    return {name: value for name, value in os.environ.items() if not name.startswith((*ours, "XRAY_", "AIRFLOW"))}


def run(folder: Path, parts: str) -> int:
    """Run the parts of the smoke test on a fresh copy of the stack; return how many checks passed. Raises Failed."""
    refuses_without_secrets()
    ports = dict(zip(("AIRFLOW_PORT", "MLFLOW_PORT", "S3_PORT"), map(str, free_ports(3)), strict=True))
    make_env.make(folder / ".env", {**SETTINGS, **ports})
    stack = Compose(PROJECT, folder / ".env", bare_environment())
    remove(stack)
    try:
        smoke = Smoke(stack)
        smoke.ok("docker compose refuses to start without secrets")
        stack.up(build=True)
        smoke.ok("the stack is built, up and healthy")
        stack.run("run", "--rm", "--no-deps", "-T", "init")
        smoke.ok("the init job can be run again")
        smoke.doors()
        smoke.deliver(patients=300)
        smoke.first_night()
        smoke.approval()
        smoke.holds("after the first night")
        smoke.unchanged_night()
        if "r" in parts:
            smoke.crashes()
        smoke.silent()
        if "b" in parts:
            smoke.rotated()
            smoke.well()
            smoke.restored(folder / "backup")
        return smoke.passed
    except (Failed, OSError):
        (ROOT / "smoke.log").write_text(stack.text("logs", "--no-color", "--timestamps", check=False))
        raise
    finally:
        remove(stack)


def remove(stack: Compose) -> None:
    """Remove the copy and all it holds; its image stays, to build the next one from."""
    stack.run("--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout", "5", check=False)


def main() -> None:
    """Parse the command line, run, print the count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", default="rb", help="r: crashes and restarts, b: secrets and backup; default both")
    given = parser.parse_args()
    os.umask(0o077)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # the copy is removed then too
    with tempfile.TemporaryDirectory(prefix="xray-smoke-") as folder:
        try:
            passed = run(Path(folder), given.parts)
        except (Failed, OSError) as error:
            print(f"smoke: {error}\nsmoke: the containers' logs are in smoke.log", file=sys.stderr)
            sys.exit(1)
    print(f"{passed} passed, 0 failed")


if __name__ == "__main__":
    main()
