"""`make audit` with the real pip-audit and a database of our own: OSV itself is out of reach of most test machines."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import audit
import pytest

SCRIPT = Path(audit.__file__)


@pytest.fixture(scope="module", autouse=True)
def pip_audit() -> None:
    """Skip where the tool can't be had."""
    command = [Path(sys.executable).with_name("uv"), "tool", "run", audit.PIP_AUDIT, "--version"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{audit.PIP_AUDIT} can't be installed: the index does not answer within 120 s")
    if done.returncode:
        pytest.skip(f"{audit.PIP_AUDIT} can't be installed: {done.stderr.strip()[-200:]}")


@contextmanager
def database(vulnerable: str) -> Iterator[str]:
    """Answer OSV queries: one advisory for one package, none for others."""

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            affected = {
                "package": {"name": vulnerable, "ecosystem": "PyPI"},
                "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99.0"}]}],
            }
            advisory = {
                "id": "TEST-1",
                "modified": "2026-01-01T00:00:00Z",
                "summary": "made up",
                "affected": [affected],
            }
            content = {"vulns": [advisory]} if asked["package"]["name"] == vulnerable else {}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def run(lock: Path, database: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPT, "--lock", lock, "--database", database]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    """A lock file of three packages, one of them for another system."""
    path = tmp_path / "requirements.lock"
    path.write_text(
        "six==1.17.0\nmarkupsafe==3.0.2 ; python_full_version >= '3.11'\npywin32==311 ; sys_platform == 'win32'\n"
    )
    return path


def test_every_pin_for_this_system_is_looked_up(lock: Path) -> None:
    with database("nothing") as address:
        done = run(lock, address)
    assert (done.returncode, done.stdout) == (0, "audit: 2 packages looked up, 0 vulnerable\n"), done.stderr


def test_a_vulnerable_package_is_named_with_what_mends_it(lock: Path) -> None:
    with database("six") as address:
        done = run(lock, address)
    assert done.returncode == 1, done.stderr
    assert "six 1.17.0: TEST-1 (99.0)" in done.stdout


def test_a_database_that_is_out_of_reach_is_no_clean_bill(lock: Path) -> None:
    done = run(lock, "http://127.0.0.1:9/v1/query")
    assert done.returncode == 2
    assert "NOT MADE" in done.stderr
    assert "0 vulnerable" not in done.stdout
