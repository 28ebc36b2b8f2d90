"""How many flipped labels the list of suspects holds, and what their review gives back, on real radiographs.

    python benchmarks/suspects.py --data FOLDER [--patients 1500] [--share 0.02] [--seeds 3] [--json FILE]

The frozen features of some patients' radiographs are computed as recipe `head` does, then a share of the labels is
flipped and the suspects are listed, for several seeds. Recall is the share of flipped labels that are listed, precision
the share of the list that was flipped, at the list's own length and at the number of flips (where the two are equal).
Real labels may be wrong too, so the list without any flip is given as well. Seconds are of the listing alone.

Review: a share of the patients is held out, with the labels they came with; labels of the others are flipped, a head
is fitted, a reader gives the flipped ones among the first 100 suspects their label back, and a head is fitted anew, as
the next night would. Accuracy and AUC on the held-out patients are given for no flips, with them, and after the review.
A small run: --patients 100 --seeds 1.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from drift import listing, seen
from sklearn.metrics import roc_auc_score

from xray_pipeline.evaluation import suspects

CLASSES = ("NORMAL", "PNEUMONIA")


def listed(rows: pd.DataFrame, vectors: np.ndarray, share: float, seed: int) -> dict[str, Any]:
    """Flip a share of the labels and list the suspects."""
    rng = np.random.default_rng(seed)
    flipped = set(rng.choice(rows["digest"].to_numpy(), round(share * len(rows)), replace=False))
    other = dict(zip(CLASSES, CLASSES[::-1], strict=True))
    labels = [other[label] if d in flipped else label for d, label in zip(rows["digest"], rows["label"], strict=True)]
    start = time.perf_counter()
    found = suspects.find(rows.assign(label=labels), vectors, CLASSES)
    seconds = time.perf_counter() - start
    names = [suspect.digest for suspect in found if suspect.kind == "mislabel"]
    hits = len(flipped & set(names))
    return {
        "flipped": len(flipped),
        "listed": len(names),
        "outliers": sum(suspect.kind == "outlier" for suspect in found),
        "recall": hits / max(1, len(flipped)),
        "precision": hits / max(1, len(names)),
        "at_number_of_flips": len(flipped & set(names[: len(flipped)])) / max(1, len(flipped)),
        "seconds": seconds,
    }


READ, HELD_OUT = 100, 0.25
"""Suspects that a reader looks at; share of the patients that are held out."""


def reviewed(rows: pd.DataFrame, vectors: np.ndarray, share: float, seed: int) -> dict[str, Any]:
    """Flip labels of patients that are trained on, have the first suspects read, and measure on the held-out ones."""
    rng = np.random.default_rng(seed)
    patients = rng.permutation(sorted(set(rows["patient"])))
    held = rows["patient"].isin(patients[: round(HELD_OUT * len(patients))]).to_numpy()
    right = np.array([CLASSES.index(label) for label in rows["label"]])
    flipped = rng.choice(np.flatnonzero(~held), round(share * (~held).sum()), replace=False)
    wrong = right.copy()
    wrong[flipped] = 1 - right[flipped]
    trained = rows[~held].assign(label=[CLASSES[at] for at in wrong[~held]])
    found = [one.digest for one in suspects.find(trained, vectors[~held], CLASSES) if one.kind == "mislabel"][:READ]
    read = rows["digest"].isin(found).to_numpy()
    labels = {"right": right, "flipped": wrong, "reviewed": np.where(read, right, wrong)}
    measured: dict[str, Any] = {"flipped": len(flipped), "read": len(found), "found": int(read[flipped].sum())}
    for name, given in labels.items():
        said = suspects.head(given.max()).fit(vectors[~held], given[~held]).predict_proba(vectors[held])[:, 1]
        measured[f"accuracy {name}"] = float(((said >= 0.5) == right[held]).mean())
        measured[f"auc {name}"] = float(roc_auc_score(right[held], said))
    return measured


def mean(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Return the mean of each number of several runs."""
    return {name: statistics.mean(run[name] for run in runs) for name in runs[0]}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with NORMAL and PNEUMONIA below it")
    parser.add_argument("--patients", type=int, default=1500)
    parser.add_argument("--share", type=float, default=0.02)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    rows = listing(asked.data)
    chosen = np.random.default_rng(2).permutation(sorted(set(rows["patient"])))[: asked.patients]
    rows = rows[rows["patient"].isin(chosen)].reset_index(drop=True)
    by_digest = seen(asked.data, rows)
    vectors = np.stack([by_digest[digest] for digest in rows["digest"]])
    runs = [listed(rows, vectors, asked.share, seed) for seed in range(asked.seeds)]
    reviews = [reviewed(rows, vectors, asked.share, seed) for seed in range(asked.seeds)]
    result = {
        "radiographs": len(rows),
        "features": vectors.shape[1],
        "cores": os.cpu_count(),
        "flipped_share": asked.share,
        "mean": mean(runs),
        "runs": runs,
        "review": {"mean": mean(reviews), "runs": reviews},
        "without_flips": listed(rows, vectors, 0.0, 0),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if asked.json:
        asked.json.write_text(text)


if __name__ == "__main__":
    main()
