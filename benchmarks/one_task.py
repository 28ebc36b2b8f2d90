"""One task of the night in this process, as Airflow calls it, without Airflow's database: for benchmarks/tasks.py.

    python benchmarks/one_task.py DAGS TASK ARGUMENTS ANSWER

DAGS is the folder of retrain.py, ARGUMENTS a JSON list of what the task takes, ANSWER the file that gets what it
returned (null where it skipped or rejected), and its seconds, by the clock and of CPU, by phase:

  start    the interpreter, Airflow's SDK and the DAG's file, which a real worker has imported once for all its tasks
  imports  what the task imports
  models   weights read, audited and assembled, networks compiled
  server   MLflow's model server, booted and asked
  work     the rest
"""

from __future__ import annotations

import builtins
import functools
import json
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

PHASES = ("start", "imports", "models", "server", "work")
FUNCTIONS = (
    ("xray_pipeline.models.backbones", "load", "models"),
    ("xray_pipeline.models.classifier", "Classifier.load", "models"),
    ("xray_pipeline.models.engine", "_Compiled.__init__", "models"),
    ("xray_pipeline.registry.mlflow_registry", "Registry.download", "models"),
    ("xray_pipeline.registry.loading", "load", "models"),
    ("xray_pipeline.registry.loading", "load_exactly", "models"),
    ("xray_pipeline.night.trial", "_tried", "server"),
)
"""What is booked to another phase than work, in the modules that have it."""


class Clock:
    """Seconds by the clock and of CPU, by phase; a phase within another is not counted twice."""

    def __init__(self) -> None:
        self.spent = {phase: [0.0, 0.0] for phase in PHASES}
        self._open = ["start"]
        self._last = self._now()

    @property
    def phase(self) -> str:
        """The phase that time is booked to now."""
        return self._open[-1]

    @contextmanager
    def of(self, phase: str) -> Iterator[None]:
        """Book what the block takes to a phase."""
        self._book()
        self._open.append(phase)
        try:
            yield
        finally:
            self._book()
            self._open.pop()

    def _book(self) -> None:
        now = self._now()
        self.spent[self.phase] = [s + n - b for s, n, b in zip(self.spent[self.phase], now, self._last, strict=True)]
        self._last = now

    @staticmethod
    def _now() -> tuple[float, float]:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.perf_counter(), time.process_time() + children.ru_utime + children.ru_stime


def watch(clock: Clock) -> None:
    """Book imports, and calls of `FUNCTIONS`, to their phases from here on."""
    real, waiting = builtins.__import__, list(FUNCTIONS)

    def importing(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        there = {} if level else getattr(sys.modules.get(name), "__dict__", {})
        if clock.phase in ("start", "imports") or (there and all(part in there for part in fromlist or ())):
            return real(name, globals, locals, fromlist, level)
        with clock.of("imports"):
            module = real(name, globals, locals, fromlist, level)
        waiting[:] = [function for function in waiting if not _booked(clock, *function)]
        return module

    builtins.__import__ = importing


def _booked(clock: Clock, module: str, name: str, phase: str) -> bool:
    owner: Any = sys.modules.get(module)
    if owner is None:
        return False
    *classes, attribute = name.split(".")
    for part in classes:
        owner = getattr(owner, part)
    function: Callable[..., Any] = getattr(owner, attribute)

    @functools.wraps(function)
    def booked(*values: Any, **named: Any) -> Any:
        with clock.of(phase):
            return function(*values, **named)

    bound = getattr(function, "__self__", None) is owner  # a method of the class
    setattr(owner, attribute, staticmethod(booked) if bound else booked)
    return True


def context(arguments: list[Any]) -> dict[str, Any]:
    """Return what a task asks Airflow for."""
    return {
        "task": SimpleNamespace(op_kwargs={"delivery": arguments and arguments[0]}),  # of check_delivery
        "params": {},
        "dag_run": SimpleNamespace(triggering_user_name="benchmark"),
        "run_id": "benchmark",
        "outlet_events": defaultdict(SimpleNamespace),
        "ti": SimpleNamespace(xcom_push=lambda key, value: None),
    }


def main() -> None:
    """Call the task and write the answer."""
    clock = Clock()
    dags, task, arguments, answer = sys.argv[1:]
    sys.path.insert(0, dags)
    import retrain
    from airflow.sdk.exceptions import AirflowSkipException

    takes = json.loads(arguments)
    retrain.get_current_context = lambda: context(takes)
    if hasattr(retrain, "airflow_links"):

        def course(about: Mapping[str, Any]) -> Any:
            from xray_pipeline.night.summary import Course

            return Course(datetime.now(UTC).isoformat(timespec="seconds"))

        retrain.airflow_links.course = course
    watch(clock)
    returned = None
    with clock.of("work"):
        try:
            returned = retrain.dag_object.task_dict[task].python_callable(*takes)
        except AirflowSkipException as skipped:
            print(f"{task}: {skipped}", file=sys.stderr)
        except SystemExit:
            print(f"{task}: rejected", file=sys.stderr)
    Path(answer).write_text(json.dumps({"returned": returned, "spent": clock.spent}))


if __name__ == "__main__":
    main()
