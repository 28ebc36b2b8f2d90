"""How long ten years of nights take to read, from a directory and from S3.

python benchmarks/nights.py                                    a folder of its own under /tmp
python benchmarks/nights.py s3://bucket/prefix --endpoint URL  another place, which must be empty
python benchmarks/nights.py --s3 --latency 0.03                a SeaweedFS of its own, through a slow proxy
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

from xray_pipeline.base import records
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import Store, open_store
from xray_pipeline.evaluation.metric_table import Interval
from xray_pipeline.night import nights
from xray_pipeline.night.nights import Arrival, Model, Night

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "builders"))

BEGAN = datetime(2016, 1, 1, 2, tzinfo=UTC)


def night(day: int) -> Night:
    """Return a night with three deliveries and a refused candidate."""
    at = (BEGAN + timedelta(days=day)).isoformat(timespec="seconds")
    figures = {name: Interval(0.9612, 0.9518, 0.9702) for name in ("accuracy", "auc")}
    counts, drift = {"duplicate": 3, "truncated": 2}, {"pixels": 0.21, "labels": 0.43, "features": 0.02}
    arrivals = tuple(Arrival(f"{at[:10]}-{part}", "ingested", 140, counts, drift=drift) for part in range(3))
    about = {"candidate": Model(None, 1500, figures), "champion": Model(7, 1500, figures), "verdict": "refused"}
    minutes = {"check_delivery": 1.2, "commit_deliveries": 0.3, "train": 32.5, "evaluate": 3.2, "decide": 0.8}
    why = "Accuracy 0.961 is not above the champion's 0.967. " * 3
    late = {"why": why, "in_production": 7, "since": at, "minutes": minutes}
    return Night(f"scheduled__{at}", "schedule", at, at, arrivals, 10_000, 5_000, **about, **late)  # type: ignore[arg-type]


def fill(store: Store, count: int) -> None:
    """Write the records of `count` nights as `nights.keep` does, but for the months' files only at the end."""
    for day in range(count - 1):
        one = night(day)
        key = f"{nights.RECORDS}/{one.started[:7]}/{nights._stem(one)}-1.json"
        records.write(store, key, asdict(one), if_absent=True)
    nights.keep(store, night(count - 1))


@contextlib.contextmanager
def place(args: argparse.Namespace) -> Iterator[Store]:
    """Open the store that the command line asks for."""
    with tempfile.TemporaryDirectory() as folder:
        if not args.s3:
            yield open_store(args.store or folder, Settings(s3_endpoint=args.endpoint))
            return
        import fault_proxy
        from s3_server import BUCKET, run_s3, s3_credentials

        class Slow(fault_proxy._Handler):
            def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
                time.sleep(args.latency)
                return super()._ask(body)

        with s3_credentials(), run_s3(Path(folder)) as server, fault_proxy.run_proxy(server.endpoint, Slow) as far:
            near, uri = Settings(s3_endpoint=server.endpoint), f"s3://{BUCKET}/ten-years"
            fill(open_store(uri, near), args.nights)
            yield open_store(uri, Settings(s3_endpoint=far.uri))


def main() -> None:
    """Fill a store, read it, and print what each took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", nargs="?", default="")
    parser.add_argument("--endpoint", default="")
    parser.add_argument("--s3", action="store_true")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--nights", type=int, default=3650)
    args = parser.parse_args()
    with place(args) as store:
        if not args.s3:
            fill(store, args.nights)
        for what in ("first", "again"):
            wall, cpu = time.perf_counter(), time.process_time()
            count = len(nights.read(store).nights)
            took, worked = time.perf_counter() - wall, time.process_time() - cpu
            print(f"read {what}: {count} nights, {took:.2f} s, CPU {worked:.2f} s")
        began = time.perf_counter()
        nights.keep(store, night(args.nights))
        print(f"one more night kept in {time.perf_counter() - began:.2f} s")


if __name__ == "__main__":
    main()
