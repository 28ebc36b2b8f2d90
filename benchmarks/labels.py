"""What it costs to match a table of labels to the files of a delivery.

    python benchmarks/labels.py --rows 200000 --files 100000

CPU seconds of this process alone, reading the table included, for each way in which a table may name files. A DICOM
file is not read here: what it is called is handed over, as the intake does once it has read it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import Entry, open_store
from xray_pipeline.intake.placing import Source, places

MAPPING = """
table = "table.csv"
[key]
by = "{by}"
columns = ["id"]
[label]
column = "label"
[patient]
column = "patient"
"""


def file(number: int) -> str:
    """The path of a file."""
    return f"ward{number % 50}/{number:07}.dcm"


WAYS: dict[str, tuple[str, Callable[[int], str]]] = {
    "path, as it is": ("path", file),
    "path of another disk": ("path", lambda n: f"D:\\export\\ward{n % 50}\\{n:07}.DCM"),
    "name without extension": ("name", lambda n: f"{n:07}"),
    "name without zeros (none matches)": ("name", lambda n: f"{n}.dcm"),
    "accession number": ("accession", lambda n: f"A{n:09}"),
    "accession number without zeros (none matches)": ("accession", lambda n: str(n)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--files", type=int, default=100_000)
    asked = parser.parse_args()
    for way, (by, row) in WAYS.items():
        with tempfile.TemporaryDirectory() as folder:
            seconds, matched = measured(Path(folder), asked.rows, asked.files, by, row)
        print(f"{way}: {seconds:.1f} s of CPU, {matched:,} of {asked.files:,} files matched", flush=True)


def measured(folder: Path, rows: int, files: int, by: str, row: Callable[[int], str]) -> tuple[float, int]:
    """Return the CPU seconds of matching `rows` rows to `files` files, and how many files matched."""
    lines = (f"{row(n)},{('normal', 'pneumonia')[n % 2]},P{n // 3}\n" for n in range(rows))
    (folder / "table.csv").write_text(f"id,label,patient\n{''.join(lines)}")
    (folder / "labels.toml").write_text(MAPPING.format(by=by))
    entries = [Entry(file(n), 1, "v", 0.0) for n in range(files)]
    entries += [Entry(path.name, path.stat().st_size, "v", 0.0) for path in folder.iterdir()]
    source = Source(open_store(folder), Settings(), b"k" * 32, "the delivery")
    began = time.process_time()
    said = places(source, entries)
    if said.by_content:
        found = [said.of_content(file(n), [f"A{n:09}"], source.hashed) for n in range(files)]
    else:
        found = [place for key, place in said.places.items() if key.endswith(".dcm")]
    return time.process_time() - began, sum(not place.reason for place in found)


if __name__ == "__main__":
    main()
