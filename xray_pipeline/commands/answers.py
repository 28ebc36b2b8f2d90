"""What the command line answers beside the night: a preview of a delivery, a model on a folder, files, the past.

Nothing here changes the dataset, the registry or the ledger.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xray_pipeline import records
from xray_pipeline.errors import ConfigError, DatasetError, DeliveryError, EvaluationError
from xray_pipeline.ledger import Entry, Ledger, State, replay
from xray_pipeline.settings import Settings
from xray_pipeline.storage import open_store

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from xray_pipeline.serving import Classifier

Progress = Callable[[int, int, str], None]

SCORED_ALL_THE_SAME = ("", "duplicate", "label-conflict", "patient-on-two-sides", "no-given-split")
"""Intake reasons that say nothing against scoring a readable, labelled radiograph."""

BATCH = 64


def preview_delivery(
    settings: Settings, uri: str, progress: Progress | None = None, data_docs: Path | None = None
) -> dict[str, Any]:
    """Judge a delivery anywhere as the intake would, against the dataset as it is; write nothing but `data_docs`.

    Returns key, files, fit, accepted, quarantined (counts by reason), why, warnings, accounting (how the files add up)
    and the Great Expectations result; a delivery that can't be judged at all is not fit. With `data_docs`, a new or
    empty folder outside the deliveries, Great Expectations writes its own pages there. Raises ConfigError for another
    folder, DeliveryError when there is nothing to judge, StorageError.
    """
    from xray_pipeline import intake
    from xray_pipeline.dataset import Dataset, accounting
    from xray_pipeline.deliveries.bookkeeping import balance

    dataset = Dataset(settings)
    history = dataset.history()
    # Without a dataset there is no key yet, and a preview must not make one: any key gives the same verdicts.
    key = dataset.patient_key() if dataset.manifests() else secrets.token_bytes(32)
    delivery = intake.at(uri, settings, history, time.time())
    if data_docs:
        _empty_folder(data_docs, delivery.uri, settings.incoming)
    try:
        found = intake.check(delivery, settings, history, key, progress, data_docs=data_docs)
    except DeliveryError as error:
        rejected = {"fit": False, "accepted": 0, "quarantined": {}, "why": str(error), "expectations": {}}
        return {"key": delivery.key, "files": delivery.files, **rejected, "warnings": [], "accounting": None}
    counts = accounting([found.table])
    return {
        "key": found.delivery.key,
        "files": len(found.table),
        "fit": found.fit,
        "accepted": counts.pop("accepted", 0),
        "quarantined": counts,
        "why": " ".join(found.failures),
        "warnings": list(found.warnings),
        "accounting": asdict(balance(found.table, delivery.files)),
        "expectations": found.result,
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

    Every readable radiograph counts, copies too. Returns n, patients, threshold, confusion, quarantined (files that are
    no radiographs, by reason), model, and for each metric value, low and high (95 %, patient-clustered).
    Raises EvaluationError when nothing can be scored, DeliveryError, RegistryError, ModelRefused.
    """
    from xray_pipeline import evaluation, intake
    from xray_pipeline.dataset import accounting
    from xray_pipeline.deliveries.together import EMPTY
    from xray_pipeline.registry import Registry

    registry = Registry(settings)
    model, version = registry.load(model_uri), registry.resolve(model_uri).version
    asked = settings.model_copy(update={"classes": model.classes, "split_mode": "patient", "settle_seconds": 0})
    delivery = intake.at(data, asked, EMPTY, time.time())
    table = intake.check(delivery, asked, EMPTY, secrets.token_bytes(32), progress).table
    rows = table[table["reason"].isin(SCORED_ALL_THE_SAME) & (table["digest"] != "")]
    if rows.empty:
        raise EvaluationError(f"none of the {len(table)} files in {delivery.uri} can be scored: {accounting([table])}")
    probabilities = _probabilities(model, asked, delivery.uri, rows, progress)
    result = evaluation.evaluate(
        probabilities,
        rows["label"].tolist(),
        rows["patient"].tolist(),
        model.classes,
        model.threshold,
        resamples=settings.bootstrap,
        model_digest=model.digest,
    ).to_dict()
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
        "quarantined": accounting([table[~table.index.isin(rows.index)]]),
    }


def predict_files(settings: Settings, model_uri: str, files: Sequence[Path]) -> list[dict[str, Any]]:
    """Return file, label, probabilities by class and error ("" when all is well) for each file.

    Raises ConfigError for a path that is no file, RegistryError, ModelRefused.
    """
    from xray_pipeline.registry import Registry

    for file in files:
        if not file.is_file():
            raise ConfigError(f"{file} is not a file; give JPEG, PNG or DICOM files")
    model = Registry(settings).load(model_uri)
    results = []
    for start in range(0, len(files), BATCH):
        batch = files[start : start + BATCH]
        for file, answer in zip(batch, model.classify([file.read_bytes() for file in batch]), strict=True):
            probabilities = dict(zip(model.classes, answer.probabilities, strict=False))
            results.append(
                {"file": str(file), "label": answer.label, "probabilities": probabilities, "error": answer.error}
            )
    return results


def verify(settings: Settings) -> list[dict[str, Any]]:
    """Check that ledger, registry, artifacts, bookkeeping and split agree: invariant, holds, a sentence for each thing.

    Raises RegistryUnavailable, StorageUnavailable.
    """
    from xray_pipeline.deliveries import bookkeeping
    from xray_pipeline.night import Run
    from xray_pipeline.registry import Registry
    from xray_pipeline.rollout import verify as checks

    findings = checks.check(Registry(settings))
    books = (("I4", bookkeeping.verify), ("I7", bookkeeping.split))
    for name, look in books:
        try:
            findings.append(checks.Finding(name, *look(Run(settings))))
        except DatasetError as error:
            findings.append(checks.Finding(name, False, str(error)))
    broken = records.damaged(open_store(settings.store, settings))
    findings += [checks.Finding("store", False, text) for text in broken]
    findings += [] if broken else [checks.Finding("store", True, "records, evidence and predictions are as written")]
    return [asdict(finding) for finding in findings]


def health(settings: Settings) -> list[dict[str, Any]]:
    """Look at all that the next night needs: part, whether it is well, and a sentence for each."""
    from xray_pipeline.commands import health as parts

    return [asdict(part) for part in parts.check(settings)]


def reproduce(settings: Settings, version: int, progress: Progress | None = None) -> tuple[dict[str, Any], list[str]]:
    """Train a registered version again and compare: the result's fields, and lines for a person.

    Raises RegistryError, ModelRefused, TrainingError, StorageError.
    """
    from xray_pipeline.learning import reproducing

    found = reproducing.reproduce(settings, version, progress)
    return asdict(found), found.lines()


def history(settings: Settings, at: str | None = None) -> tuple[State, list[Entry]]:
    """Return who was champion at a time (ISO 8601; without a zone it is UTC) and the ledger's entries up to then.

    Raises ConfigError for a time that can't be read, LedgerError.
    """
    moment = None
    if at is not None:
        try:
            moment = datetime.fromisoformat(at)
        except ValueError as error:
            raise ConfigError(f"{at!r} is not a time; write 2026-03-03 or 2026-03-03T14:00+01:00") from error
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    entries = Ledger(open_store(settings.store, settings)).entries(moment)
    return replay(entries), entries


def _probabilities(
    model: Classifier, settings: Settings, uri: str, rows: pd.DataFrame, progress: Progress | None
) -> np.ndarray:
    import numpy as np

    from xray_pipeline import radiograph
    from xray_pipeline.deliveries import reading

    store, limits = open_store(uri, settings), reading.limits(settings.rules)

    def pixels(file: str) -> np.ndarray:
        return radiograph.square(radiograph.decode(reading.reread(store, file, limits).data), model.side)

    parts = []
    with ThreadPoolExecutor(settings.workers or os.cpu_count()) as pool:
        for start in range(0, len(rows), BATCH):
            batch = rows["file"].iloc[start : start + BATCH]
            parts.append(model.probabilities(np.stack(list(pool.map(pixels, batch)))))
            if progress:
                progress(min(start + BATCH, len(rows)), len(rows), "scoring")
    return np.concatenate(parts)
