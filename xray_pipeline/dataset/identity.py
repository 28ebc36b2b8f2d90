"""What the first commit of a dataset fixes, and settings that are not those."""

from __future__ import annotations

import hashlib
import hmac

import msgspec

from xray_pipeline.base.errors import DatasetError
from xray_pipeline.base.settings import Settings
from xray_pipeline.dataset.commits import IDENTITY_FORMAT, Commits, Identity


def identity_of(settings: Settings, key: bytes) -> Identity:
    """Return what these settings and this patient key would fix."""
    fingerprint = hmac.new(key, b"fingerprint of the patient key", hashlib.sha256).hexdigest()[:16]
    split = (settings.split_mode, settings.split_validation, settings.split_held_out)
    return Identity(IDENTITY_FORMAT, list(settings.classes), *split, fingerprint)


def check_identity(commits: Commits, settings: Settings, key: bytes) -> None:
    """Raise DatasetError when a dataset was begun with other settings, or another patient key."""
    if (fixed := commits.identity()) is None:
        return
    for name, value in msgspec.structs.asdict(identity_of(settings, key)).items():
        if (was := getattr(fixed, name)) != value:
            shown = "is another one" if name == "patient_key" else f"{was!r}, now {value!r}"
            raise DatasetError(
                f"the dataset in {commits.store.uri} was made with another setting: {name} {shown}; "
                f"put the setting back, or start a new store"
            )
