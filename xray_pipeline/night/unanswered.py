"""The request that nobody answered, which the next night asks again."""

from __future__ import annotations

from typing import Any

from xray_pipeline.base import records
from xray_pipeline.night.run import Run
from xray_pipeline.registry.entries import Entry
from xray_pipeline.registry.ledger import Ledger


def to_ask_again(run: Run) -> dict[str, Any]:
    """Return version, candidate and champion of the challenger that nobody answered about; {} when there is none.

    Once: another night than the one named `run.name` is told {} of the same unanswered request. Raises LedgerError,
    StorageError.
    """
    state = Ledger(run.store()).state()
    if (entry := state.not_answered) is None or not ask_once(run, entry):
        return {}
    return {"version": entry.version, "candidate": entry.candidate, "champion": state.champion}


def ask_once(run: Run, entry: Entry, time: int = 0) -> bool:
    """Return whether the night named `run.name` is the one that asks because of an entry, this `time` (0, 1 ...).

    Raises StorageError.
    """
    key = f"asked-again/{entry.sequence}{f'-{time}' if time else ''}.json"
    return records.write(run.store(), key, {"night": run.name}, if_absent=True)
