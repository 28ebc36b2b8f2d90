"""Digests and keyed hashes as numbers: 32 bytes in place of a text of 64 digits, and compared a million at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xray_pipeline.base.errors import DatasetError

Words = NDArray[np.uint64]  # (n, words), eight bytes each; all zero stands for ""


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


def among(words: Words, texts: Iterable[str]) -> NDArray[np.bool_]:
    """Return which rows are one of some texts; a text that is none of their kind is none of them."""
    found = np.zeros(len(words), np.bool_)
    asked = {one for text in texts if (one := _bytes_of(text, words.shape[1]))}
    if asked and len(words):
        first = np.unique(np.frombuffer(b"".join(asked), np.uint64)[:: words.shape[1]])
        at = np.searchsorted(first, words[:, 0])
        maybe = np.flatnonzero(first[np.minimum(at, len(first) - 1)] == words[:, 0])
        found[maybe] = [words[place].tobytes() in asked for place in maybe.tolist()]
    return found


def distinct(words: Words) -> int:
    """Return how many different rows there are."""
    if not len(words):
        return 0
    ordered = words[np.lexsort(words.T)]
    return 1 + int(np.count_nonzero((ordered[1:] != ordered[:-1]).any(axis=1)))


def _bytes_of(text: str, words: int) -> bytes:
    """Return a text as the bytes of a row, none for one that is no hexadecimal text of that length."""
    try:
        data = bytes.fromhex(text)
    except ValueError:
        return b""
    return data if len(data) == 8 * words and data.hex() == text else b""


class Finder:
    """Finds the rows that are equal to a text."""

    def __init__(self, words: Words, places: NDArray[np.int64]) -> None:
        """Look among rows at some places, in their order."""
        order = np.argsort(words[places, 0], kind="stable")
        self._words, self._places = words, places[order]
        self._first = words[self._places, 0]

    def last(self, text: str) -> int:
        """Return the last of the places that hold a text, -1 for none."""
        if not (one := _bytes_of(text, self._words.shape[1])):
            return -1
        first = np.frombuffer(one, np.uint64)[0]
        start, stop = np.searchsorted(self._first, first, "left"), np.searchsorted(self._first, first, "right")
        places = self._places[start:stop].tolist()
        return next((place for place in reversed(places) if self._words[place].tobytes() == one), -1)
