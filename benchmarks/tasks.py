"""Deliveries and nights for benchmarks: each task of the DAG in a process of its own, as Airflow runs it, without that.

A night that has what it needs is promoted by itself, so that all tasks run. MLflow is a SQLite file without a server.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

CLASSES = ("NORMAL", "PNEUMONIA")
ROOT = Path(__file__).resolve().parents[1]
ONE_TASK = Path(__file__).with_name("one_task.py")


@dataclass(frozen=True)
class Spent:
    """What a task took: seconds of its process by the clock and of CPU, and both by phase (see one_task.py)."""

    task: str
    seconds: float
    cpu_seconds: float
    phases: Mapping[str, Sequence[float]]

    @property
    def work(self) -> tuple[float, float]:
        """Seconds by the clock and of CPU that are neither start nor imports."""
        parts = [self.phases[phase] for phase in ("models", "server", "work")]
        return sum(clock for clock, _ in parts), sum(cpu for _, cpu in parts)


def deliver(incoming: Path, name: str, source: Path, first: int, count: int) -> None:
    """Deliver `count` images of a folder by class, from the `first` of a fixed shuffle of all of them on."""
    files = sorted(path for label in CLASSES for path in (source / label).iterdir() if path.is_file())
    if len(files) < first + count:
        raise SystemExit(f"{source} holds {len(files)} files; {first + count} are needed: ask for fewer images")
    np.random.default_rng(0).shuffle(files)  # type: ignore[arg-type]
    for path in files[first : first + count]:
        target = incoming / name / path.parent.name
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / path.name)


class Site:
    """An installation in a folder, whose tasks run with the package of a checkout."""

    def __init__(self, home: Path, checkout: Path = ROOT, **settings: object) -> None:
        self.home, self.checkout = home, checkout
        self.incoming = home / "incoming"
        given = {"settle_seconds": 0, "patient_key": "of a benchmark, no secret", "promotion": "auto", **settings}
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("XRAY_")},
            **{f"XRAY_{name.upper()}": str(value) for name, value in given.items()},
            "XRAY_HOME": str(home),
            "AIRFLOW_HOME": str(home / "airflow"),
            "PYTHONPATH": str(checkout),
        }
        self.environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package is compiled

    def night(self) -> list[Spent]:
        """Run the tasks of a night one after the other, each that has what it takes; return what they took."""
        spent: list[Spent] = []

        def run(task: str, *takes: Any) -> Any:
            returned, took = self._task(task, takes)
            spent.append(took)
            return returned

        deliveries = run("find_deliveries")
        for key in deliveries:
            run("check_delivery", key)
        committed = run("commit_deliveries", deliveries)
        looked = []
        if "def look_ahead(" in (self.checkout / "dags" / "retrain.py").read_text():  # older checkouts have none
            looked = [None if committed is None else run("look_ahead", committed)]
        results = [committed]
        for task in ("train", "evaluate", "decide", "register", "promote"):
            results.append(None if results[-1] is None else run(task, results[-1]))
        run("conclude", deliveries, committed, *looked, *results[1:])
        return spent

    def xray(self, *words: str) -> Spent:
        """Run the checkout's `xray` command; return what it took, all of it as work."""
        scripts = tomllib.loads((self.checkout / "pyproject.toml").read_text())["project"]["scripts"]
        module, _, function = scripts["xray"].partition(":")
        return self.command(sys.executable, "-c", f"from {module} import {function}; {function}()", *words)

    def command(self, *words: str) -> Spent:
        """Run a command to its end; return what it took, all of it as work."""
        start = time.perf_counter()
        process = subprocess.Popen(words, env=self.environment, cwd=self.home, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(words)} ended with {process.returncode}")
        clock, cpu = time.perf_counter() - start, usage.ru_utime + usage.ru_stime
        nothing = {"start": (0.0, 0.0), "imports": (0.0, 0.0), "models": (0.0, 0.0), "server": (0.0, 0.0)}
        return Spent(words[0], clock, cpu, {**nothing, "work": (clock, cpu)})

    def _task(self, task: str, takes: Sequence[Any]) -> tuple[Any, Spent]:
        with tempfile.TemporaryDirectory() as name:
            answer = Path(name, "answer.json")
            words = (sys.executable, str(ONE_TASK), str(self.checkout / "dags"), task, json.dumps(takes), str(answer))
            whole = self.command(*words)
            said = json.loads(answer.read_text())
        phases, totals = dict(said["spent"]), (whole.seconds, whole.cpu_seconds)
        told = [sum(spent[n] for phase, spent in phases.items() if phase != "start") for n in (0, 1)]
        phases["start"] = [total - part for total, part in zip(totals, told, strict=True)]
        return said["returned"], Spent(task, *totals, phases)


def by_task(spent: Sequence[Spent]) -> dict[str, Spent]:
    """Return what a night took by task, checks of several deliveries added up."""
    found: dict[str, Spent] = {}
    for one in spent:
        if before := found.get(one.task):
            phases = {p: [a + b for a, b in zip(v, before.phases[p], strict=True)] for p, v in one.phases.items()}
            one = Spent(one.task, one.seconds + before.seconds, one.cpu_seconds + before.cpu_seconds, phases)
        found[one.task] = one
    return found
