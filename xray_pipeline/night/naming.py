"""What a person names, looked up in the dataset: a radiograph, a patient, a delivery.

Of a patient's name only the keyed hash is kept, and no message repeats what was named, as it may be such a name. All is
read once, so that a long list costs little more than one line.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Literal

import pandas as pd

from xray_pipeline.base.errors import AmendmentError
from xray_pipeline.dataset.amending import grouped
from xray_pipeline.dataset.amendments import Subject
from xray_pipeline.dataset.revisions import part_of
from xray_pipeline.dataset.split import id_in_name, patient_hash
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.images.radiograph import ENDINGS

SHORTEST_DIGEST = 8
"""Digits of a radiograph's digest that are enough, if they are one radiograph's alone."""

By = Literal["radiograph", "file", "patient", "patient-of", "delivery", "amendment"]
"""How a person names what is meant: a digest, DELIVERY/ROW, a PatientID or file name, the patient of a radiograph (its
digest or DELIVERY/ROW), a delivery's name, an amendment's number."""
SUBJECTS: Mapping[By, Subject] = {
    "radiograph": "radiograph",
    "file": "radiograph",
    "patient": "patient",
    "patient-of": "patient",
    "delivery": "delivery",
    "amendment": "amendment",
}


class Names:
    """What can be named in a dataset of this moment."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._tables = {key: dataset.manifest(key) for key in dataset.manifests()}

    def find(self, by: By, name: str, *, known: bool = True) -> str:
        """Return what is named as an amendment has it: a digest, a keyed hash, a delivery's name or a number.

        A patient whom the dataset does not know is found unless it is to be `known`. Raises AmendmentError when that is
        nothing, or several.
        """
        if by == "patient":
            return self._patient(name, known)
        ways: dict[By, Callable[[str], str]] = {
            **{"radiograph": self._radiograph, "file": self._file, "patient-of": self._patient_of},
            **{"delivery": self._delivery, "amendment": str},
        }
        return ways[by](name)

    def _radiograph(self, digest: str) -> str:
        if len(digest) < SHORTEST_DIGEST or re.fullmatch("[0-9a-f]{1,64}", digest) is None:
            raise AmendmentError(f"that is no digest of a radiograph: give {SHORTEST_DIGEST} to 64 of its digits")
        start = bisect.bisect_left(self._digests, digest)
        end = bisect.bisect_right(self._digests, f"{digest}g", lo=start)  # no digit comes after f
        return _one(self._digests[start:end], "radiographs of this digest")

    def _file(self, place: str) -> str:
        key, _, row = place.rpartition("/")
        if key not in self._tables or not row.isdecimal():
            raise AmendmentError(
                "that is no row of a committed delivery; write DELIVERY/ROW, as `xray quarantine` does"
            )
        digests = self._tables[key]["digest"]
        if int(row) >= len(digests) or not digests.iat[int(row)]:
            raise AmendmentError(f"row {row} of delivery {key} shows no radiograph: it was never read, or is not there")
        return str(digests.iat[int(row)])

    def _patient_of(self, name: str) -> str:
        digest = (self._file if "/" in name else self._radiograph)(name)
        return _one(self._patients_of.get(digest, set()), "patients of it")

    def _patient(self, name: str, known: bool) -> str:
        """Return the keyed hash of the patient who has this id, or whose file has this name, whole or without folders.

        Of one whom the dataset does not know: as the intake would tell it, by the id in the name of an image file, else
        taking the name for the id.
        """
        key = self._dataset.patient_key()
        by_id = patient_hash(key, f"patient:{name}")
        found = {by_id} & self._patients | self._by_file.get(name, set())
        if found or known:
            return _one(found, "patients of this name", "; `--patient-of` takes a radiograph of the one who is meant")
        in_name = ""
        if name.lower().endswith(ENDINGS):
            in_name = id_in_name(self._dataset.settings.rules.patient_pattern, name)
        return patient_hash(key, f"patient:{in_name}") if in_name else by_id

    def _delivery(self, name: str) -> str:
        return _one({name} & {part_of(key)[0] for key in self._tables}, "deliveries of this name")

    @cached_property
    def _digests(self) -> list[str]:
        return sorted({digest for table in self._tables.values() for digest in table["digest"]} - {""})

    @cached_property
    def _rows(self) -> pd.DataFrame:
        """Digest, patient and file of each row that a patient is known of."""
        columns = ["digest", "patient", "file"]
        parts = [table.loc[table["patient"] != "", columns] for table in self._tables.values()]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)

    @cached_property
    def _patients(self) -> set[str]:
        return {*self._rows["patient"], *self._dataset.amended().patients}  # of an erased one only that is left

    @cached_property
    def _patients_of(self) -> dict[str, set[str]]:
        return grouped(zip(self._rows["digest"], self._rows["patient"], strict=True))

    @cached_property
    def _by_file(self) -> dict[str, set[str]]:
        pairs = zip(self._rows["file"], self._rows["patient"], strict=True)
        return grouped((name, patient) for file, patient in pairs for name in (file, file.rpartition("/")[2]))


def _one(found: Iterable[str], what: str, way_on: str = "") -> str:
    """Return the only one of what was found; a patient's name is not repeated. Raises AmendmentError."""
    distinct = sorted(set(found))
    if len(distinct) != 1:
        raise AmendmentError(
            f"the dataset knows {len(distinct)} {what}; name one, as `xray quarantine` and the report do: a digest, or "
            f"DELIVERY/ROW{way_on}"
        )
    return distinct[0]
