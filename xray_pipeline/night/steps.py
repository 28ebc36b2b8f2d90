"""The steps of the night in order, each callable from a DAG task, the command line and a test.

Every step takes a `Run` (settings and recipe overrides) and the small outcome of the step before it, and can be
repeated: what it leaves behind is found again by digest.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from xray_pipeline.base import logs, records
from xray_pipeline.base.errors import DeliveryError, RegistryError
from xray_pipeline.base.progress import Progress, logged
from xray_pipeline.base.storage import open_store, require_folder
from xray_pipeline.base.text import shortened
from xray_pipeline.dataset.parquet import accounting
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.gate.evidence import FORMAT, evidence_key
from xray_pipeline.intake import alarms, deliveries, reconsider, verdicts
from xray_pipeline.intake import check as intakes
from xray_pipeline.intake.commit import commit
from xray_pipeline.intake.deliveries import Delivery
from xray_pipeline.intake.places import VERDICT, intake_key
from xray_pipeline.intake.rules import judging_digest
from xray_pipeline.intake.verdicts import (
    Checked,
    Intake,
    checked,
    checked_table,
    in_words,
    keep,
    stands,
    unjudged,
)
from xray_pipeline.night import compose_report, gather, judging, lineage, repair, screening, trial
from xray_pipeline.night import pair as comparing
from xray_pipeline.night.identity import compare, vouch
from xray_pipeline.night.run import Committed, Decided, Evaluated, Promoted, Registered, Run, Trained
from xray_pipeline.registry import decisions as operations
from xray_pipeline.registry import manual_changes
from xray_pipeline.registry.ledger import Ledger
from xray_pipeline.training import candidate as training

if TYPE_CHECKING:
    from xray_pipeline.dataset.history import History

log = logging.getLogger(__name__)

LINE = 120  # columns that a log shows without folding a line


def find_deliveries(run: Run, left_out: list[str] | None = None) -> list[str]:
    """Return the keys of settled deliveries that hold files the dataset has not seen, oldest name first.

    What lies beside them and is none is said in `left_out`, else in the log.

    At most `settings.max_deliveries`, so that the list stays small; the next run takes the rest. Those that were
    rejected and have not changed come in where there is room, so that they keep no other out. Raises
    StorageUnavailable when the incoming folder is missing: that is not an empty one.
    """
    require_folder(run.settings.incoming)
    compare(run)
    Ledger(run.store()).entries()  # one that this version can't read stops the night before anything is written
    dataset = Dataset(run.settings)
    dataset.finish()
    found = _deliveries(run, dataset.history(), left_out)
    for delivery in found:
        if not delivery.settled:
            log.info("delivery %s is still arriving: %d files; next time", delivery.key, delivery.files)
    settled = [delivery for delivery in found if delivery.settled]
    for delivery in settled:
        log.info("delivery %s: %d new files, %.1f MB", delivery.key, delivery.files, delivery.bytes / 1e6)
    limit = run.settings.max_deliveries
    if len(settled) > limit:
        log.warning("%d deliveries wait; this run takes %d", len(settled), limit)
        rejected = _rejected_before(run, settled)
        settled = sorted(settled, key=lambda delivery: delivery.key in rejected)[:limit]
    keys = [delivery.key for delivery in sorted(settled, key=lambda delivery: delivery.name)]
    _end(f"{len(keys)} to check: {', '.join(keys)}" if keys else f"no new deliveries in {run.settings.incoming}")
    return keys


def _rejected_before(run: Run, deliveries: list[Delivery]) -> set[str]:
    store, rules = run.store(), judging_digest(run.settings, Dataset(run.settings).patient_key())
    judged_before = ((delivery, checked(store, delivery.key)) for delivery in deliveries)
    return {d.key for d, verdict in judged_before if verdict and not verdict.fit and stands(verdict, d, rules)}


def check_delivery(run: Run, key: str, progress: Progress | None = None, *, named: bool = False) -> Checked:
    """Judge a delivery and keep the result in the store.

    One that has not changed is judged once, while rules, classes, split and code stay the same; one that a person
    `named` is judged in any case, and so is one with unreadable files, as permissions are no part of a listing. A
    delivery that can't be judged at all (an unknown class, say) is rejected with that reason. Raises DeliveryError when
    `key` is no waiting delivery, or is a named one that has not settled, DatasetError, StorageError.
    """
    logs.about(delivery=key)
    compare(run)
    store, dataset = run.store(), Dataset(run.settings)
    dataset.finish()
    history = dataset.history()  # one for finding and judging it: it may be committed meanwhile
    delivery = next((d for d in _deliveries(run, history, []) if d.key == key), None)
    if delivery is None:
        raise DeliveryError(f"no delivery {key} waits in {run.settings.incoming}; is it committed already?")
    arriving = "" if delivery.settled else verdicts.arriving(delivery, run.settings)
    if named and arriving:
        raise DeliveryError(arriving)
    earlier, patient_key = checked(store, key), dataset.patient_key()
    rules = "" if arriving else judging_digest(run.settings, patient_key)
    if earlier and not named and stands(earlier, delivery, rules) and "unreadable" not in earlier.quarantined:
        log.info("judged before, and nothing has changed since")
        log.info("%s", in_words(earlier))
        return earlier
    store.delete(intake_key(key, VERDICT))  # a verdict on other files must not outlive this task's death
    try:
        if arriving:  # it grew since it was found
            raise DeliveryError(arriving)
        terms = alarms.Terms(
            alarms.acknowledged(store, key, delivery.fingerprint), judging.alarms_hold_up(run.settings)
        )
        intake = intakes.check(delivery, run.settings, history, patient_key, progress or logged(log), terms)
        repair.heal(dataset, open_store(delivery.uri, run.settings), intake.table, history.labels)
    except DeliveryError as error:
        if key in dataset.manifests():
            if earlier and earlier.fit:  # it was taken away above
                records.write(store, intake_key(key, VERDICT), earlier.to_dict(), if_absent=True)
            raise DeliveryError(f"delivery {key} was committed by another run meanwhile") from error
        result = unjudged(store, delivery, rules, error)
    else:
        result = keep(store, intake, rules)
    _tell(run, result)
    return result


def _tell(run: Run, result: Checked) -> None:
    """Log what a check found; the last line is the verdict."""
    said = in_words(result)
    whole = [result.why] if said.endswith("…") and not result.fit else []
    for line in (*whole, *result.warnings):
        log.info("%s", line)
    for line in alarms.lines(run.store(), [result.key], judging.alarms_hold_up(run.settings)):
        log.warning("%s", line)
    log.info("%s", said)


def check_deliveries(
    run: Run, keys: list[str], progress: Progress | None = None, *, named: bool = False
) -> list[Checked]:
    """Judge deliveries one after another, as `check_delivery` does and with what it raises.

    One that another run commits meanwhile stops no other; the verdict on it is that of its manifest.
    """
    dataset, found = Dataset(run.settings), []
    before = dataset.manifests() if named else []
    for key in keys:
        try:
            found.append(check_delivery(run, key, progress, named=named))
        except DeliveryError:
            if key in before or key not in dataset.manifests():
                raise
            counts = accounting(dataset.manifest(key))
            accepted, said = counts.pop("accepted", 0), "It was committed by another run meanwhile."
            found.append(Checked(key, {}, "", True, accepted, counts, "", (said,)))
    return found


def commit_deliveries(run: Run, keys: list[str], progress: Progress | None = None) -> Committed:
    """Commit every delivery of `keys` that was found fit, in order, and name the snapshot.

    One whose files changed or went away since is left out and keeps no verdict, so that it is judged anew.
    """
    compare(run)
    store, dataset = run.store(), Dataset(run.settings)
    changed = []
    dataset.finish()
    for key in keys:
        logs.about(delivery=key)
        verdict = checked(store, key)
        if verdict is None and key not in dataset.manifests():
            log.warning("delivery %s is not committed: it was not checked", key)
        if verdict is None or not verdict.fit:
            continue
        try:
            table = checked_table(store, verdict)
            intake = Intake(Delivery(**verdict.delivery), table, verdict.fit, (), {}, "")
            manifest = commit(dataset, intake, progress or logged(log))
        except DeliveryError as error:
            if key in dataset.manifests():  # by another run, before the change
                continue
            store.delete(intake_key(key, VERDICT))
            log.error("delivery %s is not committed: %s", key, error)
            changed.append(key)
            continue
        log.info("delivery %s is committed: %d accepted, %d quarantined", key, manifest.accepted, manifest.quarantined)
    logs.about()
    vouch(run)
    snapshot = dataset.snapshot()
    if snapshot is None:
        log.info("the dataset is empty: no delivery was ever accepted")
        return Committed("", 0, 0, 0, 0, changed=tuple(changed))
    rows = dataset.rows(snapshot)
    held_out = rows[rows["side"] == "held-out"]
    log.info("snapshot %s: %d radiographs of %d patients", snapshot.digest[:12], snapshot.images, snapshot.patients)
    held_out_patients, taken = held_out["patient"].nunique(), (tuple(keys), tuple(changed))
    return Committed(snapshot.digest, snapshot.images, snapshot.patients, len(held_out), held_out_patients, *taken)


def rejudge(run: Run, name: str, progress: Progress | None = None) -> dict[str, Any]:
    """Judge what is quarantined of a committed delivery anew, as `reconsider.rejudge` does and with what it raises."""
    compare(run)
    outcome = reconsider.rejudge(run.settings, name, progress, judging.alarms_hold_up(run.settings))
    vouch(run)
    return outcome


@repair.mending
def train(run: Run, snapshot: str, progress: Progress | None = None) -> Trained:
    """Train the candidate of a snapshot and the run's recipe, or find it trained. Raises TrainingError and its kin."""
    registry, dataset = run.registry(), Dataset(run.settings)
    manual_changes.reconcile(registry)  # a registry that can't be asked stops the night before hours of training
    kept = dataset.open_snapshot(snapshot)
    candidate = training.train(dataset, kept, run.recipe(), run.settings, registry, progress)
    log.info("candidate %s: MLflow run %s", candidate.digest[:12], candidate.run_id)
    concluded = judging.concluded(run, candidate.digest)
    _end(f"nothing new to decide: {concluded}" if concluded else f"candidate {candidate.digest[:12]} is trained")
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
    for name, measured in (("candidate", found.candidate), ("champion", found.champion)):
        if measured:
            values = judging.headline(measured)
            log.info("%s: %s; %d radiographs of %d patients", name, values, measured.n, measured.patients)
    figures = judging.in_short(found, champion)
    _end(figures)
    return Evaluated(trained.candidate, key, champion, state.models(champion), figures)


@repair.mending
def decide(run: Run, evaluated: Evaluated) -> Decided:
    """Apply the policy to the evidence and write the report; a refusal is recorded in the ledger.

    Raises ConfigError, LedgerError, and what `evaluate` raises.
    """
    logs.about(candidate=evaluated.candidate)
    (evidence, decision), registry = judging.judged(run, evaluated.evidence), run.registry()
    judging.expect_same(registry, evaluated.models)
    both = comparing.pair(run, registry, evaluated.candidate, evaluated.champion)
    page = compose_report.write_report(run, registry, both, evidence, decision)
    log.info("report: %s in %s", page, run.settings.store)
    for reason in decision.reasons:
        log.info("%s", reason)
    if decision.verdict == "refused":
        operations.refuse(
            registry,
            training.find_candidate(run.store(), evaluated.candidate),
            who=run.who,
            why=" ".join(decision.reasons),
            decision=judging.recorded(evidence, decision, evaluated.evidence),
            champion_before=evaluated.champion,
        )
    _end(" ".join(decision.reasons[:2]))
    about = (evaluated.candidate, evaluated.evidence, evaluated.champion, evaluated.models)
    return Decided(*about, decision.verdict, decision.automatic, decision.reasons)


@repair.mending
def register(run: Run, decided: Decided) -> Registered:
    """Make the candidate a version with alias `challenger`, once, after its logged model gave the same answers again.

    Raises LostRace, RegistryError, ModelRefused.
    """
    logs.about(candidate=decided.candidate)
    (evidence, decision), registry = judging.judged(run, decided.evidence), run.registry()
    judging.expect_same(registry, decided.models)
    candidate = training.find_candidate(run.store(), decided.candidate)
    tried = trial.try_candidate(run, registry, candidate)
    why = " ".join(decision.reasons)
    entry = operations.register(
        registry,
        candidate,
        who=run.who,
        why=why,
        decision={**judging.recorded(evidence, decision, decided.evidence), "trial": asdict(tried)},
        champion_before=decided.champion,
        tags={"xray.recipe": candidate.recipe, "xray.policy": decision.policy},
    )
    if entry.version is None:
        raise RegistryError(f"ledger entry {entry.sequence} registered no version")
    compose_report.name_version(run, registry, candidate, decided.champion, entry.version)
    waits = "" if decision.automatic else f"version {entry.version} waits as challenger: {judging.why_waits(decision)}"
    models = registry.ledger.state().models(entry.version, decided.champion)
    _end(waits or f"version {entry.version} is registered; the policy promotes it without asking a person")
    return Registered(candidate.digest, decided.evidence, decided.champion, models, entry.version, waits)


@repair.mending
def promote(run: Run, registered: Registered) -> Promoted:
    """Make the version the champion, with the policy's consent instead of a person's, after the model server was tried.

    Raises LostRace and its kin, EvaluationError when the server on the version answers otherwise than was judged.
    """
    logs.about(candidate=registered.candidate)
    (evidence, decision), registry = judging.judged(run, registered.evidence), run.registry()
    judging.expect_same(registry, registered.models)
    # By this name a repeat finds its entry: it must not undo a rollback that came since.
    request = f"auto {registered.version} over {registered.champion}"
    if not registry.ledger.state().asked("promoted", request):
        trial.try_version(run, registered.candidate, registered.version)
    entry = operations.promote(
        registry,
        registered.version,
        who=run.who,
        why=" ".join(decision.reasons),
        expected_champion=registered.champion,
        decision=judging.recorded(evidence, decision, registered.evidence),
        request=request,
    )
    before = f"in place of version {registered.champion}" if registered.champion else "the first one"
    _end(f"version {registered.version} is the champion, {before}")
    return Promoted(registered.version, entry.sequence, entry.candidate, entry.artifact)


def _end(text: str) -> None:
    """Log the sentence that a step ends with, for whoever reads the last line of a task's log and no more."""
    log.info("%s", shortened(text, LINE))


def _deliveries(run: Run, history: History, left_out: list[str] | None) -> list[Delivery]:
    incoming = open_store(run.settings.incoming, run.settings)
    s = run.settings
    return deliveries.find(incoming, history, s.settle_seconds, time.time(), s.classes, left_out)
