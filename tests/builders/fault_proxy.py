"""A proxy between a client and an HTTP server that can refuse, lose, delay or answer 503, or kill the client.

Each request passes `decide(method, path)`, which names a fault or "". "drop" closes the connection without asking the
server, "lose" asks it and keeps the answer to itself, "kill before" and "kill after" do the same and end the client's
process at that moment, "slow" waits before asking, "503" answers so.
"""

from __future__ import annotations

import http.client
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

Decide = Callable[[str, str], str]


class FaultProxy(ThreadingHTTPServer):
    """Listens on a port of its own; `uri` is what the client is given."""

    daemon_threads = True

    def __init__(self, target: str, handler: type[BaseHTTPRequestHandler] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), handler or _Handler)
        self.target = urlsplit(target)
        self.decide: Decide = lambda method, path: ""
        self.victim = 0
        self.delay = 0.0
        self.requests: list[tuple[str, str]] = []
        self.turn = threading.Lock()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed closes its connection; that is the point."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer's body waits 40 ms for the header to be acknowledged
    server: FaultProxy

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.server.turn:
            self.server.requests.append((self.command, self.path))
            fault = self.server.decide(self.command, self.path)
        if fault == "503":
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if fault == "slow":
            time.sleep(self.server.delay)
        if fault not in ("drop", "kill before"):
            status, headers, answer = self._ask(body)
        if fault.startswith("kill"):
            os.kill(self.server.victim, signal.SIGKILL)
        if fault in ("drop", "lose") or fault.startswith("kill"):
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "connection", "content-length", "date", "server"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _pass_on

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.server.target.hostname or "", self.server.target.port, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")}
        # The server checks the name it is called by.
        connection.request(self.command, self.path, body or None, {**headers, "Host": self.server.target.netloc})
        response = connection.getresponse()
        answer = response.read()
        connection.close()
        return response.status, response.getheaders(), answer

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class Unconditional(_Handler):
    """S3 services without conditional writes: each request goes on signed anew and without If-None-Match; one that had
    it can be refused instead, by naming the status that `decide` answers it with."""

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.session import Session

        headers = {name: value for name, value in self.headers.items() if name.lower() not in _OF_THE_CLIENT}
        if "If-None-Match" in self.headers and (status := self.server.decide("CONDITIONAL", self.path)):
            return int(status), [], b"<Error><Code>NotImplemented</Code></Error>"
        request = AWSRequest(self.command, f"{self.server.target.geturl()}{self.path}", headers, body)
        S3SigV4Auth(Session().get_credentials(), "s3", "us-east-1").add_auth(request)
        connection = http.client.HTTPConnection(self.server.target.hostname or "", self.server.target.port, timeout=60)
        connection.request(self.command, self.path, body or None, dict(request.headers.items()))
        response = connection.getresponse()
        answer = response.read()
        connection.close()
        return response.status, response.getheaders(), answer


_OF_THE_CLIENT = {"host", "connection", "if-none-match", "authorization", "x-amz-date", "x-amz-content-sha256"}


@contextmanager
def run_proxy(target: str, handler: type[BaseHTTPRequestHandler] | None = None) -> Iterator[FaultProxy]:
    """Run a proxy in front of `target` until the block ends."""
    proxy = FaultProxy(target, handler)
    thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()


def once(fault: str, method: str, part: str, times: int = 1) -> Decide:
    """Decide on `fault` for the first `times` requests of a method whose path contains `part`."""
    left = [times]

    def decide(seen_method: str, path: str) -> str:
        if left[0] and seen_method == method and part in path:
            left[0] -= 1
            return fault
        return ""

    return decide


def at(number: int, fault: str) -> Decide:
    """Decide on `fault` for the request of this number, counted from 1, of those that change something.

    A process that dies at a request that only reads leaves what it leaves just before its next change.
    """
    count = [0]

    def decide(method: str, path: str) -> str:
        count[0] += method != "GET"
        return fault if count[0] == number and method != "GET" else ""

    return decide
