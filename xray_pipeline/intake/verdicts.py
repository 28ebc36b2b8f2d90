"""Verdicts on deliveries, kept in the store beside the intake table."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import pandas as pd

from xray_pipeline.base import records
from xray_pipeline.base.errors import AccessDenied, Damaged, DatasetError, DeliveryError, ObjectNotFound
from xray_pipeline.base.pages import without_pictures
from xray_pipeline.base.records import Plain
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import Store, open_store
from xray_pipeline.base.text import shortened
from xray_pipeline.dataset.erasing import Erased, Trace, hidden
from xray_pipeline.dataset.parquet import accounting, from_parquet, to_parquet
from xray_pipeline.dataset.revisions import CONFLICT, WITHDRAWN, part_of
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.intake import alarms, delivery_page, drift, expectations
from xray_pipeline.intake.alarms import NONE_ACKNOWLEDGED, Terms
from xray_pipeline.intake.deliveries import Delivery, Inventory
from xray_pipeline.intake.drift import Drift
from xray_pipeline.intake.labelled import UNLABELLED
from xray_pipeline.intake.places import PAGE, VERDICT, intake_key, judged
from xray_pipeline.intake.placing import briefly
from xray_pipeline.intake.tallies import near_copies

log = logging.getLogger(__name__)


AMENDABLE: Final = frozenset({CONFLICT, WITHDRAWN})
"""Reasons that an amendment may end."""


@dataclass(frozen=True)
class Intake:
    """The verdict on one delivery.

    `table` has one `Row` per file, sorted by file; `failures` are the sentences of failed expectations, `warnings` of
    those that don't reject a delivery; `result` is the Great Expectations outcome as JSON-able values; `page` is one
    self-contained HTML page; `drift` is None where it was not measured; `labels` is the SHA-256 of the label tables;
    `judged_after` and `amended` are as in `Checked`, "" where nobody knows.
    """

    delivery: Delivery
    table: pd.DataFrame
    fit: bool
    failures: tuple[str, ...]
    result: dict[str, Any]
    page: str
    warnings: tuple[str, ...] = ()
    drift: Drift | None = None
    labels: str = ""
    judged_after: str = ""
    amended: str = ""


@dataclass(frozen=True)
class Checked(Plain):
    """The verdict on one delivery, kept in the store beside its intake table and page.

    `rules` is the digest of all that it depends on beside the files and the dataset (`rules.judging_digest`), "" when
    it is to be made anew in any case. `table` is the SHA-256 of the intake table, "" without one. `amended` is the
    digest of what amendments said, where files were kept out that they could let in, else ""; `labels` likewise of the
    labels that people gave (`Labels.digest`) and of tables that lie outside deliveries. `label_tables` is the SHA-256
    of the tables that it was judged by, "" for none, and `labelled` says which they are (`placing.briefly`).
    `judged_after` is the state of the dataset (`commits.state_of`) that the rows were compared with.
    """

    key: str
    delivery: Mapping[str, Any]
    rules: str
    fit: bool
    accepted: int
    quarantined: Mapping[str, int]
    why: str
    warnings: tuple[str, ...] = ()
    table: str = ""
    amended: str = ""
    labels: str = ""
    label_tables: str = ""
    judged_after: str = ""
    labelled: str = ""


class MadeBy(NamedTuple):
    """What a verdict made now would depend on beside the files: each as in `Checked`."""

    rules: str
    amended: str
    labels: str
    judged_after: str = ""


def judge(
    inventory: Inventory,
    settings: Settings,
    terms: Terms = NONE_ACKNOWLEDGED,
    data_docs: Path | None = None,
) -> Intake:
    """Judge a delivery as a whole by its rows; `data_docs` is as in `expectations.validate`.

    Raises OSError when Data Docs can't be written.
    """
    delivery, table = inventory.delivery, inventory.table
    unlike = drift.of_table(table, inventory.reference, settings.rules)
    findings = expectations.validate(table, settings, unlike, terms.acknowledged, delivery.key, data_docs)
    broken = [finding for finding in findings if not finding.success]
    failures, warnings = (
        tuple(finding.complaint for finding in broken if finding.stops is stops) for stops in (True, False)
    )
    counts = accounting(table)
    result = {
        "delivery": delivery.key,
        "fingerprint": delivery.fingerprint,
        "rules": settings.rules.digest(),
        "success": not failures,
        "great_expectations": expectations.version(),
        "expectations": [asdict(finding) for finding in findings],
        "rows": len(table),
        "accepted": counts.pop("accepted", 0),
        "quarantined": counts,
        "near_copies": near_copies(table),
        "bookkeeping": list(inventory.bookkeeping),
        "labels": dict(inventory.labels),
        "drift": unlike.to_dict(),
    }
    page = delivery_page.page(inventory, findings, unlike, terms.holds_up)
    return Intake(
        delivery,
        table,
        not failures,
        failures,
        result,
        page,
        (*warnings, *inventory.notes),
        unlike,
        inventory.labels.get("digest", ""),
    )


def unjudged(store: Store, delivery: Delivery, by: MadeBy, error: DeliveryError) -> Checked:
    """Keep and return the verdict on a delivery that can't be judged at all."""
    key, rules = delivery.key, by.rules
    if isinstance(error.__cause__, AccessDenied):  # permissions are no part of a listing
        rules = ""
    result = Checked(key, asdict(delivery), rules, False, 0, {}, str(error), labels=by.labels)
    for name in ("table.parquet", "expectations.json", alarms.CHECKED):  # of other files
        store.delete(intake_key(key, name))
    store.write(intake_key(key, PAGE), delivery_page.unjudged(delivery, str(error)).encode())
    records.write(store, intake_key(key, VERDICT), result.to_dict())
    return result


def keep(store: Store, intake: Intake, by: MadeBy) -> Checked:
    """Keep and return the verdict on a delivery, in place of any before. Raises StorageError."""
    delivery, key = intake.delivery, intake.delivery.key
    contents = {
        "table.parquet": to_parquet(intake.table, {"delivery": delivery.name}),
        "expectations.json": records.canonical(intake.result) if intake.result else b"",
        PAGE: intake.page.encode(),
    }
    store.delete(intake_key(key, VERDICT))
    for name, content in contents.items():
        if content:
            store.write(intake_key(key, name), content)
        else:
            store.delete(intake_key(key, name))
    if intake.drift is None:
        store.delete(intake_key(key, alarms.CHECKED))
    alarms.keep(store, key, delivery.fingerprint, intake.drift)
    counts = accounting(intake.table)
    accepted, why = counts.pop("accepted", 0), " ".join(intake.failures)
    table = records.digest_of(contents["table.parquet"])
    about = (key, asdict(delivery), by.rules, intake.fit, accepted, counts, why, intake.warnings, table)
    amended = by.amended if AMENDABLE & counts.keys() else ""
    outside = intake.result.get("labels", {}).get("outside", False)
    labels = by.labels if set(UNLABELLED) & counts.keys() or outside else ""
    result = Checked(*about, amended, labels, intake.labels, by.judged_after, briefly(intake.result.get("labels", {})))
    records.write(store, intake_key(key, VERDICT), result.to_dict())
    return result


def stands(earlier: Checked, delivery: Delivery, by: MadeBy) -> bool:
    """Whether a verdict was made on these files, by these rules and, where they matter, amendments and labels."""
    same = (earlier.delivery["fingerprint"], earlier.rules) == (delivery.fingerprint, by.rules)
    return bool(by.rules) and same and earlier.amended in ("", by.amended) and earlier.labels in ("", by.labels)


def arriving(delivery: Delivery, settings: Settings) -> str:
    """Say that a delivery has not settled, and when it will."""
    ago = max(0.0, time.time() - delivery.changed)
    return (
        f"delivery {delivery.key} changed {ago:,.0f} s ago and may still be arriving; it is taken once it has not "
        f"changed for {settings.settle_seconds:,.0f} s (XRAY_SETTLE_SECONDS), or when an empty file _SUCCESS is put "
        f"into it"
    )


def checked(store: Store, key: str) -> Checked | None:
    """Return the kept verdict on a delivery, None when there is none, or a damaged one: it is judged anew then.

    Raises DatasetError for one of an unknown format.
    """
    try:
        return records.read(store, intake_key(key, VERDICT), Checked)
    except ObjectNotFound:
        return None
    except Damaged as error:
        log.warning("%s; it counts as not judged", error)
        return None


def checked_table(store: Store, verdict: Checked) -> pd.DataFrame:
    """Return the intake table that a verdict names. Raises DeliveryError when it is not there, DatasetError."""
    try:
        data = records.exactly(store, intake_key(verdict.key, "table.parquet"), verdict.table, VERDICT)
    except (Damaged, ObjectNotFound) as error:
        raise DeliveryError(f"{error}; or check it again") from error
    return from_parquet(data, f"intake table of {verdict.key}")


def rejected(settings: Settings) -> list[Checked]:
    """Return the verdicts on deliveries that were rejected and still lie where they were, by name.

    Raises StorageError.
    """
    committed, store = set(Dataset(settings).manifests()), open_store(settings.store, settings)
    waiting = [checked(store, key) for key in sorted(judged(store) - committed)]
    return [
        verdict
        for verdict in waiting
        if verdict and not verdict.fit and _holds_files(verdict.delivery["uri"], settings)
    ]


def _holds_files(uri: str, settings: Settings) -> bool:
    try:
        return any(open_store(uri, settings).list())
    except ObjectNotFound:  # a file took its place
        return False
    except AccessDenied:
        return True


def traces(store: Store, committed: Collection[str], erased: Erased) -> Iterator[Trace]:
    """Yield what is kept of deliveries that tells of what was erased: intake tables, and the pictures on their pages.

    What a table says stands in the manifest of a `committed` delivery (its key); any other is judged anew. Raises
    StorageUnavailable.
    """
    for key in sorted({entry.key.split("/")[1] for entry in store.list("intake")}):
        name, page = intake_key(key, "table.parquet"), intake_key(key, PAGE)
        try:
            table = from_parquet(store.read(name), f"intake table of {key}")
            if not erased.rows(table, part_of(key)[0]).any():
                continue
        except ObjectNotFound:
            continue
        except DatasetError as error:  # nobody knows what it tells of
            log.warning("%s", error)
        with contextlib.suppress(ObjectNotFound):
            shown = store.read(page).decode(errors="replace")
            if (bare := without_pictures(shown)) != shown:
                yield Trace(page, {page: bare.encode()})
        if key not in committed:
            yield Trace(intake_key(key, VERDICT))
        yield Trace(name)


def named(store: Store, committed: Collection[str], erased: Erased) -> set[str]:
    """Return the digests in intake tables, of deliveries that are not `committed` (keys), of what was erased: a commit
    that was killed may have stored it. Raises StorageUnavailable."""
    found = set()
    for key in sorted({entry.key.split("/")[1] for entry in store.list("intake")} - set(committed)):
        with contextlib.suppress(ObjectNotFound, DatasetError):
            table = from_parquet(store.read(intake_key(key, "table.parquet")), f"intake table of {key}")
            out = erased.rows(table, part_of(key)[0]) | hidden(table["file"]) | (table["reason"] == WITHDRAWN)
            found.update(table.loc[out, "digest"])
    return found


def in_words(result: Checked) -> str:
    """Say a verdict in one line of at most 120 characters: what became of the files, or why all are rejected."""
    if not result.fit:
        return shortened(f"Delivery {result.key} is rejected: {result.why}", 120)
    reasons = sorted(result.quarantined.items(), key=lambda counted: -counted[1])
    out = ", ".join(f"{count:,} {reason}" for reason, count in reasons)
    files = f"{result.accepted:,} files accepted, {sum(result.quarantined.values()):,} quarantined"
    said = f"Delivery {result.key} is fit: {files}"
    return shortened(f"{said} ({out})." if out else f"{said}.", 120)
