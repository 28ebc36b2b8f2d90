"""What one radiograph, delivery, decision and night cost, and what that comes to at ten million and a billion.

    python benchmarks/scaling.py [--patients 150] [--rows 50000 200000] [--entries 500] [--json FILE]

Constants are measured: a whole night on phantoms (seconds by the clock and of the processors by step, bytes by
folder), manifests of made rows (bytes, CPU time and memory of reading them all, which every check of a delivery does),
ledger entries. `at` is arithmetic: constant x count; docs/scaling.md says what it means. Sizes of radiographs are those
of phantoms; `--bytes` sets those of one's own. CPU time is little disturbed by other load on the machine. Each
measurement of memory has a process of its own.
"""

from __future__ import annotations

import argparse
import base64
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tasks import Site, by_task

from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import open_store
from xray_pipeline.dataset.fingerprints import SIDE
from xray_pipeline.dataset.parquet import to_parquet
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.dataset.table import COLUMNS
from xray_pipeline.images import appearance
from xray_pipeline.models import backbones
from xray_pipeline.night.run import Run
from xray_pipeline.registry.entries import Move
from xray_pipeline.registry.ledger import Ledger
from xray_pipeline.training.trainer import Trainer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import phantom

COUNTS = (10_000_000, 1_000_000_000)
ROWS_PER_MANIFEST = 10_000


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def whole_night(patients: int) -> dict[str, Any]:
    """Run a night on one delivery: seconds by step, bytes by folder and per radiograph."""
    with tempfile.TemporaryDirectory(prefix="xray-scaling-") as name:
        home = Path(name, "home")
        phantom.lay(home / "incoming", deliveries=1, patients=patients)
        tasks = by_task(Site(home, promotion="approve").night())
        run = Run(Settings(home=home))
        dataset, recipe = Dataset(run.settings), run.recipe()
        snapshot = dataset.snapshot()
        assert snapshot is not None
        rows = dataset.rows(snapshot)
        store, cache = home / "store", home / "cache"
        sides = rows["side"].value_counts()
        features = {path.name: folder_bytes(path) for path in cache.glob("features-*")}
        backbone = backbones.load(recipe.backbone, recipe.weights)
        trainer = Trainer(recipe, backbone, dataset, rows, run.settings)
        return {
            "radiographs": snapshot.images,
            "imports_cpu_seconds": tasks["check_delivery"].phases["imports"][1],
            "train": int(sides["train"]),
            "views": recipe.views,
            "seconds": {name: task.work[0] for name, task in tasks.items()},
            "cpu_seconds": {name: task.work[1] for name, task in tasks.items()},
            "manifest_bytes_per_row": folder_bytes(store / "dataset" / "manifests") / snapshot.images,
            "stored_bytes_per_radiograph": folder_bytes(store / "dataset" / "radiographs") / snapshot.images,
            "pixel_cache_bytes_per_radiograph": recipe.side**2,
            "feature_bytes_per_view": trainer.network.head.in_features * 4,
            "feature_cache_bytes": sum(features.values()),
            "bytes_per_night": {
                part: folder_bytes(store / part) for part in ("intake", "candidates", "evidence", "reports", "ledger")
            },
            "mlflow_artifact_bytes_per_candidate": folder_bytes(home / "artifacts"),
        }


def made_manifest(number: int, rows: int = ROWS_PER_MANIFEST) -> bytes:
    """A manifest of made rows, as wide as a real one; nothing in it compresses, while real thumbnails do a little."""
    rng = np.random.default_rng(number)
    statistics = appearance.to_text(appearance.measure(rng.integers(0, 256, (64, 64), np.uint8)))
    hexes = [rng.bytes(32).hex() for _ in range(rows)]
    table = pd.DataFrame({name: [""] * rows for name in COLUMNS}).astype("str")
    table["file"] = [f"NORMAL/{digest[:12]}_1.jpeg" for digest in hexes]
    table["version"] = [digest[20:40] for digest in hexes]
    table["digest"], table["source_digest"], table["patient"] = hexes, hexes[::-1], [d[:32] for d in hexes]
    table["label"], table["side"] = ["NORMAL", "PNEUMONIA"] * (rows // 2), "train"
    table["statistics"], table["phash"] = statistics, [rng.bytes(32).hex() for _ in range(rows)]
    table["thumbnail"] = [base64.b64encode(rng.bytes(SIDE * SIDE)).decode() for _ in range(rows)]
    table["verdict"], table["suffix"], table["format"], table["mode"] = "accepted", ".jpg", "jpeg", "L"
    for name in ("size", "width", "height", "bits"):
        table[name] = rng.integers(1000, 1_000_000, rows)
    table["age_years"] = rng.uniform(0, 90, rows)
    return to_parquet(table, {"delivery": f"made-{number}"})


def reading_manifests(rows: int) -> dict[str, Any]:
    """Read a dataset's whole history, as each check of a delivery does: bytes, seconds, memory."""
    with tempfile.TemporaryDirectory(prefix="xray-scaling-") as name:
        settings = Settings(home=Path(name))
        dataset = Dataset(settings)
        dataset.begin()
        count = rows // ROWS_PER_MANIFEST
        for number in range(count):
            dataset.append(f"made-{number:05}", made_manifest(number), number)
        written = folder_bytes(Path(name))
        dataset.manifest("made-00000")  # imports are not what is measured
        before, start = peak_bytes(), time.process_time()
        history = Dataset(settings).history()
        history.labels("")
        history.side("")
        history.seen("made-00000")
        history.reference()
        history.prints.by_side  # noqa: B018 - made when it is first asked for
        seconds = time.process_time() - start
    return {
        "rows": rows,
        "bytes_per_row": written / rows,
        "cpu_microseconds_per_row": 1e6 * seconds / rows,
        "memory_bytes_per_row": (peak_bytes() - before) / rows,
    }


def ledger(entries: int) -> dict[str, Any]:
    """Append entries as large as those of a night, then replay them."""
    decision = {"clauses": [{"number": n, "text": "x" * 100, "why": "y" * 100, "passed": True} for n in range(15)]}
    with tempfile.TemporaryDirectory(prefix="xray-scaling-") as name:
        book = Ledger(open_store(name))
        start = time.perf_counter()
        for number in range(entries):
            about = {"candidate": f"{number:064x}", "decision": decision}
            book.append(Move("refused", who="benchmark", why="z" * 200, **about))
        appended = time.perf_counter() - start
        start = time.perf_counter()
        Ledger(open_store(name)).state()
        replayed = time.perf_counter() - start
        size = folder_bytes(Path(name))
    return {
        "entries": entries,
        "bytes_per_entry": size / entries,
        "milliseconds_per_append": 1000 * appended / entries,
        "microseconds_per_entry_replayed": 1e6 * replayed / entries,
    }


def at(count: int, measured: dict[str, Any], own_bytes: int) -> dict[str, Any]:
    """What the constants come to for `count` radiographs: hours of one process, bytes, objects."""
    done, rows = measured["night"], measured["manifests"][-1]
    images, hour = done["radiographs"], 3600
    stored = own_bytes or done["stored_bytes_per_radiograph"]
    training = 0.7 * count
    intake = done["cpu_seconds"]["check_delivery"] + done["cpu_seconds"]["commit_deliveries"]
    return {
        "radiographs": count,
        "stored_terabytes": stored * count / 1e12,
        "check_and_commit_core_hours": count * intake / images / hour,
        "manifest_gigabytes": rows["bytes_per_row"] * count / 1e9,
        "history_gigabytes_of_memory": rows["memory_bytes_per_row"] * count / 1e9,
        "history_core_hours": rows["cpu_microseconds_per_row"] * count / 1e6 / hour,
        "pixel_cache_terabytes": done["pixel_cache_bytes_per_radiograph"] * count / 1e12,
        "features_on_disk_gigabytes": done["feature_bytes_per_view"] * done["views"] * training / 1e9,
        "list_calls_of_1000": count // 1000,
    }


def peak_bytes() -> int:
    """The most memory this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def alone(function: Callable[..., Any], *values: Any) -> Any:
    """Call a function in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, values)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=150)
    parser.add_argument("--rows", type=int, nargs="*", default=[50_000, 200_000])
    parser.add_argument("--entries", type=int, default=500)
    parser.add_argument("--bytes", type=int, default=0, help="bytes of a stored radiograph, for `at`")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    measured: dict[str, Any] = {
        "cores": os.cpu_count(),
        "night": alone(whole_night, asked.patients),
        "manifests": [alone(reading_manifests, rows) for rows in asked.rows],
        "ledger": alone(ledger, asked.entries),
    }
    measured["at"] = [at(count, measured, asked.bytes) for count in COUNTS]
    text = json.dumps(measured, indent=1)
    print(text)
    if asked.json:
        asked.json.write_text(text)


if __name__ == "__main__":
    main()
