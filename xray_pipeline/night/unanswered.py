"""The request that nobody answered, which the next night asks again."""

from __future__ import annotations

from typing import Any

from xray_pipeline.base import records
from xray_pipeline.night.run import Run
from xray_pipeline.registry.ledger import Ledger


def to_ask_again(run: Run) -> dict[str, Any]:
    """Return version, candidate and champion of the challenger that nobody answered about; {} when there is none.

    Once: another night than the one named `run.name` is told {} of the same unanswered request. Raises LedgerError,
    StorageError.
    """
    state, store = Ledger(run.store()).state(), run.store()
    if (entry := state.not_answered) is None:
        return {}
    if not records.write(store, f"asked-again/{entry.sequence}.json", {"night": run.name}, if_absent=True):
        return {}
    return {"version": entry.version, "candidate": entry.candidate, "champion": state.champion}
