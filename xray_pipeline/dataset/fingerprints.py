"""What a row keeps of a radiograph for finding its copies: a small picture and a perceptual hash of it.

The thumbnail has 40 x 40 pixels. The hash has 255 bits, the signs of the low cosine frequencies of the thumbnail's grey
ranks (after Zauner 2010, "Implementation and benchmarking of perceptual image hash functions"); ranks do not change
with brightness, contrast or gamma. The trade-off: 2.2 kB a row, so that copies are found without reading an image.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from xray_pipeline.base.errors import DatasetError
from xray_pipeline.images.png import png_bytes
from xray_pipeline.images.raster import Pixels

SIDE: Final = 40  # of a thumbnail, in pixels
_ENOUGH = 200  # pixels along the shorter side that a thumbnail is made from; of more, every second, third, ... is taken
_TERMS = 16  # cosine frequencies per axis

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


def picture_of(thumbnail: str) -> str:
    """Return a row's thumbnail as an address that holds the picture itself, "" where there is none."""
    if not thumbnail:
        return ""
    pixels = np.frombuffer(base64.b64decode(thumbnail), np.uint8).reshape(SIDE, SIDE)
    return f"data:image/png;base64,{base64.b64encode(png_bytes(pixels)).decode()}"


def hashes(thumbnails: Thumbnails) -> Hashes:
    """Return the hashes (n, 4) of thumbnails.

    All numbers before the median are whole and below 2**53, so that no rounding decides a bit.
    """
    return packed(terms(ranks(thumbnails), COSINES, COSINES))


def terms(of_ranks: Floats, down: Floats, across: Floats) -> Floats:
    """Return the low frequencies (n, 255) of ranks, the coarse ones first, by waves down and across: `COSINES`, or what
    they are on another part of the picture."""
    return np.asarray((down @ of_ranks @ across.T).reshape(len(of_ranks), -1)[:, _ORDER])


def packed(frequencies: Floats) -> Hashes:
    """Return one bit a frequency (n, 255): whether it is above the median of its image."""
    middle = frequencies.shape[1] // 2
    # The median of an odd number; np.median takes longer.
    medians = np.partition(frequencies, middle, axis=1)[:, middle : middle + 1]
    return np.ascontiguousarray(np.packbits(frequencies > medians, axis=1)).view("<u8")


def ranks(thumbnails: Thumbnails) -> Floats:
    """Return each pixel's grey rank within its thumbnail, -SIDE**2 to SIDE**2, whole numbers; equal greys share one."""
    flat = thumbnails.reshape(len(thumbnails), -1)
    of_pixels = np.empty(flat.shape)
    for row, values in enumerate(flat):
        counts = np.bincount(values, minlength=256)
        of_pixels[row] = (2 * np.cumsum(counts) - counts - SIDE * SIDE)[values]
    return of_pixels.reshape(-1, SIDE, SIDE)


COSINES: Final = np.rint(
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
