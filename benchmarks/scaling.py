"""What a night costs on a history of made rows, and what one radiograph, decision and night come to at a billion.

    python benchmarks/scaling.py [--rows 100000 1000000] [--new 1000] [--patients 150] [--entries 500] [--json FILE]

For each of `--rows` a dataset of made rows is laid. Then each task of a night's intake runs in a process of its own:
the index of the history from nothing, and for a delivery of about `--new` phantoms check, commit and snapshot. CPU
seconds and peak memory are taken of each, and held against LIMITS; a limit that is broken is said, and the exit code is
1. Ten million rows need 6 GB of disk.

Constants are measured, too: a whole night on phantoms (seconds by the clock and of the processors by step, bytes by
folder), ledger entries. `at` is arithmetic: constant x count; docs/scaling.md says what it means. Sizes of radiographs
are those of phantoms; `--bytes` sets those of one's own. CPU time is little disturbed by other load on the machine.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tasks import Site, by_task

from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import open_store
from xray_pipeline.dataset import near_copies
from xray_pipeline.dataset.fingerprints import Prints, fingerprint
from xray_pipeline.dataset.parquet import to_parquet
from xray_pipeline.dataset.split import side_of
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.dataset.table import COLUMNS
from xray_pipeline.images import appearance
from xray_pipeline.intake.drift import MOST_KNOWN
from xray_pipeline.night import intake_steps
from xray_pipeline.night.run import Run
from xray_pipeline.registry.entries import Move
from xray_pipeline.registry.ledger import Ledger

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import phantom

COUNTS = (10_000_000, 1_000_000_000)
ROWS_PER_MANIFEST = 10_000


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def whole_night(patients: int) -> dict[str, Any]:
    """Run a night on one delivery: seconds by step, bytes by folder and per radiograph."""
    from xray_pipeline.models import backbones  # torch: tasks of the intake go without it
    from xray_pipeline.training.trainer import Trainer

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


def made_manifest(number: int, rows: int = ROWS_PER_MANIFEST, digests: Sequence[str] = ()) -> bytes:
    """A manifest of made rows, as wide as a real one and of which nothing compresses: of radiographs that have these
    digests, or of none."""
    rng = np.random.default_rng(number)

    def hexes(digits: int) -> list[str]:
        text = rng.bytes(digits // 2 * rows).hex()
        return [text[at : at + digits] for at in range(0, len(text), digits)]

    digests = digests or hexes(64)
    table = pd.DataFrame({name: [""] * rows for name in COLUMNS}).astype("str")
    table["file"] = [f"NORMAL/{digest[:12]}_1.jpeg" for digest in digests]
    table["version"] = [digest[20:40] for digest in digests]
    table["digest"], table["source_digest"], table["patient"] = digests, hexes(64), hexes(32)
    table["label"] = ["NORMAL", "PNEUMONIA"] * (rows // 2)
    table["side"] = [side_of(digest, "", "patient", 0.15, 0.2) for digest in digests]
    table["statistics"] = [appearance.to_text(one) for one in rng.random((rows, len(appearance.NAMES)), np.float32)]
    table["phash"] = hexes(64)
    table["verdict"], table["suffix"], table["format"], table["mode"] = "accepted", ".png", "png", "L"
    for name in ("size", "width", "height", "bits"):
        table[name] = rng.integers(1000, 1_000_000, rows)
    table["age_years"] = rng.integers(0, 90, rows).astype(float)
    return to_parquet(table, {"delivery": f"made-{number}"})


def spent(work: Callable[[], object]) -> dict[str, float]:
    """Return the CPU seconds that some work takes, and the most memory (bytes) that this process has had then."""
    before = time.process_time()
    work()
    return {"cpu_seconds": time.process_time() - before, "peak_bytes": peak_bytes()}


def lay_rows(settings: Settings, rows: int) -> dict[str, float]:
    """Lay a history of made rows; return the bytes of the store that each takes."""
    dataset = Dataset(settings)
    dataset.begin()
    for number in range(rows // ROWS_PER_MANIFEST):
        assert dataset.append(f"made-{number:05}", made_manifest(number), number)
    return {"store_bytes_per_row": folder_bytes(settings.home / "store") / rows}


def index(settings: Settings) -> dict[str, float]:
    """Read a history for the first time, and ask for all that a check asks."""

    def ask() -> None:
        history = Dataset(settings).history()
        history.labels("")
        history.side("")
        history.reference(MOST_KNOWN)
        history.prints.by_side  # noqa: B018 - made when it is first asked for

    return spent(ask)


def question(settings: Settings, questions: int = 100) -> dict[str, float]:
    """Ask for near copies: CPU milliseconds each, and the bytes of memory that are held of each radiograph; its hash is
    read from the disk's cache in passing."""
    known = Dataset(settings).history().prints
    rng = np.random.default_rng(0)
    rows = [
        (f"{n + 1:064x}", "train", *fingerprint(rng.integers(0, 256, (224, 224), np.uint8))) for n in range(questions)
    ]
    asked = Prints.of(pd.DataFrame(rows, columns=["digest", "side", "phash", "thumbnail"]), range(questions))
    took = spent(lambda: near_copies.nearest(asked, known, 1))["cpu_seconds"]
    arrays = (known.sides, known.source, known.rows)
    return {
        "cpu_milliseconds": 1000 * took / questions,
        "memory_bytes_per_row": sum(array.nbytes for array in arrays) / len(known),
    }


def check(settings: Settings, key: str) -> dict[str, float]:
    """Check a delivery."""
    return spent(lambda: intake_steps.check_delivery(Run(settings), key, named=True))


def commit(settings: Settings, key: str) -> dict[str, float]:
    """Commit a delivery, and name the snapshot."""
    return spent(lambda: intake_steps.commit_deliveries(Run(settings), [key]))


def snapshot(settings: Settings) -> dict[str, float]:
    """Name the snapshot."""
    return spent(lambda: Dataset(settings).snapshot())


def night_on(rows: int, new: int) -> dict[str, Any]:
    """Return what a night's intake of about so many new phantoms costs on a history of made rows, task by task."""
    with tempfile.TemporaryDirectory(prefix="xray-scaling-") as name:
        settings = Settings(home=Path(name, "home"), settle_seconds=0, tracking_uri=f"sqlite:///{name}/mlflow.db")
        (delivery,) = phantom.lay(Path(settings.incoming), deliveries=1, patients=round(new / 1.25))
        found: dict[str, Any] = {"rows": rows, **alone(lay_rows, settings, rows)}
        found["index"] = alone(index, settings)
        found["cache_bytes_per_row"] = folder_bytes(settings.cache) / rows
        found["question"] = alone(question, settings)
        found["check"] = alone(check, settings, delivery.name)
        found["commit"] = alone(commit, settings, delivery.name)
        found["snapshot"] = alone(snapshot, settings)
        found["delivered"] = len(Dataset(settings).manifest(delivery.name))
        tasks = [found[task] for task in ("check", "commit", "snapshot")]
        found["cpu_seconds"] = sum(task["cpu_seconds"] for task in tasks)
        found["peak_bytes"] = max(task["peak_bytes"] for task in tasks)
    return found


LIMITS: dict[str, tuple[Callable[[dict[str, Any]], float], float]] = {
    "CPU seconds of check, commit and snapshot": (lambda found: found["cpu_seconds"], 60),
    "bytes of memory of the largest task": (lambda found: found["peak_bytes"], 2 * 2**30),
    "CPU seconds of the index from nothing": (lambda found: found["index"]["cpu_seconds"], 600),
    "CPU milliseconds of a question about near copies": (
        lambda found: found["question"]["cpu_milliseconds"] * min(1, 1_000_000 / found["rows"]),
        2,
    ),
    "bytes of memory a radiograph that a question needs": (
        lambda found: found["question"]["memory_bytes_per_row"],
        100,
    ),
}
"""What must hold on each history: how it is measured, and the most it may be. A question may take 2 ms up to a million
rows, and longer in proportion; at ten million the limit that is asked for is 10 ms (`slow_questions`)."""
GROWTH = 1.5
"""The most that a night may cost on the largest history, of what it costs on the smallest."""


def broken(nights: list[dict[str, Any]], row_bytes: float) -> list[str]:
    """Return the limits that are broken, in words."""
    found = []
    for night in nights:
        for what, (measure, most) in LIMITS.items():
            if (value := measure(night)) > most:
                found.append(f"{night['rows']:,} rows: {value:,.2f} {what}, at most {most:,} are asked")
        if night["rows"] >= 10_000_000 and (took := night["question"]["cpu_milliseconds"]) > 10:
            found.append(f"{night['rows']:,} rows: {took:.1f} CPU milliseconds of a question, at most 10 are asked")
    for what in ("cpu_seconds", "peak_bytes"):
        if (ratio := nights[-1][what] / nights[0][what]) > GROWTH:
            found.append(f"{ratio:.2f} times the {what} on the largest history, at most {GROWTH} are asked")
    if row_bytes > 250:
        found.append(f"{row_bytes:,.0f} bytes of Parquet a row, at most 250 are asked")
    return found


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
    done, rows = measured["night"], measured["nights"][-1]
    of_row, index = rows["rows"], rows["index"]
    images, hour = done["radiographs"], 3600
    stored = own_bytes or done["stored_bytes_per_radiograph"]
    training = 0.7 * count
    intake = done["cpu_seconds"]["check_delivery"] + done["cpu_seconds"]["commit_deliveries"]
    return {
        "radiographs": count,
        "stored_terabytes": stored * count / 1e12,
        "check_and_commit_core_hours": count * intake / images / hour,
        "manifest_gigabytes": measured["manifest_bytes_per_row"] * count / 1e9,
        "index_core_hours": index["cpu_seconds"] / of_row * count / hour,
        "index_gigabytes_of_disk": rows["cache_bytes_per_row"] * count / 1e9,
        "check_gigabytes_of_memory": rows["check"]["peak_bytes"] / of_row * count / 1e9,
        "pixel_cache_terabytes": done["pixel_cache_bytes_per_radiograph"] * count / 1e12,
        "features_on_disk_gigabytes": done["feature_bytes_per_view"] * done["views"] * training / 1e9,
        "list_calls_of_1000": count // 1000,
    }


def peak_bytes() -> int:
    """The most memory this process has had, in bytes; what `getrusage` says begins with that of the parent."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def alone(function: Callable[..., Any], *values: Any) -> Any:
    """Call a function in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, values)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=150)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--new", type=int, default=1000)
    parser.add_argument("--entries", type=int, default=500)
    parser.add_argument("--bytes", type=int, default=0, help="bytes of a stored radiograph, for `at`")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    measured: dict[str, Any] = {
        "cores": os.cpu_count(),
        "night": alone(whole_night, asked.patients),
        "manifest_bytes_per_row": len(made_manifest(0)) / ROWS_PER_MANIFEST,
        "nights": [night_on(rows, asked.new) for rows in sorted(asked.rows)],
        "ledger": alone(ledger, asked.entries),
    }
    measured["at"] = [at(count, measured, asked.bytes) for count in COUNTS]
    measured["broken"] = broken(measured["nights"], measured["manifest_bytes_per_row"])
    text = json.dumps(measured, indent=1)
    print(text)
    if asked.json:
        asked.json.write_text(text)
    if measured["broken"]:
        sys.exit("\n".join(measured["broken"]))


if __name__ == "__main__":
    main()
