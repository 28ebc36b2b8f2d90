"""A real SeaweedFS S3 server on loopback for the tests that need S3."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from ports import free_port
from services import logged, wait_for

ACCESS_KEY, SECRET_KEY, BUCKET = "tester", "tester-secret", "hospital"


@dataclass(frozen=True)
class S3Server:
    endpoint: str
    process: subprocess.Popen[bytes]


@contextmanager
def s3_credentials() -> Iterator[None]:
    """Put the test user's credentials in the environment for a while."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield


@contextmanager
def run_s3(folder: Path) -> Iterator[S3Server]:
    """Start the server with one bucket and one user; end it by pid."""
    identity = {
        "name": "tester",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir()
    # It puts each server's gRPC at +10000. Every second port, as it uses some that lie next to these.
    master, volume, filer, s3 = [free_port(10_000) for _ in range(8)][::2]
    command = [
        *(str(Path(sys.executable).with_name("weed")), f"-logdir={folder}", "server", f"-dir={folder / 'data'}"),
        *("-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-volume.max=30", "-master.volumeSizeLimitMB=64"),
        "-volume.minFreeSpace=100MiB",  # its own rule, 1% of the disk free, refuses every write on a large full one
        *(f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}"),
        *("-s3", f"-s3.port={s3}", f"-s3.config={config}", "-s3.port.iceberg=0", "-s3.port.lance=0"),
    ]
    endpoint, log = f"http://127.0.0.1:{s3}", folder / "weed.log"
    try:
        with logged(command, log, os.environ, grace=0) as process:
            wait_for(endpoint, process, log, ready=lambda answer: True)  # 403, as nobody is logged in
            _make_bucket(endpoint)
            yield S3Server(endpoint, process)
    finally:
        for port in (
            p + grpc for p in (master, volume, filer, s3) for grpc in (0, 10000)
        ):  # it puts sockets there, whatever TMPDIR says
            for socket_file in Path("/tmp").glob(f"seaweedfs-*{port}.sock"):
                socket_file.unlink(missing_ok=True)


def _make_bucket(endpoint: str) -> None:
    import boto3
    from botocore.exceptions import ClientError

    client = boto3.client(
        "s3", endpoint_url=endpoint, aws_access_key_id=ACCESS_KEY, aws_secret_access_key=SECRET_KEY,
        region_name="us-east-1",
    )  # fmt: skip
    for attempt in range(100):
        try:
            client.create_bucket(Bucket=BUCKET)
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"1")
            client.delete_object(Bucket=BUCKET, Key="ready")
            return
        except ClientError:
            if attempt == 99:
                raise
            time.sleep(0.2)
