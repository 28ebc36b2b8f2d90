"""The `xray` command: the night's steps, and the questions ops ask, without Airflow.

Exit codes: 0 done; 1 an error, one line that says what and what to do; 2 wrong usage; 3 done, but the answer is no
(delivery rejected, candidate refused, file not a radiograph).
"""

from __future__ import annotations

import getpass
import json
import logging
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xray_pipeline.base.errors import ConfigError, XrayError
from xray_pipeline.command import answers
from xray_pipeline.training import overrides

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
ModelUri = Annotated[str, typer.Argument(help="models:/chest-xray@champion, models:/chest-xray/3, or a folder")]
Recipe = Annotated[str | None, typer.Option(help="Recipe name or TOML file.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a value of the recipe.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; kept in the ledger.")]


@app.command()
def check(
    delivery: Annotated[str, typer.Argument(help="Folder or s3:// prefix.")],
    data_docs: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Also write Great Expectations' own Data Docs there. Their pages load styles, scripts and a logo from "
            "outside when they are opened.",
        ),
    ] = None,
    paths: Annotated[
        bool, typer.Option("--paths", help="List refused files, with paths; they may name patients.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Judge one delivery and print the verdict; changes nothing, and writes Data Docs if they are asked for."""
    with _progress(as_json) as progress:
        result = answers.preview_delivery(_run().settings, delivery, progress, data_docs, paths=paths)
    listed = "" if paths else f"xray check {shlex.quote(delivery)} --paths"
    refused = [
        f"row {row['row']}: {row['reason']}, {row['detail']}, {row['file']}" for row in result.get("refused", ())
    ]
    _print(result, as_json, [*refused, *_delivery_lines(result, listed)])
    if not result["fit"]:
        raise typer.Exit(NO)


@app.command()
def quarantine(
    delivery: Annotated[str, typer.Option(help="Only of this delivery.")] = "",
    reason: Annotated[str, typer.Option(help="Only with this reason, for example truncated.")] = "",
    paths: Annotated[bool, typer.Option("--paths", help="Show paths too; they may name patients.")] = False,
    as_json: Json = False,
) -> None:
    """List the quarantined files of committed deliveries; with --delivery also of one that was rejected."""
    from xray_pipeline.intake import books as bookkeeping

    found = bookkeeping.quarantine(_run().settings, delivery, reason, paths)
    lines = [
        f"{row['delivery']} row {row['row']}: {row['reason']}, {row['detail']}" + (f", {row['file']}" if paths else "")
        for row in found
    ]
    out = sorted({row["delivery"] for row in found if not row["committed"]})
    notes = [f"delivery {key} is rejected: nothing of it is committed" for key in out]
    _print(found, as_json, [*notes, *lines] or ["nothing is quarantined"])


@app.command()
def rejudge(delivery: Annotated[str, typer.Argument(help="Its name.")], as_json: Json = False) -> None:
    """Judge the quarantined files of a committed delivery anew, after a rule changed or a wrong copy was deleted."""
    from xray_pipeline.night import steps as night

    with _progress(as_json) as progress:
        result = night.rejudge(_run(), delivery, progress)
    lines = [f"{result['judged']} files judged anew, {result['accepted']} accepted", *filter(None, [result["why"]])]
    _print(result, as_json, lines)
    if not result["fit"]:
        raise typer.Exit(NO)


@app.command()
def acknowledge(
    delivery: Annotated[str, typer.Argument(help="Its name; of a later part, its key.")],
    reason: Annotated[
        str,
        typer.Option(
            "--reason",
            help="Why; kept with your name beside the delivery's intake and in each decision that rests on it.",
        ),
    ],
    as_json: Json = False,
) -> None:
    """Settle the drift alarms of a delivery: you are the person who looked at it."""
    from xray_pipeline.intake import alarms
    from xray_pipeline.night import identity

    run = _run()
    identity.compare(run)
    result = alarms.acknowledge(run.store(), delivery, run.who, reason)
    _print(result, as_json, [f"delivery {delivery}: alarms of {', '.join(result['alarms'])} acknowledged"])


@app.command()
def rules() -> None:
    """Print the rules of the intake as Markdown (docs/intake-rules.md)."""
    from xray_pipeline.intake import rules_page

    typer.echo(rules_page.page(), nl=False)


@app.command()
def ingest(
    deliveries: Annotated[list[str] | None, typer.Argument(help="Names; all that wait if none.")] = None,
    as_json: Json = False,
) -> None:
    """Check deliveries of the incoming folder and commit those that are fit."""
    from xray_pipeline.intake import books as bookkeeping
    from xray_pipeline.night import steps as night

    run = _run()
    left_out: list[str] = []
    with _progress(as_json) as progress:
        keys = deliveries or night.find_deliveries(run, left_out)
        checked = night.check_deliveries(run, keys, progress, named=bool(deliveries))
        committed = night.commit_deliveries(run, keys, progress)
        results = [{**one.to_dict(), "accounting": bookkeeping.of_delivery(run.settings, one.key)} for one in checked]
    lines = [
        line
        for result in results
        for line in _delivery_lines(result, f"xray quarantine --delivery {shlex.quote(result['key'])} --paths")
    ]
    lines += [f"left out: {text}" for text in left_out]
    lines += [f"delivery {key} changed between its check and its commit: not taken" for key in committed.changed]
    lines.append(_dataset_line(committed.to_dict()) if committed.snapshot else "the dataset is empty")
    _print({"deliveries": results, "left_out": left_out, "dataset": committed.to_dict()}, as_json, lines)
    if committed.changed or not all(result["fit"] for result in results):
        raise typer.Exit(NO)


@app.command()
def retrain(
    recipe: Recipe = None,
    mode: Annotated[str | None, typer.Option("--promotion", help="approve or auto.")] = None,
    incoming: Annotated[str | None, typer.Option(help="Folder or s3:// prefix of deliveries.")] = None,
    changes: Set = None,
    as_json: Json = False,
) -> None:
    """Run the whole night: check, commit, train, evaluate, decide, register, promote."""
    from xray_pipeline.night import summary

    if mode not in (None, "approve", "auto"):
        raise typer.BadParameter(f"{mode!r} is neither approve nor auto", param_hint="--promotion")
    run = _run({"recipe": recipe, "promotion": mode, "incoming": incoming, **_parsed(changes)})
    with _progress(as_json) as progress:
        result = summary.whole(run, progress)
    _print(result, as_json, [result["message"]])
    refused = (result["decision"] or {}).get("verdict") == "refused"
    if refused or result["unchecked"] or any(delivery["state"] == "rejected" for delivery in result["deliveries"]):
        raise typer.Exit(NO)


@app.command()
def evaluate(
    model_uri: ModelUri,
    data: Annotated[str, typer.Option("--data", help="Labelled folder or s3:// prefix.")],
    as_json: Json = False,
) -> None:
    """Score any registered model on any labelled folder: metrics with 95 % intervals."""

    with _progress(as_json) as progress:
        result = answers.evaluate_folder(_run().settings, model_uri, data, progress)
    lines = [f"{result['n']} radiographs of {result['patients']} patients, threshold {result['threshold']:.3f}"]
    lines += [
        f"{name:<18} {value['value']:.3f}  ({value['low']:.3f} to {value['high']:.3f})"
        for name, value in result.items()
        if isinstance(value, dict) and "low" in value
    ]
    from xray_pipeline.intake.rules import QUARANTINED

    out = {reason: count for reason, count in result["quarantined"].items() if reason != "system-file"}
    lines.append(f"{sum(out.values())} of {result['n'] + sum(out.values())} files are left out")
    lines += [f"  {count} {reason}: {QUARANTINED[reason].rule}" for reason, count in out.items()]
    scaled = [f"{count} of {bits} bits" for bits, count in result["png_bits"].items() if bits != "16"]
    lines += [f"16-bit PNGs that hold fewer bits, scaled to the whole range: {', '.join(scaled)}"] if scaled else []
    _print(result, as_json, lines)
    if out:
        raise typer.Exit(NO)


@app.command()
def predict(model_uri: ModelUri, files: list[Path], as_json: Json = False) -> None:
    """Print the probabilities of JPEG, PNG or DICOM files."""
    results = answers.predict_files(_run().settings, model_uri, files)
    lines = [
        f"{row['file']}: {row['error']}"
        if row["error"]
        else f"{row['file']}: {row['label']} ({', '.join(f'{c} {p:.3f}' for c, p in row['probabilities'].items())})"
        for row in results
    ]
    _print(results, as_json, lines)
    if any(row["error"] for row in results):
        raise typer.Exit(NO)


@app.command()
def history(
    at: Annotated[str | None, typer.Option(help="Say who was champion at this time (ISO 8601).")] = None,
    as_json: Json = False,
) -> None:
    """Print the ledger's decisions, or the state at a time. Needs no MLflow."""
    state, entries, perhaps = answers.history(_run().settings, at)
    lines = [
        f"{entry.at[:19]}  {entry.kind:<13} {f'version {entry.version}' if entry.version else '':<12}"
        f" by {entry.who}: {entry.why}"
        for entry in entries
    ]
    lines += [f"perhaps made by then, for a clock was wrong: {entry.summary()}" for entry, _ in perhaps]
    states = [state, *(after for _, after in perhaps)]
    champions, challengers = (list(dict.fromkeys(getattr(s, r) for s in states)) for r in ("champion", "challenger"))
    named = " or ".join(f"version {version}" if version else "none" for version in champions)
    known = "" if len(champions) == 1 else "can't be known, "
    lines.append(f"champion: {known}{named}; challenger: {' or '.join(str(v or 'none') for v in challengers)}")
    said = {"champion": "unknown", "perhaps": champions} if known else {"champion": state.champion}
    told = [entry.to_dict() for entry in entries] if as_json else []
    _print({**said, "challenger": state.challenger, "entries": told}, as_json, lines)
    if known:
        raise typer.Exit(NO)


@app.command()
def nights(as_json: Json = False) -> None:
    """Print what came of each night, the newest first. Needs no MLflow."""
    from xray_pipeline.base.storage import open_store
    from xray_pipeline.night import nights as records

    settings = _run().settings
    past = records.read(open_store(settings.store, settings))
    told = [{**asdict(one), "outcome": records.outcome(one), "in_words": records.in_words(one)} for one in past.nights]
    lines = [f"{one['started'][:16]}  {one['outcome']:<10} {one['in_words']}" for one in told]
    lines += [f"NOT READ: {text}" for text in past.damaged]
    _print({"nights": told, "damaged": list(past.damaged)}, as_json, lines or ["no night has ended yet"])
    if past.damaged:
        raise typer.Exit(NO)


@app.command()
def promote(version: int, reason: Reason, as_json: Json = False) -> None:
    """Make a registered version the champion, after trying the model server on it; you are who approves it."""
    from xray_pipeline.night import promotion, trial

    run = _run()
    with _progress(as_json):
        asked = promotion.request(run, version)
        if asked.void:
            _print({"promoted": False, **asked.to_dict()}, as_json, [asked.void])
            raise typer.Exit(NO)
        trial.try_version(run, asked.candidate, version)
        entry = promotion.promote(run, replace(asked, automatic=False), run.who, reason).entry
    _print({"promoted": True, "version": version, "entry": entry}, as_json, [f"version {version} is the champion"])


@app.command()
def rollback(
    reason: Reason,
    to: Annotated[int | None, typer.Option("--to", help="Version; the previous champion if none.")] = None,
    untried: Annotated[bool, typer.Option("--untried", help="Don't boot the model server on it first.")] = False,
    as_json: Json = False,
) -> None:
    """Make an earlier champion the champion again, after trying the model server on it."""
    from xray_pipeline.night import promotion

    result = promotion.rollback(_run(), to, reason, untried=untried)
    _print(result, as_json, [f"version {result['version']} is the champion again"])


@app.command()
def verify(
    quick: Annotated[bool, typer.Option("--quick", help="Read some stored radiographs, not all.")] = False,
    as_json: Json = False,
) -> None:
    """Check that ledger, registry, artifacts, the books of deliveries and the stored radiographs agree."""
    with _progress(as_json) as progress:
        findings = answers.verify(_run().settings, quick, progress)
    lines = [f"{'ok ' if f['holds'] else 'NOT'} {f['invariant']:<7} {f['text']}" for f in findings]
    _print(findings, as_json, lines)
    if not all(finding["holds"] for finding in findings):
        raise typer.Exit(NO)


@app.command()
def repair(as_json: Json = False) -> None:
    """Read every stored radiograph and put back the damaged ones whose original still lies in a delivery."""
    from xray_pipeline.night import repair as repairs

    with _progress(as_json) as progress:
        done = repairs.repair(_run(), progress)
    lines = [f"put back: {one.sentence()}" for one in done.repaired]
    lines += [f"LOST: {one.sentence()}" for one in done.lost]
    lines.append(f"{done.read} radiographs read, {len(done.repaired)} put back, {len(done.lost)} lost")
    if done.lost:
        lines.append("deliver a lost one again, in any delivery, or restore its file from a backup of the store")
    _print(asdict(done), as_json, lines)
    if done.lost:
        raise typer.Exit(NO)


@app.command()
def health(as_json: Json = False) -> None:
    """Check that all the next night needs is there: store, ledger, registry, cache disk, Airflow's last night."""
    findings = answers.health(_run().settings)
    _print(findings, as_json, [f"{'ok ' if f['well'] else 'NOT'} {f['part']:<9} {f['text']}" for f in findings])
    if not all(finding["well"] for finding in findings):
        raise typer.Exit(NO)


@app.command()
def reproduce(version: int, as_json: Json = False) -> None:
    """Train a registered version again from its record and compare the weights bit by bit; changes nothing."""
    with _progress(as_json) as progress:
        result, lines = answers.reproduce(_run().settings, version, progress)
    _print(result, as_json, lines)
    if not result["reproduced"]:
        raise typer.Exit(NO)


@app.command()
def adopt(
    reason: Reason,
    undo: Annotated[bool, typer.Option("--undo", help="Put the aliases back instead.")] = False,
    lost: Annotated[bool, typer.Option("--lost", help="Give up entries that the ledger lost for good.")] = False,
    as_json: Json = False,
) -> None:
    """Accept (or undo) a change of aliases that was made by hand in MLflow, or whose ledger entries are lost."""
    from xray_pipeline.night import promotion

    result = promotion.adopt(_run(), undo, reason, lost)
    _print(
        result, as_json, [f"the change is {'undone' if undo else 'accepted'}; champion: version {result['version']}"]
    )


def main() -> None:
    """Entry point of the `xray` command."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what was started is ended
    try:
        app()
    except XrayError as error:
        print(f"xray: {error}", file=sys.stderr)
        sys.exit(1)


def _run(values: Mapping[str, Any] | None = None) -> Run:

    from xray_pipeline.night.run import Run

    return Run.of(values or {}, getpass.getuser())


def _parsed(items: list[str] | None) -> dict[str, Any]:
    try:
        return overrides.parse(items or [])
    except ConfigError as error:
        raise typer.BadParameter(str(error), param_hint="--set") from error


def _print(result: object, as_json: bool, lines: list[str]) -> None:
    typer.echo(json.dumps(result, indent=1) if as_json else "\n".join(lines))


def _delivery_lines(result: Mapping[str, Any], listed: str) -> list[str]:
    """Say what became of a delivery; `listed` is the command that lists its refused files."""
    verdict = "fit" if result["fit"] else "rejected"
    lines = [f"delivery {result['key']}: {verdict}, {result['accepted']} files accepted"]
    lines += [f"  {count} quarantined: {reason}" for reason, count in sorted(result["quarantined"].items())]
    if result["why"]:
        lines.append(f"  {result['why']}")
    lines += [f"  warning: {warning}" for warning in result["warnings"]]
    if kept := result["accounting"]:
        adds_up = "each once" if kept["holds"] else "WHICH DOES NOT ADD UP"
        sums = f"{kept['files']} files = {kept['accepted']} accepted + {kept['quarantined']} quarantined"
        litter = f"; {kept['litter']} of litter aside" if kept["litter"] else ""
        lines.append(f"  {sums}, {adds_up}{litter}; digest {kept['digest'][:12]}")
    if listed and kept and result["quarantined"]:
        lines.append(f"  its refused files, one by one: {listed}")
    return lines


def _dataset_line(committed: Mapping[str, Any]) -> str:
    return (
        f"dataset: {committed['images']} radiographs of {committed['patients']} patients, "
        f"{committed['held_out_images']} held out; snapshot {committed['snapshot'][:12]}"
    )


@contextmanager
def _progress(as_json: bool) -> Iterator[Callable[[int, int, str], None] | None]:
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
