"""One delivery to an intake table: a row per file, each accepted or quarantined with a reason.

A delivery is only listed and read, never changed, and nothing in it is believed: links are not followed, content and
not the name decides a file's format, and what a folder or labels.csv says of a file is checked against what the dataset
knows. Files are read and decoded by a pool of threads; only a row of each is kept, so memory follows the number of
threads and the largest file, plus about 4 kB per file. The trade-off: a file that is accepted is read a second
time when it is committed, which also proves that it did not change in between.

Rows are named by their number in the table, from 0, in order of the file's path: in messages and on the page a path is
never shown, because it may name a patient.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pandas as pd

from xray_pipeline.base.errors import DeliveryError
from xray_pipeline.base.progress import Progress
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import open_store
from xray_pipeline.dataset.history import History, Seen
from xray_pipeline.dataset.table import Row, by_file, of_rows
from xray_pipeline.intake.alarms import NONE_ACKNOWLEDGED, Terms
from xray_pipeline.intake.conflicts import mark_conflicts
from xray_pipeline.intake.deliveries import Delivery, Inventory, fingerprint_of, listing, unseen
from xray_pipeline.intake.drift import MOST_KNOWN
from xray_pipeline.intake.label_mapping import LABELS
from xray_pipeline.intake.labelled import Labels
from xray_pipeline.intake.layout import bookkeeping, escape, is_litter
from xray_pipeline.intake.placing import NO_LABEL, Source, in_words, places
from xray_pipeline.intake.rules import NOT_COUNTED, UNREAD
from xray_pipeline.intake.scan import Reader, journal_of, scan, still_there
from xray_pipeline.intake.verdicts import Intake, judge

_MOST_ABSENT: Final = 10_000  # files that labels.csv names in vain and that get a row, where they reject the delivery


def check(
    delivery: Delivery,
    settings: Settings,
    history: History,
    patient_key: bytes,
    progress: Progress | None = None,
    terms: Terms = NONE_ACKNOWLEDGED,
    data_docs: Path | None = None,
) -> Intake:
    """Read and judge every new file of a delivery; `terms` say what a drift alarm of it means.

    Writes nothing but the journal that the scan of a large delivery keeps in `settings.cache` until it is through, and
    Great Expectations' Data Docs into the folder `data_docs` when that is given.
    Raises DeliveryError when the delivery can't be judged as a whole (unknown class, unreadable labels.csv, changed
    since it was found), StorageError when its store does not answer, ConfigError.
    """
    store = open_store(delivery.uri, settings)
    entries = listing(store)
    seen = history.seen(delivery.name)[1]
    mapped = bool(settings.labels)
    new = unseen(entries, seen, mapped)
    if fingerprint_of(new, entries, mapped) != delivery.fingerprint:
        raise DeliveryError(f"delivery {delivery.key} changed since it was found; it is judged once it has settled")
    source = Source(store, settings, patient_key, f"delivery {delivery.key}")
    said = places(source, entries)
    odd = said.notes
    # Once, by the first part that missed it.
    absent = [name for name in map(escape, said.missing) if (name, 0, "") not in seen]
    if len(absent) > max(_MOST_ABSENT, settings.rules.max_quarantined_share * (len(absent) + len(new))):
        raise DeliveryError(
            f"{LABELS} of delivery {delivery.key} names {len(absent):,} files that are not in it, beside {len(new):,} "
            f"that are; deliver them with it, or leave their lines out"
        )
    reader = Reader(source, patient_key, said, Labels(open_store(settings.store, settings)))
    with journal_of(delivery, said, settings, patient_key) as journal:
        read = of_rows(scan(reader, new, journal, settings.workers, delivery.key, progress))
    named = of_rows(Row(name, 0, "", reason="missing", detail="named in labels.csv only") for name in absent)
    table = mark_conflicts(by_file(still_there(read, store), named), history, settings, delivery.name)
    if closed := sum(entry.kind == "closed" and not is_litter(entry.key) for entry in new):
        odd.append(f"{closed:,} folders or files can't be looked at; what is in them is taken once it can be.")
    if nothing_new := delivery.part > 1 and _nothing_new(table, seen):
        odd.append(
            f"Nothing is new in {len(table):,} added files: they are copies of radiographs there already, "
            f"litter, or quarantined and of a name and size seen before; they are listed and not looked at again."
        )
    summary = said.summary(table["reason"])
    if said.table and not said.table.mapping.strict:
        odd.insert(0, in_words(summary))
    kept = sorted(bookkeeping(entries, mapped))
    asked = _undemanding(settings) if nothing_new or _all_wait(table) else settings
    reference = history.reference(MOST_KNOWN)
    return judge(Inventory(delivery, table, reference, kept, odd, summary), asked, terms, data_docs)


def _nothing_new(table: pd.DataFrame, seen: Seen) -> bool:
    """Whether an addition brings only copies, litter, and quarantined files of a name and size seen before.

    Such files (a delivery copied anew, a late duplicate) are done with once a manifest lists them; rejected, they
    would be so every night. What could not be read is not done with: it may be new.
    """
    rows = table[["file", "size", "reason"]].itertuples(index=False, name=None)
    return all(
        reason in NOT_COUNTED or (reason not in ("", *UNREAD) and seen.with_size(file, size))
        for file, size, reason in rows
    )


def _all_wait(table: pd.DataFrame) -> bool:
    """Whether a delivery brings nothing to take only because its files have no label yet."""
    return NO_LABEL in set(table["reason"]) and bool(table["reason"].isin(NOT_COUNTED).all())


def _undemanding(settings: Settings) -> Settings:
    rules = settings.rules.model_copy(update={"min_files": 0, "max_quarantined_share": 1.0, "max_leak_share": 1.0})
    return settings.model_copy(update={"rules": rules})
