"""A small delivery, laid where deliveries arrive."""

from __future__ import annotations

from pathlib import Path

from samples import dicom, jpeg, png

from xray_pipeline.base.settings import Settings
from xray_pipeline.night import intake_steps
from xray_pipeline.night.run import Run

FILES = {
    "NORMAL/patient1_1.jpg": jpeg(seed=1),
    "NORMAL/patient2_1.png": png(seed=2),
    "PNEUMONIA/patient3_1.dcm": dicom(seed=3),
    "PNEUMONIA/patient4_1.jpg": jpeg(seed=4),
}


def lay(settings: Settings, name: str, files: dict[str, bytes]) -> None:
    for file, data in files.items():
        path = Path(settings.incoming, name, file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def ingest(run: Run) -> None:
    keys = intake_steps.find_deliveries(run)
    for key in keys:
        intake_steps.check_delivery(run, key)
    intake_steps.commit_deliveries(run, keys)
