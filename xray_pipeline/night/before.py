"""What a night looks at first of all: whatever can be known before anything is read or trained, without torch."""

from __future__ import annotations

from datetime import UTC, datetime

from xray_pipeline.base.errors import DatasetError
from xray_pipeline.base.schedule import due
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import reader, require_folder, sweep
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.gate.policy import load_policy
from xray_pipeline.models import weights
from xray_pipeline.night import erasing
from xray_pipeline.night.identity import compare
from xray_pipeline.night.run import Run


def look(run: Run) -> None:
    """Look at settings, policy, recipe, store and key; sweep up what killed nights and erasures left.

    Raises ConfigError, StorageError, DatasetError, RegistryError, LedgerError, WeightsError.
    """
    settings = run.settings
    require_folder(settings.incoming)
    due(settings, datetime.now(UTC))
    policy(settings)
    _recipe(run)
    compare(run)
    patient_key(settings)
    erasing.finish(run)
    sweep(settings)


def policy(settings: Settings) -> str:
    """Say which policy is in force. Raises ConfigError."""
    return f"policy {settings.policy}, digest {load_policy(settings.policy).digest[:12]}"


def _recipe(run: Run) -> None:
    """Look at the recipe, and for its weights where they are a file: others the machine that trains may fetch."""
    recipe = run.recipe()
    for backbone, wanted in weights.each(recipe.backbone, recipe.weights):
        if weights.is_file(wanted):
            weights.of_file(wanted, reader(run.settings))
        elif backbone in weights.PACKAGES and wanted != "none":
            weights.of_package(backbone, wanted)


def patient_key(settings: Settings) -> str:
    """Say that the key of the patient hash is there, or will be made. Raises DatasetError."""
    place, dataset = settings.home / "patient.key", Dataset(settings)
    if settings.patient_key.get_secret_value() or place.exists() or settings.store.startswith("s3://"):
        dataset.patient_key()
        return "the key of the patient hash is there and fits the dataset"
    if dataset.store.exists("dataset.json"):
        raise DatasetError(f"the patient key {place} of the dataset in {settings.store} is missing; put your copy back")
    return f"the first delivery makes {place}"
