"""The steps of the night that need the network: a candidate is trained, and scored beside the champion.

They can be repeated, as those of intake_steps.py.
"""

from __future__ import annotations

import logging

from xray_pipeline.base import logs, records
from xray_pipeline.base.errors import XrayError
from xray_pipeline.base.progress import Progress
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.gate.evidence import FORMAT, evidence_key
from xray_pipeline.night import (
    compose_report,
    explain,
    gather,
    judging,
    kept_rows,
    lineage,
    repair,
    screening,
    tidy,
    unlabelled,
)
from xray_pipeline.night import pair as comparing
from xray_pipeline.night.run import Evaluated, Run, Trained, end
from xray_pipeline.registry import manual_changes
from xray_pipeline.registry.loading import Champions
from xray_pipeline.training import in_use
from xray_pipeline.training import train as training

log = logging.getLogger(__name__)


@repair.mending
def train(run: Run, snapshot: str, progress: Progress | None = None) -> Trained:
    """Train the candidate of a snapshot and the run's recipe, or find it trained. Raises TrainingError and its kin."""
    registry, dataset = run.registry(), Dataset(run.settings)
    manual_changes.reconcile(registry)  # a registry that can't be asked stops the night before hours of training
    kept_rows.drop_erased(dataset)
    kept = dataset.open_snapshot(snapshot)
    candidate = training.train(dataset, kept, run.recipe(), run.settings, Champions(registry), progress)
    if in_use.leaves(run.store(), candidate.digest):  # a tidying was killed; the candidate was trained anew
        tidy.settle(run, registry, candidate.digest)
    log.info("candidate %s: MLflow run %s", candidate.digest[:12], candidate.run_id)
    concluded = judging.concluded(run, candidate.digest)
    end(f"nothing new to decide: {concluded}" if concluded else f"candidate {candidate.digest[:12]} is trained")
    return Trained(candidate.digest, concluded)


@repair.mending
def evaluate(run: Run, trained: Trained, progress: Progress | None = None) -> Evaluated:
    """Score candidate and champion on the same held-out radiographs and keep the evidence in the store.

    Raises EvaluationError, RegistryError or ModelRefused when either can't be scored: never "the candidate wins".
    """
    logs.about(candidate=trained.candidate)
    registry = run.registry()
    state = manual_changes.reconcile(registry)
    champion = state.champion
    both = comparing.pair(run, registry, trained.candidate, champion, progress)
    screening.screen(run, both.snapshot, lineage.recipe_of(run.store(), trained.candidate), progress)
    found = gather.evidence(run, registry, both, progress)
    compose_report.explain(run, both)  # now that the models are loaded
    data = records.canonical({"format": FORMAT, **found.to_dict()})
    key = evidence_key(trained.candidate, records.digest_of(data))
    run.store().write(key, data)
    _for_review(run, both, progress)
    for name, measured in (("candidate", found.candidate), ("champion", found.champion)):
        if measured:
            values = judging.headline(measured)
            log.info("%s: %s; %d radiographs of %d patients", name, values, measured.n, measured.patients)
    figures = judging.in_short(found, champion)
    end(figures)
    return Evaluated(trained.candidate, key, champion, state.models(champion), figures)


def _for_review(run: Run, both: comparing.Pair, progress: Progress | None) -> None:
    """Draw what the page *Review* shows. No decision rests on it, so what can't be drawn is told in the log."""
    try:
        explain.draw(run, both, progress)
        unlabelled.rank(run, both.models[-1], progress)
    except XrayError as error:
        log.warning("what there is to review stays as it was: %s", error)
