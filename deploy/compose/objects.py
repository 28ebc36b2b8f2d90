"""Buckets of the S3 service: make them, copy all of their objects to a tar file and back, lay phantom deliveries.

Objects travel through S3's own protocol, so a copy made from one S3 service can be put into another. One object at a
time is in memory when it is small, and on its way otherwise: the size of a bucket doesn't matter.
"""

from __future__ import annotations

import argparse
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ENDPOINT = os.environ.get("XRAY_S3_ENDPOINT", "http://seaweedfs:8333")


def client() -> Any:
    """Return a client with the credentials of the environment."""
    import boto3
    from botocore.config import Config

    config = Config(s3={"addressing_style": "path"}, retries={"mode": "standard", "max_attempts": 5})
    return boto3.client("s3", endpoint_url=ENDPOINT, config=config)


def patient(call: Callable[[], Any], seconds: float = 60) -> Any:
    """Call until it succeeds: a service that just started takes writes a little later than it answers."""
    from botocore.exceptions import BotoCoreError, ClientError

    until = time.monotonic() + seconds
    while True:
        try:
            return call()
        except (BotoCoreError, ClientError):
            if time.monotonic() > until:
                raise
            time.sleep(1)


def buckets(names: list[str]) -> None:
    """Make buckets that are not there, and wait until each takes an object."""
    s3 = client()
    there = {bucket["Name"] for bucket in patient(s3.list_buckets)["Buckets"]}
    for name in names:
        if name not in there:
            patient(lambda name=name: s3.create_bucket(Bucket=name))
        patient(lambda name=name: s3.put_object(Bucket=name, Key=".made", Body=b""))


def keys(s3: Any, bucket: str) -> Any:
    """Yield the name and size of every object of a bucket."""
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for item in page.get("Contents", []):
            yield item["Key"], item["Size"]


def save() -> None:
    """Write every object of every bucket to standard output as a tar file of <bucket>/<key>."""
    s3 = client()
    count = 0
    with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as archive:
        for bucket in s3.list_buckets()["Buckets"]:
            for key, size in keys(s3, bucket["Name"]):
                member = tarfile.TarInfo(f"{bucket['Name']}/{key}")
                member.size = size
                archive.addfile(member, s3.get_object(Bucket=bucket["Name"], Key=key)["Body"])
                count += 1
    print(f"objects: saved {count}", file=sys.stderr)


def load() -> None:
    """Put every object of a tar file from standard input back. Refuses buckets that hold anything."""
    s3 = client()
    for bucket in s3.list_buckets()["Buckets"]:
        held = next((key for key, _ in keys(s3, bucket["Name"]) if key != ".made"), None)
        if held:
            raise SystemExit(f"objects: bucket {bucket['Name']} already holds {held}; restore into empty volumes")
    count = 0
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as archive:
        for member in archive:
            bucket, _, key = member.name.partition("/")
            content = archive.extractfile(member)
            with tempfile.SpooledTemporaryFile(max_size=32_000_000, dir="/tmp") as kept:
                while content and (part := content.read(1_000_000)):
                    kept.write(part)
                kept.seek(0)
                s3.upload_fileobj(kept, bucket, key)
            count += 1
    print(f"objects: restored {count}", file=sys.stderr)


def deliver(bucket: str, patients: int, deliveries: int, seed: int) -> None:
    """Lay phantom deliveries in a bucket, _SUCCESS last in each."""
    from xray_pipeline import phantom

    s3 = client()
    with tempfile.TemporaryDirectory() as folder:
        for delivery in phantom.lay(Path(folder), deliveries=deliveries, patients=patients, seed=seed):
            files = sorted(path for path in delivery.rglob("*") if path.is_file())
            for path in sorted(files, key=lambda path: path.name == "_SUCCESS"):
                s3.upload_file(str(path), bucket, str(path.relative_to(folder)))
            print(f"{delivery.name}: {len(files) - 1} files")


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("buckets").add_argument("names", nargs="+")
    commands.add_parser("save")
    commands.add_parser("load")
    laying = commands.add_parser("deliver")
    laying.add_argument("--bucket", default="incoming")
    laying.add_argument("--patients", type=int, default=300)
    laying.add_argument("--deliveries", type=int, default=1)
    laying.add_argument("--seed", type=int, default=0)
    given = vars(parser.parse_args())
    {"buckets": buckets, "save": save, "load": load, "deliver": deliver}[given.pop("command")](**given)


if __name__ == "__main__":
    main()
