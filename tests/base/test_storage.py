from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_proxy import FaultProxy, Unconditional, run_proxy
from laid import FILES, lay
from pydantic import SecretStr
from s3_server import BUCKET, S3Server

from xray_pipeline.base.errors import ConfigError, ObjectNotFound, StorageError, StorageUnavailable
from xray_pipeline.base.s3_store import S3Store
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import Store, check_writes_once, open_store
from xray_pipeline.night import health, intake_steps
from xray_pipeline.night.run import Run


def test_read_returns_what_was_written(store: Store) -> None:
    store.write("a/b.bin", b"one")
    store.write("a/b.bin", b"two")
    assert store.read("a/b.bin") == b"two"


def test_missing_object_is_named(store: Store) -> None:
    with pytest.raises(ObjectNotFound, match="'gone'"):
        store.read("gone")
    assert not store.exists("gone")
    store.delete("gone")


def test_write_if_absent_keeps_the_first(store: Store) -> None:
    assert store.write_if_absent("entry", b"mine")
    assert store.write_if_absent("entry", b"mine"), "an equal repeat is the same write, answered late"
    assert not store.write_if_absent("entry", b"theirs")
    assert store.read("entry") == b"mine"


def test_of_many_writers_one_wins(store: Store) -> None:
    won: list[int] = []

    def write(number: int) -> None:
        if store.write_if_absent("race", str(number).encode()):
            won.append(number)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [str(n).encode() for n in won] == [store.read("race")]


def test_listing_and_folders(store: Store) -> None:
    for key in ("x/1", "x/y/2", "z/3", "top"):
        store.write(key, b"12")
    assert sorted(e.key for e in store.list()) == ["top", "x/1", "x/y/2", "z/3"]
    assert sorted(e.key for e in store.list("x")) == ["x/1", "x/y/2"]
    assert store.folders() == ["x", "z"]
    assert sorted(e.key for e in store.child("x").list()) == ["1", "y/2"]
    assert {e.size for e in store.list()} == {2}


def test_version_changes_with_the_content(store: Store) -> None:
    store.write("k", b"one")
    before = next(iter(store.list())).version
    store.write("k", b"two")
    assert next(iter(store.list())).version != before


@pytest.mark.parametrize("key", ["../x", "/etc/passwd", "a//b", "a/../b", "", "a/./b", "nul\0"])
def test_keys_can_not_leave_the_store(store: Store, key: str) -> None:
    with pytest.raises(StorageError, match="not a key"):
        store.write(key, b"")


def test_a_store_tells_its_own_time_and_keeps_nothing_of_it(store: Store) -> None:
    assert abs(store.clock() - time.time()) < 60
    assert list(store.list()) == []


def test_unknown_scheme_is_refused() -> None:
    with pytest.raises(ConfigError, match="ftp"):
        open_store("ftp://somewhere/x")


def test_links_and_pipes_are_listed_but_never_opened(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(tmp_path / "root" / "pipe")
    store = open_store(tmp_path / "root")
    assert {e.key: e.kind for e in store.list()} == {"link": "symlink", "pipe": "special"}
    for key in ("link", "pipe"):
        with pytest.raises(StorageError, match=r"never followed|not a regular file"):
            store.read(key)


def test_a_name_that_no_disk_takes_is_one_of_our_errors(tmp_path: Path) -> None:
    with pytest.raises(StorageUnavailable, match="File name too long"):
        open_store(tmp_path).write(f"{'a' * 300}/b", b"")


def test_full_disk_leaves_no_torn_file(tmp_path: Path) -> None:
    script = """
import resource, sys
from xray_pipeline.base.errors import StorageUnavailable
from xray_pipeline.base.storage import open_store
store = open_store(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # the kernel refuses the 1,001st byte, as a full disk would
for write in (store.write, store.write_if_absent):
    try:
        write("k", b"n" * 2000)
    except StorageUnavailable as error:
        print("refused:", error)
"""
    store = open_store(tmp_path)
    store.write("k", b"old")
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.count("refused: 'k' in ") == 2
    assert store.read("k") == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["k"]


def test_wrong_secret_is_refused(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StorageUnavailable, match="S3 answered"):
        open_store(f"s3://{BUCKET}/x", Settings(s3_endpoint=s3.endpoint)).read("k")


def test_server_that_is_gone_is_named(s3_env: None) -> None:
    gone = open_store(f"s3://{BUCKET}/x", Settings(s3_endpoint="http://127.0.0.1:9"))
    with pytest.raises(StorageUnavailable, match=r"'k' in s3://"):
        gone.read("k")


def test_a_time_that_another_clock_set_ahead_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "k").write_bytes(b"1")
    os.utime(tmp_path / "k", (2**32, 2**32))
    assert abs(next(iter(open_store(tmp_path).list())).modified - time.time()) < 60


# Stores that do not keep what is written once


@pytest.fixture
def forgetful(s3: S3Server) -> Iterator[FaultProxy]:
    """The real server as one that does not know If-None-Match."""
    with run_proxy(s3.endpoint, Unconditional) as proxy:
        yield proxy


def of(server: FaultProxy, settings: Settings) -> Settings:
    place = f"s3://{BUCKET}/once-{os.getpid()}-{time.monotonic_ns()}"
    return settings.model_copy(update={"store": place, "s3_endpoint": server.uri})


def test_a_store_that_keeps_what_is_written_once_is_taken_and_left_as_it_was(store: Store) -> None:
    check_writes_once(store)
    assert list(store.list()) == []


def test_a_service_that_ignores_if_none_match_lets_two_writers_win(forgetful: FaultProxy, settings: Settings) -> None:
    """What the probe is for."""
    asked = of(forgetful, settings)
    store = open_store(asked.store, asked)
    assert store.write_if_absent("entry", b"mine")
    assert store.write_if_absent("entry", b"theirs")


@pytest.mark.parametrize("status", ["", "501", "412"], ids=["ignores it", "does not know it", "refuses every write"])
def test_a_store_that_can_not_write_once_is_refused_by_name(
    forgetful: FaultProxy, settings: Settings, status: str
) -> None:
    asked = of(forgetful, settings)
    forgetful.decide = lambda method, path: status if method == "CONDITIONAL" else ""
    with pytest.raises(
        StorageError, match=r"s3://hospital/once-\S+ does not keep what is written once .*If-None-Match"
    ):
        check_writes_once(open_store(asked.store, asked))
    forgetful.decide = lambda method, path: ""
    assert list(open_store(asked.store, asked).list()) == []


def test_the_first_commit_and_health_refuse_it(forgetful: FaultProxy, settings: Settings) -> None:
    asked = of(forgetful, settings).model_copy(update={"patient_key": SecretStr("k" * 32)})
    lay(asked, "first", FILES)
    run = Run(asked)
    assert intake_steps.check_delivery(run, "first").fit
    with pytest.raises(StorageError, match="does not keep what is written once"):
        intake_steps.commit_deliveries(run, ["first"])
    assert list(run.store().list("dataset")) == []
    (said,) = [part.text for part in health.check(asked) if part.part == "store"]
    assert f"{asked.store} does not keep what is written once" in said


def test_the_stack_does_not_start_on_it(s3: S3Server, forgetful: FaultProxy, settings: Settings) -> None:
    asked = of(forgetful, settings)
    script = Path(__file__).resolve().parents[2] / "deploy" / "compose" / "objects.py"

    def start(endpoint: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "XRAY_STORE": asked.store, "XRAY_S3_ENDPOINT": endpoint}
        return subprocess.run(
            [sys.executable, script, "probe"], env=environment, capture_output=True, text=True, check=False
        )

    assert start(s3.endpoint).returncode == 0
    refused = start(forgetful.uri)
    assert refused.returncode == 1
    assert "does not keep what is written once" in refused.stderr
    init = (script.parent / "init.sh").read_text()
    assert init.index("objects.py buckets") < init.index("objects.py probe") < init.index("airflow db migrate")


@pytest.mark.parametrize("fault", ["drop", "503"])
@pytest.mark.parametrize("login", ["", "key:hunter2@"])  # settings refuse one; nothing below may show it
def test_any_call_of_s3_that_is_not_answered_is_one_of_our_errors(
    s3_env: None, monkeypatch: pytest.MonkeyPatch, fault: str, login: str
) -> None:
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda seconds: None)
    with run_proxy("http://127.0.0.1:9") as proxy:
        proxy.decide = lambda method, path: fault
        store = S3Store("s3://hospital/x", proxy.uri.replace("//", f"//{login}"))
        for call in (
            lambda: store.read("a"),
            lambda: store.write("a", b"1"),
            lambda: store.write_if_absent("a", b"1"),
            lambda: store.exists("a"),
            lambda: store.delete("a"),
            lambda: list(store.list("b")),
            lambda: store.folders(),
        ):
            with pytest.raises(StorageUnavailable) as raised:
                call()
            assert "hunter2" not in "".join(traceback.format_exception(raised.value))
