"""The rules of a file, as they are written in rules.toml, and what a verdict depends on."""

from __future__ import annotations

import hashlib
import hmac
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from xray_pipeline.base.code import code_digest
from xray_pipeline.base.settings import Settings
from xray_pipeline.dataset.revisions import WITHDRAWN
from xray_pipeline.intake import label_mapping
from xray_pipeline.intake.label_table import LEFT_OUT
from xray_pipeline.intake.layout import LITTER
from xray_pipeline.intake.placing import NO_LABEL

_JUDGES = (
    "images",
    *(f"dataset/{name}.py" for name in ("fingerprints", "likeness", "near_copies", "split")),
    *(f"intake/{name}.py" for name in ("check", "conflicts", "drift", "expectations", "layout", "matching", "scan")),
    *(f"intake/{name}.py" for name in ("label_cells", "label_mapping", "label_table", "placing")),
)
"""What judges a file or a delivery; a change of any other module voids no verdict."""


class Reason(NamedTuple):
    """Why a file is quarantined: the rule in words, and what a person can do about it."""

    rule: str
    advice: str


_WRITTEN = tomllib.loads(Path(__file__).with_name("rules.toml").read_text(encoding="utf-8"))
QUARANTINED: Final[Mapping[str, Reason]] = {code: Reason(**said) for code, said in _WRITTEN["quarantined"].items()}
"""Every reason for which a file is quarantined, by the code that the intake table gives."""
NORMALISED: Final[Mapping[str, str]] = _WRITTEN["normalised"]
"""What is put right in a file that is accepted, in words."""
UNREAD: Final = ("unreadable", "vanished", "changed")
"""Reasons of files whose content nobody knows."""
NOT_COUNTED: Final = ("duplicate", WITHDRAWN, LITTER, NO_LABEL, LEFT_OUT)
"""Reasons that do not count in the share of quarantined files."""


def judging_digest(settings: Settings, patient_key: bytes) -> str:
    """Return the SHA-256 of all that rows depend on beside the files: rules, classes, split, patient key, mapping of
    label tables and code. Raises ConfigError."""
    s = settings
    of_key = hmac.new(patient_key, b"journal", hashlib.sha256).hexdigest()
    split = (s.split_mode, s.split_validation, s.split_held_out)
    mapping = label_mapping.named(s.labels, s.classes) if s.labels else None
    labels = (s.labels, mapping.digest() if mapping else "")
    depends = (s.rules.digest(), s.classes, split, of_key, code_digest(*_JUDGES), labels)
    return hashlib.sha256(json.dumps(depends).encode()).hexdigest()
