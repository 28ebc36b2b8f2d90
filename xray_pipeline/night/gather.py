"""The evidence on a candidate: everything that the policy is applied to."""

from __future__ import annotations

import sys

from xray_pipeline.base.progress import Progress
from xray_pipeline.dataset.pixels import PixelCache
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.evaluation import metrics as evaluation
from xray_pipeline.evaluation import slices, stress
from xray_pipeline.gate.evidence import Evidence
from xray_pipeline.gate.policy import effective_uses
from xray_pipeline.intake import alarms
from xray_pipeline.night import lineage, screening
from xray_pipeline.night.pair import Pair
from xray_pipeline.night.run import Run
from xray_pipeline.registry.ledger import Entry
from xray_pipeline.registry.mlflow_registry import Registry


def evidence(run: Run, registry: Registry, both: Pair, progress: Progress | None = None) -> Evidence:
    """Measure a pair: metrics with intervals, the paired comparison, slices, stress. Raises EvaluationError."""
    labels, patients, classes = both.rows["label"].tolist(), both.rows["patient"].tolist(), run.settings.classes
    resamples = run.settings.bootstrap
    screening.screen(run, both.snapshot, lineage.recipe_of(run.store(), both.candidate.digest))
    found = [
        evaluation.evaluate(
            table,
            labels,
            patients,
            classes,
            model.threshold,
            resamples=resamples,
            model_digest=model.digest,
            snapshot=both.snapshot.digest,
        )
        for model, table in zip(both.models, both.tables, strict=True)
    ]
    cuts = (both.models[0].threshold, both.models[-1].threshold)
    digests = (both.models[0].digest, both.models[-1].digest)
    theirs = both.tables[1] if both.champion is not None else None
    comparison = None
    if theirs is not None:
        comparison = evaluation.compare(
            both.tables[0], theirs, labels, patients, classes, cuts, resamples=resamples, digests=digests
        )
    return Evidence(
        candidate=found[0],
        champion=found[1] if theirs is not None else None,
        champion_known=both.champion is not None,
        comparison=comparison,
        snapshot=both.snapshot.digest,
        promotion=run.settings.promotion,
        earlier_uses=effective_uses(_compared_patients(registry, both.candidate.digest), found[0].patients),
        slices=slices.slices(both.rows, both.tables[0], theirs, classes, cuts, resamples=resamples),
        stress=stress.stress(
            [(model, PixelCache(run.settings.cache, model.side)) for model in both.models],
            both.rows,
            [model.threshold for model in both.models],
            Dataset(run.settings).read,
            run.store(),
            limit=run.settings.stress_images,
            resamples=resamples,
            progress=progress,
        ),
        alarms=alarms.standing(run.store(), both.snapshot.manifests),
        changed=_changed(run, registry, both),
        acknowledged=alarms.settled(run.store(), _new_deliveries(run, registry, both)),
    )


def _changed(run: Run, registry: Registry, both: Pair) -> tuple[str, ...] | None:
    entry = _champion_entry(registry, both)
    return lineage.changed(run.store(), both.candidate, entry.candidate) if entry else None


def _champion_entry(registry: Registry, both: Pair) -> Entry | None:
    """The entry that registered the champion; None without a champion, and for one that the ledger does not know."""
    return registry.ledger.state().registered.get(both.champion) if both.champion is not None else None


def _compared_patients(registry: Registry, candidate: str) -> list[int]:
    """How many held-out patients each earlier comparison looked at; the candidate's own does not count against it.

    Each entry that the ledger lost counts as one that looked at all.
    """
    found: list[int] = []
    for entry in registry.ledger.entries():
        if entry.kind in ("registered", "refused") and entry.candidate != candidate:
            found.append(entry.decision["compared_patients"])
        elif entry.kind == "manual-change":
            found += [sys.maxsize] * entry.decision.get("entries", 0)
    return found


def _new_deliveries(run: Run, registry: Registry, both: Pair) -> list[str]:
    """The deliveries that the candidate's snapshot has and the champion's has not."""
    entry = _champion_entry(registry, both)
    before = set(Dataset(run.settings).open_snapshot(entry.snapshot).manifests) if entry else set()
    return [key for key in both.snapshot.manifests if key not in before]
