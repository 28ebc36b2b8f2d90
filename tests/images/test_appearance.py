"""The numbers that drift is measured by say what they should, whatever the picture."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from samples import picture

from xray_pipeline.images.appearance import NAMES, from_text, is_text, measure, to_text


def number(pixels: np.ndarray, name: str) -> float:
    return float(measure(pixels)[NAMES.index(name)])


@given(
    st.sampled_from([np.uint8, np.uint16]).flatmap(
        lambda dtype: arrays(dtype, st.tuples(st.integers(1, 40), st.integers(2, 600)))
    )
)
def test_any_picture_gives_finite_numbers_that_text_keeps(pixels: np.ndarray) -> None:
    found = measure(pixels)
    assert found.shape == (len(NAMES),)
    assert np.isfinite(found).all()
    text = to_text(found)
    assert is_text(text)
    assert from_text([text])[0] == pytest.approx(found, rel=1e-3, abs=1e-3)


def test_a_brighter_an_inverted_and_a_wider_picture_say_so() -> None:
    pixels = picture(3)
    assert number(pixels // 2 + 120, "brightness") > number(pixels // 2, "brightness") + 0.4
    assert number(255 - pixels, "brightness") == pytest.approx(1 - number(pixels, "brightness"), abs=1e-3)
    assert number(picture(3, 96, 192), "aspect") == pytest.approx(1)
    assert number(picture(3, 128, 128), "size") == pytest.approx(7)


def test_noise_is_seen_at_the_pixel_and_asymmetry_across_the_middle() -> None:
    smooth = np.tile(np.linspace(50, 200, 512), (512, 1)).astype(np.uint8)
    noisy = np.clip(smooth + np.random.default_rng(0).normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)
    assert number(noisy, "noise") > 5 * number(smooth, "noise")
    even = np.concatenate([smooth, smooth[:, ::-1]], axis=1)
    assert number(smooth, "asymmetry") > 10 * number(even, "asymmetry")


def test_sixteen_bits_and_eight_bits_of_a_picture_agree() -> None:
    pixels = picture(5)
    assert np.allclose(measure(pixels), measure(pixels.astype(np.uint16) * 257), atol=1e-3)


@pytest.mark.parametrize("cell", ["", "00", None, float("nan"), 7])
def test_cells_without_the_numbers_are_told(cell: object) -> None:
    assert not is_text(cell)


def test_no_text_gives_no_rows() -> None:
    assert from_text([]).shape == (0, len(NAMES))
