"""The parts that need no Airflow; tests/cluster looks at a whole installation."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from mlflow_server import MlflowServer
from pydantic import SecretStr

from xray_pipeline.base.errors import ConfigError, XrayError
from xray_pipeline.base.schedule import begin, due
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import open_store
from xray_pipeline.night import health
from xray_pipeline.night.run import Run
from xray_pipeline.registry.ledger import Ledger

NOW = datetime(2026, 3, 3, 9, tzinfo=UTC)


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture
def installed(settings: Settings, mlflow_server: MlflowServer, tmp_path: Path) -> Settings:
    """An installation before its first night."""
    for folder in (settings.incoming, settings.store):
        Path(folder).mkdir(parents=True)
    return settings.model_copy(update={"tracking_uri": mlflow_server.uri, "model_name": f"health-{tmp_path.name}"})


def ill(settings: Settings) -> dict[str, str]:
    return {part.part: part.text for part in health.check(settings, NOW) if not part.well}


def test_a_new_installation_is_well(installed: Settings) -> None:
    assert ill(installed) == {}


def test_a_store_that_is_not_mounted_is_named(installed: Settings) -> None:
    Path(installed.store).rmdir()
    assert "is it mounted?" in ill(installed)["store"]


def test_a_broken_ledger_is_named(installed: Settings) -> None:
    ledger = Ledger(open_store(installed.store))
    ledger.identity()
    ledger.store.write("00000001.json", b"{}")
    assert "ledger" in ill(installed)


def test_a_registry_that_does_not_answer_is_named(installed: Settings) -> None:
    away = installed.model_copy(update={"tracking_uri": "http://127.0.0.1:9"})
    assert "did not answer" in ill(away)["registry"]


def test_a_full_cache_disk_is_named(installed: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "CACHE_BYTES", 1 << 62)
    assert "GB are free" in ill(installed)["cache"]


def test_an_s3_that_does_not_answer_is_named(installed: Settings, s3_env: None) -> None:
    away = installed.model_copy(update={"incoming": "s3://hospital/incoming", "s3_endpoint": "http://127.0.0.1:9"})
    assert "incoming" in ill(away)


def test_an_address_that_is_no_http_is_never_opened(installed: Settings) -> None:
    wrong = installed.model_copy(update={"airflow_url": "file:///etc"})
    assert "no http(s) address" in ill(wrong)["airflow"]


@pytest.mark.parametrize(
    ("schedule", "hours", "began"),
    [
        ("0 2 * * *", 6, "2026-03-03T02:00+00:00"),
        ("0 2 * * *", 8, "2026-03-02T02:00+00:00"),  # tonight's may still run
        ("0 22 * * 1-5", 6, "2026-03-02T22:00+00:00"),
        ("30 1 * * 6", 6, "2026-02-28T01:30+00:00"),
        ("@daily", 6, "2026-03-03T00:00+00:00"),
    ],
)
def test_a_night_is_missed_by_its_schedule(settings: Settings, schedule: str, hours: float, began: str) -> None:
    asked = settings.model_copy(update={"schedule": schedule, "night_hours": hours})
    assert due(asked, NOW) == datetime.fromisoformat(began)


@pytest.mark.parametrize("schedule", ["0 2 * * * + arrival", "arrival and 0 2 * * *", "0 2 * * *, arrival"])
def test_nights_may_begin_by_the_clock_and_on_arrival(settings: Settings, schedule: str) -> None:
    asked = settings.model_copy(update={"schedule": schedule})
    assert begin(asked) == ("0 2 * * *", True)
    assert due(asked, NOW) == due(settings, NOW)
    assert begin(settings) == ("0 2 * * *", False)
    assert begin(settings.model_copy(update={"schedule": "arrival"})) == ("", True)
    assert due(settings.model_copy(update={"schedule": "arrival"}), NOW) is None


def test_no_night_is_missed_where_they_begin_by_hand(settings: Settings) -> None:
    assert due(settings.model_copy(update={"schedule": "none"}), NOW) is None


@pytest.mark.parametrize("schedule", ["0 2 * *", "0 2 31 2 *", "@once", "at night", "arival", "0 2 * * + arrival"])
def test_a_schedule_that_names_no_night_is_named(settings: Settings, schedule: str) -> None:
    with pytest.raises(ConfigError, match=r"XRAY_SCHEDULE .* names no night"):
        due(settings.model_copy(update={"schedule": schedule}), NOW)


WRONG = [
    ("schedule", {"schedule": "0 2 31 2 *"}, "XRAY_SCHEDULE '0 2 31 2 *' names no night"),
    ("schedule", {"schedule": "* * * * * *"}, "it has not five fields"),
    ("recipe", {"recipe": "haed"}, "no recipe 'haed'"),
    ("policy", {"policy": "lenient-of-mine"}, "lenient-of-mine"),
    ("device", {"device": "cuda:7"}, "device 'cuda:7' is not there"),
    ("incoming", {"incoming": "/nowhere/incoming"}, "/nowhere/incoming is no folder; is it mounted?"),
]


@pytest.mark.parametrize(("part", "change", "message"), WRONG)
def test_what_can_be_known_before_a_night_is_looked_at_by_health_and_by_the_night(
    settings: Settings, part: str, change: dict[str, Any], message: str
) -> None:
    Path(settings.incoming).mkdir(parents=True)
    health.before_night(Run(settings))
    assert list(settings.home.iterdir()) == [Path(settings.incoming)]  # it only looks
    wrong = settings.model_copy(update={"tracking_uri": "http://127.0.0.1:9", **change})
    with pytest.raises(XrayError) as raised:
        health.before_night(Run(wrong))
    assert message in str(raised.value)
    assert message in ill(wrong)[part]


def test_a_patient_key_that_is_lost_is_not_made_anew(settings: Settings) -> None:
    Path(settings.incoming).mkdir(parents=True)
    (Path(settings.store) / "dataset").mkdir(parents=True)
    (Path(settings.store) / "dataset" / "dataset.json").write_text("{}")
    with pytest.raises(XrayError, match=r"patient\.key of the dataset in .* is missing; put your copy back"):
        health.before_night(Run(settings))
    assert "put your copy back" in ill(settings.model_copy(update={"tracking_uri": "http://127.0.0.1:9"}))["key"]
    assert not (settings.home / "patient.key").exists()


def test_a_value_of_the_form_is_looked_at_too(settings: Settings) -> None:
    Path(settings.incoming).mkdir(parents=True)
    for overrides in ({"backbone": "none-such"}, {"epochs": 0}, {"weights": "/none.pt#sha256=" + "0" * 64}):
        with pytest.raises(XrayError):
            health.before_night(Run(settings, overrides))


@contextmanager
def airflow(answer: bytes) -> Iterator[str]:
    """Run a server that answers everything with these bytes, and ends the connection."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.wfile.write(answer)

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 503 Busy\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\n\r\n<html>",
        b"HTTP/1.1 200 OK\r\n\r\n[1]",
        b'HTTP/1.1 200 OK\r\n\r\n{"access_token": "t"}',
        b'HTTP/1.1 200 OK\r\n\r\n{"access_token": "t", "pools": [{"name": "gpu", "slots": 1}], "dag_runs": [{}]}',
    ],
)
def test_whatever_airflow_answers_is_a_finding(settings: Settings, answer: bytes) -> None:
    night, found = asked_of(settings, answer)
    assert not night.well
    assert night.text
    assert "hunter2" not in str(found)


@pytest.mark.parametrize("pools", [[], [{"name": "gpu", "slots": 0}], [{"name": "gpus", "slots": 2}]])
def test_a_night_that_would_wait_for_ever_for_a_slot_is_named(settings: Settings, pools: list[dict[str, Any]]) -> None:
    runs = [{"run_after": "2026-03-03T02:00:00+00:00"}]
    for there, well in ((pools, False), ([*pools[:1], {"name": "gpu", "slots": 1}], True)):
        said = {"access_token": "t", "pools": there, "dag_runs": runs}
        night, _ = asked_of(
            settings.model_copy(update={"schedule": "none"}), b"HTTP/1.1 200 OK\r\n\r\n" + json.dumps(said).encode()
        )
        assert (night.well, "airflow pools set gpu" in night.text) == (well, not well)


def asked_of(settings: Settings, answer: bytes) -> tuple[health.Health, list[health.Health]]:
    """Return the part `night`, and all, where Airflow answers so."""
    with airflow(answer) as url:
        asked = {"airflow_url": url, "airflow_password": SecretStr("hunter2"), "tracking_uri": "http://127.0.0.1:9"}
        found = health.check(settings.model_copy(update=asked))
    (night,) = [part for part in found if part.part == "night"]
    return night, found
