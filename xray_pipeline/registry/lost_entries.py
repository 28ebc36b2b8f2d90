"""Going on when the store lost the ledger's newest entries and no copy has them: from what MLflow and the store prove.

The registry's mark tells that entries are missing and stops everything. What they said of who decided and why is gone
for good; which models they were about is still in MLflow, and what training wrote down proves it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence

from xray_pipeline.base.errors import LedgerError, ModelRefused, RegistryError, RegistryUnavailable, TrainingError
from xray_pipeline.registry import loading
from xray_pipeline.registry.decisions import Candidate
from xray_pipeline.registry.entries import Entry, Move
from xray_pipeline.registry.manual_changes import move_by_hand
from xray_pipeline.registry.mlflow_registry import Registry
from xray_pipeline.registry.version_status import describe_versions

log = logging.getLogger(__name__)


def give_up(
    registry: Registry,
    find: Callable[[str], Candidate],
    manifests: Sequence[str] = (),
    *,
    accept: bool,
    who: str,
    why: str,
) -> Entry:
    """Record that entries are lost, and of which `manifests` the commits are; accept what MLflow has, or go back to
    what is left; return the entry.

    Versions that only lost entries registered are registered again, as far as `find` (a candidate that was trained, by
    digest) and their files prove them. The champion is MLflow's or the one before the lost entries. Can be repeated
    until the entry is there. Raises LedgerError when nothing is lost or the champion can't be proven, RegistryError,
    ModelRefused.
    """
    ledger = registry.ledger
    before, ahead = ledger.state(), registry.model.ahead()
    if ahead is None and not manifests:
        raise LedgerError("the store has every ledger entry and commit that MLflow knows; there is nothing to give up")
    lost, found = ahead or (None, before.aliases)
    count = max(1, lost["sequence"] - len(ledger.entries())) if lost else 0
    _register_again(registry, find, who)
    state = ledger.state()
    after = before.aliases
    if accept:
        challenger = found["challenger"] if found["challenger"] in state.registered else None
        after = {"champion": found["champion"] or before.champion, "challenger": challenger}
    champion = after["champion"]
    if champion is not None and champion not in state.registered:
        raise LedgerError(
            f"the champion in MLflow, version {champion}, is not in what is left of the ledger, and no candidate in "
            f"the store proves it; put the store's candidates/ back, or go back to version "
            f"{before.champion or 'none'} with `xray adopt --lost --undo`"
        )
    for version in filter(None, after.values()):
        loading.load(registry, version)
    action = "accepted" if accept else "undone"
    told = {"found": found, "action": action, "lost": lost, "entries": count, "manifests": list(manifests)}
    entry = ledger.append(move_by_hand(registry, state, after, who, why, **told), state.head)
    registry.model.vouch(lost=True)
    registry.follow()
    describe_versions(registry)
    return entry


def _register_again(registry: Registry, find: Callable[[str], Candidate], who: str) -> None:
    """Register the versions in MLflow that the ledger does not know and that are what a trained candidate became."""
    ledger = registry.ledger
    for version, tags in registry.versions().items():
        if version in ledger.state().registered:
            continue
        try:
            digest = re.fullmatch("[0-9a-f]{64}", tags.get("xray.candidate", ""))
            candidate, model = find(digest.group() if digest else "unnamed"), registry.resolve(version)
            loading.load_exactly(registry, model, candidate.model_digest)
            move = Move(
                "registered",
                who=who,
                why="in MLflow; the entry that registered it is lost",
                version=version,
                candidate=candidate.digest,
                artifact=model.artifact,
                snapshot=candidate.snapshot,
                decision={"verdict": "registered", "automatic": False, "compared_patients": 0},
            )
            ledger.append(move)
        except RegistryUnavailable:
            raise
        except (LedgerError, ModelRefused, RegistryError, TrainingError) as error:
            log.warning("version %d in MLflow is left out: %s", version, error)
