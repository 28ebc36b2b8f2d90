"""What many amendments cost to read, and what a long list of them costs to make.

    python benchmarks/amendments.py [--counts 1000 10000]

To read: the commits are laid as `xray amend` leaves them, each of one radiograph, and read and added up by a dataset
that has read nothing yet. To make: one list (`--from`) of as many lines, each naming one of as many radiographs in ten
manifests; all that comes before the commit, near copies included. What is reported is the median by clock and by CPU.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np
from scaling import made_manifest

from xray_pipeline.base.records import canonical, digest_of
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import open_store
from xray_pipeline.dataset.amending import changes
from xray_pipeline.dataset.amendments import Amendment, Change, together
from xray_pipeline.dataset.commits import FORMAT, IDENTITY, IDENTITY_FORMAT, Commit, Commits, Identity
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.images.png import png_bytes
from xray_pipeline.night import amend
from xray_pipeline.night.naming import Names

ROUNDS = 5


def lay(folder: Path, count: int) -> None:
    """Lay a dataset of `count` amendments and nothing else."""
    identity = Identity(IDENTITY_FORMAT, ["NORMAL", "PNEUMONIA"], "patient", 0.15, 0.15, "0" * 16)
    data = canonical(msgspec.to_builtins(identity))
    (folder / "commits").mkdir()
    (folder / IDENTITY).write_bytes(data)
    for number in range(1, count + 1):
        radiograph = hashlib.sha256(str(number).encode()).hexdigest()
        change = Change("relabel", "radiograph", radiograph, "NORMAL", (radiograph,))
        amendment = Amendment("Ada", "2026-03-03T14:00:00+00:00", "read again by two radiologists", (change,))
        commit = Commit(FORMAT, number, digest_of(data), amendment=amendment)
        data = canonical(msgspec.to_builtins(commit))
        (folder / commit.place).write_bytes(data)


def measure(count: int) -> tuple[float, float]:
    """Return the medians of clock and CPU seconds that reading takes."""
    clock, used = [], []
    with tempfile.TemporaryDirectory(prefix="amendments-") as temporary:
        lay(Path(temporary), count)
        for _ in range(ROUNDS):
            began, before = time.perf_counter(), time.process_time()
            found = together(Commits(open_store(temporary)).amendments())
            clock.append(time.perf_counter() - began)
            used.append(time.process_time() - before)
            if len(found.labels) != count:
                raise SystemExit(f"{len(found.labels)} labels of {count} amendments")
    return statistics.median(clock), statistics.median(used)


def made(count: int) -> tuple[float, float]:
    """Return the clock and CPU seconds that it takes to find out what a list of `count` lines asks for."""
    with tempfile.TemporaryDirectory(prefix="amendments-") as temporary:
        settings = Settings(home=Path(temporary))
        dataset, rng = Dataset(settings), np.random.default_rng(0)
        dataset.begin()
        for number in range(10):
            radiographs = [png_bytes(rng.integers(0, 256, (64, 64), np.uint8)) for _ in range(count // 10)]
            digests = [hashlib.sha256(data).hexdigest() for data in radiographs]
            for digest, data in zip(digests, radiographs, strict=True):
                dataset.put(digest, ".png", data)
            dataset.append(f"made-{number}", made_manifest(number, count // 10, digests), number)
        others = {"NORMAL": "PNEUMONIA", "PNEUMONIA": "NORMAL"}
        rows = dataset.history().said()
        lines = [f"{digest},{others[label]}" for digest, label in zip(rows["digest"], rows["label"], strict=True)]
        began, before = time.perf_counter(), time.process_time()
        named = amend.of_table("relabel", "radiograph,label\n" + "\n".join(lines))
        asked = amend.meant(Names(Dataset(settings)), named)
        found = changes(asked, Dataset(settings).history(), {}, settings.classes)
        if len(found) != count:
            raise SystemExit(f"{len(found)} changes of {count} lines")
        return time.perf_counter() - began, time.process_time() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 10_000])
    for count in parser.parse_args().counts:
        clock, used = measure(count)
        print(f"{count:>7} amendments: {clock:.2f} s by the clock, {used:.2f} s of a processor")
        clock, used = made(count)
        print(f"{count:>7} lines of a list: {clock:.2f} s by the clock, {used:.2f} s of processors")


if __name__ == "__main__":
    main()
