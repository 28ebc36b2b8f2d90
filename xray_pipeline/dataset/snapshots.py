"""What a snapshot's file holds: manifests, and what amendments said of their rows when it was made.

What they said stands in the file itself, so that an old snapshot stays what it was whatever is amended later.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from xray_pipeline.base import records
from xray_pipeline.base.errors import DatasetError, StorageError
from xray_pipeline.base.records import canonical, digest_of
from xray_pipeline.base.storage import open_store
from xray_pipeline.dataset.amendments import NOTHING, Amended
from xray_pipeline.dataset.hexes import distinct, texts_of
from xray_pipeline.dataset.revisions import CONFLICT, part_of
from xray_pipeline.dataset.rows import Rows


class Named(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a snapshot's file holds: `dataset` is that of dataset.json, `manifests` are keys to SHA-256; `labels` by
    digest and `withdrawn` digests are what amendments said of the rows of these manifests when it was made."""

    format: int
    dataset: dict[str, Any]
    manifests: dict[str, str]
    labels: dict[str, str] = {}
    withdrawn: tuple[str, ...] = ()

    def amended(self) -> Amended:
        """Return what the amendments said."""
        return Amended(self.labels, dict.fromkeys(self.withdrawn, 1))


def decisive(rows: Rows) -> list[str]:
    """Return the keys, sorted, of manifests that can change what a snapshot holds.

    Those of copies only can not, so that nothing is trained for them. One that ends a label conflict can.
    """
    keys: list[str] = []
    disputed: set[tuple[str, str]] = set()
    for key in sorted(rows.parts, key=part_of):
        part, name = rows.parts[key], part_of(key)[0]
        places, reasons = part.choices("reason")
        files = part.table(("path",))["path"].to_pylist() if disputed and "" not in reasons else []
        if not {"", CONFLICT}.isdisjoint(reasons) or any((name, file) in disputed for file in files):
            keys.append(key)
        if CONFLICT in reasons:
            conflicts = np.flatnonzero(places == reasons.index(CONFLICT))
            disputed.update((name, file) for file in part.table(("path",), conflicts)["path"].to_pylist())
        part.release()
    return sorted(keys)


def said_of(rows: Rows, amended: Amended) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return what amendments say of the radiographs in manifests: labels by digest, and the digests that are out."""
    if amended == NOTHING:
        return {}, ()
    counted, out = rows.counted(rows.stand()), rows.out(amended)
    withdrawn, settled = (
        set(texts_of(rows.words("digest", np.flatnonzero(some))).to_pylist())
        for some in (counted & out, counted & ~out & rows.among("digest", amended.labels))
    )
    return {digest: amended.labels[digest] for digest in settled - withdrawn}, tuple(sorted(withdrawn))


def held(rows: Rows, amended: Amended, gone: Set[str], erased: bool = False) -> NDArray[np.bool_]:
    """Return which rows a snapshot of these manifests holds: the accepted ones that no amendment withdrew and no label
    conflict keeps out. Those `gone` (digests), as they were erased since, are none, but with `erased`."""
    out = rows.contested(rows.stand(), amended, gone) | amended.withdrawn.keys() | (set() if erased else gone)
    return rows.equal("verdict", "accepted") & ~rows.among("digest", out)


class Counts(NamedTuple):
    """How many radiographs a snapshot holds, of how many patients; and the same of what is held out."""

    images: int
    patients: int
    held_out_images: int
    held_out_patients: int


def counts(digest: str, rows: Rows, amended: Amended, gone: Set[str], cache: Path) -> Counts:
    """Count what the snapshot of a digest holds, these rows as in `held`: once on each machine."""
    place, key = open_store(cache), f"counts/{digest_of(canonical([digest, sorted(gone)]))}.json"
    with contextlib.suppress(DatasetError, StorageError):  # counted anew
        return records.read(place, key, Counts)
    kept = held(rows, amended, gone)
    held_out = kept & rows.equal("side", "held-out")
    patients, patients_held_out = (distinct(rows.words("patient", np.flatnonzero(some))) for some in (kept, held_out))
    found = Counts(int(kept.sum()), patients, int(held_out.sum()), patients_held_out)
    with contextlib.suppress(StorageError):  # a cache that takes nothing
        records.write(place, key, found)
    return found


def radiographs(
    rows: Rows,
    kept: NDArray[np.bool_],
    read: Callable[[str, Sequence[str]], pa.Table],
    amended: Amended,
    source_pattern: str,
) -> pd.DataFrame:
    """Return the rows that a snapshot holds, as `Dataset.rows` does; `read` gives columns of a manifest by its key."""
    tables = []
    for start, (key, part) in zip(rows.starts.tolist(), rows.parts.items(), strict=False):
        table = read(key, _READ).filter(pa.array(kept[start : start + len(part)]))
        tables.append(table.append_column("delivery", pa.array([key] * len(table), pa.large_string())))
    found: pd.DataFrame = pa.concat_tables(tables, promote_options="permissive").to_pandas(use_threads=False)
    found["label"] = amended.labelled(found)
    source = re.compile(source_pattern)
    found["source"] = [_source(source, file) for file in found["file"]]
    return found[list(_COLUMNS)].sort_values("digest", ignore_index=True)


def _source(pattern: re.Pattern[str], file: str) -> str:
    match = pattern.search(file.rpartition("/")[2])
    return match[match.lastindex or 0] if match else ""


_SHOWN = ("width", "height", "mode", "view", "sex", "age_years", "scanner")
_COLUMNS = ("digest", "suffix", "label", "patient", "side", "delivery", "source", *_SHOWN)
_READ = ("digest", "suffix", "label", "patient", "side", "file", *_SHOWN)
