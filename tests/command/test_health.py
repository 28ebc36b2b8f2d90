"""The parts that need no Airflow; tests/cluster looks at a whole installation."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from mlflow_server import MlflowServer

from xray_pipeline.base.errors import ConfigError
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import open_store
from xray_pipeline.command import health
from xray_pipeline.registry.ledger import Ledger

NOW = datetime(2026, 3, 3, 9, tzinfo=UTC)


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


def test_a_registry_that_does_not_answer_is_named(installed: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
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
    assert health.due(asked, NOW) == datetime.fromisoformat(began)


def test_no_night_is_missed_where_they_begin_by_hand(settings: Settings) -> None:
    assert health.due(settings.model_copy(update={"schedule": "none"}), NOW) is None


@pytest.mark.parametrize("schedule", ["0 2 * *", "0 2 31 2 *", "@once", "at night"])
def test_a_schedule_that_names_no_night_is_named(settings: Settings, schedule: str) -> None:
    with pytest.raises(ConfigError, match=r"XRAY_SCHEDULE .* names no night"):
        health.due(settings.model_copy(update={"schedule": schedule}), NOW)
