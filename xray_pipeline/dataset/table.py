"""The intake table: one row per file of a delivery."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Final, NamedTuple

import pandas as pd


class Row(NamedTuple):
    """One file of a delivery: the columns of the intake table, in order.

    `file` is the path inside the delivery with undecodable bytes, control characters and backslashes as \\xNN;
    `source_digest` and `digest` are SHA-256 of the file and of what is stored; `mode` and `bits` are the source's (a
    16-bit PNG, I;16, of fewer bits was scaled); `patient` is a keyed hash; ages are years; `statistics` says how the
    pixels look (`appearance.to_text`); `phash` and `thumbnail` are the fingerprint; `near_copy` is the digest of a
    near copy, here or in the dataset; `withdraws` are the digests, separated by spaces, of earlier deliveries'
    radiographs that a label conflict keeps out together with this row; `named_by` is the keyed hash of what a label
    table names the file by, where that is a DICOM identifier. Text is "" and numbers are 0 (age NaN) where
    unknown.
    """

    file: str
    size: int
    version: str
    source_digest: str = ""
    format: str = ""
    width: int = 0
    height: int = 0
    mode: str = ""
    bits: int = 0
    view: str = ""
    sex: str = ""
    age_years: float = float("nan")
    scanner: str = ""
    patient: str = ""
    label: str = ""
    given_split: str = ""
    side: str = ""
    verdict: str = "quarantined"
    reason: str = ""
    detail: str = ""
    digest: str = ""
    suffix: str = ""
    statistics: str = ""
    phash: str = ""
    thumbnail: str = ""
    near_copy: str = ""
    withdraws: str = ""
    named_by: str = ""


COLUMNS: Final = Row._fields
PERSONAL: Final = ("sex", "scanner", "statistics", "phash", "thumbnail", "named_by")
"""Columns of text that show the radiograph or say something of the patient; so does `age_years`."""
_NUMBERS = {"size": "int64", "width": "int64", "height": "int64", "bits": "int64", "age_years": "float64"}
_DTYPES = {column: _NUMBERS.get(column, "str") for column in COLUMNS}


def quarantined(row: Row, reason: str, detail: str) -> Row:
    """Return the row of a file that is kept out; `reason` is the code of a rule."""
    return row._replace(verdict="quarantined", reason=reason, detail=detail, side="")


_BATCH = 4096  # rows that are held as Python objects, of four times the memory


def of_rows(rows: Iterable[Row]) -> pd.DataFrame:
    """Return the table of rows, in their order."""
    left, parts = iter(rows), []
    while batch := list(itertools.islice(left, _BATCH)):
        parts.append(pd.DataFrame(batch, columns=list(COLUMNS)).astype(_DTYPES))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(COLUMNS)).astype(_DTYPES)


def by_file(*tables: pd.DataFrame) -> pd.DataFrame:
    """Return tables as one, by file."""
    together = pd.concat([table for table in tables if len(table)], ignore_index=True)
    return together if together["file"].is_monotonic_increasing else together.sort_values("file", ignore_index=True)
