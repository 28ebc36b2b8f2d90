"""The two files that a classifier is saved as: their names, what one of them says, and the digest over both."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from xray_pipeline.base.errors import ModelRefused

FORMAT = 1
FACTS, WEIGHTS = "model.json", "model.safetensors"
RESERVED = ("label", "model_version", "error")
"""Columns of an answer beside the classes."""


def model_digest(folder: Path) -> str:
    """Return the SHA-256 over the digests of a saved classifier's two files. Raises ModelRefused if one is missing."""
    lines = []
    for name in (FACTS, WEIGHTS):
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise ModelRefused(f"{folder} holds no {name}; it is not a model this version can load")
        lines.append(f"{file_digest(path)}  {name}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_facts(folder: Path) -> dict[str, Any]:
    """Return what a saved classifier's model.json says. Raises ModelRefused for no facts, or a format not known."""
    try:
        facts = json.loads((folder / FACTS).read_bytes())
        format = facts["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelRefused(f"{folder / FACTS} is not the description of a model: {error}") from error
    if format != FORMAT:
        raise ModelRefused(f"{folder / FACTS} has format {format!r}; this version reads {FORMAT}")
    return dict(facts)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
