"""Verbs that amend the dataset: correct a label, withdraw, undo, list; and who learned from what."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from xray_pipeline.base.settings import Settings
from xray_pipeline.command.app import Json, answer, app, this_run, verbs

if TYPE_CHECKING:
    from xray_pipeline.dataset.amendments import Action
    from xray_pipeline.night.amend import Named
    from xray_pipeline.night.naming import By

amend = verbs("amend", "Correct labels, withdraw radiographs, patients or deliveries; from the next snapshot on.")

Reason = Annotated[
    str, typer.Option("--reason", help="Why; kept with your name in the dataset for ever: name no patient.")
]
WAYS: dict[By, object] = {
    "radiograph": Annotated[str, typer.Option(metavar="DIGEST", help="A radiograph by its digest, 8 digits or more.")],
    "file": Annotated[
        str, typer.Option(metavar="DELIVERY/ROW", help="A radiograph by its row, as `xray quarantine` does.")
    ],
    "patient": Annotated[
        str,
        typer.Option(metavar="NAME", help="A patient by PatientID or the name of a file; only a keyed hash is kept."),
    ],
    "patient-of": Annotated[str, typer.Option(metavar="DIGEST|DELIVERY/ROW", help="The patient of a radiograph.")],
    "delivery": Annotated[str, typer.Option(metavar="NAME", help="All that a delivery brought.")],
}
"""The options by which a verb lets a person name what is meant."""
Listed = Annotated[
    Path | None, typer.Option("--from", metavar="FILE", help="CSV with these options as columns; all lines or none.")
]


def naming(*ways: By) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a verb these options, of WAYS; it takes what each of them was given as `given`.

    Typer reads the options from signature and annotations.
    """

    def decorated(verb: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(verb)
        def command(**values: Any) -> None:
            verb(given={way: values.pop(way.replace("-", "_")).strip() for way in ways}, **values)

        hints = get_type_hints(verb, localns={"By": str}, include_extras=True)
        taken = inspect.signature(verb).parameters.values()
        own = [one.replace(annotation=hints[one.name]) for one in taken if one.name != "given"]
        options = [
            inspect.Parameter(way.replace("-", "_"), inspect.Parameter.KEYWORD_ONLY, default="", annotation=WAYS[way])
            for way in ways
        ]
        signature = inspect.Signature([*own[:1], *options, *own[1:]])
        command.__signature__ = signature  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in signature.parameters.values()}
        return command

    return decorated


@amend.command()
@naming("radiograph", "file")
def relabel(
    *,
    given: dict[By, str],
    reason: Reason,
    label: Annotated[str, typer.Option(metavar="CLASS", help="The right label.")] = "",
    listed: Listed = None,
    as_json: Json = False,
) -> None:
    """Give a radiograph and all copies of it another label; it settles a label conflict between them."""
    if bool(label) is bool(listed):
        raise typer.BadParameter("give one, unless a list with --from gives them", param_hint="--label")
    _amend(_named("relabel", given, listed, label), reason, as_json)


@amend.command()
@naming(*WAYS)
def withdraw(
    *,
    given: dict[By, str],
    reason: Reason,
    erase: Annotated[
        bool, typer.Option("--erase", help="Erase it, too, wherever it is; nothing brings it back.")
    ] = False,
    listed: Listed = None,
    as_json: Json = False,
) -> None:
    """Take radiographs out of all later snapshots; delivered again they are quarantined."""
    _amend(_named("withdraw", given, listed, erase=erase), reason, as_json)


@amend.command()
def undo(number: int, reason: Reason, as_json: Json = False) -> None:
    """Undo an amendment, by its number."""
    _amend(_named("undo", {"amendment": str(number)}, None), reason, as_json)


@amend.command("list")
def list_amendments(as_json: Json = False) -> None:
    """List all amendments, oldest first."""
    from xray_pipeline.night import amend as amending

    found = amending.listed(this_run())
    lines = [
        f"{one['number']:>6}  {one['at'][:16]}  by {one['who']}{'' if one['stands'] else ' (undone)'}: "
        f"{'; '.join(map(_change_line, one['changes']))}: {one['why']}"
        for one in found
    ]
    answer(found, as_json, lines or ["no amendment was ever made"])


@amend.command()
def proposed(as_json: Json = False) -> None:
    """List what label tables say otherwise than the dataset, as a CSV that `relabel --from` takes; changes nothing."""
    from xray_pipeline.base.storage import open_store
    from xray_pipeline.dataset.store import Dataset
    from xray_pipeline.intake import late

    settings = Settings()
    found = late.proposals(open_store(settings.store, settings), Dataset(settings).history())
    lines = ["radiograph,label", *(f"{one.radiograph},{one.says}" for one in found)]
    answer([asdict(one) for one in found], as_json, lines if found else ["no label table says another class"])


def _named(
    action: Action, given: dict[By, str], listed: Path | None, label: str = "", erase: bool = False
) -> list[Named]:
    """Return what the options name. Raises BadParameter for none, and for more than one way to name it."""
    from xray_pipeline.base.errors import ConfigError
    from xray_pipeline.night import amend as amending

    named = [amending.Named(action, by, name, label, erase) for by, name in given.items() if name]
    if len(named) + bool(listed) != 1:
        raise typer.BadParameter(f"name one of {', '.join(given)}, or a list with --from")
    if listed is None:
        return named
    try:
        return amending.of_table(action, listed.read_text(encoding="utf-8"), erase)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{listed} can't be read as text: {error}") from error


def _amend(named: list[Named], reason: str, as_json: bool) -> None:
    from xray_pipeline.night import amend as amending

    done = amending.amend(this_run(), named, reason)
    lines = [f"amendment {done['number']}: {_change_line(change)}" for change in done["changes"]]
    for change in done["changes"]:
        lines += [f"  left in, as another delivery brought it: {digest}" for digest in change["left"]]
        lines += [f"  a quarantined copy is in {name}: xray rejudge {name}" for name in change["quarantined"]]
        if (change["action"], change["subject"], change["radiographs"]) == ("withdraw", "patient", 0):
            lines.append("  the dataset knows nothing of this patient; what is delivered of them is quarantined")
    lines += [f"  erased from {kind}: {count} files" for kind, count in done["removed"].items()]
    lines += done["warnings"]
    lines.append("the next night trains on it; snapshots from before it stay what they were")
    answer(done, as_json, lines)


def _change_line(change: dict[str, Any]) -> str:
    name = change["name"] if change["subject"] in ("delivery", "amendment") else change["name"][:12]
    what = " ".join(filter(None, (change["action"], "and erase" * change["erase"], change["subject"], name)))
    label = f" to {change['label']}" if change["label"] else ""
    count = f", {change['radiographs']} radiographs" if change["action"] != "undo" else ""
    return f"{what}{label}{count}"


@app.command()
@naming(*WAYS)
def affected(*, given: dict[By, str], as_json: Json = False) -> None:
    """Print which candidates and versions learned from a radiograph, a patient or a delivery. Needs no MLflow."""
    from xray_pipeline.night import affected as learning

    named = [(by, name) for by, name in given.items() if name]
    if len(named) != 1:
        raise typer.BadParameter(f"name one of {', '.join(given)}")
    found = learning.affected(Settings(), *named[0])
    lines = [
        f"{f'version {one.version}' if one.version else one.candidate[:12]}, {one.role}: learned from {one.learned} of "
        f"its radiographs, was measured on {one.measured}"
        for one in found
    ]
    answer([asdict(one) for one in found], as_json, lines or ["no candidate learned from it or was measured on it"])
