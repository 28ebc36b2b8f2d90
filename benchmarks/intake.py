"""What the intake costs: beside a bare decode-and-resize, per small file, and for Great Expectations itself.

    python benchmarks/intake.py --data FOLDER [--files 10000 100000] [--rows 1000 100000 1000000] [--json FILE]

`bare` opens each file with Pillow, makes it grey and resizes it to 224 pixels. `intake` reads it, takes SHA-256 of what
was read and of what is stored, checks structure, limits, colour and metadata, decodes, and resizes just so. Both use a
thread per core and take turns; the ratio is of medians, by CPU seconds (which other load on the machine leaves alone)
and by the clock. Small files are made here, each with another picture; memory is the process's peak.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from xray_pipeline import expectations, intake, radiograph
from xray_pipeline.intake import Delivery, Row
from xray_pipeline.settings import Settings

SIDE, ROUNDS = 224, 5
LIMITS = radiograph.Limits()


def bare(path: Path) -> None:
    """Decode and resize, and nothing else."""
    with Image.open(path) as image:
        np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def whole(path: Path) -> None:
    """All that the intake does for one file, and the model's pixels."""
    data = path.read_bytes()
    hashlib.sha256(data).hexdigest()
    radiograph.square(radiograph.normalise(data, LIMITS).pixels, SIDE)


def throughput(folder: Path) -> dict[str, Any]:
    """Compare both on every JPEG below the folder: milliseconds per file and ratios bare / intake."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    taken: dict[str, list[tuple[float, float]]] = {"bare": [], "intake": []}
    for _ in range(ROUNDS + 1):  # the first warms the page cache and is left out
        for name, function in (("bare", bare), ("intake", whole)):
            taken[name].append(_timed(function, paths))
    clock, cpu = ({name: statistics.median(t[n] for t in runs[1:]) for name, runs in taken.items()} for n in (0, 1))
    return {
        "files": len(paths),
        "ms_per_file": {name: 1000 * seconds / len(paths) for name, seconds in clock.items()},
        "ratio_by_clock": clock["bare"] / clock["intake"],
        "ratio_by_cpu": cpu["bare"] / cpu["intake"],
    }


def _timed(function: Callable[[Path], None], paths: Sequence[Path]) -> tuple[float, float]:
    clock, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(function, paths):
            continue
    return time.perf_counter() - clock, time.process_time() - cpu


def small_files(count: int) -> dict[str, Any]:
    """Check a delivery of `count` 64-pixel files, without Great Expectations' import."""
    expectations._core()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "delivery", "NORMAL")
        folder.mkdir(parents=True)
        rng = np.random.default_rng(0)
        for number in range(count):
            out = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (64, 64), np.uint8)).save(out, "JPEG", quality=30)
            (folder / f"patient{number}_1.jpg").write_bytes(out.getvalue())
        settings = Settings(home=Path(name, "home"), settle_seconds=0)
        start = time.perf_counter()
        delivery = intake.at(str(folder.parent), settings, intake.EMPTY, time.time())
        fit = intake.check(delivery, settings, intake.EMPTY, b"benchmark").fit
        seconds = time.perf_counter() - start
    return {
        "files": count,
        "fit": fit,
        "seconds": seconds,
        "ms_per_file": 1000 * seconds / count,
        "peak_mb": _peak_mb(),
    }


def suite(rows: int) -> dict[str, Any]:
    """Validate a table of `rows` made rows."""
    expectations._core()
    sides, classes = ("train", "validation", "held-out"), ("NORMAL", "PNEUMONIA")
    table = intake._table(
        Row(
            f"{n:08}.jpg",
            1,
            "",
            f"{n:064x}",
            *("jpeg", 80, 80, "L", 8, "", "", float("nan"), "", f"{n:032x}", classes[n % 2], "", sides[n % 3]),
            *("accepted", "", "", f"{n:064x}", ".jpg"),
        )
        for n in range(rows)
    )
    start = time.perf_counter()
    fit = expectations.judge(Delivery("made", "", 1, rows, rows, "", True), table, Settings()).fit
    return {"rows": rows, "fit": fit, "seconds": time.perf_counter() - start, "peak_mb": _peak_mb()}


def _peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with full-resolution JPEGs")
    parser.add_argument("--files", type=int, nargs="*", default=[1000, 10_000])
    parser.add_argument("--rows", type=int, nargs="*", default=[1000, 100_000])
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    start = time.perf_counter()
    expectations._core()
    result: dict[str, Any] = {"great_expectations_import_seconds": time.perf_counter() - start, "cores": os.cpu_count()}
    if asked.data:
        result["throughput"] = throughput(asked.data)
    result["small_files"] = [small_files(count) for count in asked.files]
    result["great_expectations"] = [suite(rows) for rows in asked.rows]
    text = json.dumps(result, indent=1)
    print(text)
    if asked.json:
        asked.json.write_text(text)


if __name__ == "__main__":
    main()
