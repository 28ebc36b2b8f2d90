"""How a radiograph looks, in 32 numbers: what drift is measured by without a network.

Grey levels, contrast, noise, layout and size; not what a person would see in it. They are taken from the pixels that
the intake has decoded anyway, on a grid of about 256 lines, and kept in the intake table as text, so that comparing a
delivery with the dataset decodes nothing. Sums are of whole numbers, so equal pixels give equal numbers on any machine.
The trade-off: two sites whose pictures agree in these numbers are told apart only by the features of a network.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Vectors = NDArray[np.float32]

BYTES: Final = 64
"""Of the numbers, in half precision."""
_QUANTILES: Final = (1, 5, 25, 50, 75, 95, 99)
_GRID, _CELLS, _BLOCKS = 256, 16, 4

NAMES: Final[tuple[str, ...]] = (
    "size",
    "aspect",
    *(f"grey level of percentile {q}" for q in _QUANTILES),
    "brightness",
    "contrast",
    "black pixels",
    "white pixels",
    "noise",
    "fine structure",
    "asymmetry",
    *(f"brightness of part {row + 1},{column + 1}" for row in range(_BLOCKS) for column in range(_BLOCKS)),
)
"""What each number is, in order. Grey levels and their differences are in 0..1, size and aspect in powers of two."""


def measure(pixels: NDArray[Any]) -> Vectors:
    """Return the numbers float32 [32] of a radiograph's pixels [H, W], uint8 or uint16, black = air."""
    height, width = pixels.shape
    step = max(1, min(height, width) // _GRID)
    rows = np.ascontiguousarray(pixels[::step])  # a copy of these costs less than two walks over all pixels
    grid = np.ascontiguousarray(_eight_bits(rows[:, ::step]))
    counts = np.array(Image.fromarray(grid).histogram())  # as bincount, in half the time
    levels, total = np.arange(256), grid.size
    mean = float((counts * levels).sum()) / total
    spread = float(np.sqrt(max(0.0, (counts * levels**2).sum() / total - mean**2)))
    reached = np.searchsorted(np.cumsum(counts), [total * q / 100 for q in _QUANTILES])
    sums, sizes = _cells(grid)
    cells, blocks = sums / np.maximum(1, sizes), _together(sums) / np.maximum(1, _together(sizes))
    # Neighbours in the file itself, not on the grid: noise and sharpness end at the pixel.
    right = np.ascontiguousarray(_eight_bits(rows[:, 1::step]))
    found = [
        np.log2(min(height, width)),
        np.log2(width / height),
        *(reached / 255),
        mean / 255,
        spread / 255,
        counts[:3].sum() / total,
        counts[253:].sum() / total,
        _gap(grid, right) / 255,
        (np.abs(np.diff(cells, axis=0)).mean() + np.abs(np.diff(cells, axis=1)).mean()) / 255,
        np.abs(cells - cells[:, ::-1]).mean() / 255,
        *(blocks.ravel() / 255),
    ]
    return np.array(found, dtype=np.float32)


def to_text(vector: Vectors) -> str:
    """Return the numbers as they stand in the intake table: hexadecimal of half precision, 4 digits each."""
    return vector.astype("<f2").tobytes().hex()


def from_text(texts: Iterable[str]) -> Vectors:
    """Return numbers [N, 32] of N texts that `to_text` gave."""
    rows = [np.frombuffer(bytes.fromhex(text), "<f2") for text in texts]
    return np.stack(rows).astype(np.float32) if rows else np.empty((0, len(NAMES)), np.float32)


def is_text(text: object) -> bool:
    """Whether a cell of the table holds the numbers; manifests of earlier versions have none."""
    return isinstance(text, str) and len(text) == 4 * len(NAMES)


def _eight_bits(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    return pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)


def _gap(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    width = min(one.shape[1], other.shape[1])
    gaps = np.maximum(one[:, :width], other[:, :width]) - np.minimum(one[:, :width], other[:, :width])
    return float(gaps.sum(dtype=np.int64)) / max(1, int(gaps.size))


def _cells(grid: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the sum and the size of each of _CELLS x _CELLS parts of the picture."""
    rows, columns = (np.arange(_CELLS) * side // _CELLS for side in grid.shape)
    sums = np.add.reduceat(np.add.reduceat(grid, rows, axis=0, dtype=np.int64), columns, axis=1)
    sizes = np.outer(np.diff([*rows, grid.shape[0]]), np.diff([*columns, grid.shape[1]]))
    return sums, sizes


def _together(cells: NDArray[np.int64]) -> NDArray[np.int64]:
    """Add up cells into _BLOCKS x _BLOCKS larger parts."""
    side = _CELLS // _BLOCKS
    return np.asarray(cells.reshape(_BLOCKS, side, _BLOCKS, side).sum(axis=(1, 3)))
