"""Digests and keyed hashes as numbers: 32 bytes in place of a text of 64 digits, and compared a million at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Final, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xray_pipeline.base.errors import DatasetError

Words = NDArray[np.uint64]  # (n, words), eight bytes each; all zero stands for ""
_AT_ONCE = 1 << 20
_ENDS: Final[tuple[Literal["left", "right"], ...]] = ("left", "right")


def words_of(texts: Sequence[str], words: int, what: str) -> Words:
    """Return hexadecimal texts of 16 digits a word as numbers. Raises DatasetError, naming `what`, for other texts."""
    digits = 16 * words
    together = "".join([text or "0" * digits for text in texts])
    try:
        data = bytes.fromhex(together)
        if data.hex() != together:
            raise ValueError("these are capitals, or blanks")
        return np.frombuffer(data, np.uint64).reshape(len(texts), words)
    except ValueError as error:
        raise DatasetError(f"{what} is not {digits} hexadecimal digits in each row") from error


def text_of(one: Words) -> str:
    """Return the text of one row of `words_of`."""
    return one.tobytes().hex() if one.any() else ""


def texts_of(words: Words) -> pa.Array:
    """Return the texts of all rows, which no Python objects are made for."""
    digits = 16 * words.shape[1]
    there = words.any(axis=1)
    data = np.ascontiguousarray(words[there]).tobytes().hex().encode()
    ends = np.concatenate([[0], np.cumsum(there, dtype=np.int64) * digits])
    return pa.Array.from_buffers(pa.large_string(), len(words), [None, pa.py_buffer(ends), pa.py_buffer(data)])


class Wanted:
    """Texts that rows are compared with."""

    def __init__(self, texts: Iterable[str], words: int) -> None:
        """Look for texts of so many words; one that is none of their kind is equal to no row."""
        self._texts = {one for text in texts if (one := _bytes_of(text, words))}
        self._first = np.unique(np.frombuffer(b"".join(self._texts), np.uint64)[::words])

    def among(self, words: Words) -> NDArray[np.bool_]:
        """Return which rows are one of the texts."""
        found = np.zeros(len(words), np.bool_)
        if self._texts:
            at = np.searchsorted(self._first, words[:, 0])
            maybe = np.flatnonzero(self._first[np.minimum(at, len(self._first) - 1)] == words[:, 0])
            found[maybe] = [words[place].tobytes() in self._texts for place in maybe.tolist()]
        return found


def distinct(words: Words) -> int:
    """Return how many different rows of two words there are."""
    ordered = words[np.argsort(words[:, 0])]
    again = ordered[1:, 0] == ordered[:-1, 0]
    if (ordered[1:, 1] != ordered[:-1, 1])[again].any():  # once in 2**64 pairs of hashes
        return len(set(map(bytes, words)))
    return len(words) - int(np.count_nonzero(again))


def first_of_each(words: Words) -> NDArray[np.bool_]:
    """Return which rows are equal to none before them."""
    order = np.lexsort(words.T)  # stable: of equal rows the first comes first
    found = np.ones(len(words), np.bool_)
    found[order[1:]] = (words[order[1:]] != words[order[:-1]]).any(axis=1)
    return found


def _bytes_of(text: str, words: int) -> bytes:
    """Return a text as the bytes of a row, none for one that is no hexadecimal text of that length."""
    try:
        data = bytes.fromhex(text)
    except ValueError:
        return b""
    return data if len(data) == 8 * words and data.hex() == text else b""


class Finder:
    """Finds the rows that are equal to a text: of those to `expect` in one pass, of others by an order of all rows'
    first words, which is made when it is first needed."""

    def __init__(self, read: Callable[[NDArray[np.int64]], Words], places: NDArray[np.int64]) -> None:
        """Look among rows at some places, in their order; `read` returns the rows at places."""
        self._read, self._places = read, places
        self._expected: dict[str, int] = {}

    def expect(self, texts: Iterable[str], among: Callable[[Iterable[str]], NDArray[np.bool_]]) -> None:
        """Look for texts in one pass: `among` says which of all rows, by place, are one of some texts."""
        self._expected |= dict.fromkeys(texts, -1)
        found = self._places[among(self._expected)[self._places]]
        for place, one in zip(found.tolist(), self._read(found), strict=True):
            self._expected[text_of(one)] = max(place, self._expected[text_of(one)])

    @cached_property
    def _ordered(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        first = np.empty(len(self._places), np.uint64)
        for start in range(0, len(first), _AT_ONCE):
            first[start : start + _AT_ONCE] = self._read(self._places[start : start + _AT_ONCE])[:, 0]
        order = np.argsort(first)
        return first[order], self._places[order]

    def last(self, text: str) -> int:
        """Return the last of the places that hold a text, -1 for none."""
        if (expected := self._expected.get(text)) is not None:
            return expected
        if not (first := _bytes_of(text[:16], 1)):
            return -1
        firsts, ordered = self._ordered
        start, stop = (int(np.searchsorted(firsts, np.frombuffer(first, np.uint64)[0], s)) for s in _ENDS)
        places = ordered[start:stop]
        equal = [place for place, one in zip(places, self._read(places), strict=True) if text_of(one) == text]
        return int(max(equal, default=-1))
