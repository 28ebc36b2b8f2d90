"""Turns in shadow: which version's answers on new deliveries count against the champion's, and what they say by now.

    prospective/turns/<n>.json   whose turn the n-th is, against which champion, from which delivery on; written once

A turn is open until its version is promoted, rejected or gone back from, or the champion is another. When the policy's
number of deliveries has come another may take the next one (`contender`). The evidence asked of a turn follows from its
number, so that is written down before anything of it counts. Nothing here needs torch.
"""

from __future__ import annotations

import logging
import math
from dataclasses import asdict, dataclass

from xray_pipeline.base import records
from xray_pipeline.base.errors import Damaged, DatasetError, XrayError
from xray_pipeline.base.storage import Store
from xray_pipeline.base.text import several
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.evaluation import prospective
from xray_pipeline.evaluation.shadow import Shadow, contest
from xray_pipeline.night.run import Run
from xray_pipeline.night.watching import answered
from xray_pipeline.registry.ledger import Ledger

log = logging.getLogger(__name__)

TURNS = "prospective/turns"


@dataclass(frozen=True)
class Turn:
    """A turn: its number (from 1), the version and the champion it is against, both with their candidates' digests, the
    commit after which deliveries count (`after`), and when it began (ISO 8601)."""

    number: int
    version: int
    candidate: str
    champion: int
    against: str
    after: int
    at: str

    def deliveries(self, dataset: Dataset) -> list[str]:
        """Return the deliveries that were committed since it began. Raises DatasetError."""
        return [commit.manifest for commit in dataset.commits.manifests() if commit.number > self.after]


def open_turn(store: Store, ledger: Ledger) -> Turn | None:
    """Return the newest turn while it is open; None without one. Raises as `turns` does, LedgerError."""
    if not (past := turns(store)):
        return None
    turn, state = past[-1], ledger.state()
    known = {version: entry.candidate for version, entry in state.registered.items()}
    same = (known.get(turn.version), known.get(turn.champion)) == (turn.candidate, turn.against)
    moves = {entry.kind for entry in ledger.entries() if same and turn.version == entry.version}
    over = state.champion != turn.champion or turn.version in state.rejected or moves & {"promoted", "rolled-back"}
    return turn if same and not over else None


def turns(store: Store) -> list[Turn]:
    """Return all turns, in their order. Raises Damaged for one that can't be read or is missing, StorageUnavailable."""
    keys = sorted(entry.key for entry in store.list(TURNS))
    found = [records.opened(data, Turn, key) for key, data in zip(keys, records.read_all(store, keys), strict=True)]
    for number, turn in enumerate(found, 1):
        if turn.number != number or keys[number - 1] != _key(number):
            raise Damaged(f"{_key(number)} is missing from {store.uri}, or is another one; restore it from a backup")
    return found


def keep(store: Store, turn: Turn) -> bool:
    """Keep a turn; False when another has its number. Raises StorageUnavailable."""
    return records.write(store, _key(turn.number), asdict(turn), if_absent=True)


def of(run: Run, turn: Turn) -> Shadow:
    """Return what a turn says by now. Raises DatasetError, StorageUnavailable."""
    store, dataset = run.store(), Dataset(run.settings)
    since = set(turn.deliveries(dataset))
    (ours, damaged), (theirs, damaged_too) = (
        prospective.read(store, of, since) for of in (turn.candidate, turn.against)
    )
    for text in (*damaged, *damaged_too):
        log.warning("left out of turn %d in shadow: %s", turn.number, text)
    return contest(turn.number, answered(dataset, ours), answered(dataset, theirs))


def in_words(run: Run) -> str:
    """Say who is in shadow and what that has shown so far, or why that can't be told; "" when nobody is."""
    try:
        turn = open_turn(run.store(), Ledger(run.store()))
        found = of(run, turn) if turn else None
    except XrayError as error:
        return f"Who is in shadow can't be told: {error}."
    if turn is None or found is None:
        return ""
    if found.difference is None:
        return f"Version {turn.version} is in shadow: no patient that is new to it and the champion has come yet."
    return (
        f"Version {turn.version} is in shadow: on {several(found.patients, 'new patient')} of "
        f"{several(found.deliveries, 'delivery', 'deliveries')} its accuracy is {found.difference:+z.3f} from the "
        f"champion's, evidence of {math.exp(min(found.wealth, 50)):.3g} to 1 that it is better."
    )


def standing(run: Run, candidate: str) -> Shadow | None:
    """Return what the turn of a candidate says by now; None where it has none that is open, or that can't be read."""
    try:
        turn = open_turn(run.store(), Ledger(run.store()))
        return of(run, turn) if turn and turn.candidate == candidate else None
    except DatasetError as error:
        log.warning("what candidate %s said in shadow does not count: %s", candidate[:12], error)
        return None


def _key(number: int) -> str:
    return f"{TURNS}/{number:06d}.json"
