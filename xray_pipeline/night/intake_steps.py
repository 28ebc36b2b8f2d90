"""The first steps of the night: deliveries are found, checked and committed.

Every step takes a `Run` (settings and recipe overrides) and the small outcome of the step before it, and can be
repeated: what it leaves behind is found again by digest.
Nothing here needs torch: the machine that checks deliveries may be a small one.
"""

from __future__ import annotations

import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any

from xray_pipeline.base import logs, records
from xray_pipeline.base.errors import DeliveryError
from xray_pipeline.base.progress import Progress, logged
from xray_pipeline.base.storage import open_store, require_folder
from xray_pipeline.dataset.commits import state_of
from xray_pipeline.dataset.parquet import accounting
from xray_pipeline.dataset.revisions import part_of
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.intake import alarms, deliveries, reconsider, verdicts
from xray_pipeline.intake import check as intakes
from xray_pipeline.intake.commit import commit
from xray_pipeline.intake.deliveries import Delivery, Reading
from xray_pipeline.intake.labelled import Labels
from xray_pipeline.intake.late import Late
from xray_pipeline.intake.places import VERDICT, intake_key
from xray_pipeline.intake.placing import version_outside
from xray_pipeline.intake.rules import judging_digest
from xray_pipeline.intake.verdicts import (
    Checked,
    Intake,
    MadeBy,
    checked,
    checked_table,
    in_words,
    keep,
    stands,
    unjudged,
)
from xray_pipeline.night import judging, repair
from xray_pipeline.night.identity import compare, vouch
from xray_pipeline.night.run import Committed, Run, end
from xray_pipeline.registry.ledger import Ledger

if TYPE_CHECKING:
    from xray_pipeline.dataset.history import History

log = logging.getLogger(__name__)


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
    found = _deliveries(run, dataset, left_out)
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
    end(f"{len(keys)} to check: {', '.join(keys)}" if keys else f"no new deliveries in {run.settings.incoming}")
    return keys


def _rejected_before(run: Run, deliveries: list[Delivery]) -> set[str]:
    store, dataset = run.store(), Dataset(run.settings)
    by = MadeBy(judging_digest(run.settings, dataset.patient_key()), dataset.amended().digest(), _labels(run))
    judged_before = ((delivery, checked(store, delivery.key)) for delivery in deliveries)
    return {d.key for d, verdict in judged_before if verdict and not verdict.fit and stands(verdict, d, by)}


@repair.mending
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
    state = state_of(dataset.finish())
    delivery, history = _delivery(run, dataset, key)
    arriving = "" if delivery.settled else verdicts.arriving(delivery, run.settings)
    if named and arriving:
        raise DeliveryError(arriving)
    earlier, patient_key = checked(store, key), dataset.patient_key()
    rules = "" if arriving else judging_digest(run.settings, patient_key)
    by = MadeBy(rules, history.amended.digest(), _labels(run), state)
    if earlier and not named and stands(earlier, delivery, by) and "unreadable" not in earlier.quarantined:
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
        result = unjudged(store, delivery, by, error)
    else:
        result = keep(store, intake, by)
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


@repair.mending
def commit_deliveries(run: Run, keys: list[str], progress: Progress | None = None) -> Committed:
    """Commit every delivery of `keys` that was found fit, in order, and name the snapshot.

    One whose files changed or went away since is left out and keeps no verdict, so that it is judged anew.
    """
    compare(run)
    store, dataset = run.store(), Dataset(run.settings)
    changed = []
    dataset.finish()
    rules = judging_digest(run.settings, dataset.patient_key())
    for key in keys:
        logs.about(delivery=key)
        verdict = checked(store, key)
        if verdict is None and key not in dataset.manifests():
            log.warning("delivery %s is not committed: it was not checked", key)
        if verdict is None or not verdict.fit:
            continue
        try:
            table = checked_table(store, verdict)
            intake = Intake(
                *(Delivery(**verdict.delivery), table, verdict.fit, (), {}, ""),
                labels=verdict.label_tables,
                judged_after=verdict.judged_after if verdict.rules == rules else "",
                amended=verdict.amended,
            )
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
    log.info("snapshot %s: %d radiographs of %d patients", snapshot.digest[:12], snapshot.images, snapshot.patients)
    counts = (snapshot.images, snapshot.patients, snapshot.held_out_images, snapshot.held_out_patients)
    return Committed(snapshot.digest, *counts, tuple(keys), tuple(changed))


def rejudge(run: Run, name: str, progress: Progress | None = None) -> dict[str, Any]:
    """Judge what is quarantined of a committed delivery anew, as `reconsider.rejudge` does and with what it raises."""
    compare(run)
    outcome = reconsider.rejudge(run.settings, name, progress, judging.alarms_hold_up(run.settings))
    vouch(run)
    return outcome


def _labels(run: Run) -> str:
    """Return a digest of the labels that people gave and of the tables that lie outside deliveries."""
    return records.digest_of(records.canonical([Labels(run.store()).digest(), version_outside(run.settings)]))


def _deliveries(run: Run, dataset: Dataset, left_out: list[str] | None) -> list[Delivery]:
    s, history = run.settings, dataset.history()
    late = Late(s, history, dataset.patient_key(), dataset.manifest)
    reading = Reading(s.classes, bool(s.labels), late.reopen)
    found = deliveries.find(open_store(s.incoming, s), history, s.settle_seconds, time.time(), reading, left_out)
    late.keep()
    return found


def _delivery(run: Run, dataset: Dataset, key: str) -> tuple[Delivery, History]:
    """Return a delivery that waits, and the history in which it is judged; no other is listed.

    Raises DeliveryError for none.
    """
    settings, history = run.settings, dataset.history()  # one for finding and judging it: it may be committed meanwhile
    name = part_of(key)[0]
    store = deliveries.folder_of(open_store(settings.incoming, settings), name)
    if store is not None:
        entries = deliveries.listing(store)
        history = Late(settings, history, dataset.patient_key(), dataset.manifest).reopen(history, name, store, entries)
        with contextlib.suppress(DeliveryError):
            delivery = deliveries.at(store.uri, settings, history, time.time())
            if delivery.key == key:
                return delivery, history
    raise DeliveryError(f"no delivery {key} waits in {settings.incoming}; is it committed already?")
