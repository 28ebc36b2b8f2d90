"""How alike two thumbnails are once the one is laid over the other: what decides that two images are near copies.

The second is shifted and stretched until it fits (Gauss-Newton), then the fine structure of the two is correlated: ribs
of two patients, or of one patient on two days, do not coincide.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from xray_pipeline.dataset.fingerprints import SIDE, Floats, Thumbnails, ranks

ALIKE: Final = 0.84  # correlation of fine structure from which two images are near copies; see the benchmark
_STEPS = 8  # of Gauss-Newton
_MOST_MOVED = 0.15  # of half the side, and of the scale


def alike(first: Thumbnails, second: Thumbnails) -> NDArray[np.bool_]:
    """Return which pairs are near copies, whichever of the two is laid over the other."""
    scores = likeness(first, second)
    unsure = (scores < ALIKE) & (scores > ALIKE - 0.2)
    if unsure.any():
        scores[unsure] = np.maximum(scores[unsure], likeness(second[unsure], first[unsure]))
    return np.asarray(scores >= ALIKE)


def likeness(first: Thumbnails, second: Thumbnails) -> Floats:
    """Return for each pair of thumbnails (n, SIDE, SIDE) how well their fine structure agrees, -1 to 1.

    The second is shifted and stretched along each axis, by at most 15 %, until its grey ranks fit the first's best
    (least squares with gain and offset, Gauss-Newton; Lucas and Kanade 1981). What is correlated is what a Gaussian
    blur of one pixel takes away, where both images have pixels.
    """
    a, b = ranks(first), ranks(second)
    moved = np.zeros((len(a), 4))  # stretch and shift along x, then along y
    best, best_moved = np.full(len(a), -np.inf), moved
    for step in range(_STEPS + 1):
        laid, both = _laid(b, moved)
        score = _correlation(a, laid, both)
        best_moved = np.where((score > best)[:, None], moved, best_moved)
        best = np.maximum(score, best)
        if step < _STEPS:
            moved = np.clip(moved + _improvement(a, laid, both), -_MOST_MOVED, _MOST_MOVED)
    laid, both = _laid(b, best_moved)
    both[:, [0, -1]] = both[:, :, [0, -1]] = 0.0  # the blur sees past the edge there
    return _correlation(_fine(a), _fine(laid), both)


def resampling(stretch: Floats, shift: Floats) -> tuple[Floats, Floats]:
    """Return linear maps (n, SIDE, SIDE) that sample a line of pixels at (1 + stretch) u + shift, u from -1 to 1.

    The second result (n, SIDE) is 1 where the sample lies on the line, else 0.
    """
    u = (np.arange(SIDE) + 0.5) * 2 / SIDE - 1
    at = ((1 + stretch[:, None]) * u + shift[:, None] + 1) * SIDE / 2 - 0.5
    inside = (at >= -0.5) & (at <= SIDE - 0.5)
    at = np.clip(at, 0, SIDE - 1)
    left = np.minimum(at.astype(np.int64), SIDE - 2)
    maps = np.zeros((len(at), SIDE, SIDE))
    rows = np.arange(len(at))[:, None], np.arange(SIDE)[None]
    maps[*rows, left] = 1 - (at - left)
    maps[*rows, left + 1] = at - left
    return maps, inside.astype(np.float64)


def _laid(images: Floats, moved: Floats) -> tuple[Floats, Floats]:
    """Return the images moved, and where they still have pixels (both (n, SIDE, SIDE))."""
    along_x, on_x = resampling(moved[:, 0], moved[:, 1])
    along_y, on_y = resampling(moved[:, 2], moved[:, 3])
    return along_y @ images @ along_x.transpose(0, 2, 1), on_y[:, :, None] * on_x[:, None, :]


def _improvement(a: Floats, laid: Floats, both: Floats) -> Floats:
    """Return the Gauss-Newton step (n, 4) that brings the laid images nearer to `a`."""
    u = (np.arange(SIDE) + 0.5) * 2 / SIDE - 1
    by_y, by_x = (np.gradient(laid, axis=axis) * SIDE / 2 for axis in (1, 2))
    slopes = np.empty((len(a), 6, SIDE, SIDE))  # of each pixel: by the four numbers, by gain and by offset
    for place, slope in enumerate((by_x * u, by_x, by_y * u[:, None], by_y, laid, np.ones_like(laid))):
        np.multiply(slope, both, out=slopes[:, place])
    across = slopes.reshape(len(a), 6, -1)
    normal = across @ across.transpose(0, 2, 1)
    # A featureless image leaves the equations singular: a little damping keeps them solvable.
    normal += (1e-6 * np.trace(normal, axis1=1, axis2=2)[:, None, None] + 1e-9) * np.eye(6)
    solved = np.linalg.solve(normal, across @ (a * both).reshape(len(a), -1, 1))[..., 0]
    gain = np.where(np.abs(solved[:, 4]) > 0.2, solved[:, 4], 1.0)
    return np.asarray(np.clip(solved[:, :4] / gain[:, None], -0.1, 0.1))


def _correlation(a: Floats, b: Floats, where: Floats) -> Floats:
    """Return Pearson's correlation of pairs of images where the weight is 1; 0 for featureless ones."""
    count = np.maximum(where.sum(axis=(1, 2), keepdims=True), 1.0)
    a, b = ((x - (x * where).sum(axis=(1, 2), keepdims=True) / count) * where for x in (a, b))
    power = np.sqrt((a * a).sum(axis=(1, 2)) * (b * b).sum(axis=(1, 2)))
    return np.asarray((a * b).sum(axis=(1, 2)) / np.where(power > 1e-6, power, np.inf))


def _fine(images: Floats) -> Floats:
    return np.asarray(images - _BLUR @ images @ _BLUR.T)


def _blur() -> NDArray[Any]:
    distance = np.arange(SIDE)[:, None] - np.arange(SIDE)[None]
    weights = np.exp(-0.5 * distance.astype(np.float64) ** 2)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


_BLUR: Final = _blur()
