"""How often the drift test is wrong, and how often it is right: false alarms and power, measured on real radiographs.

    python benchmarks/drift.py --data FOLDER [--other FOLDER] [--features PATIENTS] [--deliveries 300] [--json FILE]

`--data` is a labelled folder in any delivery layout. False alarms: deliveries of 20, 50 and 200 radiographs, whole
patients, are drawn from it and compared with the rest at the default setting; the share with any alarm is given with
its 95 % interval (Wilson). A rate of 1 in 100 takes many deliveries to see, so the same is done at 1 in 5. With
`--features`, of so many patients, the third channel is compared too: without it a third of the rate is not spent.
Power: the share of deliveries that raise the alarm when they are inverted, brightened by 25 of 255 grey levels,
synthetic (phantoms), of `--other`, or of one family of file names that the dataset does not hold. The families act as
sites. `pixels` and `labels` are separate, because a family of one class shows in the labels alone; for families the
delivery and the dataset are also compared within that class only (`same class`).
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from xray_pipeline.base.settings import IntakeRules
from xray_pipeline.dataset.history import Reference
from xray_pipeline.images import appearance, radiograph
from xray_pipeline.intake import drift

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import phantom

SIZES = (20, 50, 200)
RULES, OFTEN = IntakeRules(), IntakeRules(drift_false_alarms=0.2)
FAMILY = re.compile(r"^(?:person\d+_(bacteria|virus)|(NORMAL2)-IM-|(IM)-)")
KINDS: dict[str, Callable[[Any], Any]] = {
    "as it is": lambda pixels: pixels,
    "inverted": lambda pixels: np.iinfo(pixels.dtype).max - pixels,
    "brightened": lambda pixels: np.minimum(255, pixels.astype(np.int16) + 25).astype(np.uint8),
}


def listing(folder: Path) -> pd.DataFrame:
    """Return a row per radiograph below the folder: digest (its path), patient, label, family."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    pattern = re.compile(RULES.patient_pattern)
    return pd.DataFrame(
        {
            "digest": [str(path.relative_to(folder)) for path in paths],
            "patient": [found[1] if (found := pattern.match(path.name)) else path.name for path in paths],
            "label": [path.parent.name for path in paths],
            "family": [found[found.lastindex or 0] if (found := FAMILY.match(path.name)) else "" for path in paths],
            "verdict": "accepted",
            "age_years": float("nan"),
        }
    )


def measured(folder: Path) -> pd.DataFrame:
    """Return the listing with the numbers of each kind."""
    rows = listing(folder)

    def one(name: str) -> dict[str, str]:
        pixels = radiograph.normalise((folder / name).read_bytes(), radiograph.Limits()).pixels
        return {kind: appearance.to_text(appearance.measure(change(pixels))) for kind, change in KINDS.items()}

    with ThreadPoolExecutor() as pool:
        numbers = pd.DataFrame(list(pool.map(one, rows["digest"])))
    return pd.concat([rows, numbers], axis=1).assign(statistics=numbers["as it is"])


def phantoms(patients: int = 300) -> pd.DataFrame:
    """Return the numbers of synthetic radiographs, brought to 224 x 224."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(patients):
        severity = 0.0 if number % 4 == 0 else float(rng.uniform(0.3, 1))
        label = phantom.CLASSES[severity > 0]
        one = phantom.Patient(f"phantom{number}", label, severity, number, 1, number % 2, ".png")
        pixels = radiograph.square(phantom.radiograph(one, 1), 224)
        text = appearance.to_text(appearance.measure(pixels))
        rows.append({"digest": one.name, "patient": one.name, "label": label, "statistics": text})
    return pd.DataFrame(rows).assign(verdict="accepted", age_years=float("nan"))


def drawn(rows: pd.DataFrame, size: int, rng: np.random.Generator) -> pd.DataFrame:
    """Return whole patients of about `size` radiographs."""
    counts = rows.groupby("patient").size()
    order = rng.permutation(counts.index.to_numpy())
    taken = int(np.searchsorted(counts[order].cumsum().to_numpy(), size)) + 1
    return rows[rows["patient"].isin(order[:taken])]


def without(rows: pd.DataFrame, delivery: pd.DataFrame) -> pd.DataFrame:
    return rows[~rows["patient"].isin(delivery["patient"])]


def seen(folder: Path, rows: pd.DataFrame) -> dict[str, drift.Vectors]:
    """Return the frozen features of rows by digest, as recipe `head` sees them."""
    import torch

    from xray_pipeline.models import backbones
    from xray_pipeline.training.recipe import load_recipe

    recipe = load_recipe("head")
    network = backbones.Network(backbones.load(recipe.backbone), 2, recipe.crop, recipe.levels).eval()
    found = {}
    for start in range(0, len(rows), 64):
        names = list(rows["digest"].iloc[start : start + 64])
        data = [radiograph.load((folder / name).read_bytes(), radiograph.Limits(), recipe.side) for name in names]
        with torch.inference_mode():
            found |= dict(zip(names, network.features(torch.from_numpy(np.stack(data))).numpy(), strict=True))
    return found


def alarms(
    pairs: Sequence[tuple[pd.DataFrame, pd.DataFrame]],
    vectors: dict[str, drift.Vectors] | None = None,
    rules: IntakeRules = RULES,
) -> dict[str, Any]:
    """Compare each delivery with its dataset; return how many raise an alarm, by channel and in all."""
    found = []
    for new, kept in pairs:
        ages = kept["age_years"].value_counts(dropna=False)
        reference = Reference(kept, kept["patient"].nunique(), kept["label"].value_counts(), ages)
        channels = drift.of_table(new, reference, rules).channels
        if vectors is not None:
            channels += drift.of_features(new, kept, vectors, rules).channels
        found.append(channels)
    counts = {channel.name: 0 for channels in found for channel in channels}
    for channels in found:
        for channel in channels:
            counts[channel.name] += channel.alarm
    unsaid = sum(channels[0].p is None for channels in found)
    anyway = sum(any(channel.alarm for channel in channels) for channels in found)
    return {"deliveries": len(found), "any": anyway, **counts, "not enough": unsaid}


def with_rate(counts: dict[str, Any]) -> dict[str, Any]:
    """Add the share of compared deliveries with any alarm and its 95 % interval (Wilson 1927)."""
    n = max(1, counts["deliveries"] - counts["not enough"])
    share, z = counts["any"] / n, 1.96
    middle, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low, high = ((middle + sign * half) / (1 + z * z / n) for sign in (-1, 1))
    return {**counts, "share": share, "interval": [max(0.0, low), high]}


def false_alarms(
    rows: pd.DataFrame,
    deliveries: int,
    vectors: dict[str, drift.Vectors] | None = None,
    rules: IntakeRules = RULES,
) -> dict[str, Any]:
    """Draw deliveries of each size from the rows and compare them with the rest; "all" adds the sizes up."""
    found: dict[str, dict[str, Any]] = {}
    for size in SIZES:
        rng = np.random.default_rng([size, 0])
        pairs = [(new, without(rows, new)) for new in (drawn(rows, size, rng) for _ in range(deliveries))]
        found[str(size)] = alarms(pairs, vectors, rules)
    found["all"] = {name: sum(counts[name] for counts in found.values()) for name in found[str(SIZES[0])]}
    return {size: with_rate(counts) for size, counts in found.items()}


def power(rows: pd.DataFrame, others: dict[str, pd.DataFrame], deliveries: int) -> dict[str, Any]:
    """Return the alarms of each kind of strange delivery, by size."""
    found: dict[str, Any] = {}
    for size in SIZES:
        rng = np.random.default_rng([size, 1])
        for kind in ("inverted", "brightened"):
            pairs = [(new, without(rows, new)) for new in (drawn(rows, size, rng) for _ in range(deliveries))]
            found[f"{kind}, {size}"] = alarms([(new.assign(statistics=new[kind]), kept) for new, kept in pairs])
        for name, other in others.items():
            if len(other) >= size:
                found[f"{name}, {size}"] = alarms([(drawn(other, size, rng), rows) for _ in range(deliveries)])
        for family in sorted(set(rows["family"]) - {""}):
            of, kept = rows[rows["family"] == family], rows[rows["family"] != family]
            pairs = [(drawn(of, size, rng), kept) for _ in range(deliveries)]
            found[f"family {family}, {size}"] = alarms(pairs)
            same = kept[kept["label"] == of["label"].iloc[0]]
            found[f"family {family}, same class, {size}"] = alarms([(new, same) for new, _ in pairs])
    return found


def with_features(folder: Path, rows: pd.DataFrame, asked: argparse.Namespace) -> dict[str, Any]:
    """Return the false alarms of all three channels, on some of the patients."""
    chosen = np.random.default_rng(2).permutation(sorted(set(rows["patient"])))[: asked.features]
    some = rows[rows["patient"].isin(chosen)]
    vectors = seen(folder, some)
    return {
        "radiographs": len(some),
        "default": false_alarms(some, asked.deliveries, vectors),
        "at_0.2": false_alarms(some, asked.deliveries, vectors, OFTEN),
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="labelled folder; without it, phantoms are compared with phantoms")
    parser.add_argument("--other", type=Path, help="labelled folder of another source")
    parser.add_argument("--features", type=int, default=0, help="patients whose frozen features are compared too")
    parser.add_argument("--deliveries", type=int, default=300, help="of each size, for the false alarms")
    parser.add_argument("--power", type=int, default=20, help="deliveries of each size and kind, for the power")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    start = time.perf_counter()
    made = phantoms(900 if asked.data is None else 300)
    rows = made.assign(family="", inverted=made["statistics"], brightened=made["statistics"])
    others = {}
    if asked.data:
        rows, others = measured(asked.data), {"phantoms": made}
    if asked.other:
        others["other source"] = measured(asked.other)
    result: dict[str, Any] = {
        "radiographs": len(rows),
        "patients": int(rows["patient"].nunique()),
        "asked": RULES.drift_false_alarms,
        "channels": "each at a third of the rate",
        "false_alarms": false_alarms(rows, asked.deliveries),
        "false_alarms_at_0.2": false_alarms(rows, asked.deliveries, rules=OFTEN),
        **({"with_features": with_features(asked.data, rows, asked)} if asked.features else {}),
        "power": power(rows, others, asked.power) if asked.data else {},
    }
    text = json.dumps({**result, "seconds": time.perf_counter() - start}, indent=1)
    print(text)
    if asked.json:
        asked.json.write_text(text)


if __name__ == "__main__":
    main()
