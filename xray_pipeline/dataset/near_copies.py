"""Near copies: the same exposure re-encoded, resized, cropped by a few pixels, or made brighter, darker or harder.

Three steps, each cheaper than the next and none reading a file again. (1) Each radiograph leaves a thumbnail of 40 x 40
pixels and a perceptual hash in its row: 255 bits, the signs of the low cosine frequencies of the thumbnail's grey ranks
(after Zauner 2010, "Implementation and benchmarking of perceptual image hash functions"); ranks do not change with
brightness, contrast or gamma. (2) Candidates are what a scan of all hashes leaves; each image asks eleven times, as it
is and as if cropped or padded a little, so that a crop on either side is found. (3) Of each candidate pair the two
thumbnails are laid over each other (shift and stretch, Gauss-Newton) and their fine structure is correlated: ribs of
two patients, or of one patient on two days, do not coincide.

Trade-off: the scan is exact and linear, half a millisecond per form asked and million images, 32 bytes an image. Tables
of hash bits would spare nothing: at the distance that a crop of 3 % needs they must look into thousands of buckets. Not
found: turned, mirrored or inverted copies, crops of over 3 % a side. `benchmarks/near_duplicates.py` measures all this.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from xray_pipeline.base.errors import DatasetError
from xray_pipeline.images.radiograph import Pixels

SIDE: Final = 40  # of a thumbnail, in pixels
ALIKE: Final = 0.84  # correlation of fine structure from which two images are near copies; see the benchmark
_ENOUGH = 200  # pixels along the shorter side that a thumbnail is made from; of more, every second, third, ... is taken
_TERMS = 16  # cosine frequencies per axis
_COARSE, _APART = 10, 52  # bits that may differ: of the first 64, of all 255
_CROPS = (  # shares of width and height off left, right, top, bottom; a question takes each as crop and as padding
    (0.015,) * 4,
    (0.02, 0, 0.02, 0),
    (0.02, 0, 0, 0.02),
    (0, 0.02, 0.02, 0),
    (0, 0.02, 0, 0.02),
)
_BLOCK = 1 << 12  # hashes compared at once: they fit the processor's cache
_PAIRS = 32  # pairs laid over each other at once: 20 MB a thread
_ASKED = 64  # questions a thread takes at once
_ROUNDS = (0, 1, 4, 16, 64)  # candidates of one image are looked at in rounds, until one is a copy
_STEPS = 8  # of Gauss-Newton
_MOST_MOVED = 0.15  # of half the side, and of the scale

Hashes = NDArray[np.uint64]  # (n, 4)
Thumbnails = NDArray[np.uint8]  # (n, SIDE, SIDE)
Floats = NDArray[np.float64]


class Fingerprint(NamedTuple):
    """What a row keeps of its radiograph: the hash (64 hexadecimal digits), the thumbnail (base64 of 1,600 bytes)."""

    phash: str
    thumbnail: str


def fingerprint(pixels: Pixels) -> Fingerprint:
    """Return the fingerprint of pixels (H, W). The same pixels give the same text on every machine."""
    step = max(1, min(pixels.shape) // _ENOUGH)
    some: NDArray[Any] = np.ascontiguousarray(pixels[::step])[:, ::step]
    image = Image.fromarray(np.ascontiguousarray(some if some.dtype == np.uint8 else (some >> 8).astype(np.uint8)))
    small = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.HAMMING))
    return Fingerprint(hashes(small[None])[0].tobytes().hex(), base64.b64encode(small.tobytes()).decode())


def hashes(thumbnails: Thumbnails) -> Hashes:
    """Return the hashes (n, 4) of thumbnails.

    All numbers before the median are whole and below 2**53, so that no rounding decides a bit.
    """
    return _signs(_ranks(thumbnails))


def _forms(thumbnails: Thumbnails) -> Hashes:
    """Return the hashes (n, forms, 4) of thumbnails as they are, cropped, and padded at the edges."""
    ranks = _ranks(thumbnails)
    forms = [_signs(ranks)]
    for crop in _CROPS:
        for left, right, top, bottom in (np.array(crop), -np.array(crop)):
            x, y = (_resampling(np.array([-a - b]), np.array([a - b]))[0][0] for a, b in ((left, right), (top, bottom)))
            forms.append(_signs(y @ ranks @ x.T))
    return np.stack(forms, axis=1)


def _signs(ranks: Floats) -> Hashes:
    return _packed(_terms(ranks))


def _terms(ranks: Floats) -> Floats:
    """Return the low cosine frequencies (n, 255) of ranks, the coarse ones first."""
    return np.asarray((_COSINES @ ranks @ _COSINES.T).reshape(len(ranks), -1)[:, _ORDER])


def _packed(terms: Floats) -> Hashes:
    middle = terms.shape[1] // 2
    medians = np.partition(terms, middle, axis=1)[:, middle : middle + 1]  # of an odd number; np.median takes longer
    return np.ascontiguousarray(np.packbits(terms > medians, axis=1)).view("<u8")


def _ranks(thumbnails: Thumbnails) -> Floats:
    """Return each pixel's grey rank within its thumbnail, -SIDE**2 to SIDE**2, whole numbers; equal greys share one."""
    flat = thumbnails.reshape(len(thumbnails), -1)
    ranks = np.empty(flat.shape)
    for row, values in enumerate(flat):
        counts = np.bincount(values, minlength=256)
        ranks[row] = (2 * np.cumsum(counts) - counts - SIDE * SIDE)[values]
    return ranks.reshape(-1, SIDE, SIDE)


_COSINES: Final = np.rint(
    4096 * np.cos(np.pi * np.arange(_TERMS)[:, None] * (np.arange(SIDE)[None] + 0.5) / SIDE)
)  # DCT-II in whole numbers
_ORDER: Final = np.array(sorted(range(1, _TERMS**2), key=lambda at: (max(divmod(at, _TERMS)), at)))  # coarse first


@dataclass(frozen=True, eq=False)
class Prints:
    """Fingerprints of n radiographs, with what tells them apart; `hashes` is (n, 4).

    Their thumbnails, the bulk of a table, are `rows` (n) of `thumbnails`, which is the tables' own, not a copy.
    """

    digests: Sequence[str]
    sides: Sequence[str]
    hashes: Hashes
    thumbnails: pa.ChunkedArray
    rows: NDArray[np.int64]

    @classmethod
    def of(cls, table: pd.DataFrame, rows: Sequence[int] | NDArray[np.int64]) -> Prints:
        """Take them from rows (by place) of an intake table. Raises DatasetError when one has none."""
        places = np.asarray(rows, np.int64)
        some = table[["digest", "side", "phash"]].iloc[places]
        try:
            packed = np.frombuffer(bytes.fromhex("".join(some["phash"])), "<u8").reshape(len(places), 4)
        except ValueError as error:
            raise DatasetError(
                "accepted radiographs without a perceptual hash can't be compared with new ones; ingest them again"
            ) from error
        thumbnails = pa.chunked_array(table["thumbnail"].astype("str"))
        return cls(some["digest"].tolist(), some["side"].tolist(), packed, thumbnails, places)

    @classmethod
    def joined(cls, parts: Sequence[Prints]) -> Prints:
        """Return those of all parts, one part after the other."""
        starts = np.cumsum([0, *(len(part.thumbnails) for part in parts)])
        return cls(
            [digest for part in parts for digest in part.digests],
            [side for part in parts for side in part.sides],
            np.concatenate([np.empty((0, 4), np.uint64), *(part.hashes for part in parts)]),
            pa.chunked_array([chunk for part in parts for chunk in part.thumbnails.chunks], pa.large_string()),
            np.concatenate([np.empty(0, np.int64), *(part.rows + at for part, at in zip(parts, starts, strict=False))]),
        )

    def __len__(self) -> int:
        return len(self.digests)

    def take(self, which: Sequence[int]) -> Prints:
        """Return some of them, in that order."""
        at = np.asarray(which, np.int64)
        digests, sides = ([values[n] for n in which] for values in (self.digests, self.sides))
        return Prints(digests, sides, self.hashes[at], self.thumbnails, self.rows[at])

    def pictures(self, which: Sequence[int]) -> Thumbnails:
        """Return the thumbnails of some (n, SIDE, SIDE). Raises DatasetError."""
        rows = self.rows[np.asarray(which, np.int64)].tolist()
        data = b"".join(base64.b64decode(self.thumbnails[row].as_buffer()) for row in rows)
        try:
            return np.frombuffer(data, np.uint8).reshape(len(which), SIDE, SIDE)
        except ValueError as error:
            raise DatasetError(
                f"thumbnails of another size than {SIDE} pixels; ingest the radiographs again"
            ) from error

    @cached_property
    def side(self) -> dict[str, str]:
        """The side of the split by digest."""
        return dict(zip(self.digests, self.sides, strict=True))

    @cached_property
    def by_side(self) -> dict[str, Prints]:
        """Those on each side of the split."""
        return {name: self.take([n for n, side in enumerate(self.sides) if side == name]) for name in set(self.sides)}


def nearest(asked: Prints, known: Prints, workers: int = 0, itself: bool = False) -> NDArray[np.int64]:
    """Return for each of `asked` the place in `known` of a near copy (of several the nearest by hash), -1 for none.

    With `itself` the two are the same and nothing is its own copy. `workers` threads search (0: one per core). Only the
    64 nearest by hash are looked at, so that a delivery of nothing but copies takes no quadratic time.
    """
    found = np.full(len(asked), -1, np.int64)
    if not len(asked) or not len(known):
        return found
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        near = _candidates(asked, known, itself, pool)
        for start, stop in pairwise(_ROUNDS):
            pairs = [(q, n) for q in np.flatnonzero(found < 0).tolist() for n in near[q][start:stop].tolist()]
            for question, place in _copies(pairs, asked, known, pool):
                if found[question] < 0:
                    found[question] = place
    return found


def every(asked: Prints, known: Prints, workers: int = 0) -> list[tuple[int, int]]:
    """Return all near copies as (place in `asked`, place in `known`), among the 64 nearest by hash of each asked."""
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        near = _candidates(asked, known, False, pool)
        return _copies([(q, n) for q, places in enumerate(near) for n in places.tolist()], asked, known, pool)


def _copies(
    pairs: list[tuple[int, int]], asked: Prints, known: Prints, pool: ThreadPoolExecutor
) -> list[tuple[int, int]]:
    """Return those pairs of places that are near copies."""
    parts = [list(zip(*pairs[at : at + _PAIRS], strict=True)) for at in range(0, len(pairs), _PAIRS)]
    alike = pool.map(lambda part: _alike(asked.pictures(part[0]), known.pictures(part[1])), parts)
    return [pair for pair, same in zip(pairs, (value for part in alike for value in part), strict=True) if same]


def _candidates(asked: Prints, known: Prints, itself: bool, pool: ThreadPoolExecutor) -> list[NDArray[np.int64]]:
    """Return for each question the places of the hashes that are near any form of it, nearest first."""
    coarse = np.ascontiguousarray(known.hashes[:, 0])

    def group(places: list[int]) -> list[NDArray[np.int64]]:
        forms = _forms(asked.pictures(places))
        return [_scan(forms[n], known.hashes, coarse, place if itself else -1) for n, place in enumerate(places)]

    every = list(range(len(asked)))
    groups = pool.map(group, (every[at : at + _ASKED] for at in range(0, len(every), _ASKED)))
    return [near for found in groups for near in found]


def _scan(forms: Hashes, known: Hashes, coarse: NDArray[np.uint64], own: int) -> NDArray[np.int64]:
    """Return the places of the nearest hashes to any form (forms, 4) of one question, but not its own place."""
    places, distances = [], []
    for start in range(0, len(coarse), _BLOCK):
        differ = np.bitwise_count(coarse[start : start + _BLOCK] ^ forms[:, :1])
        if differ.min() > _COARSE:
            continue
        form, near = np.nonzero(differ <= _COARSE)
        apart = np.bitwise_count(known[near + start] ^ forms[form]).sum(axis=1, dtype=np.int64)
        places.append(near[apart <= _APART] + start)
        distances.append(apart[apart <= _APART])
    if not places:
        return np.empty(0, np.int64)
    place = np.concatenate(places)
    order = np.lexsort((place, np.concatenate(distances)))
    first = np.unique(place[order], return_index=True)[1]
    nearest_first = place[order][np.sort(first)]
    return np.asarray(nearest_first[nearest_first != own][: _ROUNDS[-1]])


def _alike(first: Thumbnails, second: Thumbnails) -> NDArray[np.bool_]:
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
    a, b = _ranks(first), _ranks(second)
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


def _resampling(stretch: Floats, shift: Floats) -> tuple[Floats, Floats]:
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
    along_x, on_x = _resampling(moved[:, 0], moved[:, 1])
    along_y, on_y = _resampling(moved[:, 2], moved[:, 3])
    return along_y @ images @ along_x.transpose(0, 2, 1), on_y[:, :, None] * on_x[:, None, :]


def _improvement(a: Floats, laid: Floats, both: Floats) -> Floats:
    """Return the Gauss-Newton step (n, 4) that brings the laid images nearer to `a`."""
    u = (np.arange(SIDE) + 0.5) * 2 / SIDE - 1
    by_y, by_x = (np.gradient(laid, axis=axis) * SIDE / 2 for axis in (1, 2))
    slopes = np.stack([by_x * u, by_x, by_y * u[:, None], by_y, laid, np.ones_like(laid)], axis=-1)
    slopes = (slopes * both[..., None]).reshape(len(a), -1, 6)
    across = slopes.transpose(0, 2, 1)
    normal = across @ slopes
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
