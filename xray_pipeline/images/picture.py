"""A radiograph as a picture for people to look at; what a model sees is `radiograph.square`."""

from __future__ import annotations

import io
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xray_pipeline.images.raster import Pixels

_HOT: Final = (255, 96, 0)  # the colour that a map is laid over it in


def png(pixels: Pixels, side: int, heat: bytes = b"") -> bytes:
    """Return pixels (H, W) as a PNG whose longer side has at most `side` pixels, with the window stretched: the darkest
    pixel is black, the brightest white.

    `heat` is a map laid over it, n x n bytes 0..255, row by row, of the whole radiograph squashed to a square.
    """
    image = Image.fromarray(_stretched(pixels))
    image.thumbnail((side, side), Image.Resampling.BILINEAR)
    if heat:
        image = _over(image, np.frombuffer(heat, np.uint8))
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=1)
    return out.getvalue()


def _stretched(pixels: Pixels) -> NDArray[np.uint8]:
    low, high = int(pixels.min()), int(pixels.max())
    return np.asarray((pixels.astype(np.float32) - low) * (255 / max(1, high - low)), np.uint8)


def _over(image: Image.Image, heat: NDArray[np.uint8]) -> Image.Image:
    cells = round(len(heat) ** 0.5)
    fine = Image.fromarray(heat.reshape(cells, cells)).resize(image.size, Image.Resampling.BILINEAR)
    share = 0.65 * np.sqrt(np.asarray(fine, np.float32) / 255)[..., None]  # no evidence, no colour
    grey = np.asarray(image, np.float32)[..., None]
    return Image.fromarray(np.asarray((1 - share) * grey + share * np.array(_HOT, np.float32), np.uint8))
