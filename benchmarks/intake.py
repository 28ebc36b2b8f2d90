"""What the intake costs: beside a bare decode-and-resize, per small file, and for Great Expectations itself.

    python benchmarks/intake.py --data FOLDER [--cleanvision] [--files 10000 100000] [--rows 1000 100000 1000000]
                                [--json FILE]

`bare` opens each file with Pillow, makes it grey and resizes it to 224 pixels. `check` is what a check does with a
file: it reads it, takes SHA-256 of what was read and of what is stored, checks structure, limits, colour and metadata,
decodes to the radiograph's pixels, takes the perceptual hash and the statistics of the drift check. `intake` is the
same and resizes just so, which a check leaves to the training. All use a thread per core and take turns; the ratio is
of medians, by CPU seconds (which other load on the machine leaves alone) and by the clock. `cleanvision` is
CleanVision's default set of checks on the same files with a process per core, in turn with the others, timed without
its import; it is installed into a folder that is thrown away. `lossless` decodes DICOM in JPEG lossless in this process
and in one apart. Small files are made here, each with another picture; memory is the process's peak.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from xray_pipeline.base.settings import Settings
from xray_pipeline.dataset.fingerprints import fingerprint
from xray_pipeline.dataset.history import EMPTY
from xray_pipeline.dataset.table import Row, of_rows
from xray_pipeline.images import appearance, dicom_pixels, radiograph
from xray_pipeline.intake import check as intake
from xray_pipeline.intake import deliveries, expectations
from xray_pipeline.intake.deliveries import Delivery, Inventory
from xray_pipeline.intake.verdicts import judge

SIDE, ROUNDS = 224, 5
LIMITS = radiograph.Limits()


def bare(path: Path) -> None:
    """Decode and resize, and nothing else."""
    with Image.open(path) as image:
        np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def check(path: Path) -> radiograph.Pixels:
    """All that a check does for one file."""
    data = path.read_bytes()
    hashlib.sha256(data).hexdigest()
    pixels = radiograph.normalise(data, LIMITS).pixels
    appearance.measure(pixels)
    fingerprint(pixels)
    return pixels


def whole(path: Path) -> None:
    """The same, and the model's pixels."""
    radiograph.square(check(path), SIDE)


def throughput(folder: Path, with_cleanvision: bool) -> dict[str, Any]:
    """Compare them on every JPEG below the folder: milliseconds per file and ratios to the intake."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    taken: dict[str, list[tuple[float, float]]] = {"bare": [], "check": [], "intake": []}
    with tempfile.TemporaryDirectory() as name:
        packages = _cleanvision_installed(Path(name)) if with_cleanvision else None
        for number in range(ROUNDS + 1):  # the first warms the page cache and is left out
            for kind, function in (("bare", bare), ("check", check), ("intake", whole)):
                taken[kind].append(_timed(function, paths))
            if packages and number < 3:
                taken.setdefault("cleanvision", []).append(_cleanvision(packages, folder))
    clock, cpu = ({name: statistics.median(t[n] for t in runs[1:]) for name, runs in taken.items()} for n in (0, 1))
    result: dict[str, Any] = {"files": len(paths)}
    for name in clock:
        result[name] = {
            "ms_per_file": 1000 * clock[name] / len(paths),
            "cpu_ms_per_file": 1000 * cpu[name] / len(paths),
        }
        if name != "intake":
            result[name] |= {
                "over_intake_by_clock": clock[name] / clock["intake"],
                "over_intake_by_cpu": cpu[name] / cpu["intake"],
            }
    return result


_CLEANVISION = """
import json, os, sys, time
from cleanvision import Imagelab
lab = Imagelab(data_path=sys.argv[1])
before, start = os.times(), time.perf_counter()
lab.find_issues(n_jobs=os.cpu_count(), verbose=False)
clock, after = time.perf_counter() - start, os.times()
print(json.dumps([clock, sum(after[:4]) - sum(before[:4])]))
"""


def _cleanvision_installed(folder: Path) -> Path:
    packages = ("cleanvision==0.3.7", "imagehash==4.3.2", "pywavelets==1.9.0")
    command = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--python", sys.executable]
    subprocess.run([*command, "--target", str(folder), *packages], check=True)
    return folder


def _cleanvision(packages: Path, folder: Path) -> tuple[float, float]:
    """Run CleanVision's default checks; return seconds by the clock and of CPU, its processes included."""
    command = [sys.executable, "-c", _CLEANVISION, str(folder)]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(packages), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    clock, cpu = json.loads(done.stdout.splitlines()[-1])
    return clock, cpu


def lossless(side: int = 2000) -> dict[str, float]:
    """Decode a smooth 16-bit image in JPEG lossless here and in a process apart: milliseconds of CPU and clock."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "builders"))
    from pydicom.uid import JPEGLosslessSV1
    from samples import compressed, dicom, picture

    data = compressed(dicom(picture(0, side, side).astype(np.uint16) * 257), JPEGLosslessSV1)
    guarded, taken = dicom_pixels.GUARDED, {}
    for name, syntaxes in (("apart", guarded), ("here", frozenset())):
        dicom_pixels.GUARDED = syntaxes  # type: ignore[misc]
        times = []
        for _ in range(ROUNDS + 1):
            start = time.perf_counter()
            radiograph.normalise(data, LIMITS)
            times.append(1000 * (time.perf_counter() - start))
        taken[f"ms_{name}"] = statistics.median(times[1:])
    dicom_pixels.GUARDED = guarded  # type: ignore[misc]
    return {**taken, "here_over_apart": taken["ms_here"] / taken["ms_apart"]}


def _timed(function: Callable[[Path], object], paths: Sequence[Path]) -> tuple[float, float]:
    clock, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(function, paths):
            continue
    return time.perf_counter() - clock, time.process_time() - cpu


def small_files(count: int) -> dict[str, Any]:
    """Check a delivery of `count` 64-pixel files, without Great Expectations' import."""
    expectations.version()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "delivery", "NORMAL")
        folder.mkdir(parents=True)
        rng = np.random.default_rng(0)
        for number in range(count):
            out = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (64, 64), np.uint8)).save(out, "JPEG", quality=30)
            (folder / f"patient{number}_1.jpg").write_bytes(out.getvalue())
        settings = Settings(home=Path(name, "home"), settle_seconds=0)
        start, cpu = time.perf_counter(), time.process_time()
        delivery = deliveries.at(str(folder.parent), settings, EMPTY, time.time())
        fit = intake.check(delivery, settings, EMPTY, b"benchmark").fit
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {
        "files": count,
        "fit": fit,
        "seconds": seconds,
        "ms_per_file": 1000 * seconds / count,
        "cpu_ms_per_file": 1000 * cpu / count,
        "peak_mb": _peak_mb(),
    }


def suite(rows: int) -> dict[str, Any]:
    """Validate a table of `rows` made rows."""
    expectations.version()
    sides, classes = ("train", "validation", "held-out"), ("NORMAL", "PNEUMONIA")
    table = of_rows(
        Row(
            f"{n:08}.jpg",
            1,
            "",
            f"{n:064x}",
            *("jpeg", 80, 80, "L", 8, "", "", float("nan"), "", f"{n:032x}", classes[n % 2], "", sides[n % 3]),
            *("accepted", "", "", f"{n:064x}", ".jpg"),
            phash=f"{n:064x}",
        )
        for n in range(rows)
    )
    start = time.perf_counter()
    fit = judge(Inventory(Delivery("made", "", 1, rows, rows, "", True), table, EMPTY.reference(0)), Settings()).fit
    return {"rows": rows, "fit": fit, "seconds": time.perf_counter() - start, "peak_mb": _peak_mb()}


def _peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with full-resolution JPEGs")
    parser.add_argument("--cleanvision", action="store_true", help="install CleanVision for this run and compare")
    parser.add_argument("--files", type=int, nargs="*", default=[1000, 10_000])
    parser.add_argument("--rows", type=int, nargs="*", default=[1000, 100_000])
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    start = time.perf_counter()
    expectations.version()
    result: dict[str, Any] = {"great_expectations_import_seconds": time.perf_counter() - start, "cores": os.cpu_count()}
    if asked.data:
        result["throughput"] = throughput(asked.data, asked.cleanvision)
    result["lossless"] = lossless()
    result["small_files"] = [small_files(count) for count in asked.files]
    result["great_expectations"] = [suite(rows) for rows in asked.rows]
    text = json.dumps(result, indent=1)
    print(text)
    if asked.json:
        asked.json.write_text(text)


if __name__ == "__main__":
    main()
