"""Radiographs as pictures for people."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from xray_pipeline.images import picture


def shown(pixels: np.ndarray, side: int = 100, heat: bytes = b"") -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture.png(pixels, side, heat))))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_window_is_stretched_from_the_darkest_to_the_brightest_pixel(dtype: type) -> None:
    pixels = np.array([[100, 150], [200, 120]], dtype)
    assert shown(pixels).tolist() == [[0, 127], [255, 51]]


def test_an_even_picture_is_black_and_a_large_one_made_smaller() -> None:
    assert shown(np.full((40, 80), 7, np.uint16), 20).tolist() == np.zeros((10, 20)).tolist()


def test_a_map_colours_where_there_is_evidence_only() -> None:
    heat = np.zeros((4, 4), np.uint8)
    heat[0, 0] = 255
    over = shown(np.tile(np.arange(64, dtype=np.uint8), (64, 1)), heat=heat.tobytes()).astype(int)
    assert over.shape == (64, 64, 3)
    assert over[4, 4, 0] > over[4, 4, 2] + 50
    assert (over[40, 40] == over[40, 40, 0]).all()
