"""A worklist for readers who work elsewhere: a table and a folder of pictures out, labels by digest back in.

Pictures are named by digest; neither they nor the table name a patient. What readers agree on comes in as one amendment
or, of unlabelled files, as labels beside their delivery; what they differ on is kept as such and changes nothing.
Readings add up: a second reader's list is compared with what the first one's said.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from xray_pipeline.base import records
from xray_pipeline.base.errors import (
    AccessDenied,
    AmendmentError,
    ObjectNotFound,
    RadiographDamaged,
    RadiographErased,
    RadiographError,
)
from xray_pipeline.base.progress import Progress
from xray_pipeline.base.text import SHORTEST_REASON
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.images import picture, radiograph
from xray_pipeline.intake.labelled import Given, Labels, give, take_back
from xray_pipeline.night import amend, review
from xray_pipeline.night.identity import compare
from xray_pipeline.night.review import Overview, Unlabelled
from xray_pipeline.night.run import Run

log = logging.getLogger(__name__)

Lists = Literal["suspects", "disagreements", "to-label"]
LISTS: Final[tuple[Lists, ...]] = ("suspects", "disagreements", "to-label")
TABLE, SIDE = "worklist.csv", 2048
"""The table's name; the longest side of a picture, in pixels."""
COLUMNS: Final = ("digest", "list", "labelled", "says", "p", "label", "reader")
"""Of the table: readers fill the last two."""


UNREADABLE: Final = (RadiographError, RadiographDamaged, RadiographErased, ObjectNotFound, AccessDenied)
"""What is wrong with one picture and not with the store."""


class Item(NamedTuple):
    """One radiograph to read: its digest, the list it is on, the label it has ("" without one), what the model says
    with which probability, and where it lies: in the dataset, or as an unlabelled file."""

    digest: str
    of: Lists
    labelled: str
    says: str
    p: float
    file: Unlabelled | None = None


def export(
    run: Run, folder: Path, lists: Sequence[Lists] = LISTS, first: int = 100, progress: Progress | None = None
) -> dict[str, Any]:
    """Write the first radiographs of each list into an empty or new folder, as pictures and a table.

    Returns table, pictures and unreadable (how many can't be shown: their delivery is gone, say). Raises AmendmentError
    for a folder that is in use, DatasetError, StorageUnavailable.
    """
    if folder.exists() and any(folder.iterdir()):
        raise AmendmentError(f"{folder} is not empty; name a new folder, as pictures of another list may lie there")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    dataset = Dataset(run.settings)
    now = review.overview(dataset)
    items = [item for of in lists for item in _items(run, dataset, now, of)[:first]]
    items = list({item.digest: item for item in reversed(items)}.values())[::-1]
    written = []
    for done, item in enumerate(items, 1):
        try:
            (folder / f"{item.digest}.png").write_bytes(_picture(dataset, now, item))
            written.append(item)
        except UNREADABLE as error:  # counted below
            log.info("radiograph %s can't be shown: %s", item.digest[:12], type(error).__name__)
        if progress:
            progress(done, len(items), "writing pictures")
    with (folder / TABLE).open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        table.writerows([one.digest, one.of, one.labelled, one.says, f"{one.p:.3f}", "", ""] for one in written)
    return {"table": str(folder / TABLE), "pictures": len(written), "unreadable": len(items) - len(written)}


def _items(run: Run, dataset: Dataset, now: Overview, of: Lists) -> list[Item]:
    store, labels = run.store(), now.labels()
    if of == "to-label":
        given, ranked = Labels(store), review.still_to_label(store, dataset.amended())
        files = [one for one in ranked if one.digest not in labels]
        files = [one for one in files if not given.of(one.source_digest)]
        return [Item(one.digest, of, "", one.says, one.p, one) for one in files]
    drawn = review.material(store)
    if drawn is None:
        return []
    if of == "suspects":
        suspects = review.open_suspects(store, drawn.snapshot, labels) or []
        return [Item(one.digest, of, one.label, one.says, one.p) for one in suspects]
    differ = review.open_disagreements(store, drawn, labels)
    explained = [(digest, drawn.explained.get(digest)) for digest in differ]
    said = [(digest, one.candidate if one else None) for digest, one in explained]
    return [
        Item(digest, of, labels[digest], one.label if one else "", max(one.probabilities) if one else 0.0)
        for digest, one in said
    ]


def _picture(dataset: Dataset, now: Overview, item: Item) -> bytes:
    if item.file:
        return picture.png(review.file_pixels(dataset, item.file.delivery, item.file.row), SIDE)
    data = dataset.read(item.digest, now.radiographs.at[item.digest, "suffix"])
    return picture.png(radiograph.decode(data), SIDE)


@dataclass(frozen=True)
class Table:
    """A reader's table: its text, and who read it where it has no column `reader`."""

    reader: str
    text: str


class _Read(NamedTuple):
    digest: str
    reader: str
    label: str


def take_in(run: Run, tables: Sequence[Table], why: str) -> dict[str, Any]:
    """Take in what readers say, all of it or nothing.

    Returns amendment (its number, None without one), relabelled and agreed (counts), labelled (of unlabelled files, by
    delivery: those are to be judged anew), waiting (which of these deliveries wait: the next night judges them), gone
    (digests of what was withdrawn meanwhile: left out), differ (label by reader, by digest). Raises AmendmentError,
    which names the table and line, DatasetError, StorageError.
    """
    if len(why.strip()) < SHORTEST_REASON:
        raise AmendmentError(f"reason {why!r}: say which readers these are, or what they looked for")
    compare(run)
    store, dataset = run.store(), Dataset(run.settings)
    labels = review.overview(dataset).labels()
    ranked = review.to_label(store)
    files = {one.digest: one for one in ranked.files} if ranked else {}
    said = _together([read for table in tables for read in _parsed(table, run.settings.classes)])
    gone = [digest for digest in said.keys() & dataset.amended().withdrawn.keys() if digest not in labels]
    said = {digest: of for digest, of in said.items() if digest not in gone}
    if unknown := [digest for digest in said if digest not in labels and digest not in files]:
        raise AmendmentError(f"radiograph {unknown[0][:12]} is on no list and not in the dataset; nothing was taken in")
    for digest, before in review.readings(store, list(said)).items():
        said[digest] = {**before.readings, **said[digest]}
    agreed = {digest: by.pop() for digest, of in said.items() if len(by := set(of.values())) == 1}
    wrong = {digest: label for digest, label in agreed.items() if labels.get(digest, label) != label}
    named = [amend.Named("relabel", "radiograph", digest, label) for digest, label in sorted(wrong.items())]
    done = amend.amend(run, named, why) if named else None
    labelled = _label(run, {digest: label for digest, label in agreed.items() if digest not in labels}, files, why)
    for digest in said.keys() - agreed.keys() & files.keys():
        take_back(store, files[digest].source_digest)  # what the first reader alone had said of it
    for digest, of in said.items():  # last, so that one that is killed is taken in by doing it again
        review.say(run, digest, agreed.get(digest, ""), why, of)
    return {
        "amendment": done["number"] if done else None,
        "relabelled": len(wrong),
        "agreed": len(agreed) - len(wrong) - sum(labelled.values()),
        "labelled": labelled,
        "waiting": sorted(labelled.keys() - dataset.manifests()),
        "gone": sorted(gone),
        "differ": {digest: of for digest, of in sorted(said.items()) if digest not in agreed},
    }


def _label(run: Run, labels: Mapping[str, str], files: Mapping[str, Unlabelled], why: str) -> dict[str, int]:
    """Keep labels (by the digest of a radiograph) of unlabelled files; return how many by delivery."""
    at = records.moment(run.store().clock())
    counts: dict[str, int] = {}
    for digest, label in labels.items():
        file = files[digest]
        give(run.store(), file.source_digest, Given(label, run.who, at, why.strip()))
        counts[file.delivery] = counts.get(file.delivery, 0) + 1
    return counts


def _together(read: Sequence[_Read]) -> dict[str, dict[str, str]]:
    """Return what each reader says, by digest and reader. Raises AmendmentError for one who says two things."""
    said: dict[str, dict[str, str]] = {}
    for digest, reader, label in read:
        if said.setdefault(digest, {}).setdefault(reader, label) != label:
            raise AmendmentError(
                f"reader {reader} calls radiograph {digest[:12]} {said[digest][reader]} and {label}; leave one line"
            )
    return said


def _parsed(table: Table, classes: Sequence[str]) -> Iterator[_Read]:
    """Yield what a table says; lines without a label are left out. Raises AmendmentError, naming the line."""
    text = table.text.removeprefix("\ufeff")
    first = text.partition("\n")[0]
    lines = csv.DictReader(io.StringIO(text), restval="", delimiter=max(",;\t", key=first.count))
    lines.fieldnames = [name.strip().lower() for name in lines.fieldnames or ()]
    if not {"digest", "label"} <= set(lines.fieldnames):
        raise AmendmentError(f"the table of {table.reader} needs the columns digest and label, and may have reader")
    for line in lines:
        digest, label = line["digest"].strip(), line["label"].strip()
        if not label:
            continue
        if len(digest) != 64 or label not in classes:
            raise AmendmentError(
                f"line {lines.line_num} of the table of {table.reader} gives no digest of 64 digits, or a label that "
                f"is none of {', '.join(classes)}; nothing was taken in"
            )
        reader = line.get("reader", "").strip()
        if not reader and table.reader == Path(TABLE).stem:  # each export is named so: two readers would pass for one
            raise AmendmentError(
                f"line {lines.line_num} names no reader; fill in the column reader, or name the file after who read it"
            )
        yield _Read(digest, reader or table.reader, label)
