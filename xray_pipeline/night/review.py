"""What there is to look at after a night, for a person: suspects, disagreements, what was kept out; and what the person
said of it. Nothing here needs the network, so the page that shows it starts quickly.

    reviews/newest.json               the newest candidate beside the champion, as `night/explain` drew it; derived
    reviews/to-label.json             unlabelled files, those that would teach most first (`night/unlabelled`); derived
    reviews/readings/<digest>.json    what people said of a radiograph that is listed: they agree, or they differ

To agree amends nothing, so no snapshot changes and nothing is trained anew: it is kept here, and holds as long as the
radiograph has the label that was agreed with. What changes the dataset is an amendment (`night/amend`).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

import pandas as pd

from xray_pipeline.base import records
from xray_pipeline.base.errors import AmendmentError, Damaged, DatasetError, ObjectNotFound
from xray_pipeline.base.storage import Store, open_store
from xray_pipeline.base.text import SHORTEST_REASON
from xray_pipeline.dataset.amendments import Amended
from xray_pipeline.dataset.fingerprints import picture_of
from xray_pipeline.dataset.parquet import from_parquet
from xray_pipeline.dataset.revisions import WITHDRAWN, in_force, part_of
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.dataset.thumbnails import Shown
from xray_pipeline.evaluation.suspected import Suspect
from xray_pipeline.images import radiograph
from xray_pipeline.images.raster import Limits, Pixels
from xray_pipeline.intake.labelled import UNLABELLED
from xray_pipeline.intake.layout import unescape
from xray_pipeline.intake.places import VERDICT, intake_key, judged
from xray_pipeline.intake.verdicts import checked
from xray_pipeline.night import amend
from xray_pipeline.night.identity import compare
from xray_pipeline.night.run import Run

log = logging.getLogger(__name__)

T = TypeVar("T")

NEWEST, TO_LABEL, READINGS = "reviews/newest.json", "reviews/to-label.json", "reviews/readings"
MAP_SIDE = 28
"""Side of a kept Grad-CAM map, in pixels; a network's own has about 7 x 7 cells."""


@dataclass(frozen=True)
class Opinion:
    """What a model says of a radiograph: a class, its probabilities in the order of the classes, and where that comes
    from: a map of MAP_SIDE x MAP_SIDE bytes 0..255 as base64, "" for a network that has none."""

    label: str
    probabilities: tuple[float, ...]
    map: str


@dataclass(frozen=True)
class Explained:
    """What both models say of a radiograph (there may be no champion), and the digests of those most alike."""

    candidate: Opinion
    champion: Opinion | None
    alike: tuple[str, ...]


@dataclass(frozen=True)
class Material:
    """The newest candidate beside the champion (its version, None without one), when (ISO 8601) and on which snapshot.

    `models` are the digests of both; `disagreements` are the held-out radiographs that they name differently, those
    with most at stake first. `explained` has the first of them and of the suspects.
    """

    candidate: str
    champion: int | None
    models: tuple[str, ...]
    snapshot: str
    at: str
    classes: tuple[str, ...]
    disagreements: tuple[str, ...]
    explained: Mapping[str, Explained]


@dataclass(frozen=True)
class Reading:
    """What people said of a radiograph: `label` is what all of them see, "" where readers differ; `readings` has the
    label by reader. `who` brought it, when (ISO 8601) and why."""

    label: str
    who: str
    at: str
    why: str
    readings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Unlabelled:
    """A file of a delivery that nobody has labelled: where it is, its SHA-256 and that of the radiograph in it, its
    thumbnail; what the model says with which probability, how far the file is from what is known, and its score 0..1:
    the largest would teach most; `patient` is a keyed hash, "" where nothing tells."""

    delivery: str
    row: int
    source_digest: str
    digest: str
    thumbnail: str
    says: str
    p: float
    distance: float
    score: float
    patient: str = ""


@dataclass(frozen=True)
class ToLabel:
    """Unlabelled files as a model, by its digest, ranks them; `places` (delivery, row) are all that had no label."""

    model: str
    places: tuple[tuple[str, int], ...]
    files: tuple[Unlabelled, ...]


def material(store: Store) -> Material | None:
    """Return what the newest night drew; None before the first, and for a damaged file. Raises StorageUnavailable."""
    return _derived(store, NEWEST, Material)


def keep(store: Store, drawn: Material) -> None:
    """Keep what a night drew in place of an earlier one. Raises StorageUnavailable."""
    records.write(store, NEWEST, asdict(drawn))


def to_label(store: Store) -> ToLabel | None:
    """Return the unlabelled files as they were ranked last; None where they never were. Raises StorageUnavailable."""
    return _derived(store, TO_LABEL, ToLabel)


def still_to_label(store: Store, amended: Amended) -> tuple[Unlabelled, ...]:
    """Return the files in `to_label` but those whose radiograph, patient or delivery was withdrawn since."""
    ranked = to_label(store)
    return tuple(
        one
        for one in (ranked.files if ranked else ())
        if one.digest not in amended.withdrawn
        and one.patient not in amended.patients
        and part_of(one.delivery)[0] not in amended.deliveries
    )


def keep_to_label(store: Store, ranked: ToLabel) -> None:
    """Keep a ranking in place of an earlier one. Raises StorageUnavailable."""
    records.write(store, TO_LABEL, asdict(ranked))


def listed(store: Store, snapshot: str) -> tuple[Suspect, ...] | None:
    """Return the suspects of a snapshot, None when it was never screened or its list is damaged."""
    return _derived(store, f"suspects/{snapshot}.json", tuple[Suspect, ...])


def _derived(store: Store, key: str, kind: type[T]) -> T | None:
    try:
        return records.read(store, key, kind)
    except ObjectNotFound:
        return None
    except Damaged as error:
        log.warning("%s; the next night that trains makes it anew", error)
        return None


def open_suspects(store: Store, snapshot: str, labels: Mapping[str, str]) -> list[Suspect] | None:
    """Return the suspects of a snapshot about which nobody has decided, None when it has no list.

    `labels` by digest are those of the radiographs that the dataset holds now: what was relabelled or withdrawn since
    is settled, and so is what a person agreed with.
    """
    found = listed(store, snapshot)
    if found is None:
        return None
    still = [suspect for suspect in found if labels.get(suspect.digest) == suspect.label]
    said = readings(store, [suspect.digest for suspect in still])
    return [one for one in still if one.digest not in said or said[one.digest].label != one.label]


def open_disagreements(store: Store, drawn: Material, labels: Mapping[str, str]) -> list[str]:
    """Return the radiographs that two models name differently and about which nobody has decided, as in
    `open_suspects`, most at stake first."""
    there = [digest for digest in drawn.disagreements if digest in labels]
    said = readings(store, there)
    return [digest for digest in there if digest not in said or said[digest].label != labels[digest]]


def readings(store: Store, digests: Sequence[str]) -> dict[str, Reading]:
    """Return what people said of some radiographs, by digest. Raises DatasetError, StorageUnavailable."""
    there = {entry.key.rpartition("/")[2].removesuffix(".json") for entry in store.list(READINGS)}
    wanted = sorted(there.intersection(digests))
    keys = [_reading_key(digest) for digest in wanted]
    contents = records.read_all(store, keys)
    opened = (records.opened(data, Reading, key) for data, key in zip(contents, keys, strict=True))
    return dict(zip(wanted, opened, strict=True))


def say(run: Run, digest: str, label: str, why: str, read: Mapping[str, str] | None = None) -> Reading:
    """Keep what people said of a radiograph, as in `Reading`, in place of what was said before."""
    at = records.moment(run.store().clock())
    said = Reading(label, run.who, at, why.strip(), read or {})
    records.write(run.store(), _reading_key(digest), asdict(said))
    return said


def agree(run: Run, name: str, why: str, seen: str = "") -> dict[str, Any]:
    """Keep that a person looked at a radiograph (its digest, or DELIVERY/ROW) and agrees with its label.

    `seen` is the label that was agreed with, "" for the present one. Returns radiograph, label, who, at and why. Raises
    AmendmentError for a radiograph that the dataset does not hold, or that has another label by now.
    """
    if len(why.strip()) < SHORTEST_REASON:
        raise AmendmentError(f"reason {why!r}: say why the label is right")
    compare(run)
    dataset = Dataset(run.settings)
    digest = amend.subject(dataset, "file" if "/" in name else "radiograph", name).name
    label = dataset.history().labels(digest)
    if label is None:
        raise AmendmentError(f"radiograph {digest[:12]} is withdrawn, or was never accepted: it has no label")
    if seen not in ("", label):
        raise AmendmentError(f"radiograph {digest[:12]} is {label} by now, not {seen}: look at it again")
    before = readings(run.store(), [digest]).get(digest)
    said = say(run, digest, label, why, {**(before.readings if before else {}), run.who: label})
    return {"radiograph": digest, "label": label, "who": said.who, "at": said.at, "why": said.why}


def act(run: Run, action: str, name: str, label: str, why: str) -> dict[str, Any]:
    """Do what the form of xray_amend asks for: `agree`, or as `amend.from_form` and with what it raises.

    A label that is no class is what the form says where nobody chose one.
    """
    if action == "agree":
        return agree(run, name, why, label if label in run.settings.classes else "")
    return amend.from_form(run, action, name, label, why)


def _reading_key(digest: str) -> str:
    return f"{READINGS}/{digest}.json"


@dataclass(frozen=True, eq=False)
class Overview:
    """What the dataset holds now: one row by digest of each radiograph that is accepted and not withdrawn (suffix,
    label, side, delivery, row); of each delivery, by key, how many files are out for which reason; and delivery and row
    of those that nobody has labelled."""

    radiographs: pd.DataFrame
    quarantined: Mapping[str, Mapping[str, int]]
    unlabelled: tuple[tuple[str, int], ...]

    def labels(self) -> dict[str, str]:
        """Return the label of each radiograph by its digest."""
        return dict(self.radiographs["label"].items())


def overview(dataset: Dataset) -> Overview:
    """Read every manifest and say what they hold. Raises DatasetError."""
    amended, tables = dataset.amended(), {key: dataset.manifest(key) for key in dataset.manifests()}
    stands = in_force(tables)
    out = {key: table.loc[stands[key] & (table["verdict"] != "accepted"), "reason"] for key, table in tables.items()}
    counts = {key: {str(code): int(n) for code, n in reasons.value_counts().items()} for key, reasons in out.items()}
    parts = [_held(key, table, amended) for key, table in tables.items()]
    columns = ["suffix", "label", "side", "delivery", "row"]
    loose = tuple((key, int(row)) for key, reasons in out.items() for row in reasons.index[reasons.isin(UNLABELLED)])
    return Overview(pd.concat(parts) if parts else pd.DataFrame(columns=columns), counts, loose)


def _held(key: str, table: pd.DataFrame, amended: Amended) -> pd.DataFrame:
    rows = table.loc[(table["verdict"] == "accepted") & ~amended.out(table), ["digest", "suffix", "label", "side"]]
    rows = rows.assign(label=amended.labelled(rows), delivery=key, row=rows.index)
    return rows.set_index("digest")


def kept_out(dataset: Dataset, key: str) -> pd.DataFrame:
    """Return the files of a delivery that are out, by row: reason, detail and what `picture` asks for.

    The verdict may be that of its manifest or, while it waits, that of its last check. What is withdrawn is left out.
    Raises DatasetError, ObjectNotFound for a delivery of which no file was judged.
    """
    parts = {name: dataset.manifest(name) for name in dataset.manifests() if part_of(name)[0] == part_of(key)[0]}
    table = parts[key] if key in parts else _checked_table(dataset, key)
    out = (table["verdict"] != "accepted") & ~dataset.amended().out(table)
    rows = table[out & in_force(parts)[key]] if key in parts else table[out]
    return rows[["reason", "detail", "digest", "suffix", "phash", "thumbnail"]]


def picture(dataset: Dataset, row: pd.Series) -> str:
    """Return the thumbnail of a row of `kept_out` as an address that holds the picture itself, "" where there is none.

    Raises StorageUnavailable.
    """
    if row["thumbnail"] or not row["phash"]:
        return picture_of(row["thumbnail"])
    try:
        return picture_of(dataset.thumbnails.text(Shown(row["digest"], row["suffix"], row["phash"], accepted=False)))
    except DatasetError as error:
        log.warning("a thumbnail can't be shown: %s", error)
        return ""


def waiting(store: Store, committed: Collection[str]) -> dict[str, dict[str, int]]:
    """Return of each delivery, by key, that is judged and not committed how many files are out for which reason."""
    found = {key: checked(store, key) for key in sorted(judged(store) - set(committed))}
    return {key: dict(verdict.quarantined) for key, verdict in found.items() if verdict and verdict.quarantined}


def _checked_table(dataset: Dataset, key: str) -> pd.DataFrame:
    """Return the intake table of a delivery that waits. Raises ObjectNotFound, DatasetError."""
    store = open_store(dataset.settings.store, dataset.settings)
    verdict = records.read(store, intake_key(key, VERDICT), dict[str, Any])
    data = records.exactly(store, intake_key(key, "table.parquet"), verdict["table"], VERDICT)
    return from_parquet(data, f"intake table of {key}")


def table_of(dataset: Dataset, key: str) -> pd.DataFrame:
    """Return the manifest of a delivery or, while it waits, the table of its last check. Raises as `kept_out`."""
    return dataset.manifest(key) if key in dataset.manifests() else _checked_table(dataset, key)


def file_pixels(dataset: Dataset, key: str, row: int) -> Pixels:
    """Return the pixels of a quarantined file, read from its delivery: only of bytes that the intake has read before.

    Raises RadiographError where they are no radiograph, ObjectNotFound where there is nothing to show, StorageError.
    """
    settings, table, amended = dataset.settings, table_of(dataset, key), dataset.amended()
    if row >= len(table) or amended.by(table, part_of(key)[0])[row]:
        raise ObjectNotFound(f"row {row} of delivery {key} has nothing to show")
    one = table.iloc[row]
    sources = {one["source_digest"]}
    if not one["source_digest"]:
        ranked = still_to_label(open_store(settings.store, settings), amended)
        sources = {file.source_digest for file in ranked if (file.delivery, file.row) == (key, row)}
    delivery = open_store(settings.incoming, settings).child(part_of(key)[0])
    data = delivery.read(unescape(one["file"]))
    if records.digest_of(data) not in sources or one["reason"] == WITHDRAWN:
        raise ObjectNotFound(f"row {row} of delivery {key} has nothing to show: it is another file by now")
    limits = Limits.of(settings.rules)
    return radiograph.normalise(data, replace(limits, png_bits=int(one["bits"]) or limits.png_bits)).pixels
