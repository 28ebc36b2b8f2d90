"""A store of each kind: what holds of one must hold of the other."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest
from memory_s3 import MemoryS3
from s3_server import BUCKET, S3Server

from xray_pipeline.base import s3_store
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import Store, open_store


@pytest.fixture(params=["directory", "memory", pytest.param("s3", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty store: a directory, the bucket in memory that simulations run on, then a prefix of a real S3 server."""
    if request.param == "directory":
        return open_store(tmp_path / "root")
    if request.param == "memory":
        bucket = MemoryS3({}, lambda what, about: "", time.time, lambda key, before, after: None)
        monkeypatch.setattr(s3_store, "_client", lambda endpoint: bucket)
        return open_store("s3://memory/root")
    server: S3Server = request.getfixturevalue("s3")
    prefix = re.sub(r"\W", "-", f"{request.node.nodeid}-{os.getpid()}")
    return open_store(f"s3://{BUCKET}/{prefix}", Settings(s3_endpoint=server.endpoint))
