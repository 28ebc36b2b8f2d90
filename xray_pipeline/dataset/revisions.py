"""What the manifests say together: which of their rows are in force, and which radiographs are held under two labels.

Manifests are never changed. A file that is judged anew gets a row in a later part of its delivery, and that row counts
from then on. Everything here follows from the manifests alone, so it is the same on every machine and every day.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Set
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from xray_pipeline.dataset.amendments import NOTHING, Amended

File = tuple[str, int, str]

CONFLICT = "label-conflict"
WITHDRAWN = "withdrawn"


def part_of(key: str) -> tuple[str, int]:
    """Return the delivery and the number of the part that a manifest's key names: names hold no `+`."""
    name, _, part = key.partition("+")
    return name, int(part or 1)


def path_key(path: str) -> str:
    """Return what stands for a path where none may stand, as it may name a patient: half of its SHA-256."""
    return hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def files_of(table: pd.DataFrame) -> Iterator[File]:
    """Yield each row's file as (file, size, version)."""
    return zip(table["file"], table["size"].tolist(), table["version"], strict=True)


def in_force(tables: Mapping[str, pd.DataFrame]) -> dict[str, NDArray[np.bool_]]:
    """Return for each manifest (by key) which rows are in force: not those that a later part of the delivery replaces.

    An accepted row, or one that judges a file anew, replaces earlier quarantined ones of its path, in whatever version:
    a delivery may have been copied anew meanwhile. Accepted rows stay in force: only quarantined files are judged anew.
    """
    stands = {key: np.ones(len(table), np.bool_) for key, table in tables.items()}
    several = {name for name, part in map(part_of, tables) if part > 1}
    keys = [key for key in sorted(tables, key=part_of) if part_of(key)[0] in several]
    replacing: dict[str, set[str]] = {}
    before: dict[str, set[File]] = {}
    for key in keys:
        table, known = tables[key], before.setdefault(part_of(key)[0], set())
        rows = zip(files_of(table), table["verdict"], strict=True)
        replacing[key] = {file[0] for file, verdict in rows if verdict == "accepted" or file in known}
        known.update(files_of(table))
    later: dict[str, set[str]] = {}
    for key in reversed(keys):
        table, replaced = tables[key], later.setdefault(part_of(key)[0], set())
        stands[key] = np.asarray((table["verdict"] == "accepted") | ~table["file"].isin(replaced))
        replaced |= replacing[key]
    return stands


SAYING: Final = ("digest", "label", "patient", "verdict", "reason", "near_copy", "withdraws")
"""The columns that say which radiographs are held under two labels."""


def contested(rows: pd.DataFrame, amended: Amended = NOTHING, erased: Set[str] = frozenset()) -> set[str]:
    """Return the digests of radiographs that rows in force (columns SAYING) hold under two labels, themselves or near
    copies.

    Near copies are connected by what rows in force, accepted or in a label conflict, say of each other; each group of
    connected ones shows one chest. A conflict is over once the rows in force agree: of a (NORMAL), its near copy b
    (NORMAL) and c, a near copy of b (PNEUMONIA), all are contested until a later part of a delivery replaces a row, or
    until a person settles it: where labels are settled, what deliveries say does not count. Copies that agreed when
    they came in are contested, too, once an amendment by which they agreed is undone. Of what was `erased` (digests)
    since no label is known any more: only what was in a conflict goes on being so.

    Rows of radiographs that name no other, that none names and that are in no conflict need not be given.
    """
    silent = rows["digest"].isin(set(erased)) & (rows["reason"] != CONFLICT)
    rows = rows[counted(rows) & ~amended.out(rows) & ~silent].reset_index(drop=True)
    linked = (rows["reason"] == CONFLICT) | (rows["near_copy"] != "") | (rows["withdraws"] != "")
    conflicts = set(rows.loc[linked, "digest"])
    if not conflicts:
        return set()
    beside: dict[str, set[str]] = {digest: set() for digest in conflicts}
    links = rows.loc[(rows["near_copy"] != "") | (rows["withdraws"] != ""), ["digest", "near_copy", "withdraws"]]
    for digest, near, withdraws in links.itertuples(index=False, name=None):
        for other in f"{near} {withdraws}".split():
            beside.setdefault(digest, set()).add(other)
            beside.setdefault(other, set()).add(digest)
    chest_of: dict[str, int] = {}
    for number, digest in enumerate(sorted(conflicts)):
        reached = [digest]
        while reached:
            if (one := reached.pop()) not in chest_of:
                chest_of[one] = number
                reached += beside[one]
    chest, settled = rows["digest"].map(chest_of), rows["digest"].isin(amended.labels.keys())
    decides = settled | ~chest.isin(set(chest[settled]))
    labels = amended.labelled(rows)[decides].groupby(chest[decides]).nunique()
    return {digest for digest, number in chest_of.items() if labels.get(number, 0) > 1}


def counted(table: pd.DataFrame) -> NDArray[np.bool_]:
    """Return which rows, of those in force, say what a radiograph shows: the accepted ones, and those in a label
    conflict.

    A file that labels.csv put out was never read: it has no digest, and says nothing of any image.
    """
    said = (table["verdict"] == "accepted") | (table["reason"] == CONFLICT)
    return np.asarray(said & (table["digest"] != ""))
