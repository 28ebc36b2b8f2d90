"""Buckets of the S3 service: make them, see that the store's keeps what is written once, copy all of their objects to a
tar file and back, lay a delivery of phantoms.

Objects travel through S3's own protocol, so a copy made from one S3 service can be put into another. One object at a
time is on its way, through a file: the size of a bucket doesn't matter. An object comes back with the ETag it had, by
which the intake knows a file again: one sent in parts is sent in parts of the same size.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

MIB = 1 << 20
PARTS = (8 * MIB, 5 * MIB, 16 * MIB, *(n * MIB for n in (6, 10, 15, 20, 25, 32, 50, 64, 100, 128, 256, 512, 1024)))
"""Sizes that S3 clients cut objects into; the first is that of boto3 and the AWS command line."""

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


def probe() -> None:
    """Refuse an S3 service that lets a second writer replace what the ledger and the commits write once."""
    from xray_pipeline.base.errors import XrayError
    from xray_pipeline.base.settings import Settings
    from xray_pipeline.base.storage import check_writes_once, open_store

    settings = Settings()
    try:
        check_writes_once(open_store(settings.store, settings))
    except XrayError as error:
        raise SystemExit(f"objects: {error}") from error


def keys(s3: Any, bucket: str) -> Any:
    """Yield the name, size and ETag of every object of a bucket."""
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for item in page.get("Contents", []):
            yield item["Key"], item["Size"], item["ETag"].strip('"')


ETAG = "XRAY.etag"  # in the tar file's extended headers


def save() -> None:
    """Write every object of every bucket to standard output as a tar file of <bucket>/<key>."""
    s3 = client()
    count = 0
    with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as archive:
        for bucket in s3.list_buckets()["Buckets"]:
            for key, size, etag in keys(s3, bucket["Name"]):
                member = tarfile.TarInfo(f"{bucket['Name']}/{key}")
                member.size, member.pax_headers = size, {ETAG: etag}
                archive.addfile(member, s3.get_object(Bucket=bucket["Name"], Key=key)["Body"])
                count += 1
    print(f"objects: saved {count}", file=sys.stderr)


def load() -> None:
    """Put every object of a tar file from standard input back. Refuses buckets that hold anything."""
    s3 = client()
    there = {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}
    for name in there:
        held = next((key for key, *_ in keys(s3, name) if key != ".made"), None)
        if held:
            raise SystemExit(f"objects: bucket {name} already holds {held}; restore into empty volumes")
    count = others = 0
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as archive:
        for member in archive:
            bucket, _, key = member.name.partition("/")
            if bucket not in there:
                s3.create_bucket(Bucket=bucket)
                there.add(bucket)
            content = archive.extractfile(member)
            with tempfile.TemporaryFile(dir=os.environ.get("XRAY_CACHE")) as kept:
                while content and (part := content.read(MIB)):
                    kept.write(part)
                others += not put(s3, bucket, key, kept, member.size, member.pax_headers.get(ETAG, ""))
            count += 1
    print(f"objects: restored {count}", file=sys.stderr)
    if others:
        print(f"objects: {others} have another ETag than before; deliveries with them look new", file=sys.stderr)


def put(s3: Any, bucket: str, key: str, content: IO[bytes], size: int, etag: str) -> bool:
    """Upload an object as it was uploaded when it got its ETag; return whether it has that ETag again."""
    from boto3.s3.transfer import TransferConfig

    parts = re.search(r"-([1-9]\d*)$", etag)
    content.seek(0)
    if not parts:
        found = s3.put_object(Bucket=bucket, Key=key, Body=content)["ETag"]
        return bool(found.strip('"') == etag)
    count = int(parts[1])
    part = part_size(content, size, etag, count) or max(8 * MIB, -(-size // count))
    content.seek(0)
    s3.upload_fileobj(content, bucket, key, Config=TransferConfig(multipart_threshold=1, multipart_chunksize=part))
    return bool(s3.head_object(Bucket=bucket, Key=key)["ETag"].strip('"') == etag)


def part_size(content: IO[bytes], size: int, etag: str, count: int) -> int:
    """Return the size of `count` parts that give an ETag (MD5 of the parts' MD5s, a dash, `count`), 0 if none does."""
    for part in (part for part in PARTS if -(-size // part) == count):
        content.seek(0)
        digests = b"".join(_md5(content, part) for _ in range(count))
        if f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{count}" == etag:
            return part
    return 0


def _md5(content: IO[bytes], size: int) -> bytes:
    digest = hashlib.md5(usedforsecurity=False)
    while size and (read := content.read(min(size, MIB))):
        digest.update(read)
        size -= len(read)
    return digest.digest()


def deliver(bucket: str, patients: int, seed: int, name: str) -> None:
    """Lay a delivery of phantoms in a bucket, _SUCCESS last."""
    import phantom

    s3 = client()
    with tempfile.TemporaryDirectory() as folder:
        (delivery,) = phantom.lay(Path(folder), deliveries=1, patients=patients, seed=seed)
        files = sorted(path for path in delivery.rglob("*") if path.is_file())
        for path in sorted(files, key=lambda path: path.name == "_SUCCESS"):
            s3.upload_file(str(path), bucket, f"{name}/{path.relative_to(delivery)}")
        print(f"{name}: {len(files) - 1} files")


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("buckets").add_argument("names", nargs="+")
    commands.add_parser("probe")
    commands.add_parser("save")
    commands.add_parser("load")
    laying = commands.add_parser("deliver")
    laying.add_argument("--bucket", default="incoming")
    laying.add_argument("--patients", type=int, default=300)
    laying.add_argument("--seed", type=int, default=0)
    laying.add_argument("--name", default="2026-01-01")
    given = vars(parser.parse_args())
    {"buckets": buckets, "probe": probe, "save": save, "load": load, "deliver": deliver}[given.pop("command")](**given)


if __name__ == "__main__":
    main()
