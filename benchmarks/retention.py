"""What a night takes and leaves behind: time, memory, files and bytes by kind, of many nights, tidied now and then.

    python benchmarks/retention.py --nights 60 --tidy 7 --keep 5

Each night brings a small delivery of phantoms, so each trains a candidate, and a better one becomes champion. All run
in one process, so that memory that is never given back would show. After every `--tidy` nights it is tidied as if a
year later: it keeps all champions and the newest `--keep` candidates. What a night adds is measured between tidyings.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF
from typing import Any

import numpy as np
from pydantic import SecretStr

from xray_pipeline.base.settings import IntakeRules, Settings
from xray_pipeline.night import tidy, whole
from xray_pipeline.night.run import Run

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

SMALL = {"backbone": "shufflenet_v2_x0_5", "weights": "none", "side": 64, "epochs": 2, "views": 1}
FIRST = 15
"""Deliveries of the first night: each side of the split needs patients of each class."""
BY_CANDIDATE = ("candidates", "predictions", "stress", "reports")
"""What `xray tidy` takes away, beside MLflow's artifacts."""


def size(folder: Path) -> tuple[int, int]:
    """Return the files below a folder and their bytes."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return len(sizes), sum(sizes)


def look(home: Path) -> dict[str, tuple[int, int]]:
    """Return files and bytes by kind."""
    store = {path.name: size(path) for path in sorted((home / "store").iterdir())}
    database = home / "mlflow.db"
    return {
        "dataset": store.pop("dataset"),
        "by candidate": _sum([store.pop(name, (0, 0)) for name in BY_CANDIDATE]),
        "records": _sum(list(store.values())),
        "artifacts": size(home / "artifacts"),
        "database": (1, database.stat().st_size),
        "cache": size(home / "cache"),
    }


def _sum(sizes: list[tuple[int, int]]) -> tuple[int, int]:
    return sum(files for files, _ in sizes), sum(bytes_ for _, bytes_ in sizes)


def processors() -> float:
    """Return the CPU seconds of this process and of those that it waited for."""
    return sum(part.ru_utime + part.ru_stime for part in map(resource.getrusage, (RUSAGE_SELF, RUSAGE_CHILDREN)))


def resident() -> int:
    """Return the memory that this process holds, in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def run_nights(home: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run the nights; return what each took and left."""
    import phantom

    deliveries = phantom.lay(home / "waiting", options.nights + FIRST - 1, options.patients * (options.nights + FIRST))
    incoming = home / "incoming"
    incoming.mkdir()
    settings = Settings(
        home=home,
        recipe="head",
        patient_key=SecretStr("of a benchmark, no secret"),
        policy=str(ROOT / "tests" / "site" / "browser" / "lenient.toml"),
        settle_seconds=0,
        rules=IntakeRules(max_quarantined_share=0.6),  # a delivery of phantoms brings five bad files
        bootstrap=100,
        stress_images=10,
        device="cpu",
        promotion="auto",
        keep_candidates=options.keep,
    )
    rows: list[dict[str, Any]] = []
    for number in range(1, options.nights + 1):
        for delivery in deliveries[: FIRST if number == 1 else 1]:
            delivery.rename(incoming / delivery.name)
            deliveries.remove(delivery)
        before, began, spent = look(home) if number > 1 else {}, time.perf_counter(), processors()
        said = whole.whole(Run(settings, SMALL))
        row = {
            "night": number,
            "seconds": round(time.perf_counter() - began, 2),
            "cpu": round(processors() - spent, 2),
            "memory": resident(),
            **look(home),
        }
        row["decided"] = said["alias"] or (said["decision"] or {}).get("verdict", "")
        row["added"] = {kind: [row[kind][part] - before[kind][part] for part in (0, 1)] for kind in before}
        if number % options.tidy == 0:
            began = time.perf_counter()
            row["tidied"] = len(tidy.tidy(Run(settings), now=time.time() + 366 * 86_400).removals)
            row |= {"tidied in": round(time.perf_counter() - began, 2), "after": look(home)}
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def tell(rows: list[dict[str, Any]]) -> None:
    """Print what a night takes and adds, early and late, and what is left after each tidying."""
    third = max(1, (len(rows) - 1) // 3)
    early, late = rows[1 : 1 + third], rows[-third:]
    for what, unit, name in (("seconds", 1.0, "s"), ("cpu", 1.0, "s"), ("memory", 1e6, "MB")):
        first, last = (np.median([row[what] for row in part]) / unit for part in (early, late))
        print(f"{what}: {first:.1f} {name} in the first third of the nights, {last:.1f} {name} in the last")
    for kind in rows[-1]["added"]:
        parts = [np.mean([row["added"][kind] for row in part], axis=0) for part in (early, late)]
        said = ", then ".join(f"{files:.1f} files and {size / 1e6:.3f} MB" for files, size in parts)
        left = [row["after"][kind] for row in rows if "after" in row]
        after = ", ".join(f"{files} files {size / 1e6:.1f} MB" for files, size in left)
        print(f"{kind}: a night adds {said}; after each tidying: {after}")


def main() -> None:
    """Print a line per night, then what a night adds by kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nights", type=int, default=60)
    parser.add_argument("--patients", type=int, default=12, help="of each delivery")
    parser.add_argument("--tidy", type=int, default=7, metavar="NIGHTS", help="tidy after every so many")
    parser.add_argument("--keep", type=int, default=5, help="newest candidates that tidying keeps")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="retention-") as temporary:
        tell(run_nights(Path(temporary), options))


if __name__ == "__main__":
    main()
