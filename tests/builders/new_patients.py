"""Deliveries of patients nobody has seen."""

from __future__ import annotations

import shutil
from pathlib import Path

import phantom
from laid import ingest

from xray_pipeline.dataset.store import Dataset
from xray_pipeline.night.run import Run


def deliver(run: Run, seed: int, flipped: int = 0, patients: int = 90, only: str = "") -> str:
    """Lay and commit a delivery of patients nobody has seen, every `flipped`-th under the other label, those of one
    class `only`; return the snapshot."""
    (made,) = phantom.lay(run.settings.home / "made", deliveries=1, patients=patients, seed=seed)
    for file in sorted(made.glob(f"{only or '*'}/patient*")):
        label, number = file.parent.name, int(file.stem[7:11])
        if flipped and number % flipped == 0:
            label = next(other for other in phantom.CLASSES if other != label)
        place = Path(run.settings.incoming, f"new-{seed}", label)
        place.mkdir(parents=True, exist_ok=True)
        file.rename(place / file.name.replace("patient", f"patient{seed}"))
    shutil.rmtree(run.settings.home / "made")
    ingest(run)
    snapshot = Dataset(run.settings).snapshot()
    assert snapshot
    return snapshot.digest
