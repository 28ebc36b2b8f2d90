"""`make demo`: two nights, an approval and a rollback, with real parts: Airflow, MLflow, Great Expectations.

The policy is the default one. The first night makes a plain model the champion; the second learns from more patients,
and an operator approves its model and then goes back. Everything it makes lies in one folder, xray-demo, which it makes
anew each time.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import phantom
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from services import ROOT, Airflow, Failed, Stack, running

from xray_pipeline.base.errors import XrayError
from xray_pipeline.base.settings import Settings

FOLDER = ROOT / "xray-demo"
MARKER = FOLDER / ".xray-demo"
DAG, ASKING, BACK = "xray_retrain", "xray_promote", "xray_rollback"
OPERATOR = "operator"
PATIENTS = 900  # the policy wants 100 held-out ones before it lets a model replace another
MILDEST = 0.8  # so that a few hundred patients are enough to learn from
QUICK = "side=128"
PLAIN = "side=64\nlevels=false\nviews=1\nconsistency=0\nthreshold=half"
TASKS = (
    *("find_deliveries", "check_delivery", "commit_deliveries", "look_ahead", "train", "evaluate"),
    *("decide", "register", "promote", "conclude"),
)
COLOURS = {"success": "green", "failed": "red", "running": "yellow", "skipped": "dim", "up_for_retry": "red"}

console = Console(highlight=False)


@contextmanager
def fresh_folder() -> Iterator[None]:
    """Make the demo's folder anew and keep it ours until the block ends; only what a demo made is removed.

    Raises Failed when the folder is something else, or another demo's that is still up.
    """
    if FOLDER.exists() and not MARKER.exists():
        raise Failed(f"{FOLDER} is not a demo's folder; move it away")
    FOLDER.mkdir(exist_ok=True)
    with MARKER.open("a") as marker:
        try:
            fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Failed(f"another demo is up in {FOLDER}; stop it with Ctrl-C first") from error
        for path in FOLDER.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path != MARKER:
                path.unlink()
        (FOLDER / "incoming").mkdir()
        yield


def lay(data: Path | None) -> tuple[list[Path], tuple[str, ...]]:
    """Lay two deliveries beside the incoming folder; return them and the names of the classes. Raises XrayError."""
    waiting = FOLDER / "waiting"
    if data is None:
        return phantom.lay(waiting, patients=PATIENTS, mildest=MILDEST), phantom.CLASSES
    folders = phantom.split_by_patient(data.resolve(), waiting, Settings().rules.patient_pattern)
    classes = tuple(sorted({path.name for folder in folders for path in folder.rglob("*") if is_class(path)}))
    return folders, classes


def is_class(path: Path) -> bool:
    """Whether a folder of a delivery holds the images of one class."""
    return (
        path.is_dir() and path.name.lower() not in ("train", "val", "test") and any(p.is_file() for p in path.iterdir())
    )


def night(airflow: Airflow, number: int, conf: dict[str, Any]) -> dict[str, Any]:
    """Run one night and show its tasks as they go; return what it concluded. Raises Failed with the failing log."""
    run = airflow.trigger(DAG, conf)
    start = time.monotonic()
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        shown: dict[str, str] = {}
        while (state := airflow.state(DAG, run)) in ("queued", "running"):
            tasks = airflow.tasks(DAG, run)
            live.update(picture(number, tasks, time.monotonic() - start))
            if not console.is_terminal:
                say_changes(number, tasks, shown, time.monotonic() - start)
            time.sleep(1)
    tasks = airflow.tasks(DAG, run)
    if state != "success":
        raise Failed(f"night {number} ended {state}: {airflow.failed_log(DAG, run)}")
    said: dict[str, Any] = airflow.returned(DAG, run, "conclude")
    said["seconds"] = time.monotonic() - start
    said["tasks"] = {task["task_id"]: task["duration"] or 0.0 for task in tasks}
    return said


def picture(number: int, tasks: list[dict[str, Any]], seconds: float) -> Table:
    """Draw the state of a night's tasks."""
    table = Table.grid(padding=(0, 2))
    table.add_row(f"[bold]night {number}[/]", f"{seconds:.0f} s", "")
    by_name = {task["task_id"]: task for task in tasks}
    for name in TASKS:
        task = by_name.get(name, {"state": None, "duration": None})
        state = task["state"] or "waiting"
        took = f"{task['duration']:.1f} s" if task["duration"] else ""
        table.add_row(f"  {name}", f"[{COLOURS.get(state, 'white')}]{state}[/]", took)
    return table


def say_changes(number: int, tasks: list[dict[str, Any]], shown: dict[str, str], seconds: float) -> None:
    """Print each task once when it starts or ends, for a log."""
    for task in tasks:
        state = str(task["state"])
        if state in ("running", "success", "failed", "skipped", "up_for_retry") and shown.get(task["task_id"]) != state:
            shown[task["task_id"]] = state
            console.print(f"night {number}  {seconds:5.0f} s  {task['task_id']}: {state}")


def metrics(found: dict[str, Any] | None) -> list[str]:
    """Return accuracy with its interval, AUC, sensitivity and specificity as text."""
    if not found:
        return ["-"] * 4
    accuracy = found["accuracy"]
    rest = [f"{found[name]['value']:.3f}" if found[name] else "-" for name in ("auc", "sensitivity", "specificity")]
    return [f"{accuracy['value']:.3f} ({accuracy['low']:.3f}-{accuracy['high']:.3f})", *rest]


def summary(nights: list[dict[str, Any]]) -> None:
    """Print what both nights did."""
    for number, said in enumerate(nights, 1):
        console.print(f"\n[bold]Night {number}[/]")
        for delivery in said["deliveries"]:
            bad = ", ".join(f"{count} {reason}" for reason, count in sorted(delivery["quarantined"].items())) or "none"
            console.print(f"  delivery {delivery['name']} {delivery['state']}: {delivery['accepted']} accepted")
            console.print(f"  quarantined: {bad}")
        held = said["held_out"]
        console.print(
            f"  dataset: {said['images']} radiographs of {said['patients']} patients; "
            f"held out: {held['images']} of {held['patients']}"
        )
        table = Table("held-out", "accuracy (95 %)", "AUC", "sensitivity", "specificity", box=None, pad_edge=False)
        table.add_row("candidate", *metrics(said["candidate"]))
        champion = said["champion"]
        name = f"champion, version {champion['version']}" if champion else "champion: none yet"
        table.add_row(name, *metrics(champion))
        console.print(Padding(table, (0, 0, 0, 2)))
        for reason in said["decision"]["reasons"] if said["decision"] else [said["message"]]:
            console.print(f"  {escape(reason)}", soft_wrap=True)
        if said["version"]:
            console.print(f"  registered as version {said['version']}, alias {said['alias']}")


def times(spent: dict[str, float], nights: list[dict[str, Any]]) -> None:
    """Print where the time went."""
    console.print("\n[bold]Where the time went[/]")
    for what, seconds in spent.items():
        console.print(f"  {what:<28}{seconds:6.1f} s")
    for number, said in enumerate(nights, 1):
        console.print(f"  {f'night {number}':<28}{said['seconds']:6.1f} s")
        for name in TASKS:
            console.print(f"    {name:<26}{said['tasks'].get(name, 0.0):6.1f} s")
    total = sum(spent.values()) + sum(said["seconds"] for said in nights)
    console.print(f"  {'all':<28}{total:6.1f} s")


def decided_by_a_person(stack: Stack, airflow: Airflow, said: dict[str, Any], lap: Callable[[str], None]) -> None:
    """Let the operator approve the version that the second night registered, and go back again. Raises Failed."""
    if not said["version"]:
        console.print("\nThe second night registered no version, so nobody is asked to approve one.")
        return
    passwords = json.loads((stack.folder / "passwords.json").read_text())
    operator = Airflow(replace(stack, user=OPERATOR, password=passwords[OPERATOR]))
    asking = airflow.newest_run(ASKING, 2, 600)  # the first night's version was promoted by the policy alone
    if airflow.paused(ASKING, asking, "approve") != "deferred":
        console.print(f"\nNobody is asked about version {said['version']}: see the run of {ASKING}.")
        return
    lap(f"{ASKING} asks")
    console.print(f"\n{OPERATOR} approves version {said['version']} in Airflow: the report is convincing")
    operator.answer(ASKING, asking, "approve", "Approve", "the report is convincing")
    airflow.finished(ASKING, asking)
    lap("the approval")
    console.print(f"{OPERATOR} rolls back: complaints from ward 3")
    airflow.finished(BACK, operator.trigger(BACK, {"reason": "complaints from ward 3"}))
    lap("the rollback")


def history(stack: Stack) -> None:
    """Print every decision, as `xray history` does."""
    console.print("\n[bold]What was decided[/]")
    command = [str(Path(sys.executable).with_name("xray")), "history"]
    done = subprocess.run(command, env=stack.environment, capture_output=True, text=True, check=True)
    console.print(textwrap.indent(done.stdout, "  "), markup=False, end="", soft_wrap=True)


def where_to_look(stack: Stack) -> None:
    """Print the addresses, and what is worth a look there."""
    console.print("\n[bold]What to look at[/]")
    console.print(f"  Airflow, {stack.airflow}, user {stack.user}, password {stack.password}")
    places = {
        "Nights": "what came of each night, in one line",
        "Deliveries": "what came in, what was kept out and why",
        "Champion": "which version serves, how both do on the same patients, every decision with person and reason",
        "Dags, xray_retrain, a run, Report": "why the night decided so: both models, clause by clause",
    }
    for place, shows in places.items():
        console.print(f"    {place}: {shows}", soft_wrap=True)
    console.print(f"  MLflow, {stack.mlflow}/#/models/chest-xray: both versions with their figures", soft_wrap=True)


@fresh_folder()
def demo(data: Path | None, then: Callable[[Stack, Airflow], None]) -> None:
    """Run the whole story, print what happened, then call `then` with everything still up. Raises Failed, XrayError."""
    spent: dict[str, float] = {}
    clock = time.monotonic()

    def lap(what: str) -> None:
        nonlocal clock
        spent[what] = time.monotonic() - clock
        clock = time.monotonic()

    console.print("laying two deliveries" + ("" if data else " of synthetic radiographs"))
    deliveries, classes = lay(data)
    lap("laying deliveries")
    settings = {
        "XRAY_HOME": str(FOLDER),
        "XRAY_SETTLE_SECONDS": "0",
        "XRAY_SCHEDULE": "none",
        "XRAY_PATIENT_KEY": "demo key, not a secret",  # the same split each time, so the same figures
        "XRAY_MLFLOW_PICTURES": "true",  # MLflow answers this machine alone
        "XRAY_CLASSES": '["' + '","'.join(classes) + '"]',
        "XRAY_APPROVERS": f'["{OPERATOR}"]',
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"admin:admin,{OPERATOR}:op",
    }
    changes = ({}, {}) if data else ({"overrides": PLAIN}, {"overrides": QUICK})
    with running(FOLDER, settings, console.print) as stack:
        airflow = Airflow(stack)
        airflow.prepare(DAG, ASKING, BACK)
        lap("starting MLflow and Airflow")
        nights = []
        for number, (delivery, promotion) in enumerate(zip(deliveries, ("auto", "approve"), strict=True), 1):
            delivery.rename(FOLDER / "incoming" / delivery.name)
            nights.append(night(airflow, number, {"promotion": promotion, **changes[number - 1]}))
        summary(nights)
        clock = time.monotonic()
        decided_by_a_person(stack, airflow, nights[-1], lap)
        history(stack)
        times(spent, nights)
        where_to_look(stack)
        then(stack, airflow)


def stay_up(stack: Stack, airflow: Airflow) -> None:
    """Wait for Ctrl-C where a person sits at a terminal."""
    if sys.stdout.isatty() and sys.stdin.isatty() and os.environ.get("CI") != "true":
        console.print("\nBoth stay up until Ctrl-C.")
        signal.pause()


def main() -> None:
    """Parse the command line, run, and stop everything whatever happens."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="your own labelled folder: <CLASS>/* or {train,val,test}/<CLASS>/*")
    data = parser.parse_args().data
    try:
        demo(data, stay_up)
    except KeyboardInterrupt:
        console.print("\nstopped")
    except (Failed, XrayError) as error:
        console.print(f"demo: {error}", style="red", markup=False)
        sys.exit(1)


if __name__ == "__main__":
    main()
