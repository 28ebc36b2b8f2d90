"""What was changed in MLflow by hand, or lost when an older MLflow was put back: noticed and recorded."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from xray_pipeline.base.errors import RegistryError, RegistryUnavailable
from xray_pipeline.registry.entries import Entry, Move
from xray_pipeline.registry.ledger import LostRace
from xray_pipeline.registry.mlflow_registry import Registry
from xray_pipeline.registry.model_files import ModelVersion
from xray_pipeline.registry.state import State, spoken

log = logging.getLogger(__name__)

HAND = "unknown, in MLflow"
"""Who changed an alias by hand: MLflow does not say."""


def reconcile(registry: Registry) -> State:
    """Bring ledger and registry together, before anything else is done; return the state.

    Aliases that a crash left behind are moved on, and versions that it left twice go; a change made by hand is first
    recorded. A champion set by hand is the champion from then on; a champion alias that was removed is set again.
    Raises RegistryError, LedgerError.
    """
    record_manual_change(registry)
    state = registry.follow()
    registry.drop_duplicates()
    return state


def record_manual_change(registry: Registry) -> Entry | None:
    """Append a manual-change entry when aliases were moved by hand, or MLflow was put back to an older state.

    Once per change; None when there was none. A challenger that an older MLflow lost no longer waits.
    """
    ledger = registry.ledger
    while True:
        gone, moved = registry.lost(), registry.manual_change()
        state = ledger.state()
        known = {version for entry in ledger.entries() for version in gone_with(entry)} - {state.challenger}
        if moved is None and gone.keys() <= known:
            return None
        found = {**state.aliases, **(moved or {})}  # the other alias may be one that a crash left behind
        newest = state.by_hand[-1] if state.by_hand else None
        if newest and newest.digest == state.head and newest.decision["found"] == found and gone.keys() <= known:
            return newest
        champion = state.champion if found["champion"] is None else found["champion"]
        after = {"champion": champion, "challenger": None if found["challenger"] in gone else found["challenger"]}
        move = move_by_hand(registry, state, after, HAND, _why(state, found, gone), found=found, gone=sorted(gone))
        try:
            entry = ledger.append(move, state.head)
        except LostRace as lost:  # perhaps that entry explains the aliases
            log.info("looking again: %s", lost)
        else:
            log.warning("%s; `xray adopt` accepts or undoes it", entry.summary())
            return entry


def _why(state: State, found: Mapping[str, int | None], gone: Mapping[int, str]) -> str:
    moves = [
        f"{alias} from {spoken(expected)} to {spoken(found[alias])}"
        for alias, expected in state.aliases.items()
        if expected != found[alias]
    ]
    parts = [f"moved by hand in MLflow: {', '.join(moves)}"] if moves else []
    return "; ".join([*parts, *(f"version {v} {how}, which is older than the ledger" for v, how in gone.items())])


def gone_with(entry: Entry) -> list[int]:
    """Return the versions that an older MLflow lost, of the entry that says so."""
    return list(entry.decision.get("gone", ())) if entry.kind == "manual-change" else []


def move_by_hand(
    registry: Registry, state: State, after: Mapping[str, int | None], who: str, why: str, **more: Any
) -> Move:
    """Return the move that makes the aliases what they are `after`; its decision tells of `more` beside them.

    The champion's digests are the ledger's or, of a version that it does not know, MLflow's.
    """
    champion = after["champion"]
    model = state.registered.get(champion or 0) or _in_mlflow(registry, champion)
    return Move(
        "manual-change",
        who=who,
        why=why,
        version=champion,
        candidate=model.candidate if model else "",
        artifact=model.artifact if model else "",
        champion_before=state.champion,
        decision={"before": state.aliases, "after": after, **more},
    )


def _in_mlflow(registry: Registry, version: int | None) -> ModelVersion | None:
    try:
        return registry.resolve(version) if version is not None else None
    except RegistryUnavailable:
        raise
    except RegistryError:  # an older MLflow does not have it either
        return None
