"""One decision, committed: the loop around the ledger's append, and what follows the entry.

1. What was changed by hand in MLflow is recorded.
2. The ledger is replayed to a state, and a move is made of it; or it is found that the move was made: its entry.
3. The move is appended right after that state. When somebody else came first, 2 again: the champion may be another now.
4. MLflow's aliases follow the entry, and its versions say what became of them.

docs/architecture.md has the picture.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from xray_pipeline.base.errors import RegistryError, StorageError
from xray_pipeline.registry.entries import Entry, Move
from xray_pipeline.registry.ledger import LostRace
from xray_pipeline.registry.manual_changes import record_manual_change
from xray_pipeline.registry.mlflow_registry import Registry
from xray_pipeline.registry.state import State
from xray_pipeline.registry.version_status import describe_versions

log = logging.getLogger(__name__)


def commit(registry: Registry, decide: Callable[[State], Entry | Move], *, repeatable: bool = True) -> Entry:
    """Append what `decide` makes of the state and let MLflow follow; return the entry.

    `decide` returns a move, or an entry that made it already; or raises, and nothing is appended. It is called anew
    whenever the ledger grew meanwhile. An error after the entry says that the decision is made, and whether a repeat
    finds it (`repeatable`) or would be a new decision. Raises what `decide` raises, RegistryError, StorageError.
    """
    record_manual_change(registry)
    entry = _append(registry, decide)
    try:
        registry.follow()
        describe_versions(registry)
    except (RegistryError, StorageError) as error:
        todo = "run it again: it finds this entry and goes on"
        if not repeatable:
            todo = "don't run it again, that would be a new decision; the next night or command moves the aliases"
        raise type(error)(f"this is decided: {entry.summary()}; what follows is not done ({error}); {todo}") from error
    return entry


def _append(registry: Registry, decide: Callable[[State], Entry | Move]) -> Entry:
    while True:
        state = registry.ledger.state()
        decided = decide(state)
        if isinstance(decided, Entry):
            log.info("decided before: %s", decided.summary())
            return decided
        try:
            return registry.ledger.append(decided, state.head)
        except LostRace as lost:
            log.info("looking again: %s", lost)
