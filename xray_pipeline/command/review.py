"""Verbs for readers who work elsewhere: a worklist out, their labels in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from xray_pipeline.command.app import Json, answer, progress_bars, this_run, verbs

if TYPE_CHECKING:
    from xray_pipeline.night.worklist import Lists

review = verbs("review", "Worklists for readers: pictures and a table out, labels by digest in.")


@review.command("export")
def export_worklist(
    folder: Annotated[Path, typer.Argument(help="A new folder for the table and the pictures.")],
    lists: Annotated[
        list[str] | None,
        typer.Option("--list", help="suspects, disagreements or to-label; several, or all if none."),
    ] = None,
    first: Annotated[int, typer.Option(min=1, help="So many of each list.")] = 100,
    as_json: Json = False,
) -> None:
    """Write what is worth looking at as pictures by digest and a table to fill in. Pictures are of patients."""
    from xray_pipeline.night import worklist

    if unknown := [name for name in lists or () if name not in worklist.LISTS]:
        raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(worklist.LISTS)}", param_hint="--list")
    wanted = cast("tuple[Lists, ...]", tuple(lists or worklist.LISTS))
    with progress_bars(as_json) as progress:
        done = worklist.export(this_run(), folder, wanted, first, progress)
    lines = [f"{done['pictures']} pictures; fill in label and reader: {done['table']}"]
    if done["unreadable"]:
        lines.append(f"{done['unreadable']} can't be shown: their deliveries are gone, or `xray verify` says more")
    answer(done, as_json, lines)


@review.command("import")
def import_labels(
    tables: Annotated[list[Path], typer.Argument(help="CSV: digest, label, perhaps reader (the file's name).")],
    reason: Annotated[str, typer.Option("--reason", help="Why; kept for ever: name no patient.")],
    as_json: Json = False,
) -> None:
    """Take in what readers say: corrections as one amendment, labels of unlabelled files; exits 3 where they differ."""
    from xray_pipeline.base.errors import ConfigError
    from xray_pipeline.night import worklist

    read = []
    for path in tables:
        try:
            read.append(worklist.Table(path.stem, path.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} can't be read as text, save it as CSV UTF-8: {error}") from error
    done = worklist.take_in(this_run(), read, reason)
    answer(done, as_json, _lines(done), yes=not done["differ"])


def _lines(done: dict[str, Any]) -> list[str]:
    number = done["amendment"]
    lines = [
        f"{done['relabelled']} relabelled{f' by amendment {number}' if number else ''}, {done['agreed']} agreed with"
    ]
    for delivery, count in done["labelled"].items():
        then = "the next night judges it anew" if delivery in done["waiting"] else f"now: xray rejudge {delivery}"
        lines.append(f"{count} of delivery {delivery} labelled; {then}")
    lines += [f"radiograph {digest[:12]} was withdrawn meanwhile and is left out" for digest in done["gone"]]
    for digest, said in done["differ"].items():
        readers = ", ".join(f"{reader} says {label}" for reader, label in said.items())
        lines.append(f"readers differ on {digest[:12]}, nothing is changed: {readers}")
    return lines
