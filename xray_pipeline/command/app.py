"""What the verbs of `xray` share: the options, who asks, how an answer is printed, how progress is shown."""

from __future__ import annotations

import getpass
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from xray_pipeline.night.run import Run

NO = 3

app = typer.Typer(
    name="xray",
    help="Check chest X-ray deliveries, retrain, evaluate against the model in production, register. "
    "Settings come from XRAY_* variables; see docs/settings.md.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; kept in the ledger.")]


def verbs(name: str, told: str) -> typer.Typer:
    """Return a group of verbs of `xray`, which its help tells of so."""
    group = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help=told)
    app.add_typer(group, name=name)
    return group


def this_run(values: Mapping[str, Any] | None = None) -> Run:
    """Return the run of this command: the settings, what `values` override, and the account as who asks for it."""
    from xray_pipeline.night.run import Run

    return Run.of(values or {}, getpass.getuser())


def answer(result: object, as_json: bool, lines: list[str], *, yes: bool = True) -> None:
    """Print a result, as JSON or as lines; where the answer is no, the command ends with exit code 3."""
    typer.echo(json.dumps(result, indent=1) if as_json else "\n".join(lines))
    if not yes:
        raise typer.Exit(NO)


@contextmanager
def progress_bars(as_json: bool) -> Iterator[Callable[[int, int, str], None] | None]:
    """Show a bar per kind of work to a person at a terminal, nothing otherwise."""
    if as_json or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def show(done: int, total: int, what: str) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield show
