"""The rules of the intake, and what a verdict depends on."""

from __future__ import annotations

import functools
import hashlib
import hmac
import json
from pathlib import Path
from typing import Final

from xray_pipeline.base.settings import IntakeRules, Settings
from xray_pipeline.images import radiograph
from xray_pipeline.images.radiograph import Limits, Rule
from xray_pipeline.intake.layout import LITTER


def limits(rules: IntakeRules) -> Limits:
    """Return the part of the rules that one file must keep."""
    return Limits.of(rules)


def judged_by(settings: Settings, patient_key: bytes) -> str:
    """Return the SHA-256 of all that rows depend on beside the files: rules, classes, split, patient key and code."""
    s = settings
    of_key = hmac.new(patient_key, b"journal", hashlib.sha256).hexdigest()
    split = (s.split_mode, s.split_validation, s.split_held_out)
    depends = (s.rules.digest(), s.classes, split, of_key, _code())
    return hashlib.sha256(json.dumps(depends).encode()).hexdigest()


@functools.cache
def _code() -> str:
    code = hashlib.sha256()
    for module in sorted(Path(radiograph.__file__).parent.rglob("*.py")):
        code.update(module.read_bytes())
    return code.hexdigest()


RULES: Final[tuple[Rule, ...]] = (
    *radiograph.RULES,
    Rule("symlink", "quarantined", "symbolic links are never followed"),
    Rule("special-file", "quarantined", "FIFOs, sockets and devices are never opened"),
    Rule(
        LITTER,
        "quarantined",
        "litter, which counts as no file: of operating systems and programs (.DS_Store, Thumbs.db, ._*, hidden "
        "folders, lock and backup files), and README, LICENSE, DICOMDIR and the like beside the classes",
    ),
    Rule(
        "unreadable",
        "quarantined",
        "no permission to read the file or to list the folder, or its name is no safe path or is too long",
    ),
    Rule("vanished", "quarantined", "the file went away during the check, or later, which settled a label conflict"),
    Rule("changed", "quarantined", "the file changed during the check"),
    Rule("no-class", "quarantined", "the file lies outside every class folder"),
    Rule("not-listed", "quarantined", "labels.csv does not name the file"),
    Rule("listed-twice", "quarantined", "labels.csv names the file more than once, with different patients or splits"),
    Rule("missing", "quarantined", "labels.csv names a file that is not in the delivery"),
    Rule(
        "label-conflict",
        "quarantined",
        "the same image, or a near copy of it, has two labels, here or against the dataset: all its copies are out; "
        "or labels.csv gives the file two labels, or another one than the class folder it lies in",
    ),
    Rule("duplicate", "quarantined", "the same image is in the delivery already (first path wins) or in the dataset"),
    Rule("patient-on-two-sides", "quarantined", "the patient is on another side of the split, here or in the dataset"),
    Rule(
        "copy-across-split",
        "quarantined",
        "an exact or near copy (re-encoded, resized, cropped by a few pixels, brighter, darker) is on another side of "
        "the split: the dataset's stays, and in a delivery held-out before validation before train",
    ),
    Rule("no-given-split", "quarantined", "split mode is `given` and nothing says which side the file is on"),
)


_UNREAD: Final = ("unreadable", "vanished", "changed")


NOT_COUNTED: Final = ("duplicate", LITTER)  # in the share of quarantined files
