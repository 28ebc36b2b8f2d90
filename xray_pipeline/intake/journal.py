"""What a scan has read so far, on this machine's disk, so that a scan that was killed goes on where it stopped.

One JSON line per file, appended and never synced: losing the last lines costs reading their files again. A line is
found by a hash of the file's name, size and version, so that the journal holds no name. The journal's own name follows
from all that its lines depend on; one for other files, rules or code is never looked at, and is swept up after a week.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

log = logging.getLogger(__name__)

_SWEEP_AFTER = 7 * 86_400.0  # seconds


class Journal:
    """Values by name for one scan; a context manager that removes the journal when the scan ends well.

    `depends` is everything that the values depend on, as JSON-able values. With `enabled` false nothing is kept.
    """

    def __init__(self, folder: Path, depends: Sequence[object], *, enabled: bool = True) -> None:
        self._path = folder / f"{_hash(json.dumps(depends))}.jsonl"
        self._enabled = enabled
        self._known: dict[str, list[Any]] = {}

    def __enter__(self) -> Self:
        if self._enabled:
            try:
                self._open()
            except OSError as error:
                log.warning("no journal of this scan in %s: %s", self._path.parent, error.strerror)
                self._enabled = False
        return self

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(self._path.parent)
        # Two scans of one delivery may append at once: each line is one write.
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        kept = self._path.read_bytes()
        self._known = dict(filter(None, map(_parsed, kept.splitlines())))
        if kept and not kept.endswith(b"\n"):
            os.write(self._file, b"\n")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._enabled:
            os.close(self._file)
            if kind is None:
                self._path.unlink(missing_ok=True)

    def get(self, name: str) -> list[Any] | None:
        """Return the values kept for `name`, None when there are none."""
        return self._known.get(_hash(name))

    def add(self, name: str, values: Sequence[Any]) -> None:
        """Keep JSON-able values for `name`. A full disk ends the journal, not the scan."""
        if self._enabled and (key := _hash(name)) not in self._known:
            with contextlib.suppress(OSError):
                os.write(self._file, json.dumps([key, list(values)]).encode() + b"\n")


def journals_in(cache: Path) -> Path:
    """Return the folder of a machine's cache in which journals lie."""
    return cache / "intake"


def journals(folder: Path) -> list[Path]:
    """Return the journals in a folder: nobody can tell which radiographs the lines of one are of."""
    return sorted(folder.glob("*.jsonl"))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _parsed(line: bytes) -> tuple[str, list[Any]] | None:
    """Return (key, values); None for a line that a killed scan left torn."""
    try:
        key, values = json.loads(line)
    except ValueError:
        return None
    return key, values


def _sweep(folder: Path) -> None:
    for path in journals(folder):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < time.time() - _SWEEP_AFTER:
                path.unlink()
