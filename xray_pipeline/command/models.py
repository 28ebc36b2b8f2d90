"""Verbs about models: train one in a night, score one, ask one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from xray_pipeline.base.errors import ConfigError
from xray_pipeline.base.settings import Settings
from xray_pipeline.command import answers
from xray_pipeline.command.app import Json, answer, app, progress_bars, this_run
from xray_pipeline.evaluation.metric_table import METRICS, NAMES
from xray_pipeline.training import overrides

ModelUri = Annotated[str, typer.Argument(help="models:/chest-xray@champion, models:/chest-xray/3, or a folder")]


@app.command()
def retrain(
    recipe: Annotated[str | None, typer.Option(help="Recipe name or TOML file.")] = None,
    promotion: Annotated[Literal["approve", "auto"] | None, typer.Option(help="approve or auto.")] = None,
    incoming: Annotated[str | None, typer.Option(help="Folder or s3:// prefix of deliveries.")] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a value of the recipe.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run the whole night: check, commit, train, evaluate, decide, register, promote."""
    from xray_pipeline.night import whole

    run = this_run({"recipe": recipe, "promotion": promotion, "incoming": incoming, **_parsed(changes)})
    with progress_bars(as_json) as progress:
        result = whole.whole(run, progress)
    refused = (result["decision"] or {}).get("verdict") == "refused"
    rejected = any(delivery["state"] == "rejected" for delivery in result["deliveries"])
    answer(result, as_json, [result["message"]], yes=not (refused or rejected or result["unchecked"]))


@app.command()
def evaluate(
    model_uri: ModelUri,
    data: Annotated[str, typer.Option("--data", help="Labelled folder or s3:// prefix.")],
    as_json: Json = False,
) -> None:
    """Score any registered model on any labelled folder: metrics with 95 % intervals."""
    from xray_pipeline.intake.rules import QUARANTINED

    with progress_bars(as_json) as progress:
        result = answers.evaluate_folder(Settings(), model_uri, data, progress)
    lines = [f"{result['n']} radiographs of {result['patients']} patients, threshold {result['threshold']:.3f}"]
    for name in NAMES:
        if value := result.get(name):
            lines.append(f"{name:<18} {value['value']:.3f}  ({value['low']:.3f} to {value['high']:.3f})")
    left_out = {reason: count for reason, count in result["quarantined"].items() if reason != "system-file"}
    lines.append(f"{sum(left_out.values())} of {result['n'] + sum(left_out.values())} files are left out")
    lines += [f"  {count} {reason}: {QUARANTINED[reason].rule}" for reason, count in left_out.items()]
    scaled = [f"{count} of {bits} bits" for bits, count in result["png_bits"].items() if bits != "16"]
    if scaled:
        lines.append(f"16-bit PNGs that hold fewer bits, scaled to the whole range: {', '.join(scaled)}")
    answer(result, as_json, lines, yes=not left_out)


@app.command()
def predict(model_uri: ModelUri, files: list[Path], as_json: Json = False) -> None:
    """Print the probabilities of JPEG, PNG or DICOM files."""
    results = answers.predict_files(Settings(), model_uri, files)
    lines = [
        f"{row['file']}: {row['error']}"
        if row["error"]
        else f"{row['file']}: {row['label']} ({', '.join(f'{c} {p:.3f}' for c, p in row['probabilities'].items())})"
        for row in results
    ]
    answer(results, as_json, lines, yes=not any(row["error"] for row in results))


@app.command()
def compare(version: int, against: int, as_json: Json = False) -> None:
    """Score two registered versions on the newest held-out radiographs, and apply the policy to the first."""
    from xray_pipeline.night import versions
    from xray_pipeline.report.wording import difference

    run = this_run()
    with progress_bars(as_json) as progress:
        compared = versions.compare(run, version, against, progress)
    scores, decision = compared.scores, compared.decision
    ours, theirs, comparison = *scores.evaluations, scores.comparison
    head = (
        f"on {ours.n} held-out radiographs of {ours.patients} patients, snapshot {ours.snapshot[:12]}, {scores.scored}"
    )
    lines = [head, f"{'':<18} {f'version {version}':>10} {f'version {against}':>10}   difference, 95 %"]
    for metric in METRICS:
        if comparison and (gap := comparison.differences.get(metric.name)):
            values = f"{ours.metrics[metric.name].value:>10.3f} {theirs.metrics[metric.name].value:>10.3f}"
            lines.append(f"{metric.title[:18]:<18} {values}   {difference(gap)}")
    may = "may" if decision.may_promote else "may not"
    lines += [f"policy {decision.policy_name}: version {version} {may} take the place of version {against}"]
    lines += [f"  {reason}" for reason in decision.reasons]
    lines += [f"report: {compared.report} in {run.settings.store}"]
    told = {**asdict(scores), "decision": decision.to_dict(), "report": compared.report}
    answer(told, as_json, lines, yes=decision.may_promote)


def _parsed(changes: list[str] | None) -> dict[str, Any]:
    try:
        return overrides.parse(changes or [])
    except ConfigError as error:
        raise typer.BadParameter(str(error), param_hint="--set") from error
