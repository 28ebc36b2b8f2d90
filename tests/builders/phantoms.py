"""Deliveries of phantoms."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import phantom
from PIL import Image

from xray_pipeline.base.settings import Settings


def deliver(
    settings: Settings, name: str, numbers: range, inverted: bool = False, side: int = 0, severity: float = 0.6
) -> None:
    for number in numbers:
        one = phantom.Patient(f"p{number}", "", severity * (number % 3 > 0), number, 1, number % 2, "")
        pixels = phantom.radiograph(one, 1)
        out = io.BytesIO()
        image = Image.fromarray(np.asarray((65535 - pixels if inverted else pixels) >> 8, np.uint8))
        (image.resize((side, side)) if side else image).save(out, "PNG")
        folder = Path(settings.incoming) / name / ("NORMAL", "PNEUMONIA")[int(number % 3 > 0)]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"patient{number:04d}_1.png").write_bytes(out.getvalue())
