"""Verbs of operations: what was decided, promote, go back, and whether all is well."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Annotated, Literal

import typer

from xray_pipeline.base.settings import Settings
from xray_pipeline.command import answers
from xray_pipeline.command.app import Json, Reason, answer, app, progress_bars, this_run


@app.command()
def history(
    at: Annotated[str | None, typer.Option(help="Say who was champion at this time (ISO 8601).")] = None,
    as_json: Json = False,
) -> None:
    """Print the ledger's decisions, or the state at a time. Needs no MLflow."""
    state, entries, perhaps = answers.history(Settings(), at)
    lines = [
        f"{entry.at[:19]}  {entry.kind:<13} {f'version {entry.version}' if entry.version else '':<12}"
        f" by {entry.who}: {entry.why}"
        for entry in entries
    ]
    lines += [f"perhaps made by then, for a clock was wrong: {entry.summary()}" for entry, _ in perhaps]
    states = [state, *(after for _, after in perhaps)]
    champions, challengers = (list(dict.fromkeys(getattr(s, r) for s in states)) for r in ("champion", "challenger"))
    named = " or ".join(f"version {version}" if version else "none" for version in champions)
    known = len(champions) == 1
    unknown = "" if known else "can't be known, "
    lines.append(f"champion: {unknown}{named}; challenger: {' or '.join(str(v or 'none') for v in challengers)}")
    said = {"champion": state.champion} if known else {"champion": "unknown", "perhaps": champions}
    told = [entry.to_dict() for entry in entries] if as_json else []
    removed = answers.removed(Settings(), state)
    lines += [f"version {version}: {removal.sentence()}" for version, removal in removed.items()]
    gone = {version: removal.at for version, removal in removed.items()}
    answer({**said, "challenger": state.challenger, "removed": gone, "entries": told}, as_json, lines, yes=known)


@app.command()
def nights(as_json: Json = False) -> None:
    """Print what came of each night, the newest first. Needs no MLflow."""
    from xray_pipeline.base.storage import open_store
    from xray_pipeline.night import nights as records

    settings = Settings()
    past = records.read(open_store(settings.store, settings))
    rows = [{**asdict(one), "outcome": records.outcome(one), "in_words": records.in_words(one)} for one in past.nights]
    lines = [f"{row['started'][:16]}  {row['outcome']:<10} {row['in_words']}" for row in rows]
    lines += [f"NOT READ: {text}" for text in past.damaged]
    result = {"nights": rows, "damaged": list(past.damaged)}
    answer(result, as_json, lines or ["no night has ended yet"], yes=not past.damaged)


@app.command()
def watch(
    by: Annotated[Literal["delivery", "site", "scanner", "month"], typer.Option(help="Parts to measure.")] = "month",
    since: Annotated[str, typer.Option(metavar="DATE", help="Measure from this day on, as 2026-03-03.")] = "",
    acknowledge: Annotated[
        str, typer.Option(metavar="REASON", help="Acknowledge the alarm: you are the person who looked into it.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Is the champion still as good as it was? Its answers on each delivery before anything learned from it."""
    from xray_pipeline.night import shadow, watching

    run = this_run()
    if acknowledge:
        watching.acknowledge(run, acknowledge)
    found = watching.watched(run)
    groups = watching.figures(run, found, by, answers.parsed_time(since) if since else None) if found.candidate else []
    in_shadow = shadow.in_words(run)
    lines = [*filter(None, (found.in_words, found.unlabelled, in_shadow))]
    lines += [f"NOT READ: {text}" for text in found.damaged]
    lines += [f"acknowledged by {one.who} on {one.at[:10]}: {one.why}" for one in found.acknowledged]
    if groups:
        lines.append(f"{'':<24} {'radiographs':>11} {'patients':>8}  " + "".join(f"{n:<26}" for n in groups[0].figures))
    for one in groups:
        cells = [f"{f.value:.3f} ({f.low:.3f} to {f.high:.3f})" for f in one.figures.values()]
        lines.append(
            f"{one.value[:24]:<24} {one.radiographs:>11,} {one.patients:>8,}  " + "".join(f"{c:<26}" for c in cells)
        )
    told = {**asdict(found), "groups": [asdict(group) for group in groups], "shadow": in_shadow}
    answer(
        {"alarm": bool(found.alarm), "champion": found.champion, "record": told}, as_json, lines, yes=not found.alarm
    )


@app.command()
def promote(version: int, reason: Reason, as_json: Json = False) -> None:
    """Make a registered version the champion, after trying the model server on it; you are who approves it."""
    from xray_pipeline.night import promotion, trial

    run = this_run()
    with progress_bars(as_json):
        asked = promotion.request(run, version)
        if asked.void:
            answer({"promoted": False, **asked.to_dict()}, as_json, [asked.void], yes=False)
        trial.try_version(run, asked.candidate, version)
        entry = promotion.promote(run, replace(asked, automatic=False), run.who, reason).entry
    answer({"promoted": True, "version": version, "entry": entry}, as_json, [f"version {version} is the champion"])


@app.command()
def reopen(version: int, reason: Reason, as_json: Json = False) -> None:
    """Let a rejected version be asked about again; it waits as the challenger until somebody decides."""
    from xray_pipeline.night import promotion

    result = promotion.reopen(this_run(), version, reason)
    answer(result, as_json, [f"version {version} waits again; `xray promote {version}`, or start xray_promote"])


@app.command()
def rollback(
    reason: Reason,
    to: Annotated[int | None, typer.Option("--to", help="Version; the previous champion if none.")] = None,
    untried: Annotated[bool, typer.Option("--untried", help="Don't boot the model server on it first.")] = False,
    as_json: Json = False,
) -> None:
    """Make an earlier champion the champion again, after trying the model server on it."""
    from xray_pipeline.night import promotion

    result = promotion.rollback(this_run(), to, reason, untried=untried)
    answer(result, as_json, [f"version {result['version']} is the champion again"])


@app.command()
def verify(
    quick: Annotated[bool, typer.Option("--quick", help="Read some stored radiographs, not all.")] = False,
    as_json: Json = False,
) -> None:
    """Check that ledger, registry, artifacts, the books of deliveries and the stored radiographs agree."""
    with progress_bars(as_json) as progress:
        findings = answers.verify(Settings(), quick, progress)
    lines = [f"{'ok ' if f['holds'] else 'NOT'} {f['invariant']:<7} {f['text']}" for f in findings]
    answer(findings, as_json, lines, yes=all(finding["holds"] for finding in findings))


@app.command()
def repair(as_json: Json = False) -> None:
    """Read every stored radiograph and put back the damaged ones whose original still lies in a delivery."""
    from xray_pipeline.night import repair as repairs

    with progress_bars(as_json) as progress:
        done = repairs.repair(this_run(), progress)
    lines = [f"put back: {one.sentence()}" for one in done.repaired]
    lines += [f"LOST: {one.sentence()}" for one in done.lost]
    lines.append(f"{done.read} radiographs read, {len(done.repaired)} put back, {len(done.lost)} lost")
    if done.lost:
        lines.append("deliver a lost one again, in any delivery, or restore its file from a backup of the store")
    answer(asdict(done), as_json, lines, yes=not done.lost)


@app.command()
def tidy(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go; remove nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it, for good.")] = False,
    as_json: Json = False,
) -> None:
    """Remove models, pictures, predictions and reports of old candidates; ledger, evidence and decisions stay."""
    from xray_pipeline.night import tidy as tidying

    if dry_run == yes:
        raise typer.BadParameter("say either --dry-run or --yes")
    with progress_bars(as_json) as progress:
        done = (tidying.tidy if yes else tidying.look)(this_run(), progress)
    kinds, verb = done.bytes(), "removed" if yes else "would go"
    lines = [
        f"candidate {one.candidate[:12]}{f', version {one.version}' if one.version else ''}: {one.files} files, "
        f"{sum(one.bytes.values()) / 1e6:.1f} MB"
        for one in done.removals
    ]
    lines += [f"  {kind}: {size / 1e6:.1f} MB" for kind, size in kinds.items()]
    lines.append(f"{len(done.removals)} candidates {verb}, {sum(kinds.values()) / 1e6:.1f} MB; {done.kept} stay whole")
    answer({"removed": yes, **asdict(done), "bytes": kinds}, as_json, lines)


@app.command()
def health(as_json: Json = False) -> None:
    """Check that all the next night needs is there: store, ledger, registry, cache disk, Airflow's last night."""
    from xray_pipeline.night import health as parts

    findings = [asdict(part) for part in parts.check(Settings())]
    lines = [f"{'ok ' if f['well'] else 'NOT'} {f['part']:<9} {f['text']}" for f in findings]
    answer(findings, as_json, lines, yes=all(finding["well"] for finding in findings))


@app.command()
def reproduce(version: int, as_json: Json = False) -> None:
    """Train a registered version again from its record and compare the weights bit by bit; changes nothing."""
    from xray_pipeline.night import reproduce as reproducing

    with progress_bars(as_json) as progress:
        result = reproducing.reproduce(Settings(), version, progress)
    answer(asdict(result), as_json, result.lines(), yes=result.reproduced)


@app.command()
def adopt(
    reason: Reason,
    undo: Annotated[bool, typer.Option("--undo", help="Put the aliases back instead.")] = False,
    lost: Annotated[bool, typer.Option("--lost", help="Give up entries that the ledger lost for good.")] = False,
    as_json: Json = False,
) -> None:
    """Accept (or undo) a change of aliases that was made by hand in MLflow, or whose ledger entries are lost."""
    from xray_pipeline.night import promotion

    result = promotion.adopt(this_run(), undo, reason, lost)
    done = "undone" if undo else "accepted"
    answer(result, as_json, [f"the change is {done}; champion: version {result['version']}"])
