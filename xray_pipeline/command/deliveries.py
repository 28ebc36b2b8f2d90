"""Verbs about deliveries: judge one, list what is kept out, judge it anew, acknowledge an alarm, take in."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from xray_pipeline.base.settings import Settings
from xray_pipeline.command import answers
from xray_pipeline.command.app import Json, answer, app, progress_bars, this_run


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
    with progress_bars(as_json) as progress:
        result = answers.preview_delivery(Settings(), delivery, progress, data_docs, paths=paths)
    lister = "" if paths else f"xray check {shlex.quote(delivery)} --paths"
    refused = [
        f"row {row['row']}: {row['reason']}, {row['detail']}, {row['file']}" for row in result.get("refused", ())
    ]
    answer(result, as_json, [*refused, *_delivery_lines(result, lister)], yes=result["fit"])


@app.command()
def quarantine(
    delivery: Annotated[str, typer.Option(help="Only of this delivery.")] = "",
    reason: Annotated[str, typer.Option(help="Only with this reason, for example truncated.")] = "",
    paths: Annotated[bool, typer.Option("--paths", help="Show paths too; they may name patients.")] = False,
    as_json: Json = False,
) -> None:
    """List the quarantined files of committed deliveries; with --delivery also of one that was rejected."""
    from xray_pipeline.intake import books

    rows = books.quarantine(Settings(), delivery, reason, paths)
    lines = [
        f"{row['delivery']} row {row['row']}: {row['reason']}, {row['detail']}" + (f", {row['file']}" if paths else "")
        for row in rows
    ]
    rejected = sorted({row["delivery"] for row in rows if not row["committed"]})
    notes = [f"delivery {key} is rejected: nothing of it is committed" for key in rejected]
    answer(rows, as_json, [*notes, *lines] or ["nothing is quarantined"])


@app.command()
def rejudge(delivery: Annotated[str, typer.Argument(help="Its name.")], as_json: Json = False) -> None:
    """Judge the quarantined files of a committed delivery anew, after a rule changed or a wrong copy was deleted."""
    from xray_pipeline.night import intake_steps

    with progress_bars(as_json) as progress:
        result = intake_steps.rejudge(this_run(), delivery, progress)
    lines = [f"{result['judged']} files judged anew, {result['accepted']} accepted", *filter(None, [result["why"]])]
    answer(result, as_json, lines, yes=result["fit"])


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
    """Acknowledge the drift alarms of a delivery: you are the person who looked at it."""
    from xray_pipeline.night import delivery_actions

    result = delivery_actions.act(this_run(), "acknowledge", delivery, reason)
    answer(result, as_json, [f"delivery {delivery}: alarms of {', '.join(result['alarms'])} acknowledged"])


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
    from xray_pipeline.intake import books
    from xray_pipeline.night import intake_steps

    run = this_run()
    left_out: list[str] = []
    with progress_bars(as_json) as progress:
        keys = deliveries or intake_steps.find_deliveries(run, left_out)
        checked = intake_steps.check_deliveries(run, keys, progress, named=bool(deliveries))
        committed = intake_steps.commit_deliveries(run, keys, progress)
        results = [{**one.to_dict(), "accounting": books.of_delivery(run.settings, one.key)} for one in checked]
    lines: list[str] = []
    for result in results:
        lines += _delivery_lines(result, f"xray quarantine --delivery {shlex.quote(result['key'])} --paths")
    lines += [f"left out: {text}" for text in left_out]
    lines += [f"delivery {key} changed between its check and its commit: not taken" for key in committed.changed]
    dataset = committed.to_dict()
    lines.append(_dataset_line(dataset) if committed.snapshot else "the dataset is empty")
    taken = not committed.changed and all(result["fit"] for result in results)
    answer({"deliveries": results, "left_out": left_out, "dataset": dataset}, as_json, lines, yes=taken)


def _delivery_lines(result: Mapping[str, Any], lister: str) -> list[str]:
    """Say what became of a delivery; `lister` is the command that lists its refused files."""
    verdict = "fit" if result["fit"] else "rejected"
    lines = [f"delivery {result['key']}: {verdict}, {result['accepted']} files accepted"]
    lines += [f"  {count} quarantined: {reason}" for reason, count in sorted(result["quarantined"].items())]
    if result["why"]:
        lines.append(f"  {result['why']}")
    lines += [f"  note: {warning}" for warning in result["warnings"]]
    if books := result["accounting"]:
        adds_up = "each once" if books["holds"] else "WHICH DOES NOT ADD UP"
        sums = f"{books['files']} files = {books['accepted']} accepted + {books['quarantined']} quarantined"
        litter = f"; {books['litter']} of litter aside" if books["litter"] else ""
        lines.append(f"  {sums}, {adds_up}{litter}; digest {books['digest'][:12]}")
    if lister and books and result["quarantined"]:
        lines.append(f"  its refused files, one by one: {lister}")
    return lines


def _dataset_line(committed: Mapping[str, Any]) -> str:
    return (
        f"dataset: {committed['images']} radiographs of {committed['patients']} patients, "
        f"{committed['held_out_images']} held out; snapshot {committed['snapshot'][:12]}"
    )
