"""Turns in shadow: which version's answers on new deliveries count against the champion's, and what they say by now.

    prospective/turns/<n>.json   whose turn the n-th is, against which champion; written once

A turn lasts until its version is champion or rejected, the champion is another, or the policy's number of deliveries
has come, and another takes the next one (`contender`). The evidence asked of a turn rests on its number, so that is
written down before anything of it counts. Nothing here needs torch.
"""

from __future__ import annotations

import logging
import math
from dataclasses import asdict, dataclass

from xray_pipeline.base import records
from xray_pipeline.base.errors import Damaged, DatasetError
from xray_pipeline.base.storage import Store
from xray_pipeline.base.text import several
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.evaluation import prospective
from xray_pipeline.evaluation.shadow import Shadow, contest
from xray_pipeline.night.run import Run
from xray_pipeline.night.watching import answered
from xray_pipeline.registry.ledger import Ledger
from xray_pipeline.registry.state import State

log = logging.getLogger(__name__)

TURNS = "prospective/turns"


@dataclass(frozen=True)
class Turn:
    """A turn: its number (from 1), the version and the champion it is against, both with their candidates' digests, and
    when it began (ISO 8601)."""

    number: int
    version: int
    candidate: str
    champion: int
    against: str
    at: str

    def counts(self, state: State) -> bool:
        """Whether both versions are what they were, and the question is still open."""
        known = {version: entry.candidate for version, entry in state.registered.items()}
        same = (known.get(self.version), known.get(self.champion)) == (self.candidate, self.against)
        return same and state.champion == self.champion and self.version not in state.rejected


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
    ours, damaged = prospective.read(store, turn.candidate)
    asked = {one.delivery for one in ours}
    theirs, damaged_too = prospective.read(store, turn.against, asked)
    for text in (*damaged, *damaged_too):
        log.warning("left out of turn %d in shadow: %s", turn.number, text)
    return contest(turn.number, answered(dataset, ours), answered(dataset, theirs))


def in_words(run: Run) -> str:
    """Say who is in shadow and what that has shown so far, "" when nobody is. Raises DatasetError, StorageError."""
    state = Ledger(run.store()).state()
    turn = next((turn for turn in turns(run.store())[-1:] if turn.counts(state)), None)
    if turn is None:
        return ""
    found = of(run, turn)
    if found.difference is None:
        return f"Version {turn.version} is in shadow: no patient that is new to it and the champion has come yet."
    return (
        f"Version {turn.version} is in shadow: on {several(found.patients, 'new patient')} of "
        f"{several(found.deliveries, 'delivery', 'deliveries')} its accuracy is {found.difference:+z.3f} from the "
        f"champion's, evidence of {math.exp(min(found.wealth, 50)):.3g} to 1 that it is better."
    )


def standing(run: Run, candidate: str, state: State) -> Shadow | None:
    """Return what the turn of a candidate says by now; None where it has none that counts, or that can't be read."""
    try:
        last = turns(run.store())[-1:]
        mine = [turn for turn in last if turn.candidate == candidate and turn.counts(state)]
        return of(run, mine[0]) if mine else None
    except DatasetError as error:
        log.warning("what candidate %s said in shadow does not count: %s", candidate[:12], error)
        return None


def _key(number: int) -> str:
    return f"{TURNS}/{number:06d}.json"
