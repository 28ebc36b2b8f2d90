"""Airflow's metrics: to a collector when they are turned on as docs/observability.md says, to nobody otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


@pytest.fixture
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """A port that takes what OpenTelemetry sends, and what came."""
    received: list[bytes] = []

    class Taking(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.path.encode() + self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Taking)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", received
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("on", [True, False], ids=["on", "off"])
def test_metrics_go_to_the_collector_only_when_turned_on(
    airflow_db: None, collector: tuple[str, list[bytes]], on: bool
) -> None:
    address, received = collector
    settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": address, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    if on:
        settings["AIRFLOW__METRICS__OTEL_ON"] = "True"
    command = [sys.executable, "-m", "airflow", "dag-processor", "--num-runs", "1"]
    subprocess.run(command, env={**os.environ, **settings}, check=True, capture_output=True, timeout=200)
    assert any(message.startswith(b"/v1/metrics") and b"retrain" in message for message in received) is on
    assert on or not received


SEND = """
from airflow.sdk._shared.observability.metrics import stats
from airflow.sdk.observability.metrics import stats_utils
from xray_pipeline.airflow_ui import measurements
stats.initialize(factory=stats_utils.get_stats_factory(), export_legacy_names=False)
arrival = {"accepted": 40, "quarantined": {"truncated": 2}, "drift": {"pixels": 0.25}}
scored = {"accuracy": {"value": 0.961, "low": 0.95, "high": 0.97}}
said = {"champion": scored, "candidate": None, "deliveries": [arrival]}
measurements.send(said, {"train": 31.5})
"""


def test_a_nights_figures_are_metrics_too(airflow_db: None, collector: tuple[str, list[bytes]]) -> None:
    address, received = collector
    settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": address, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    environment = {**os.environ, **settings, "AIRFLOW__METRICS__OTEL_ON": "True"}
    subprocess.run([sys.executable, "-c", SEND], env=environment, check=True, capture_output=True, timeout=200)
    sent = b"".join(received)
    for name in (b"xray.accuracy", b"xray.accepted", b"xray.quarantined", b"xray.drift_p", b"xray.minutes"):
        assert name in sent
    assert b"truncated" in sent
    assert b"xray.auc" not in sent
