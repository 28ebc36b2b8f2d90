"""What it costs to ask who was champion: `xray history --at`, the whole command, with a ledger of so many entries.

    python benchmarks/history.py --entries 10 10000

Each entry is as long as a real one with its decision. The command is started anew each time, and what is reported is
the median of its runs, by clock and by CPU, beside a Python that does nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from xray_pipeline.base.storage import open_store
from xray_pipeline.registry.ledger import Ledger

START = datetime(2026, 1, 1, tzinfo=UTC)


def write(store: Path, count: int) -> None:
    """Lay a ledger of `count` entries, one an hour: registered, promoted, registered, ..."""
    ledger = Ledger(open_store(store))
    head, folder = ledger.identity(), Path(ledger.store.uri)
    clauses = [
        {"number": f"{n}.1", "threshold": 0.9, "actual": 0.91, "passed": True, "why": "x" * 80} for n in range(20)
    ]
    same = {"who": "schedule", "why": "accuracy 0.95 above 0.94", "candidate": "c" * 64, "champion_before": 1}
    more = {"decision": {"clauses": clauses}, "snapshot": "s" * 64, "artifact": "a" * 64, "request": "", "format": 1}
    for number in range(1, count + 1):
        kind, version = ("promoted", number // 2) if number % 2 == 0 else ("registered", number // 2 + 1)
        at = (START + timedelta(hours=number)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        entry = {"sequence": number, "kind": kind, "version": version, "at": at, "previous": head}
        data = json.dumps({**entry, **same, **more}, sort_keys=True, indent=1).encode()
        (folder / f"{number:08d}.json").write_bytes(data)
        head = hashlib.sha256(data).hexdigest()


def seconds(command: list[str], environment: dict[str, str], runs: int) -> tuple[float, float]:
    """Run a command so often; return the medians of its wall-clock and CPU seconds, start of the process included."""
    taken, used = [], []
    for _ in range(runs):
        began, before = time.perf_counter(), _cpu()
        subprocess.run(command, env=environment, check=True, capture_output=True)
        taken.append(time.perf_counter() - began)
        used.append(_cpu() - before)
    return statistics.median(taken), statistics.median(used)


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(count: int, runs: int) -> dict[str, float]:
    """Measure one size of ledger: seconds of the command, of a bare Python, and the ratio."""
    with tempfile.TemporaryDirectory(prefix="history-") as temporary:
        write(Path(temporary) / "store", count)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("XRAY_")}
        environment["XRAY_HOME"] = temporary
        at = (START + timedelta(hours=count)).isoformat()
        xray = str(Path(sys.executable).with_name("xray"))
        wall, cpu = seconds([xray, "history", "--at", at], environment, runs)
        bare = seconds([sys.executable, "-c", "0"], environment, runs)[1]
    return {"entries": count, "seconds": wall, "cpu_seconds": cpu, "bare_python": bare, "ratio": cpu / bare}


def main() -> None:
    """Print a line per size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, nargs="+", default=[10, 1_000, 10_000])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the numbers there too")
    options = parser.parse_args()
    found = [measure(count, options.runs) for count in options.entries]
    for row in found:
        spent = f"{row['seconds']:.2f} s, {row['cpu_seconds']:.2f} s of CPU"
        print(f"{row['entries']:>7,.0f} entries: {spent}, {row['ratio']:.0f} times a bare Python")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
