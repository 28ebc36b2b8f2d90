"""What the command line answers beside the night: a preview of a delivery, a model on a folder, files, the past.

Nothing here changes the dataset, the registry or the ledger.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xray_pipeline.base.errors import ConfigError, DatasetError, DeliveryError, EvaluationError
from xray_pipeline.base.progress import Progress
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import open_store
from xray_pipeline.registry import tidied
from xray_pipeline.registry.entries import Entry
from xray_pipeline.registry.ledger import Ledger
from xray_pipeline.registry.state import State, replay
from xray_pipeline.registry.tidied import Tidied

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from xray_pipeline.models.classifier import Classifier


SCORED_ALL_THE_SAME = ("", "duplicate", "label-conflict", "patient-on-two-sides", "no-given-split")
"""Intake reasons that say nothing against scoring a readable, labelled radiograph."""

BATCH = 64


def preview_delivery(
    settings: Settings,
    uri: str,
    progress: Progress | None = None,
    data_docs: Path | None = None,
    *,
    paths: bool = False,
) -> dict[str, Any]:
    """Judge a delivery anywhere as the intake would, against the dataset as it is; write nothing but `data_docs`.

    Returns key, files, fit, accepted, quarantined (counts by reason), why, warnings, accounting (how the files add up)
    and the Great Expectations result; a delivery that can't be judged at all is not fit. With `paths` also refused:
    row, reason, detail and file of each file that is kept out; a path may name a patient. With `data_docs`, a new or
    empty folder outside the deliveries, Great Expectations writes its own pages there. Raises ConfigError for another
    folder, DeliveryError when there is nothing to judge, StorageError.
    """
    from xray_pipeline.dataset.parquet import accounting
    from xray_pipeline.dataset.store import Dataset
    from xray_pipeline.intake import check as intake
    from xray_pipeline.intake import deliveries
    from xray_pipeline.intake.books import balance

    dataset = Dataset(settings)
    history = dataset.history()
    # Without a dataset there is no key yet, and a preview must not make one: any key gives the same verdicts.
    key = dataset.patient_key() if dataset.manifests() else secrets.token_bytes(32)
    delivery = deliveries.at(uri, settings, history, time.time())
    if data_docs:
        _empty_folder(data_docs, delivery.uri, settings.incoming)
    try:
        checked = intake.check(delivery, settings, history, key, progress, data_docs=data_docs)
    except DeliveryError as error:
        rejected = {"fit": False, "accepted": 0, "quarantined": {}, "why": str(error), "expectations": {}}
        return {"key": delivery.key, "files": delivery.files, **rejected, "warnings": [], "accounting": None}
    counts, books = accounting(checked.table), balance(checked.table, delivery.files)
    refused = checked.table[checked.table["verdict"] != "accepted"][["reason", "detail", "file"]]
    rows = [{"row": row, **values} for row, values in refused.to_dict("index").items()]
    return {
        "key": checked.delivery.key,
        "files": books.files,
        "fit": checked.fit,
        "accepted": counts.pop("accepted", 0),
        "quarantined": counts,
        "why": " ".join(checked.failures),
        "warnings": list(checked.warnings),
        "accounting": asdict(books),
        "expectations": checked.result,
        **({"refused": rows} if paths else {}),
    }


def _empty_folder(folder: Path, *deliveries: str) -> None:
    """Make the folder for Data Docs, but never among deliveries. Raises ConfigError."""
    wanted = "name a new or empty folder outside the deliveries"
    if any(folder.resolve().is_relative_to(Path(one).resolve()) for one in deliveries):
        raise ConfigError(f"{folder} lies among the deliveries, which are never written to; {wanted}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = any(folder.iterdir())
    except OSError as error:
        raise ConfigError(f"Data Docs can't be written to {folder}: {error.strerror}; {wanted}") from error
    if taken:
        raise ConfigError(f"{folder} is not empty; {wanted}")


def evaluate_folder(settings: Settings, model_uri: str, data: str, progress: Progress | None = None) -> dict[str, Any]:
    """Score a model on a labelled folder in any delivery layout, at the model's own threshold.

    Every readable radiograph counts, copies too. Returns n, patients, threshold, confusion, quarantined (what is left
    out, by reason), png_bits (16-bit PNGs by the bits they hold), model, and for each metric value, low and high (95 %,
    patient-clustered).
    Raises EvaluationError when nothing can be scored, DeliveryError, RegistryError, ModelRefused.
    """
    from xray_pipeline.dataset.history import EMPTY
    from xray_pipeline.dataset.parquet import accounting
    from xray_pipeline.evaluation.bootstrap import Resampling
    from xray_pipeline.evaluation.cases import Answers, prepare
    from xray_pipeline.evaluation.metrics import evaluate
    from xray_pipeline.intake import check as intake
    from xray_pipeline.intake import deliveries
    from xray_pipeline.intake.tallies import png_depths
    from xray_pipeline.registry import loading
    from xray_pipeline.registry.mlflow_registry import Registry

    registry = Registry(settings)
    model, version = loading.load(registry, model_uri), registry.resolve(model_uri).version
    rules = settings.rules.model_copy(update={"png_bits": settings.rules.png_bits or model.limits.png_bits})
    told = {"classes": model.classes, "split_mode": "patient", "settle_seconds": 0, "rules": rules}
    asked = settings.model_copy(update=told)
    delivery = deliveries.at(data, asked, EMPTY, time.time())
    table = intake.check(delivery, asked, EMPTY, secrets.token_bytes(32), progress).table
    rows = table[table["reason"].isin(SCORED_ALL_THE_SAME) & (table["digest"] != "")]
    if rows.empty:
        raise EvaluationError(f"none of the {len(table)} files in {delivery.uri} can be scored: {accounting(table)}")
    probabilities = _probabilities(model, asked, delivery.uri, rows, progress)
    answers = Answers(probabilities, model.threshold, model.digest)
    cases = prepare([answers], rows["label"], rows["patient"], model.classes)
    (evaluation,), _ = evaluate(cases, Resampling(settings.bootstrap))
    result = evaluation.to_dict()
    metrics = result.pop("metrics")
    return {
        "model": {"uri": model_uri, "version": version, "digest": model.digest},
        "n": result["n"],
        "patients": result["patients"],
        "threshold": result["threshold"],
        "classes": list(model.classes),
        "confusion": result["confusion"],
        **metrics,
        "by_class": result["by_class"],
        "quarantined": accounting(table[~table.index.isin(rows.index)]),
        "png_bits": png_depths(rows),
    }


def predict_files(settings: Settings, model_uri: str, files: Sequence[Path]) -> list[dict[str, Any]]:
    """Return file, label, probabilities by class and error ("" when all is well) for each file.

    Raises ConfigError for a path that is no file, RegistryError, ModelRefused.
    """
    from xray_pipeline.registry import loading
    from xray_pipeline.registry.mlflow_registry import Registry

    for file in files:
        if not file.is_file():
            raise ConfigError(f"{file} is not a file; give JPEG, PNG or DICOM files")
    model = loading.load(Registry(settings), model_uri)
    bits = settings.rules.png_bits or model.limits.png_bits
    model = replace(model, limits=replace(model.limits, png_bits=bits))
    results = []
    for start in range(0, len(files), BATCH):
        batch = files[start : start + BATCH]
        for file, answer in zip(batch, model.classify([file.read_bytes() for file in batch]), strict=True):
            probabilities = dict(zip(model.classes, answer.probabilities, strict=False))
            results.append(
                {"file": str(file), "label": answer.label, "probabilities": probabilities, "error": answer.error}
            )
    return results


def verify(settings: Settings, quick: bool = False, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Check that ledger, registry, artifacts, books, split and radiographs agree: invariant, holds, a sentence each.

    Of the stored radiographs a `quick` look reads some, drawn by lot. Raises RegistryUnavailable, StorageUnavailable.
    """
    from xray_pipeline.intake import books as bookkeeping
    from xray_pipeline.night import damage, erasing, repair
    from xray_pipeline.night.run import Run
    from xray_pipeline.registry import verify as checks
    from xray_pipeline.registry.mlflow_registry import Registry

    run, findings = Run(settings), checks.check(Registry(settings))
    looks: list[tuple[str, Callable[[], tuple[bool, str]]]] = [
        ("I4", lambda: bookkeeping.verify(run.settings)),
        ("I7", lambda: bookkeeping.split(run.settings)),
        ("I9", lambda: bookkeeping.amended(run.settings)),
        ("I9", lambda: erasing.verify(run)),
        ("dataset", lambda: repair.verify(run, quick, progress)),
    ]
    for name, look in looks:
        try:
            findings.append(checks.Verified(name, *look()))
        except DatasetError as error:  # the others are looked at all the same
            findings.append(checks.Verified(name, False, str(error)))
    broken = damage.damaged(run.store())
    findings += [checks.Verified("store", False, text) for text in broken]
    findings += [] if broken else [checks.Verified("store", True, "records, evidence and predictions are as written")]
    return [asdict(finding) for finding in findings]


def history(settings: Settings, at: str | None = None) -> tuple[State, list[Entry], list[tuple[Entry, State]]]:
    """Return who was champion at a time (ISO 8601; without a zone it is UTC) and the ledger's entries up to then.

    Where a clock was wrong, also the entries that may have been made by then, each with the state after it.
    Raises ConfigError for a time that can't be read, LedgerError.
    """
    until = parsed_time(at) if at is not None else None
    ledger = Ledger(open_store(settings.store, settings))
    entries, unsure = ledger.entries(until), ledger.unsure(until) if until else []
    perhaps = [(entry, replay([*entries, *unsure[: count + 1]])) for count, entry in enumerate(unsure)]
    return replay(entries), entries, perhaps


def parsed_time(text: str) -> datetime:
    """Return a day or a time (ISO 8601; UTC without a zone) as an aware time. Raises ConfigError for any other text."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"{text!r} is not a time; write 2026-03-03 or 2026-03-03T14:00+01:00") from error
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def removed(settings: Settings, state: State) -> dict[int, Tidied]:
    """Return what `xray tidy` removed of registered versions. Raises DatasetError, StorageUnavailable."""
    return tidied.of_versions(open_store(settings.store, settings), state.registered)


def _probabilities(
    model: Classifier, settings: Settings, uri: str, rows: pd.DataFrame, progress: Progress | None
) -> np.ndarray:
    import numpy as np

    from xray_pipeline.images import radiograph
    from xray_pipeline.images.raster import Limits
    from xray_pipeline.intake import scan as reading

    store, limits = open_store(uri, settings), Limits.of(settings.rules)

    def pixels(file: str, bits: int) -> np.ndarray:
        decoded = radiograph.decode(reading.reread(store, file, limits, bits).data)
        return radiograph.fitted(decoded, model.side, model.fit)

    parts = []
    with ThreadPoolExecutor(settings.workers or os.cpu_count()) as pool:
        for start in range(0, len(rows), BATCH):
            batch = rows.iloc[start : start + BATCH]
            parts.append(model.probabilities(np.stack(list(pool.map(pixels, batch["file"], batch["bits"])))))
            if progress:
                progress(min(start + BATCH, len(rows)), len(rows), "scoring")
    return np.concatenate(parts)
