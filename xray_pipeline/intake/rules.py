"""The rules of a file, as they are written in rules.toml, and what a verdict depends on."""

from __future__ import annotations

import functools
import hashlib
import hmac
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from xray_pipeline.base.settings import Settings
from xray_pipeline.dataset.revisions import WITHDRAWN
from xray_pipeline.intake.layout import LITTER

_PACKAGE = Path(__file__).parents[1]
_JUDGES = (
    "images/*.py",
    *("dataset/fingerprints.py", "dataset/likeness.py", "dataset/near_copies.py", "dataset/split.py"),
    *("intake/conflicts.py", "intake/layout.py", "intake/matching.py", "intake/scan.py"),
)


class Reason(NamedTuple):
    """Why a file is quarantined: the rule in words, and what a person can do about it."""

    rule: str
    advice: str


_WRITTEN = tomllib.loads((_PACKAGE / "intake" / "rules.toml").read_text(encoding="utf-8"))
QUARANTINED: Final[Mapping[str, Reason]] = {code: Reason(**said) for code, said in _WRITTEN["quarantined"].items()}
"""Every reason for which a file is quarantined, by the code that the intake table gives."""
NORMALISED: Final[Mapping[str, str]] = _WRITTEN["normalised"]
"""What is put right in a file that is accepted, in words."""
UNREAD: Final = ("unreadable", "vanished", "changed")
"""Reasons of files whose content nobody knows."""
NOT_COUNTED: Final = ("duplicate", WITHDRAWN, LITTER)
"""Reasons that do not count in the share of quarantined files."""


def judging_digest(settings: Settings, patient_key: bytes) -> str:
    """Return the SHA-256 of all that rows depend on beside the files: rules, classes, split, patient key and code."""
    s = settings
    of_key = hmac.new(patient_key, b"journal", hashlib.sha256).hexdigest()
    split = (s.split_mode, s.split_validation, s.split_held_out)
    depends = (s.rules.digest(), s.classes, split, of_key, _code())
    return hashlib.sha256(json.dumps(depends).encode()).hexdigest()


@functools.cache
def _code() -> str:
    """Return the SHA-256 of the modules that judge a file; a change of any other one voids no verdict."""
    code = hashlib.sha256()
    for module in (path for pattern in _JUDGES for path in sorted(_PACKAGE.glob(pattern))):
        code.update(module.read_bytes())
    return code.hexdigest()
