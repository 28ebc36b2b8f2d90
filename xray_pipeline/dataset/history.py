"""What earlier deliveries brought: the context in which a new one is judged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from functools import cached_property, partial
from typing import Final, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from xray_pipeline.dataset.amendments import NOTHING, Amended
from xray_pipeline.dataset.erasing import Erased
from xray_pipeline.dataset.extracts import WORDS
from xray_pipeline.dataset.fingerprints import Prints, side_codes
from xray_pipeline.dataset.hexes import Finder, Wanted, first_of_each, text_of
from xray_pipeline.dataset.revisions import File, path_key
from xray_pipeline.dataset.rows import Rows


class Seen:
    """The files of a delivery that were judged before; of erased ones it knows no path, but knows it again."""

    def __init__(self, files: Iterable[File], erased: Erased | None) -> None:
        """Take files whose paths are told by their keys (`path_key`)."""
        self._files, self._erased = frozenset(files), erased
        self._sizes = {(path, size) for path, size, _ in self._files}

    def __contains__(self, file: File) -> bool:
        path, size, version = file
        return any((key, size, version) in self._files for key in self._keys(path))

    def with_size(self, path: str, size: int) -> bool:
        """Say whether a file of this path and size was judged, in whatever version."""
        return any((key, size) in self._sizes for key in self._keys(path))

    def _keys(self, path: str) -> Iterator[str]:
        yield path_key(path)
        if self._erased:
            yield path_key(self._erased.hidden(path))


class Reference(NamedTuple):
    """What a delivery is compared with: `rows` are a sample of the radiographs whose statistics are kept (digest,
    patient, label, statistics, age_years), of so many patients. How many radiographs the dataset holds at all by label
    and by age in years (NaN where it is not known) stands in `labels` and `ages`."""

    rows: pd.DataFrame
    patients: int
    labels: pd.Series
    ages: pd.Series


class History:
    """What earlier deliveries brought, the `rows` of all manifests, as amendments correct it: the context in which a
    new one is judged. What is `left_out` of them counts as never judged; the `others` count as seen."""

    def __init__(
        self,
        rows: Rows,
        amended: Amended = NOTHING,
        erased: Erased | None = None,
        left_out: NDArray[np.bool_] | None = None,
        others: Set[File] = frozenset(),
    ) -> None:
        self.rows, self.amended, self.erased, self._others = rows, amended, erased, others
        self._there = np.ones(len(rows), np.bool_) if left_out is None else ~left_out

    def seen(self, name: str) -> tuple[int, Seen]:
        """Return how many parts of delivery `name` are committed, and their files."""
        files: set[File] = set()
        parts = self.rows.of_delivery(name)
        for start, part in parts:
            rows = np.flatnonzero(self._there[start : start + len(part)])
            files.update(part.files(rows))
        others = {(path_key(path), size, version) for path, size, version in self._others}
        return len(parts), Seen(files | others, self.erased)

    def without(self, name: str, paths: Set[str], others: Set[File] = frozenset()) -> History:
        """Return the history in which what is quarantined at these paths of delivery `name` was never judged.

        `others` count as seen, so that a check leaves them out.
        """
        left_out, keys = np.zeros(len(self.rows), np.bool_), Wanted(map(path_key, paths), WORDS["path"])
        for start, part in self.rows.of_delivery(name):
            left_out[start : start + len(part)] = keys.among(part.words("path"))
        left_out &= ~self.rows.equal("verdict", "accepted")
        return History(self.rows, self.amended, self.erased, left_out, others)

    def expect(self, digests: Iterable[str], patients: Iterable[str]) -> None:
        """Look up in one pass what will be asked about: radiographs and patients."""
        self._by_digest.expect(digests, partial(self.rows.among, "digest"))
        self._by_patient.expect(patients, partial(self.rows.among, "patient"))

    def side_of(self, digest: str) -> str:
        """Return the side of a committed radiograph, "" when the dataset doesn't hold it."""
        place = self._by_digest.last(digest)
        sides, names = self.rows.choices("side")
        return "" if place < 0 else names[sides[place]]

    def labels(self, digest: str) -> str | None:
        """Return the label of a committed radiograph; None when the dataset doesn't hold it, or not any more."""
        place = self._by_digest.last(digest)
        return None if place < 0 else self.amended.labels.get(digest) or self._label(place)

    def side(self, patient: str) -> str | None:
        """Return the side a committed patient is on, withdrawn or not; None for a new patient."""
        place = self._by_patient.last(patient)
        sides, names = self.rows.choices("side")
        return None if place < 0 else names[sides[place]]

    def reference(self, most: int) -> Reference:
        """Return what a delivery is compared with: at most so many radiographs that the dataset holds and of which
        statistics are kept. Patients are taken in an order that nothing but their ids decides (SHA-256)."""
        measured = np.flatnonzero(self._held & (self.rows.numbers("measured") > 0))
        order = self.rows.numbers("order")[measured]
        ordered = np.sort(order)
        patients = np.count_nonzero(ordered[1:] != ordered[:-1]) + min(1, len(ordered))
        if len(measured) > most:
            measured = measured[order < ordered[most]]
        rows = self._labelled(("digest", "patient", "label", "statistics", "age_years"), measured)
        ages = pd.Series(self.rows.numbers("age_years")[self._held], dtype=np.float64)
        places, names = self.held_labels
        labels = pd.Series(np.bincount(places, minlength=len(names)), names)
        return Reference(rows, int(patients), labels[labels > 0], ages.value_counts(dropna=False))

    def said(self) -> pd.DataFrame:
        """Return digest, label, patient, side, verdict and delivery of each row that says what a radiograph shows: the
        accepted ones and those in a label conflict, but no withdrawn ones."""
        return self._labelled(("digest", "label", "patient", "side", "verdict"), np.flatnonzero(self._said))

    def brought(self) -> pd.DataFrame:
        """Return digest, patient and delivery of each row that shows a radiograph, whatever became of it."""
        return self.rows.frame(("digest", "patient"), np.flatnonzero(self._there & self.rows.there()))

    @cached_property
    def prints(self) -> Prints:
        """The fingerprints of the committed radiographs, in the order of the manifests' keys. Raises DatasetError."""
        return self._prints(np.flatnonzero(self._held))

    @cached_property
    def held_labels(self) -> tuple[NDArray[np.int16], list[str]]:
        """The labels of the committed radiographs, in the order of `prints`: the place of each one's in a list, and the
        list."""
        (of_rows, names), held = self.rows.choices("label"), np.flatnonzero(self._held)
        places, names = of_rows[held], list(dict.fromkeys((*names, *self.amended.labels.values())))
        relabelled = np.flatnonzero(self.rows.among("digest", self.amended.labels)[held])
        digests = self.rows.words("digest", held[relabelled])
        places[relabelled] = [names.index(self.amended.labels[text_of(digest)]) for digest in digests]
        return places, names

    @cached_property
    def contested(self) -> Prints:
        """The fingerprints of radiographs, accepted or not, that label conflicts keep out. Raises DatasetError."""
        out = self.rows.contested(self._stands, self.amended)
        return self._prints(np.flatnonzero(self._said & self.rows.among("digest", out)))

    @cached_property
    def withdrawn(self) -> Prints:
        """The fingerprints of radiographs that were withdrawn, as far as they are kept. Raises DatasetError."""
        return self._prints(np.flatnonzero(self._there & self._out & self._shown))

    @cached_property
    def shown(self) -> Prints:
        """The fingerprints of all radiographs of which one is kept, once each, whatever became of them. Raises
        DatasetError."""
        places = np.flatnonzero(self._there & self._shown)
        return self._prints(places[first_of_each(self.rows.words("digest", places))])

    def _prints(self, places: NDArray[np.int64]) -> Prints:
        sides, names = self.rows.choices("side")
        return Prints.made(self.rows, places, side_codes(names)[sides[places]], self._shown[places])

    @cached_property
    def _by_digest(self) -> Finder:
        return Finder(partial(self.rows.words, "digest"), np.flatnonzero(self._held))

    @cached_property
    def _by_patient(self) -> Finder:
        accepted = np.flatnonzero(self.rows.equal("verdict", "accepted"))
        return Finder(partial(self.rows.words, "patient"), accepted)

    @cached_property
    def _held(self) -> NDArray[np.bool_]:
        """Which rows the dataset holds: accepted, and not withdrawn."""
        return self.rows.equal("verdict", "accepted") & ~self._out

    @cached_property
    def _said(self) -> NDArray[np.bool_]:
        """Which rows say what a radiograph shows (`revisions.counted`), and are not withdrawn."""
        return self.rows.counted(self._stands) & ~self._out

    @cached_property
    def _stands(self) -> NDArray[np.bool_]:
        return self.rows.stand(~self._there)

    @cached_property
    def _out(self) -> NDArray[np.bool_]:
        """Which rows are withdrawn."""
        return self.rows.out(self.amended)

    @cached_property
    def _shown(self) -> NDArray[np.bool_]:
        """Of which rows a hash is kept."""
        return np.asarray(self.rows.numbers("hashed") > 0)

    def _label(self, place: int) -> str:
        places, names = self.rows.choices("label")
        return names[int(places[place])]

    def _labelled(self, columns: Sequence[str], places: NDArray[np.int64]) -> pd.DataFrame:
        """Return columns of some rows, and `delivery`; a label is the one that stands."""
        rows = self.rows.frame(columns, places)
        return rows.assign(label=self.amended.labelled(rows))


EMPTY: Final = History(Rows({}))
"""Nothing was ever committed."""
