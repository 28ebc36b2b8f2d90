"""Whether the figures of those in charge are of the newest snapshot, and those that a night has measured anyway.

Nothing here scores anything; `night/versions` does, where the night's own evidence does not say it all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from xray_pipeline.base import records
from xray_pipeline.base.code import code_digest
from xray_pipeline.base.errors import DatasetError
from xray_pipeline.dataset.store import Dataset, Snapshot
from xray_pipeline.evaluation.bootstrap import Resampling
from xray_pipeline.gate.evidence import Evidence
from xray_pipeline.night.lineage import JUDGES
from xray_pipeline.night.nights import moment
from xray_pipeline.night.run import Run
from xray_pipeline.night.scores import Scores, in_charge, keep, last_scores
from xray_pipeline.registry.ledger import Ledger
from xray_pipeline.registry.state import State


def inputs_of(run: Run, state: State, versions: Sequence[int], snapshot: str) -> str:
    """Return the digest of all that figures of these versions on a snapshot, by its digest, follow from."""
    resampling = asdict(Resampling(run.settings.bootstrap))
    inputs = {"models": state.models(*versions), "snapshot": snapshot, "resampling": resampling}
    return records.digest_of(records.canonical({**inputs, "code": code_digest(*JUDGES)}))


def newest_snapshot(run: Run) -> Snapshot:
    """Return the snapshot of the dataset as it is. Raises DatasetError while it is empty."""
    snapshot = Dataset(run.settings).snapshot()
    if snapshot is None:
        raise DatasetError("the dataset is empty: there are no held-out radiographs to score versions on")
    return snapshot


def are_newest(run: Run) -> bool:
    """Say whether the figures of those in charge are of the newest snapshot and of this code; so they are of nobody."""
    state = Ledger(run.store()).state()
    if state.champion is None:
        return True
    kept = last_scores(run.store(), state, versions := in_charge(state))
    try:
        return kept is not None and kept.inputs == inputs_of(run, state, versions, newest_snapshot(run).digest)
    except DatasetError:
        return False


def take_over(run: Run, evidence: Evidence, candidate: str, champion: int | None) -> None:
    """Keep the figures of those in charge where they are the very ones that a night's evidence has.

    `candidate` is the digest of what was measured, `champion` the version that it was measured against.
    """
    state = Ledger(run.store()).state()
    versions, ours = in_charge(state), state.version_of(candidate)
    measured = {champion: evidence.champion, ours: evidence.candidate}
    found = [one for version in versions if (one := measured.get(version)) is not None]
    paired = len(versions) == 1 or versions == [ours, champion]
    if not paired or len(found) < len(versions):
        return
    snapshot = newest_snapshot(run).digest
    if {one.snapshot for one in found} != {snapshot}:
        return
    comparison = evidence.comparison if len(versions) > 1 else None
    about = (tuple(versions), state.models(*versions), moment(), inputs_of(run, state, versions, snapshot))
    keep(run.store(), Scores(*about, tuple(found), comparison))
