"""The evidence on a candidate: everything that the policy is applied to."""

from __future__ import annotations

import logging
import sys

import numpy as np

from xray_pipeline.base.errors import XrayError
from xray_pipeline.base.progress import Progress
from xray_pipeline.dataset.pixels import PixelCache
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.evaluation import prospective
from xray_pipeline.evaluation.slices import measured_slice, slices
from xray_pipeline.evaluation.stress import stress
from xray_pipeline.evaluation.watching import Promise, Standing
from xray_pipeline.gate.confidence import effective_uses
from xray_pipeline.gate.evidence import Evidence
from xray_pipeline.intake import alarms
from xray_pipeline.night import affected, lineage, watching
from xray_pipeline.night.pair import Pair
from xray_pipeline.night.run import Run
from xray_pipeline.registry.entries import Entry
from xray_pipeline.registry.mlflow_registry import Registry

log = logging.getLogger(__name__)


def evidence(run: Run, registry: Registry, both: Pair, progress: Progress | None = None) -> Evidence:
    """Measure a pair: metrics with intervals, the paired comparison, slices, stress. Raises EvaluationError."""
    measured = both.measured
    candidate, champion = (*measured.evaluations, None)[:2]
    return Evidence(
        candidate=candidate,
        champion=champion,
        champion_known=both.champion is not None,
        comparison=measured.comparison,
        snapshot=both.snapshot.digest,
        promotion=run.settings.promotion,
        earlier_uses=effective_uses(_compared_patients(registry, both.candidate.digest), measured.cases[0].count),
        slices=slices(both.rows, measured.cases, measured.resampling),
        stress=stress(
            [(model, PixelCache(run.settings.cache, model.side, model.fit)) for model in both.models],
            both.rows,
            Dataset(run.settings).read,
            run.store(),
            run.settings.stress_images,
            measured.resampling,
            progress,
        ),
        alarms=alarms.standing(run.store(), Dataset(run.settings).open_snapshot(both.candidate.snapshot).manifests),
        changed=_changed(run, registry, both),
        acknowledged=alarms.acknowledgements(run.store(), new_deliveries(run, registry, both)),
        withdrawn=affected.learned_withdrawn(run.settings, both.candidate.digest),
        watch=_standing(run, both),
        promise=Promise.of(measured.cases[0]),
    )


def _standing(run: Run, both: Pair) -> Standing | None:
    """Return the alarm about the champion of a pair, and both on the newest deliveries of its record; None where that
    can't be read: the policy has a clause for it.

    Only held-out patients: from the others the candidate may have learned.
    """
    try:
        watched = watching.watched(run)
    except XrayError as error:
        log.warning("whether an alarm about the champion stands is not known: %s", error)
        return None
    if both.champion is None or watched.champion != both.champion or not watched.alarm:
        return Standing("")
    most = watching.numbers(run).get("deliveries", 0)
    newest = [one.key for one in watched.deliveries[-int(most) :]]
    said = [one for one in prospective.read(run.store(), watched.candidate)[0] if one.delivery in newest]
    digests = {digest for one in said for digest in one.digests}
    places = np.flatnonzero(both.rows["digest"].isin(digests))
    if not len(places):
        return Standing(watched.alarm, len(newest))
    cases = [one.at(places) for one in both.measured.cases]
    recent = measured_slice("record", f"newest {len(newest)}", cases, both.measured.resampling)
    return Standing(watched.alarm, len(newest), recent)


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
    compared: list[int] = []
    for entry in registry.ledger.entries():
        if entry.kind in ("registered", "refused") and entry.candidate != candidate:
            compared.append(entry.decision["compared_patients"])
        elif entry.kind == "manual-change":
            compared += [sys.maxsize] * entry.decision.get("entries", 0)
    return compared


def new_deliveries(run: Run, registry: Registry, both: Pair) -> list[str]:
    """The deliveries that the candidate has learnt from and the champion has not."""
    dataset, entry = Dataset(run.settings), _champion_entry(registry, both)
    before = set(dataset.open_snapshot(entry.snapshot).manifests) if entry else set()
    return [key for key in dataset.open_snapshot(both.candidate.snapshot).manifests if key not in before]
