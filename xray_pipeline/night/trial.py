"""Booting MLflow's model server on a version and comparing its answers with the predictions that were judged.

What was evaluated ran in this package; what production runs is the code and the environment that travel with the
version. This looks at the second before anyone is asked about the first. The trade-off: the server runs in this
environment (`--env-manager local`), so a package that only the version's own requirements would bring is not tried.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xray_pipeline.base.children import child
from xray_pipeline.base.errors import EvaluationError
from xray_pipeline.base.scratch import scratch
from xray_pipeline.models import mlflow_client as tracking
from xray_pipeline.night import pair as comparing

if TYPE_CHECKING:
    from xray_pipeline.base.settings import Settings
    from xray_pipeline.night.run import Run

log = logging.getLogger(__name__)

SAMPLE = 8
"""Radiographs that the server is asked about."""
TOLERANCE = 1e-3
"""Largest difference of a probability: another device adds up in another order."""
BOOT_SECONDS = 180.0
ANSWER_SECONDS = 60.0


def check_answers(run: Run, candidate: str, version: int) -> float:
    """Serve a version, ask it about held-out radiographs, return the largest difference to the kept predictions (0..1).

    Raises EvaluationError when the server does not come up, answers otherwise, or names another version; RegistryError
    and ModelRefused when the version's files are not what was registered.
    """

    registry = run.registry()
    registry.download(version)  # audited before any of its code runs
    rows, expected, dataset = comparing.sample(run, registry, candidate, SAMPLE)
    files = [dataset.read(row.digest, row.suffix) for row in rows.itertuples()]
    with serving(run.settings, version) as address:
        answers = _ask(f"{address}/invocations", files)
    classes = run.settings.classes
    difference = 0.0
    for answer, wanted in zip(answers, expected, strict=True):
        if answer.get("model_version") != str(version) or answer.get("error"):
            said = {name: answer.get(name) for name in ("model_version", "error")}
            raise EvaluationError(f"the model server answered {said} for version {version}; it is not promoted")
        difference = max(difference, *(abs(answer[name] - p) for name, p in zip(classes, wanted, strict=True)))
    if not difference <= TOLERANCE:
        raise EvaluationError(
            f"the model server on version {version} differs from the predictions that were judged by {difference:.4f} "
            f"(at most {TOLERANCE}); it is not promoted: look at the versions of its packages"
        )
    log.info("the model server on version %d answered %d radiographs, off by %.1e", version, len(files), difference)
    return difference


@contextmanager
def serving(settings: Settings, version: int, seconds: float = BOOT_SECONDS) -> Iterator[str]:
    """Run `mlflow models serve` on a version until the block or this process ends; yield its address on this machine.

    Raises EvaluationError with the end of its log when it does not answer within `seconds`.
    """

    port = _free_port()
    address = f"http://127.0.0.1:{port}"
    model = f"models:/{settings.model_name}/{version}"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", model, "--env-manager", "local"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    tracking.use(settings.tracking_uri)  # what it inherits
    with scratch("xray-serve-") as folder, (folder / "log").open("wb") as file:
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",  # it starts uvicorn by name
            "TMPDIR": str(folder),  # its copy of the model goes with the folder
        }
        with child(command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=folder) as server:
            _wait(f"{address}/ping", server, folder / "log", seconds)
            yield address


def _wait(url: str, server: subprocess.Popen[bytes], output: Path, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    why = f"ended with {server.returncode}" if server.returncode is not None else f"did not answer in {seconds:.0f} s"
    tail = " / ".join(output.read_text(errors="replace").splitlines()[-5:])
    raise EvaluationError(f"the model server {why}: {tail}")


def _ask(url: str, files: list[bytes]) -> list[dict[str, Any]]:
    rows = [[base64.b64encode(data).decode()] for data in files]
    body = json.dumps({"dataframe_split": {"columns": ["image"], "data": rows}}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
            found: list[dict[str, Any]] = json.load(answer)["predictions"]
    except (OSError, HTTPException, ValueError, LookupError, TypeError) as error:
        said = error.read()[:300].decode(errors="replace") if isinstance(error, urllib.error.HTTPError) else error
        raise EvaluationError(f"the model server could not answer: {said or type(error).__name__}") from error
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
