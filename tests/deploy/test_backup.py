"""What `make backup` copies out of S3 and back, between two real S3 servers."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
import pytest
from boto3.s3.transfer import TransferConfig
from s3_server import BUCKET, S3Server, run_s3, s3_credentials

OBJECTS = Path(__file__).resolve().parents[2] / "deploy" / "compose" / "objects.py"
MIB = 1 << 20
pytestmark = pytest.mark.slow


def tool(server: S3Server, *command: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "XRAY_S3_ENDPOINT": server.endpoint}
    return subprocess.run([sys.executable, OBJECTS, *command], input=given, env=environment, capture_output=True)


def held(server: S3Server) -> dict[tuple[str, str], tuple[int, str]]:
    s3 = boto3.client("s3", endpoint_url=server.endpoint)
    return {
        (bucket["Name"], item["Key"]): (item["Size"], item["ETag"])
        for bucket in s3.list_buckets()["Buckets"]
        for item in s3.list_objects_v2(Bucket=bucket["Name"]).get("Contents", [])
    }


@pytest.fixture
def filled(tmp_path: Path) -> Any:
    """A server with objects sent whole and in parts of several sizes, and one to restore into."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    with s3_credentials(), run_s3(tmp_path / "one") as server, run_s3(tmp_path / "two") as empty:
        s3 = boto3.client("s3", endpoint_url=server.endpoint)
        s3.create_bucket(Bucket="another")
        data = random.Random(0).randbytes(21 * MIB)
        s3.put_object(Bucket=BUCKET, Key="day/NORMAL/small.jpg", Body=data[:1000])
        s3.put_object(Bucket=BUCKET, Key="day/NORMAL/empty.jpg", Body=b"")
        s3.put_object(Bucket=BUCKET, Key="day/NORMAL/whole.dcm", Body=data[: 12 * MIB])
        s3.put_object(Bucket="another", Key="ünïcode/" + "n" * 200, Body=data[:10])
        for part in (5, 8, 16):
            (tmp_path / "file").write_bytes(data)
            cut = TransferConfig(multipart_threshold=1, multipart_chunksize=part * MIB)
            s3.upload_file(str(tmp_path / "file"), BUCKET, f"day/NORMAL/parts of {part}.dcm", Config=cut)
        yield server, empty


def test_objects_come_back_with_the_etag_by_which_the_intake_knows_them(filled: tuple[S3Server, S3Server]) -> None:
    server, empty = filled
    saved = tool(server, "save")
    assert saved.returncode == 0, saved.stderr
    loaded = tool(empty, "load", given=saved.stdout)
    assert loaded.returncode == 0, loaded.stderr
    assert b"another ETag" not in loaded.stderr
    before = held(server)
    assert held(empty) == before
    assert {etag.strip('"')[-2:] for _, etag in before.values()} >= {"-5", "-3", "-2"}


def test_objects_are_not_put_into_buckets_that_hold_some(filled: tuple[S3Server, S3Server]) -> None:
    server, _ = filled
    saved = tool(server, "save")
    again = tool(server, "load", given=saved.stdout)
    assert again.returncode == 1
    assert b"restore into empty volumes" in again.stderr
