"""I4 against the deliveries as they lie there, I7 and the stored bytes, checked from the manifests. Prints JSON.

Run in a worker's container, whose settings it uses.
"""

from __future__ import annotations

import json
import sys

from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import open_store
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.intake.layout import BOOKKEEPING, escape


def main() -> None:
    """Check and print {"broken": [...], "text": "..."}."""
    settings = Settings()
    dataset, incoming = Dataset(settings), open_store(settings.incoming, settings)
    broken: list[str] = []
    accepted = quarantined = 0
    for key in dataset.manifests():
        table = dataset.manifest(key)
        fit = table["verdict"] == "accepted"
        accepted, quarantined = accepted + int(fit.sum()), quarantined + int((~fit).sum())
        if (table.loc[~fit, "reason"] == "").any():
            broken.append(f"I4: {key} has a quarantined file without a reason")
    for name in incoming.folders():
        judged = dataset.history().seen(name)[1]
        there = [entry for entry in incoming.child(name).list() if entry.key not in BOOKKEEPING]
        if lost := [entry for entry in there if not judged.with_size(escape(entry.key), entry.size)]:
            broken.append(f"I4: {len(lost)} files of delivery {name} are neither accepted nor quarantined")
    snapshot = dataset.snapshot()
    rows = dataset.rows(snapshot) if snapshot else None
    if rows is None or rows.empty:
        broken.append("the dataset is empty")
    else:
        for row in rows.itertuples():
            dataset.read(row.digest, row.suffix)  # raises when the bytes are not those of the digest
        split = int((rows.groupby("patient")["side"].nunique() > 1).sum())
        copies = int((rows.groupby("digest")["side"].nunique() > 1).sum())
        if split or copies:
            broken.append(f"I7: {split} patients and {copies} radiographs are on two sides of the split")
    text = f"I4: {accepted} files accepted and {quarantined} quarantined, none lost; I7: no patient on two sides"
    json.dump({"broken": broken, "text": text}, sys.stdout)


if __name__ == "__main__":
    main()
