"""What earlier deliveries brought, by the rules alone: a slow, plain reading of all rows of all manifests.

Nothing of the package's arrays and indexes is used; what `History` and snapshots say must agree with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any

import pandas as pd

from xray_pipeline.dataset.amendments import Amended

Row = dict[str, Any]


class PlainHistory:
    """The rows of manifests (by key) as amendments correct them; quarantined rows of `name` at `paths` never were."""

    def __init__(
        self, tables: Mapping[str, pd.DataFrame], amended: Amended, name: str = "", paths: Collection[str] = ()
    ) -> None:
        self.amended = amended
        self.rows: list[Row] = []
        for key in sorted(tables):
            delivery, _, part = key.partition("+")
            for row in tables[key].to_dict("records"):
                if not (delivery == name and row["verdict"] != "accepted" and row["file"] in paths):
                    self.rows.append({**row, "key": key, "delivery": delivery, "part": int(part or 1)})
        for row in self.rows:
            row["label"] = amended.labels.get(row["digest"], row["label"])

    def stands(self, row: Row) -> bool:
        """Whether no later part of its delivery replaces a row: one of its path that is accepted, or judged anew."""
        if row["verdict"] == "accepted":
            return True
        own = [other for other in self.rows if other["delivery"] == row["delivery"]]
        for later in own:
            if later["part"] > row["part"] and later["file"] == row["file"]:
                earlier = {_file(other) for other in own if other["part"] < later["part"]}
                if later["verdict"] == "accepted" or _file(later) in earlier:
                    return False
        return True

    def out(self, row: Row) -> bool:
        """Whether a row is withdrawn."""
        return row["digest"] in self.amended.withdrawn or row["patient"] in self.amended.patients

    def held(self) -> list[Row]:
        """Return the rows of what the dataset holds."""
        return [row for row in self.rows if row["verdict"] == "accepted" and not self.out(row)]

    def said(self) -> list[Row]:
        """Return the rows that say what a radiograph shows."""
        known = [row for row in self.rows if row["verdict"] == "accepted" or row["reason"] == "label-conflict"]
        return [row for row in known if row["digest"] and self.stands(row) and not self.out(row)]

    @cached_property
    def contested(self) -> set[str]:
        """Return the digests of radiographs that are held under two labels, themselves or what they are linked with."""
        said = self.said()
        groups: list[set[str]] = [{row["digest"]} for row in said]
        in_conflict = set()
        for row in said:
            named = {*row["near_copy"].split(), *row["withdraws"].split()}
            if named or row["reason"] == "label-conflict":
                in_conflict.add(row["digest"])
                linked = {row["digest"], *named}
                together = [group for group in groups if group & linked]
                groups = [group for group in groups if not group & linked] + [linked.union(*together)]
        found = set()
        for group in groups:
            rows = [row for row in said if row["digest"] in group]
            settled = [row for row in rows if row["digest"] in self.amended.labels]
            if group & in_conflict and len({row["label"] for row in settled or rows}) > 1:
                found |= group
        return found

    def decisive(self) -> list[str]:
        """Return the keys of manifests that can change a snapshot."""
        found = set()
        for row in self.rows:
            ends = any(
                other["reason"] == "label-conflict"
                and (other["delivery"], other["file"]) == (row["delivery"], row["file"])
                and other["part"] < row["part"]
                for other in self.rows
            )
            if row["reason"] in ("", "label-conflict") or ends:
                found.add(row["key"])
        return sorted(found)

    def reference(self, most: int) -> tuple[list[str], int]:
        """Return the digests of the sample that a delivery is compared with, and of how many patients it is one."""
        measured = [row for row in self.held() if len(row["statistics"]) == 128]
        patients = sorted({row["patient"] for row in measured}, key=lambda one: hashlib.sha256(one.encode()).digest())
        sample: list[Row] = []
        for patient in patients:
            theirs = [row for row in measured if row["patient"] == patient]
            if len(sample) + len(theirs) > most:
                break
            sample += theirs
        return [row["digest"] for row in measured if any(row is one for one in sample)], len(patients)


def _file(row: Row) -> tuple[str, int, str]:
    return row["file"], row["size"], row["version"]
