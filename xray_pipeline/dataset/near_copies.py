"""Near copies: the same exposure re-encoded, resized, cropped by a few pixels, or made brighter, darker or harder.

Three steps, each cheaper than the next. (1) Each radiograph leaves its hash in its row (fingerprints.py). (2) What a
scan of all hashes leaves are candidates; each image asks eleven times, as it is and as if cropped or padded a little,
so that a crop on either side is found. (3) Of each candidate pair the two thumbnails (thumbnails.py) are laid over each
other, and decide (likeness.py).

Trade-off: the scan is exact and linear, 2 ms a question and million images; hashes are read in passing, a million at a
time, so that it holds 10 bytes an image. Tables of hash bits do worse: real hashes crowd together, so that at the
distance which a crop of 3 % needs they look into thousands of buckets for a fifth of all hashes (docs/architecture.md
has the figures). Not found: turned, mirrored or inverted copies, crops of over 3 % a side.
`benchmarks/near_duplicates.py` measures all this.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from xray_pipeline.dataset.fingerprints import COSINES, Floats, Hashes, Prints, Thumbnails, packed, ranks, terms
from xray_pipeline.dataset.likeness import alike, resampling

_COARSE, _APART = 10, 52  # bits that may differ: of the first 64, of all 255
_CROPS = (  # shares of width and height off left, right, top, bottom; a question takes each as crop and as padding
    (0.015,) * 4,
    (0.02, 0, 0.02, 0),
    (0.02, 0, 0, 0.02),
    (0, 0.02, 0.02, 0),
    (0, 0.02, 0, 0.02),
)
_STRETCH = 1 << 20  # hashes that are read at once: 32 MB
_BLOCK = 1 << 16  # of these, compared at once: they fit the processor's cache
_PAIRS = 32  # pairs laid over each other at once: 20 MB a thread
_LOOKED_UP = 8192  # thumbnails that are asked for at once, or pairs of them: 26 MB
_ASKED = 64  # questions a thread takes at once
_ROUNDS = (0, 1, 4, 16, 64)  # candidates of one image are looked at in rounds, until one is a copy

_Near = tuple[NDArray[np.int64], NDArray[np.uint8]]
"""Places of near hashes, and in how many bits each is apart."""


def nearest(asked: Prints, known: Prints, workers: int = 0, itself: bool = False) -> NDArray[np.int64]:
    """Return for each of `asked` the place in `known` of a near copy (of several the nearest by hash), -1 for none.

    With `itself` the two are the same and nothing is its own copy. `workers` threads search (0: one per core). Only the
    64 nearest by hash are looked at, so that a delivery of nothing but copies takes no quadratic time.
    """
    nearest_of = np.full(len(asked), -1, np.int64)
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        near = _candidates(asked, known, itself, pool)
        for start, stop in itertools.pairwise(_ROUNDS):
            pairs = [(q, n) for q in np.flatnonzero(nearest_of < 0).tolist() for n in near[q][start:stop].tolist()]
            for question, place in _copies(pairs, asked, known, pool):
                if nearest_of[question] < 0:
                    nearest_of[question] = place
    return nearest_of


def every(asked: Prints, known: Prints, workers: int = 0) -> list[tuple[int, int]]:
    """Return all near copies as (place in `asked`, place in `known`), among the 64 nearest by hash of each asked."""
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        near = _candidates(asked, known, False, pool)
        return _copies([(q, n) for q, places in enumerate(near) for n in places.tolist()], asked, known, pool)


def links(places: Sequence[int], known: Prints, workers: int = 0) -> dict[str, set[str]]:
    """Return the near copies, by digest, of all that those at `places` of `known` are connected with."""
    found: dict[str, set[str]] = {}
    reached = {known.digest(at): at for at in places}
    asking = list(reached.values())
    while asking:
        further = {}
        for at, other in every(known.take(asking), known, workers):
            one, two = known.digest(asking[at]), known.digest(other)
            if one != two:
                found.setdefault(one, set()).add(two)
                found.setdefault(two, set()).add(one)
                if two not in reached:
                    further[two] = other
        reached |= further
        asking = list(further.values())
    return found


def _copies(
    pairs: list[tuple[int, int]], asked: Prints, known: Prints, pool: ThreadPoolExecutor
) -> list[tuple[int, int]]:
    """Return those pairs of places that are near copies."""
    same: list[bool] = []
    for start in range(0, len(pairs), _LOOKED_UP):
        first, second = zip(*pairs[start : start + _LOOKED_UP], strict=True)
        same += itertools.chain.from_iterable(pool.map(alike, _shown(asked, first), _shown(known, second)))
    return list(itertools.compress(pairs, same))


def _shown(prints: Prints, places: Sequence[int]) -> list[Thumbnails]:
    """Return the thumbnails of some places, in parts of `_PAIRS`; each is looked up once."""
    once, back = np.unique(places, return_inverse=True)
    return np.array_split(prints.thumbnails(once)[back], range(_PAIRS, len(back), _PAIRS))


def _candidates(asked: Prints, known: Prints, itself: bool, pool: ThreadPoolExecutor) -> list[NDArray[np.int64]]:
    """Return for each question the places of the hashes that are near any form of it, nearest first."""
    if not len(known):
        return [np.empty(0, np.int64)] * len(asked)
    questions: list[NDArray[np.uint64]] = []
    for start in range(0, len(asked), _LOOKED_UP):
        shown = asked.thumbnails(range(start, min(start + _LOOKED_UP, len(asked))))
        questions += pool.map(_forms, (shown[at : at + _ASKED] for at in range(0, len(shown), _ASKED)))
    found: list[list[_Near]] = [[] for _ in range(len(asked))]
    for start in range(0, len(known), _STRETCH):
        hashes = known.hashes(np.arange(start, min(start + _STRETCH, len(known))))
        near = pool.map(partial(_near, hashes=hashes), questions)
        for parts, (places, apart) in zip(found, itertools.chain.from_iterable(near), strict=True):
            parts.append((places + start, apart))
    return [_nearest_first(parts, place if itself else -1) for place, parts in enumerate(found)]


def _near(questions: NDArray[np.uint64], hashes: Hashes) -> list[_Near]:
    """Return for each question (questions, forms, 4) those of some hashes that are near any form of it."""
    coarse = np.ascontiguousarray(hashes[:, 0])
    return [
        _apart(forms, hashes, near) for forms, near in zip(questions, _scan(questions[:, :, 0], coarse), strict=True)
    ]


def _scan(questions: NDArray[np.uint64], coarse: NDArray[np.uint64]) -> list[NDArray[np.int64]]:
    """Return for each question (questions, forms) the places of those of all hashes' first 64 bits (n) that differ from
    one of its forms in at most `_COARSE`.

    The forms of a question agree in three quarters of their bits, and what differs too much in these alone is near none
    of them: only the tenth that is left is compared with each form. A block of hashes is compared with all questions in
    turn, while it lies in the processor's cache.
    """
    first = questions[:, 0]
    agreed = ~np.bitwise_or.reduce(questions ^ first[:, None], axis=1)
    found: list[list[NDArray[np.int64]]] = [[] for _ in questions]
    for start in range(0, len(coarse), _BLOCK):
        block = coarse[start : start + _BLOCK]
        differ, count = np.empty_like(block), np.empty(len(block), np.uint8)
        for forms, one, mask, near in zip(questions[:, :, None], first, agreed, found, strict=True):
            np.bitwise_xor(block, one, out=differ)
            np.bitwise_and(differ, mask, out=differ)
            some = np.flatnonzero(np.bitwise_count(differ, out=count) <= _COARSE)
            near.append(some[np.bitwise_count(block[some] ^ forms).min(axis=0) <= _COARSE] + start)
    return [np.concatenate([np.empty(0, np.int64), *near]) for near in found]


def _apart(forms: Hashes, known: Hashes, places: NDArray[np.int64]) -> _Near:
    """Return those of some places of `known` that are near a form (forms, 4) of one question, the nearest by hash; a
    place may come several times."""
    words = np.ascontiguousarray(known.take(places, axis=0).T)
    found, distances = [], []
    for form, near in zip(forms, np.bitwise_count(words[0] ^ forms[:, :1]) <= _COARSE, strict=True):
        at = np.flatnonzero(near)
        apart = np.bitwise_count(words.take(at, axis=1) ^ form[:, None]).sum(axis=0, dtype=np.uint8)
        found.append(places[at[apart <= _APART]])
        distances.append(apart[apart <= _APART])
    return _first(np.concatenate(found), np.concatenate(distances), 1 + _ROUNDS[-1])  # one may be its own place


def _nearest_first(parts: Sequence[_Near], own: int) -> NDArray[np.int64]:
    """Return the nearest places of all parts, but not its own."""
    places, apart = (np.concatenate(some) for some in zip(*parts, strict=True))
    first, _ = _first(places, apart, 1 + _ROUNDS[-1])
    return np.asarray(first[first != own][: _ROUNDS[-1]])


def _first(places: NDArray[np.int64], apart: NDArray[np.uint8], most: int) -> _Near:
    """Return the nearest places, each once, and how far apart they are; of equally near ones the first."""
    order = np.lexsort((places, apart))
    once = np.sort(np.unique(places[order], return_index=True)[1])[:most]
    return places[order[once]], apart[order[once]]


def _forms(thumbnails: Thumbnails) -> Hashes:
    """Return the hashes (n, forms, 4) of thumbnails as they are, cropped, and padded at the edges."""
    of_pixels = ranks(thumbnails)
    return np.stack([packed(terms(of_pixels, down, across)) for down, across in _WAVES], axis=1)


def _waves() -> Iterator[tuple[Floats, Floats]]:
    """Yield the waves that a hash is made by: on the whole picture, and on each crop and padding of it.

    A wave on a crop is a wave on the resampled picture: resampling is linear, so it is done once, here.
    """
    yield COSINES, COSINES
    for crop in _CROPS:
        for left, right, top, bottom in (np.array(crop), -np.array(crop)):
            x, y = (resampling(np.array([-a - b]), np.array([a - b]))[0][0] for a, b in ((left, right), (top, bottom)))
            yield COSINES @ y, COSINES @ x


_WAVES: Final = tuple(_waves())
