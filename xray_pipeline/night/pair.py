"""Candidate and champion on the same held-out radiographs: the evidence, and after the decision the report.

Both models are loaded from the registry's artifacts, audited, with this package's own code. Predictions are kept in the
store, so looking at the same pair again scores nothing.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass

import numpy as np
import pandas as pd

from xray_pipeline.base.errors import EvaluationError
from xray_pipeline.dataset.pixels import PixelCache
from xray_pipeline.dataset.store import Dataset, Progress, Snapshot, accounting
from xray_pipeline.evaluation import metrics as evaluation
from xray_pipeline.evaluation import predictions, slices, stress
from xray_pipeline.gate.evidence import Evidence
from xray_pipeline.gate.policy import Decision, effective_uses
from xray_pipeline.intake import alarms
from xray_pipeline.models.bundle import Classifier
from xray_pipeline.night import lineage, rehearsal, screening
from xray_pipeline.night.rehearsal import Rehearsal
from xray_pipeline.night.steps import Run, checked, rejected
from xray_pipeline.registry.ledger import Entry
from xray_pipeline.registry.mlflow_registry import Registry
from xray_pipeline.report import examples
from xray_pipeline.report import page as report
from xray_pipeline.training import candidate as training
from xray_pipeline.training.candidate import Candidate
from xray_pipeline.training.features import kept_scorer


@dataclass(frozen=True, eq=False)
class Pair:
    """A candidate beside the champion: `models` and `tables` (probabilities [N, C] of `rows`) have it first, the
    champion, if there is one, second."""

    candidate: Candidate
    champion: int | None
    snapshot: Snapshot
    rows: pd.DataFrame
    models: list[Classifier]
    tables: list[np.ndarray]


def pair(run: Run, registry: Registry, digest: str, champion: int | None, progress: Progress | None = None) -> Pair:
    """Load both models and score them on the held-out radiographs of the candidate's snapshot.

    Raises EvaluationError when there are none or the models know other classes, RegistryError, ModelRefused,
    DatasetError.
    """
    store, dataset = run.store(), Dataset(run.settings)
    candidate = training.find_candidate(store, digest)
    snapshot = dataset.open_snapshot(candidate.snapshot)
    rows = dataset.rows(snapshot)
    rows = rows[rows["side"] == "held-out"].reset_index(drop=True)
    if rows.empty:
        raise EvaluationError(f"snapshot {snapshot.digest[:12]} has no held-out radiographs; deliver more patients")
    logged = registry.resolve(candidate.model_uri)
    if logged.tags.get("xray.candidate", digest) != digest:
        raise EvaluationError(f"{logged.uri} is not a model of candidate {digest[:12]}; see its candidate.json")
    models = [registry.load_exactly(logged, candidate.model_digest)]
    if champion is not None:
        models.append(registry.load(champion))
    tables = []
    for model in models:
        if model.classes != run.settings.classes:
            raise EvaluationError(
                f"model {model.digest[:12]} knows classes {model.classes}, the dataset {run.settings.classes}"
            )
        if kept := kept_scorer(model, run.settings):
            scores = predictions.score(kept, rows, kept, dataset.read, store, progress)
        else:
            cache = PixelCache(run.settings.cache, model.side)
            scores = predictions.score(model, rows, cache, dataset.read, store, progress)
        tables.append(scores[[f"p_{name}" for name in model.classes]].to_numpy())
    return Pair(candidate, champion, snapshot, rows, models, tables)


def sample(run: Run, registry: Registry, digest: str, count: int) -> tuple[pd.DataFrame, np.ndarray, Dataset]:
    """Return `count` held-out rows of a candidate's snapshot, spread over it, what it said of them [count, C], and
    the dataset that holds them. Raises as `pair` does."""
    both = pair(run, registry, digest, None)
    chosen = np.unique(np.linspace(0, len(both.rows) - 1, count).astype(int))
    return both.rows.iloc[chosen], both.tables[0][chosen], Dataset(run.settings)


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


def rehearse(run: Run, registry: Registry, candidate: Candidate) -> Rehearsal:
    """Check that the logged model answers in a fresh process as evaluated. Raises ModelRefused, and as `pair`."""
    rows, expected, dataset = sample(run, registry, candidate.digest, rehearsal.RADIOGRAPHS)
    files = [dataset.read(row.digest, row.suffix) for row in rows.itertuples()]
    return rehearsal.rehearse(registry.download(candidate.model_uri), files, expected, run.settings.classes)


def write_report(run: Run, registry: Registry, both: Pair, found: Evidence, decision: Decision) -> str:
    """Render the page and the model card, keep both in the store and with the MLflow run; return the page's key.

    Raises RegistryUnavailable, StorageUnavailable.
    """
    dataset = Dataset(run.settings)
    caches = [(model, PixelCache(run.settings.cache, model.side)) for model in both.models]
    disagreements, errors = examples.examples(caches, both.rows, both.tables, dataset.read)
    sides = dataset.rows(both.snapshot)["side"].value_counts()
    recipe = lineage.recipe_of(run.store(), both.candidate.digest).model_dump()
    shown = report.Report(
        model_name=run.settings.model_name,
        decision=decision,
        evidence=found,
        labels=both.rows["label"].tolist(),
        candidate=both.tables[0],
        champion=both.tables[1] if both.champion is not None else None,
        disagreements=disagreements,
        errors=errors,
        arrivals=_arrivals(run, registry, both),
        dataset={str(side): int(count) for side, count in sides.items()},
        recipe=recipe,
        lineage=_lineage(run, both, decision),
        suspects=_suspects(run, dataset, both),
    )
    folder = f"reports/{both.candidate.digest}/against-{both.champion or 'none'}"
    # The store's page last: where it is of this decision, so are the others.
    for name, text in (("model-card.md", report.model_card(shown)), ("report.html", report.render(shown))):
        registry.attach(both.candidate.run_id, name, text)
        run.store().write(f"{folder}/{name}", text.encode())
    return f"{folder}/report.html"


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


def _arrivals(run: Run, registry: Registry, both: Pair) -> tuple[report.Arrival, ...]:
    """The deliveries that the candidate's snapshot has and the champion's has not, and those rejected and still there.

    `tonight`: no earlier decision has seen it.
    """
    store, dataset, last = run.store(), Dataset(run.settings), _last_snapshot(registry, both)
    seen = set(dataset.open_snapshot(last).manifests) if last else set()
    found = []
    for key in _new_deliveries(run, registry, both):
        verdict, counts = checked(store, key), accounting([dataset.manifest(key)])
        notes = (*(verdict.warnings if verdict else ()), *_standing(run, key))
        found.append(report.Arrival(key, True, counts.pop("accepted", 0), counts, notes, tonight=key not in seen))
    for verdict in rejected(run):
        notes = (without_names(verdict.why), *verdict.warnings)
        found.append(report.Arrival(verdict.key, False, 0, verdict.quarantined, notes))
    return tuple(found)


def _new_deliveries(run: Run, registry: Registry, both: Pair) -> list[str]:
    """The deliveries that the candidate's snapshot has and the champion's has not."""
    entry = _champion_entry(registry, both)
    before = set(Dataset(run.settings).open_snapshot(entry.snapshot).manifests) if entry else set()
    return [key for key in both.snapshot.manifests if key not in before]


def without_names(why: str) -> str:
    """Return a sentence on a delivery without what it quotes: a folder or a label may be a patient's name."""
    return re.sub(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", "'...'", why)


def _last_snapshot(registry: Registry, both: Pair) -> str:
    """The snapshot of the newest decision on another candidate, "" before any; datasets only grow, so it has all."""
    decided = [
        entry
        for entry in registry.ledger.entries()
        if entry.kind in ("registered", "refused") and entry.candidate != both.candidate.digest
    ]
    return decided[-1].snapshot if decided else ""


def _standing(run: Run, key: str) -> tuple[str, ...]:
    names = alarms.of_delivery(run.store(), key)
    return (f"Drift alarm nobody acknowledged: {', '.join(names)}.",) if names else ()


def _suspects(run: Run, dataset: Dataset, both: Pair) -> report.Suspects | None:
    """The suspects of the snapshot, the worst of each kind with its picture."""
    listed = screening.listed(run.store(), both.snapshot.digest)
    if listed is None:
        return None
    rows = dataset.rows(both.snapshot).set_index("digest", drop=False)
    cache = PixelCache(run.settings.cache, both.models[0].side)
    shown = []
    for kind in ("mislabel", "outlier"):
        worst = [suspect for suspect in listed if suspect.kind == kind and suspect.digest in rows.index]
        worst = worst[: report.SUSPECTS]
        part = rows.loc[[suspect.digest for suspect in worst]]
        cache.ensure(part, dataset.read)
        shown += list(zip(worst, cache.get(list(part["digest"])), strict=True))
    counts = {kind: sum(suspect.kind == kind for suspect in listed) for kind in ("mislabel", "outlier")}
    return report.Suspects(int((rows["side"] != "held-out").sum()), counts, tuple(shown))


def _lineage(run: Run, both: Pair, decision: Decision) -> dict[str, str]:
    return {
        **lineage.facts(run.store(), both.candidate),
        "Airflow run": run.name or "none: from the command line",
        "asked by": run.who,
        "champion": f"version {both.champion}" if both.champion else "none",
    }
