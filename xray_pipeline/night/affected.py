"""Which candidates learned from a radiograph, a patient or a delivery, and from what was withdrawn since.

A model learns from the training radiographs of its snapshot, its calibration and threshold from the validation ones;
the held-out ones only measure it. One whose training started from a champion's weights learned from that one's, too.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from xray_pipeline.base.errors import EvaluationError, ObjectNotFound, TrainingError
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import Store, open_store
from xray_pipeline.dataset.amending import Asked
from xray_pipeline.dataset.revisions import part_of
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.night import amend, lineage
from xray_pipeline.night.naming import By
from xray_pipeline.registry.ledger import Ledger
from xray_pipeline.registry.state import State
from xray_pipeline.training.candidate import find_candidate


@dataclass(frozen=True)
class Affected:
    """A candidate that learned from, or was measured on, some radiographs: its version if it was registered, its role
    today, how many radiographs of each kind, and the snapshot it was trained on."""

    candidate: str
    version: int | None
    role: str
    learned: int
    measured: int
    snapshot: str


def affected(settings: Settings, by: By, name: str) -> list[Affected]:
    """Return the candidates that what a person names was in the data of, those in production first.

    What amendments withdrew counts as well. Raises AmendmentError when it is nothing, or several things; DatasetError
    and LedgerError when the past can't be read.
    """
    store, dataset = open_store(settings.store, settings), Dataset(settings)
    digests = _digests(dataset, amend.subject(dataset, by, name))
    state = Ledger(store).state()
    seen: dict[str, pd.DataFrame] = {}
    found = []
    for key in sorted(entry.key for entry in store.list("candidates") if entry.key.endswith("/candidate.json")):
        candidate = key.split("/")[1]
        rows, _ = _rows(store, dataset, state, candidate, seen)
        sides = rows.loc[rows["digest"].isin(digests), "side"]
        if len(sides):
            version, measured = state.version_of(candidate), int((sides == "held-out").sum())
            of = (candidate, version, _role(state, version), len(sides) - measured, measured)
            found.append(Affected(*of, find_candidate(store, candidate).snapshot))
    return sorted(found, key=lambda one: (_ROLES.index(one.role), -(one.version or 0), one.candidate))


def learned_withdrawn(settings: Settings, candidate: str) -> int | None:
    """Return from how many radiographs that are withdrawn today a candidate learned; None where none is known of, but
    what its training started from is not on record. Raises TrainingError, DatasetError, LedgerError."""
    store, dataset = open_store(settings.store, settings), Dataset(settings)
    amended = dataset.amended()
    if not (amended.withdrawn or amended.patients):
        return 0
    rows, whole = _rows(store, dataset, Ledger(store).state(), candidate, {})
    count = int((amended.out(rows) & (rows["side"] != "held-out")).sum())
    return count if count or whole else None


def known_patients(dataset: Dataset, candidate: str) -> set[str]:
    """Return the patients (keyed hashes) that a candidate is no news to: all of its snapshot, of whom the held-out ones
    measured and chose it, and those that the models it started from learned from.

    Raises EvaluationError where these are not on record, and as `learned_withdrawn`.
    """
    store = open_store(dataset.settings.store, dataset.settings)
    rows, whole = _rows(store, dataset, Ledger(store).state(), candidate, {})
    if not whole:
        raise EvaluationError(f"nobody knows who is new to candidate {candidate[:12]}: its start is not on record")
    return set(rows["patient"])


def champion_learned_withdrawn(settings: Settings) -> tuple[int | None, int | None]:
    """Return the champion's version, None without one that the ledger knows, and `learned_withdrawn` of it."""
    state = Ledger(open_store(settings.store, settings)).state()
    entry = state.registered.get(state.champion or 0)
    return (state.champion, learned_withdrawn(settings, entry.candidate)) if entry else (None, 0)


_ROLES = ("champion", "challenger", "champion once", "registered", "never registered")


def _role(state: State, version: int | None) -> str:
    if version is None:
        return _ROLES[4]
    if version in (state.champion, state.challenger):
        return _ROLES[0] if version == state.champion else _ROLES[1]
    return _ROLES[2] if version in state.previous else _ROLES[3]


def _digests(dataset: Dataset, meant: Asked) -> set[str]:
    """Return the radiographs of what is meant: those that bear its name, and those that an amendment of it found."""
    changes = (change for one in dataset.commits.amendments().values() for change in one.changes)
    found = {d for c in changes if (c.subject, c.name) == (meant.subject, meant.name) for d in c.radiographs}
    if meant.subject == "delivery":
        keys = [key for key in dataset.manifests() if part_of(key)[0] == meant.name]
        return found | {digest for key in keys for digest in dataset.manifest(key)["digest"]} - {""}
    column = "patient" if meant.subject == "patient" else "digest"
    tables = (dataset.manifest(key) for key in dataset.manifests())
    return found | {digest for table in tables for digest in table.loc[table[column] == meant.name, "digest"]} - {""}


def _rows(
    store: Store, dataset: Dataset, state: State, candidate: str, seen: dict[str, pd.DataFrame]
) -> tuple[pd.DataFrame, bool]:
    """Return the radiographs of a candidate's snapshot, and of those that it started from what they learned from; and
    whether all of these are on record."""
    parts = []
    line, whole = _line(store, state, candidate)
    for number, ancestor in enumerate(line):
        snapshot = find_candidate(store, ancestor).snapshot
        if snapshot not in seen:
            seen[snapshot] = dataset.rows(dataset.open_snapshot(snapshot), erased=True)
        rows = seen[snapshot]
        parts.append(rows if number == 0 else rows[rows["side"] != "held-out"])
    return pd.concat(parts, ignore_index=True).drop_duplicates("digest", ignore_index=True), whole


def _line(store: Store, state: State, candidate: str) -> tuple[list[str], bool]:
    """Return a candidate, the one whose weights its training started from, and so on, and whether that is all on
    record."""
    line: list[str] = []
    while candidate not in line:
        line.append(candidate)
        try:
            version = lineage.started_from(store, candidate)
        except (EvaluationError, ObjectNotFound, TrainingError):
            return line, False
        if version is None:
            break
        if version not in state.registered:
            return line, False
        candidate = state.registered[version].candidate
    return line, True
