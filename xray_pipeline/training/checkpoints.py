"""Checkpoints in the store: written whole, named by their digest, kept two deep.

A checkpoint's name ends in the SHA-256 of its bytes, so a broken one is known before it is opened; the one before it is
used then. It holds tensors and plain values only, and is loaded with `weights_only=True`.
"""

from __future__ import annotations

import hashlib
import io
import logging
import pickle
from collections.abc import Mapping
from typing import Any

import torch

from xray_pipeline.base.errors import StorageError
from xray_pipeline.base.storage import Store

log = logging.getLogger(__name__)

FORMAT = 1
KEPT = 2


class Checkpoints:
    """The checkpoints below one folder of the store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Keep the state after `step` optimizer steps; older ones but the last go. Raises StorageUnavailable."""
        buffer = io.BytesIO()
        torch.save({"format": FORMAT, **state}, buffer)
        data = buffer.getvalue()
        self.store.write(f"{step:09d}-{hashlib.sha256(data).hexdigest()}.pt", data)
        for key in self._keys()[:-KEPT]:
            self.store.delete(key)

    def load(self) -> dict[str, Any] | None:
        """Return the newest whole state, None when there is none. Raises StorageUnavailable."""
        for key in reversed(self._keys()):
            try:
                data = self.store.read(key)
            except StorageError as error:
                log.warning("checkpoint %s can't be read (%s); the one before it is used", key, error)
                continue
            if not key.endswith(f"-{hashlib.sha256(data).hexdigest()}.pt"):
                log.warning("checkpoint %s is broken: its bytes don't match its name; the one before it is used", key)
                continue
            try:
                state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            except pickle.UnpicklingError:
                log.warning("checkpoint %s holds more than tensors; it is not loaded, the one before it is used", key)
                continue
            if state.pop("format", None) == FORMAT:
                return state
            log.warning("checkpoint %s was written by another version; training starts before it", key)
        return None

    def clear(self) -> None:
        """Delete all checkpoints: the result is kept elsewhere."""
        for key in self._keys():
            self.store.delete(key)

    def _keys(self) -> list[str]:
        return sorted(entry.key for entry in self.store.list() if entry.key.endswith(".pt"))
