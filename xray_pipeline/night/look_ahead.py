"""The look ahead: champion and challenger say what they think of new deliveries before anything learns from them.

What it leaves is the prospective record (`evaluation/prospective`). A night that could not look leaves its deliveries
to the next: the champion has still not learned from them. It can be repeated, as the steps of intake_steps.py.
"""

from __future__ import annotations

import logging

import pandas as pd

from xray_pipeline.base import logs, records
from xray_pipeline.base.errors import EvaluationError, XrayError
from xray_pipeline.base.progress import Progress
from xray_pipeline.base.text import several
from xray_pipeline.dataset.store import Dataset, Snapshot
from xray_pipeline.evaluation import prospective
from xray_pipeline.evaluation.prospective import Said
from xray_pipeline.night import contender, repair, watching
from xray_pipeline.night.affected import known_patients
from xray_pipeline.night.pair import scored
from xray_pipeline.night.run import Looked, Run, end
from xray_pipeline.night.scores import in_charge
from xray_pipeline.registry import loading, manual_changes
from xray_pipeline.registry.mlflow_registry import Registry
from xray_pipeline.registry.state import State
from xray_pipeline.training.candidate import Candidate, find_candidate

log = logging.getLogger(__name__)


@repair.mending
def look_ahead(run: Run, snapshot: str, progress: Progress | None = None) -> Looked:
    """Keep what champion and challenger say of each delivery that they have not learned from and not been asked about,
    and say whether the champion is still as good as it was.

    Raises EvaluationError, RegistryError, ModelRefused, DatasetError, StorageError.
    """
    registry, dataset = run.registry(), Dataset(run.settings)
    state = manual_changes.reconcile(registry)
    if state.champion is None:
        end("there is no champion to watch")
        return Looked(None, 0, "", False)
    kept = dataset.open_snapshot(snapshot)
    rows = dataset.rows(kept)
    counts = {}
    for version in _to_ask(run, registry, state):
        entry = state.registered.get(version)
        if entry is None:
            log.warning("version %d was never registered here, so nobody knows what it learned from", version)
            continue
        logs.about(candidate=entry.candidate)
        try:
            candidate = find_candidate(run.store(), entry.candidate)
            counts[version] = _look(run, dataset, candidate, version, kept, rows, progress)
        except XrayError as error:
            if version == state.champion:
                raise
            log.warning("version %d, which waits, was asked about nothing: %s", version, error)
    logs.about()
    now = watching.watched(run)
    for version, count in counts.items():
        log.info("version %d was asked about %s that are new to it", version, several(count, "radiograph"))
    if now.unlabelled:
        log.info("%s", now.unlabelled)
    end(now.in_words)
    return Looked(state.champion, counts.get(state.champion, 0), now.alarm, watching.untold(run, now))


def _to_ask(run: Run, registry: Registry, state: State) -> list[int]:
    """Return the champion, the challenger, and the version in shadow."""
    versions = in_charge(state)[::-1]
    try:
        turn = contender.in_turn(run, registry.ledger)
    except XrayError as error:
        log.warning("nothing is asked in shadow: %s", error)
    else:
        versions += [turn.version] if turn and turn.version not in versions else []
    return versions


def _look(
    run: Run,
    dataset: Dataset,
    candidate: Candidate,
    version: int,
    snapshot: Snapshot,
    rows: pd.DataFrame,
    progress: Progress | None,
) -> int:
    """Ask a version about what is new to it, keep the answers, and return how many radiographs that were."""
    store = run.store()
    learned = {*dataset.open_snapshot(candidate.snapshot).manifests, *prospective.whole(store, candidate.digest)}
    new = [key for key in snapshot.manifests if key not in learned]
    if not new:
        return 0
    unseen = rows[rows["delivery"].isin(new) & ~rows["patient"].isin(known_patients(dataset, candidate.digest))]
    model = loading.load(run.registry(), version)
    if model.digest != candidate.model_digest or model.classes != run.settings.classes:
        raise EvaluationError(f"version {version} is not the model that candidate.json names, or knows other classes")
    probabilities = scored(run, model, unseen, progress)
    committed = _committed(dataset)
    for key in new:
        here = (unseen["delivery"] == key).to_numpy()
        about = (candidate.digest, model.digest, key, snapshot.digest, committed[key])
        digests = list(unseen.loc[here, "digest"])
        prospective.keep(store, Said(*about, model.threshold, model.classes, digests, probabilities[here]))
    return len(unseen)


def _committed(dataset: Dataset) -> dict[str, str]:
    """Return when each delivery was committed."""
    written = {entry.key: entry.modified for entry in dataset.store.list("commits")}
    return {commit.manifest: records.moment(written[commit.place]) for commit in dataset.commits.manifests()}
