"""What copies of a radiograph are found by: a small picture, and a perceptual hash of it.

The thumbnail has 40 x 40 pixels. The hash has 255 bits, the signs of the low cosine frequencies of the thumbnail's grey
ranks (after Zauner 2010, "Implementation and benchmarking of perceptual image hash functions"); ranks do not change
with brightness, contrast or gamma. A row keeps the hash; thumbnails are looked at where two hashes are near
(thumbnails.py).
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from xray_pipeline.base.errors import DatasetError
from xray_pipeline.dataset.hexes import Finder, Words, text_of, texts_of, words_of
from xray_pipeline.dataset.split import SIDES
from xray_pipeline.images.png import png_bytes
from xray_pipeline.images.raster import Pixels

SIDE: Final = 40  # of a thumbnail, in pixels
_ENOUGH = 200  # pixels along the shorter side that a thumbnail is made from; of more, every second, third, ... is taken
_TERMS = 16  # cosine frequencies per axis

Hashes = NDArray[np.uint64]  # (n, 4)
Thumbnails = NDArray[np.uint8]  # (n, SIDE, SIDE)
Floats = NDArray[np.float64]


class Fingerprint(NamedTuple):
    """Of a radiograph that is judged: the hash (64 hexadecimal digits), the thumbnail (base64 of 1,600 bytes)."""

    phash: str
    thumbnail: str


def fingerprint(pixels: Pixels) -> Fingerprint:
    """Return the fingerprint of pixels (H, W). The same pixels give the same text on every machine."""
    shown = small(pixels)
    return Fingerprint(hashes(shown[None])[0].tobytes().hex(), base64.b64encode(shown.tobytes()).decode())


def small(pixels: Pixels) -> NDArray[np.uint8]:
    """Return the thumbnail (SIDE, SIDE) of pixels (H, W)."""
    step = max(1, min(pixels.shape) // _ENOUGH)
    some: NDArray[Any] = np.ascontiguousarray(pixels[::step])[:, ::step]
    image = Image.fromarray(np.ascontiguousarray(some if some.dtype == np.uint8 else (some >> 8).astype(np.uint8)))
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.HAMMING))


def decoded(thumbnail: str) -> NDArray[np.uint8]:
    """Return the thumbnail (SIDE, SIDE) that a fingerprint holds as text. Raises DatasetError for another size."""
    try:
        return np.frombuffer(base64.b64decode(thumbnail), np.uint8).reshape(SIDE, SIDE)
    except ValueError as error:
        raise DatasetError(f"a thumbnail of another size than {SIDE} pixels; ingest the radiographs again") from error


def picture_of(thumbnail: str) -> str:
    """Return a fingerprint's thumbnail as an address that holds the picture itself, "" where there is none."""
    if not thumbnail:
        return ""
    return f"data:image/png;base64,{base64.b64encode(png_bytes(decoded(thumbnail))).decode()}"


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


_SIDES: Final = ("", *SIDES)


class Source(Protocol):
    """What holds fingerprints, by row."""

    def words(self, column: str, places: NDArray[np.int64]) -> Words:
        """Return column `digest` or `phash` (n, 4) of some rows."""

    def pictures(self, places: NDArray[np.int64]) -> Thumbnails:
        """Return the thumbnails (n, SIDE, SIDE) of some rows. Raises DatasetError, StorageUnavailable."""


class Given(NamedTuple):
    """Fingerprints in memory; hashes and digests are (n, 4)."""

    digest: Words
    phash: Hashes
    thumbnails: Sequence[str]

    def words(self, column: str, places: NDArray[np.int64]) -> Words:
        """As `Source`."""
        return (self.digest if column == "digest" else self.phash)[places]

    def pictures(self, places: NDArray[np.int64]) -> Thumbnails:
        """As `Source`."""
        return np.array([decoded(self.thumbnails[place]) for place in places], np.uint8).reshape(-1, SIDE, SIDE)


@dataclass(frozen=True, eq=False)
class Prints:
    """Fingerprints of n radiographs, with what tells them apart: `sides` are places in the list of sides.

    What one shows is in the `rows` of one of the `sources`, by its number, and is read when it is asked for.
    """

    sources: tuple[Source, ...]
    source: NDArray[np.int8]
    rows: NDArray[np.int64]
    sides: NDArray[np.int8]

    @classmethod
    def of(cls, table: pd.DataFrame, rows: Sequence[int] | NDArray[np.int64]) -> Prints:
        """Take them from rows (by place) of an intake table. Raises DatasetError when one has none."""
        some = table[["digest", "side", "phash", "thumbnail"]].iloc[np.asarray(rows, np.int64)]
        given = Given(
            words_of(some["digest"].tolist(), 4, "the digest of a radiograph"),
            words_of(some["phash"].tolist(), 4, "the perceptual hash of a radiograph"),
            some["thumbnail"].tolist(),
        )
        return cls.made(given, np.arange(len(some)), side_codes(some["side"].tolist()), np.asarray(some["phash"] != ""))

    @classmethod
    def made(
        cls, source: Source, rows: NDArray[np.int64], sides: NDArray[np.int8], hashed: NDArray[np.bool_]
    ) -> Prints:
        """Return prints that are rows of one source. Raises DatasetError where one is not `hashed`."""
        if not hashed.all():
            raise DatasetError(
                "accepted radiographs without a perceptual hash can't be compared with new ones; ingest them again"
            )
        return cls((source,), np.zeros(len(rows), np.int8), rows, sides)

    @classmethod
    def joined(cls, parts: Sequence[Prints]) -> Prints:
        """Return those of all parts, one part after the other."""
        starts = np.cumsum([0, *(len(part.sources) for part in parts)])
        none, no_rows = np.empty(0, np.int8), np.empty(0, np.int64)
        return cls(
            tuple(source for part in parts for source in part.sources),
            np.concatenate([none, *(part.source + np.int8(at) for part, at in zip(parts, starts, strict=False))]),
            np.concatenate([no_rows, *(part.rows for part in parts)]),
            np.concatenate([none, *(part.sides for part in parts)]),
        )

    def __len__(self) -> int:
        return len(self.rows)

    def hashes(self, which: NDArray[np.int64]) -> Hashes:
        """Return the hashes (n, 4) of some."""
        return self._words("phash", which)

    def digest(self, place: int) -> str:
        """Return the digest of one."""
        return text_of(self._words("digest", np.array([place]))[0])

    def texts(self) -> list[str]:
        """Return the digests of all, in order."""
        found: list[str] = texts_of(self._words("digest", np.arange(len(self)))).to_pylist()
        return found

    def _words(self, column: str, which: NDArray[np.int64]) -> Words:
        if len(self.sources) == 1:
            return self.sources[0].words(column, self.rows[which])
        found = np.empty((len(which), 4), np.uint64)
        for source, mine, rows in self._of_sources(which):
            found[mine] = source.words(column, rows)
        return found

    def _of_sources(self, which: NDArray[np.int64]) -> Iterator[tuple[Source, NDArray[np.bool_], NDArray[np.int64]]]:
        """Yield each source that holds some of them, which these are, and their rows in it."""
        of, rows = self.source[which], self.rows[which]
        for number, source in enumerate(self.sources):
            mine = of == number
            if mine.any():
                yield source, mine, rows[mine]

    def take(self, which: Sequence[int] | NDArray[np.int64]) -> Prints:
        """Return some of them, in that order."""
        at = np.asarray(which, np.int64)
        return Prints(self.sources, self.source[at], self.rows[at], self.sides[at])

    def thumbnails(self, which: Sequence[int] | range | NDArray[np.int64]) -> Thumbnails:
        """Return the thumbnails of some (n, SIDE, SIDE). Raises DatasetError, StorageUnavailable."""
        found = np.empty((len(which), SIDE, SIDE), np.uint8)
        for source, mine, rows in self._of_sources(np.asarray(which, np.int64)):
            found[mine] = source.pictures(rows)
        return found

    def side(self, digest: str) -> str | None:
        """Return the side of the split of a radiograph, None when it is none of these."""
        place = self._finder.last(digest)
        return None if place < 0 else _SIDES[self.sides[place]]

    @cached_property
    def _finder(self) -> Finder:
        return Finder(partial(self._words, "digest"), np.arange(len(self)))

    @cached_property
    def by_side(self) -> dict[str, Prints]:
        """Those on each side of the split."""
        return {_SIDES[side]: self.take(np.flatnonzero(self.sides == side)) for side in np.unique(self.sides)}


def side_codes(values: Sequence[str]) -> NDArray[np.int8]:
    """Return for each of a list of sides its place in `Prints.sides`' list."""
    return np.array([_SIDES.index(value) for value in values], np.int8)
