"""What a report shows, gathered from every room."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from xray_pipeline.base.errors import XrayError
from xray_pipeline.base.text import several, without_names
from xray_pipeline.dataset.parquet import accounting
from xray_pipeline.dataset.pixels import PixelCache
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.gate.evidence import Evidence
from xray_pipeline.gate.policy import Decision
from xray_pipeline.intake import alarms
from xray_pipeline.intake.verdicts import Checked, checked, rejected
from xray_pipeline.night import affected, lineage, review, tell_mlflow, watching
from xray_pipeline.night.gather import new_deliveries
from xray_pipeline.night.pair import Pair
from xray_pipeline.night.run import Run
from xray_pipeline.registry.mlflow_registry import Registry
from xray_pipeline.report import contents as report
from xray_pipeline.report import page
from xray_pipeline.report.examples import Example, examples, packed, unpacked
from xray_pipeline.report.places import CARD, EXAMPLES, PAGE, report_key
from xray_pipeline.training.candidate import Candidate

log = logging.getLogger(__name__)


def write_report(run: Run, registry: Registry, both: Pair, evidence: Evidence, decision: Decision) -> str:
    """Render the page and the model card, keep both in the store and with the MLflow run; return the page's key.

    The run gets the figures, too.

    Raises RegistryUnavailable, StorageUnavailable.
    """
    shown = compose(run, registry, both, evidence, decision)
    key = report_key(both.candidate.digest, both.champion)
    if evidence.candidate:
        tell_mlflow.tell(both, evidence.candidate, decision, key)
    for name, text in ((CARD, page.model_card(shown)), (PAGE, page.render(shown))):
        _keep(run, registry, both.candidate, both.champion, name, text)
    return key


def compose(run: Run, registry: Registry, both: Pair, evidence: Evidence, decision: Decision) -> report.Report:
    """Gather what the report on a pair shows."""
    dataset = Dataset(run.settings)
    disagreements, errors = explain(run, both)
    sides = dataset.rows(both.snapshot)["side"].value_counts()
    verdicts = {key: checked(run.store(), key) for key in new_deliveries(run, registry, both)}
    return report.Report(
        subject=_subject(run, registry, both),
        decision=decision,
        evidence=evidence,
        labels=both.rows["label"].tolist(),
        candidate=both.tables[0],
        champion=both.tables[1] if both.champion is not None else None,
        disagreements=disagreements,
        errors=errors,
        arrivals=_arrivals(run, registry, both, verdicts),
        dataset={str(side): int(count) for side, count in sides.items()},
        recipe=_values(lineage.recipe_of(run.store(), both.candidate.digest).model_dump()),
        lineage={**_lineage(run, both, decision), "label tables": _label_tables(verdicts)},
        suspects=_suspects(run, dataset, both),
        record=_record(run, both),
    )


def explain(run: Run, both: Pair) -> tuple[tuple[Example, ...], ...]:
    """Return what the models disagree on and the candidate's worst errors, as an earlier step of the night drew them.

    The pictures need both models, so the step that has them loaded is the one to ask first. Raises as `Pair.models`.
    """
    store, key = run.store(), report_key(both.candidate.digest, both.champion, EXAMPLES)
    about = (both.snapshot.digest, *both.model_digests())
    drawn = unpacked(store.read(key), about) if store.exists(key) else None
    if drawn is None:
        caches = [(model, PixelCache(run.settings.cache, model.side, model.fit)) for model in both.models]
        drawn = list(examples(caches, both.rows, both.tables, Dataset(run.settings).read))
        store.write(key, packed(drawn, about))
    return tuple(drawn)


def name_version(run: Run, registry: Registry, candidate: Candidate, champion: int | None, version: int) -> None:
    """Write the version that a candidate became into its page and card, if they are there. Raises as `write_report`."""
    for name in (CARD, PAGE):
        if run.store().exists(key := report_key(candidate.digest, champion, name)):
            text = page.with_version(run.store().read(key).decode(), version)
            _keep(run, registry, candidate, champion, name, text)


def _keep(run: Run, registry: Registry, candidate: Candidate, champion: int | None, name: str, text: str) -> None:
    """Keep a file with the MLflow run and then in the store: where the store's is, so is the other."""
    registry.attach(candidate.run_id, name, text if run.settings.mlflow_pictures else page.without_pictures(text))
    run.store().write(report_key(candidate.digest, champion, name), text.encode())


def _subject(run: Run, registry: Registry, both: Pair) -> report.Subject:
    state = registry.ledger.state()
    version = state.version_of(both.candidate.digest)
    now = datetime.fromtimestamp(run.store().clock(), UTC).strftime("%Y-%m-%d %H:%M")
    about = (run.settings.model_name, both.candidate.digest, version, both.champion, run.name, now, run.pages)
    serves = both.champion in (None, state.champion)
    return report.Subject(*about, report.IN_PRODUCTION if serves else f"version {both.champion}")


def _values(recipe: Mapping[str, Any]) -> dict[str, object]:
    """The values of a recipe as `--set` names them; what is left to the backbone says so."""
    shown: dict[str, object] = {}
    for name, value in recipe.items():
        if isinstance(value, dict):
            shown |= {f"{name}.{inner}": of_it for inner, of_it in value.items()}
        else:
            shown[name] = "the backbone's own" if value in (None, "") else value
    return shown


def _arrivals(
    run: Run, registry: Registry, both: Pair, verdicts: Mapping[str, Checked | None]
) -> tuple[report.Arrival, ...]:
    """The deliveries that the candidate's snapshot has and the champion's has not, by the `verdicts` on them, and those
    rejected and still there.

    `tonight`: no earlier decision has seen it.
    """
    dataset, last = Dataset(run.settings), _last_snapshot(registry, both)
    seen = set(dataset.open_snapshot(last).manifests) if last else set()
    arrivals = []
    for key, verdict in verdicts.items():
        counts = accounting(dataset.manifest(key))
        notes = (*(verdict.warnings if verdict else ()), *_standing(run, key))
        arrivals.append(report.Arrival(key, True, counts.pop("accepted", 0), counts, notes, tonight=key not in seen))
    for verdict in rejected(run.settings):
        notes = (without_names(verdict.why), *verdict.warnings)
        arrivals.append(report.Arrival(verdict.key, False, 0, verdict.quarantined, notes))
    return tuple(arrivals)


def _label_tables(verdicts: Mapping[str, Checked | None]) -> str:
    """Name the tables that new deliveries were labelled by; each manifest names those of its delivery."""
    tables = Counter(one.label_tables for one in verdicts.values() if one and one.label_tables)
    told = [
        f"SHA-256 {table[:12]} ({several(keys, 'new delivery', 'new deliveries')})" for table, keys in tables.items()
    ]
    return "; ".join(told) or "none in new deliveries: their folders or labels.csv say the class"


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
    """The suspects of the snapshot about which nobody has decided, the worst of each kind with its picture."""
    rows = dataset.rows(both.snapshot).set_index("digest", drop=False)
    listed = review.open_suspects(run.store(), both.snapshot.digest, rows["label"].to_dict())
    if listed is None:
        return None
    recipe = lineage.recipe_of(run.store(), both.candidate.digest)
    cache = PixelCache(run.settings.cache, recipe.side, recipe.fit)
    shown = []
    for kind in ("mislabel", "outlier"):
        worst = [suspect for suspect in listed if suspect.kind == kind]
        worst = worst[: report.SUSPECTS]
        part = rows.loc[[suspect.digest for suspect in worst]]
        cache.ensure(part, dataset.read)
        shown += list(zip(worst, cache.get(list(part["digest"])), strict=True))
    counts = {kind: sum(suspect.kind == kind for suspect in listed) for kind in ("mislabel", "outlier")}
    return report.Suspects(int((rows["side"] != "held-out").sum()), counts, tuple(shown))


def _record(run: Run, both: Pair) -> report.Record | None:
    """The record of the champion of a pair; None without one, for a version that is not in production, and where it
    can't be read: no report waits for that."""
    try:
        found = watching.watched(run)
    except XrayError as error:
        log.warning("the report has no section on the champion's record: %s", error)
        return None
    if both.champion is None or found.champion != both.champion:
        return None
    words = tuple(filter(None, (found.in_words, found.unlabelled)))
    newest = found.deliveries[-report.RECORDED :]
    return report.Record(words, bool(found.alarm), found.promised, newest, len(found.deliveries))


def _lineage(run: Run, both: Pair, decision: Decision) -> dict[str, str]:
    dataset = Dataset(run.settings)
    version, count = affected.champion_learned_withdrawn(run.settings)
    known = f"{count} radiographs" if count is not None else "nobody knows how many: not all is on record"
    learned = "nothing" if count == 0 else f"version {version}, the champion, learned from {known}"
    relabelled, withdrawn, back = dataset.since(both.snapshot)
    return {
        **lineage.facts(run.store(), both.candidate),
        "Airflow run": run.name or "none: from the command line",
        "asked by": run.who,
        "amended since the snapshot was made": f"{relabelled} of its radiographs relabelled, {withdrawn} withdrawn, "
        f"{back} brought back",
        "withdrawn by now": learned,
    }
