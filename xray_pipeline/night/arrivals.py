"""Whether something waits that a night would judge: a settled delivery, or a file whose label has come.

Asked once a minute by whoever starts nights on arrival. What waits follows from dataset, verdicts and one listing, so
nothing is lost when the one who asks dies: who comes next sees it still waiting.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from xray_pipeline.base import records
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import Entry, open_store, require_folder
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.intake import deliveries
from xray_pipeline.intake.deliveries import Reading
from xray_pipeline.intake.late import Late
from xray_pipeline.intake.placing import listed_outside
from xray_pipeline.intake.verdicts import checked

_LOOK_AGAIN: Final = 3600.0
"""Seconds after which the dataset is read again though nothing lies otherwise: an amendment may have changed it."""


class Arrivals:
    """Looks for what waits; each look lists the incoming folder once, and reads the dataset only where that changed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._seen, self._until = "", 0.0
        self._new: dict[str, str] = {}

    def look(self) -> frozenset[str]:
        """Return key and fingerprint of each settled delivery that is neither committed nor judged as it is now.

        Raises ConfigError, DatasetError, DeliveryError, StorageError.
        """
        settings, now = self._settings, time.time()
        require_folder(settings.incoming)
        entries = deliveries.listing(open_store(settings.incoming, settings), itself=False)
        lines = sorted((entry.key, entry.size, entry.version, entry.kind) for entry in entries)
        seen = records.digest_of(records.canonical([lines, listed_outside(settings)]))
        if seen != self._seen or now >= self._until:
            self._new, self._until = self._settled(entries, now)
            self._seen = seen
        store, committed = open_store(settings.store, settings), set(Dataset(settings).manifests())
        waiting = set()
        for key, fingerprint in self._new.items():
            verdict = checked(store, key)
            judged = verdict is not None and verdict.delivery["fingerprint"] == fingerprint and not verdict.fit
            if key not in committed and not judged:
                waiting.add(f"{key} {fingerprint}")
        return frozenset(waiting)

    def _settled(self, entries: Sequence[Entry], now: float) -> tuple[dict[str, str], float]:
        """Return the fingerprint of each settled delivery with something new, and when to look again (Unix seconds)."""
        settings, dataset = self._settings, Dataset(self._settings)
        history = dataset.history()
        # None is made here. Without it no DICOM identifier is found in a table, and the night by the clock looks.
        known = settings.patient_key.get_secret_value() or (settings.home / "patient.key").exists()
        late = Late(settings, history, dataset.patient_key() if known else b"", dataset.manifest)
        reading = Reading(settings.classes, bool(settings.labels), late.reopen)
        incoming = open_store(settings.incoming, settings)
        found = deliveries.find(incoming, history, settings.settle_seconds, now, reading, [], entries)
        settles = [one.changed + settings.settle_seconds for one in found if not one.settled]
        return {one.key: one.fingerprint for one in found if one.settled}, min([now + _LOOK_AGAIN, *settles])
