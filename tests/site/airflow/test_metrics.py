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
