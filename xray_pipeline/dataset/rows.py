"""The rows of all manifests together, in the order of the manifests' keys, as arrays: no Python object a row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from xray_pipeline.dataset.amendments import Amended
from xray_pipeline.dataset.extracts import WORDS, Extract
from xray_pipeline.dataset.fingerprints import Thumbnails
from xray_pipeline.dataset.hexes import Wanted, Words
from xray_pipeline.dataset.revisions import CONFLICT, SAYING, contested, in_force, part_of
from xray_pipeline.dataset.thumbnails import Shelf, Shown


class Rows:
    """What the extracts of manifests (by key) hold. A row's place counts through all of them. Columns of few values are
    kept once they were asked for; of the others those rows are read that are asked for. Their thumbnails lie on a
    `shelf`; without one none may be asked for."""

    def __init__(self, parts: Mapping[str, Extract], shelf: Shelf | None = None) -> None:
        self.parts, self.shelf = dict(sorted(parts.items())), shelf
        self.starts = np.cumsum([0, *map(len, self.parts.values())])
        self._made: dict[str, Any] = {}

    def __len__(self) -> int:
        return int(self.starts[-1])

    def words(self, column: str, places: NDArray[np.int64]) -> Words:
        """Return a column of hexadecimal text (`extracts.WORDS`) of rows at some places as numbers (n, words)."""
        found, filled = np.empty((len(places), WORDS[column]), np.uint64), 0
        if (places[1:] < places[:-1]).any():
            order = np.argsort(places)
            found[order] = self.words(column, places[order])
            return found
        for _, part, mine in self._of_parts(places):
            found[filled : filled + len(mine)] = part.words(column)[mine]
            filled += len(mine)
        return found

    def _of_parts(self, places: NDArray[np.int64]) -> Iterator[tuple[str, Extract, NDArray[np.int64]]]:
        """Yield the parts that hold rows at some places, ascending, each with its key and the numbers of its rows; what
        was read of one is given back before the next."""
        first, last = np.searchsorted(self.starts, places[[0, -1]], "right") - 1 if len(places) else (0, -1)
        cuts = np.searchsorted(places, self.starts[first : last + 2])
        for number, (key, part) in enumerate(list(self.parts.items())[first : last + 1]):
            if cuts[number] < cuts[number + 1]:
                yield key, part, places[cuts[number] : cuts[number + 1]] - self.starts[first + number]
                part.release()

    def numbers(self, column: str) -> NDArray[Any]:
        """Return a column of numbers, as `Extract.numbers`."""
        return np.asarray(self._of_all(lambda part: part.numbers(column)))

    def _of_all(self, of_part: Callable[[Extract], NDArray[Any]]) -> NDArray[Any]:
        """Return what all parts hold, in one array."""
        found: NDArray[Any] = np.empty(0)
        for start, part in zip(self.starts.tolist(), self.parts.values(), strict=False):
            values = of_part(part)
            if start == 0:
                found = np.empty(len(self), values.dtype)
            found[start : start + len(part)] = values
            part.release()
        return found

    def there(self) -> NDArray[np.bool_]:
        """Return which rows are of a radiograph: they have a digest."""
        made = self._once("there", lambda: self._of_all(lambda part: np.any(part.words("digest"), axis=1)))
        return np.asarray(made, np.bool_)

    def choices(self, column: str) -> tuple[NDArray[np.int16], list[str]]:
        """Return a column of few values (`extracts.CHOICES`): the place of each row's in the list, and the list."""
        found: tuple[NDArray[np.int16], list[str]] = self._once(column, lambda: self._choices(column))
        return found

    def _choices(self, column: str) -> tuple[NDArray[np.int16], list[str]]:
        values: dict[str, int] = {}
        places = np.empty(len(self), np.int16)
        for start, part in zip(self.starts.tolist(), self.parts.values(), strict=False):
            mine, names = part.choices(column)
            known = np.array([values.setdefault(name, len(values)) for name in names], np.int16)
            places[start : start + len(part)] = known[mine] if len(part) else 0
            part.release()
        return places, list(values)

    def equal(self, column: str, value: str) -> NDArray[np.bool_]:
        """Return which rows have this value in one of the columns of few."""
        places, values = self.choices(column)
        return np.asarray(places == (values.index(value) if value in values else -1))

    def among(self, column: str, texts: Iterable[str]) -> NDArray[np.bool_]:
        """Return which rows have one of these texts in a column of hexadecimal text."""
        if not (texts := set(texts)):
            return np.zeros(len(self), np.bool_)
        wanted = Wanted(texts, WORDS[column])
        return np.asarray(self._of_all(lambda part: wanted.among(part.words(column))), np.bool_)

    def frame(self, columns: Sequence[str], places: NDArray[np.int64]) -> pd.DataFrame:
        """Return columns of rows at some places, ascending, as they stand in the manifests, and `delivery`."""
        tables = []
        for key, part, mine in self._of_parts(places):
            name = pa.array([part_of(key)[0]] * len(mine), pa.large_string())
            tables.append(part.table(columns, mine).append_column("delivery", name))
        if not tables:
            return pd.DataFrame(columns=[*columns, "delivery"])
        found: pd.DataFrame = pa.concat_tables(tables).to_pandas(use_threads=False)
        return found

    def of_delivery(self, name: str) -> list[tuple[int, Extract]]:
        """Return where each part of a delivery begins, and its extract, in the order of the keys."""
        found: dict[str, list[tuple[int, Extract]]] = self._once("of deliveries", self._of_deliveries)
        return found.get(name, [])

    def _of_deliveries(self) -> dict[str, list[tuple[int, Extract]]]:
        found: dict[str, list[tuple[int, Extract]]] = {}
        for start, (key, part) in zip(self.starts.tolist(), self.parts.items(), strict=False):
            found.setdefault(part_of(key)[0], []).append((start, part))
        return found

    def stand(self, left_out: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
        """Return which rows are in force (`revisions.in_force`), as if the rows that are left out had never been."""
        stands = np.ones(len(self), np.bool_) if left_out is None else ~left_out
        several = {name for name, part in map(part_of, self.parts) if part > 1}
        tables, places = {}, {}
        for start, (key, part) in zip(self.starts.tolist(), self.parts.items(), strict=False):
            if part_of(key)[0] in several:
                rows = np.flatnonzero(stands[start : start + len(part)])
                table = part.table(("path", "size", "version", "verdict"), rows)
                tables[key] = table.rename_columns({"path": "file"}).to_pandas(use_threads=False)
                places[key] = start + rows
        for key, standing in in_force(tables).items():
            stands[places[key]] = standing
        return stands

    def counted(self, stands: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return which of the rows that are in force say what a radiograph shows, as `revisions.counted`."""
        said = self.equal("verdict", "accepted") | self.equal("reason", CONFLICT)
        return np.asarray(said & stands & self.there())

    def out(self, amended: Amended) -> NDArray[np.bool_]:
        """Return which rows are withdrawn, as `Amended.out`."""
        return self.among("digest", amended.withdrawn) | self.among("patient", amended.patients)

    def contested(self, stands: NDArray[np.bool_], amended: Amended, erased: Set[str] = frozenset()) -> set[str]:
        """Return the digests of radiographs that rows in force hold under two labels (`revisions.contested`)."""
        links = np.flatnonzero(stands & (self.numbers("linked") > 0))
        if not len(links):
            return set()
        named = self.frame(("digest", "near_copy", "withdraws"), links)
        reached = set(" ".join(named["digest"] + " " + named["near_copy"] + " " + named["withdraws"]).split())
        rows = self.frame(SAYING, np.flatnonzero(stands & self.among("digest", reached)))
        return contested(rows, amended, erased)

    def pictures(self, places: NDArray[np.int64]) -> Thumbnails:
        """Return the thumbnails of rows at some places (n, SIDE, SIDE). Raises DatasetError, StorageUnavailable."""
        once, back = np.unique(places, return_inverse=True)
        shown = []
        for key, part, mine in self._of_parts(once):
            rows = part.table(("digest", "suffix", "phash", "verdict", "pictured"), mine).to_pylist()
            for row, at in zip(rows, mine.tolist(), strict=True):
                about = (row["digest"], row["suffix"], row["phash"], row["verdict"] == "accepted")
                shown.append(Shown(*about, part.digest, at, key * row["pictured"]))
        assert self.shelf is not None
        return np.asarray(self.shelf.of(shown)[back])

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]
