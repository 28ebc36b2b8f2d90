"""The trial: MLflow's model server is booted on a model and asked, and its answers compared with what was judged.

What was evaluated ran in this package; what production runs is the code and the environment that travel with the
model. So a candidate is tried before it is registered, and a version again before it becomes champion, but not by the
same night in the same environment. The trade-offs:
some held-out radiographs instead of all, as whatever goes wrong on the way into the registry goes wrong for each; and
the server runs in this environment (`--env-manager local`), so a package that only the model's own requirements would
bring is not tried.
"""

from __future__ import annotations

import base64
import importlib.metadata
import logging
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import requests

from xray_pipeline.base.children import child
from xray_pipeline.base.errors import EvaluationError, ModelRefused
from xray_pipeline.base.records import canonical, digest_of
from xray_pipeline.base.scratch import scratch
from xray_pipeline.base.settings import Settings
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.models import mlflow_client as tracking
from xray_pipeline.night.pair import pair
from xray_pipeline.night.run import Run
from xray_pipeline.registry.mlflow_registry import Registry
from xray_pipeline.training.candidate import Candidate, find_candidate

log = logging.getLogger(__name__)

RADIOGRAPHS = 32
"""Held-out radiographs that the server is asked about."""
ALIKE = 1e-5
"""Largest difference of a probability on the machine that registers."""
TOLERANCE = 1e-3
"""The same on one that promotes: another device adds up in another order."""
BOOT_SECONDS = 180.0
ANSWER_SECONDS = 60.0


@dataclass(frozen=True)
class Trial:
    """How many radiographs a server answered, the largest difference of any probability from the evaluation's, and the
    environment that it ran in."""

    radiographs: int
    largest_difference: float
    environment: str


def environment() -> str:
    """Return the digest of the machine's name and of all packages here: where a server answers as it did before."""
    packages = sorted((each.name, each.version) for each in importlib.metadata.distributions())
    return digest_of(canonical([platform.node(), sys.version, packages]))


def try_candidate(run: Run, registry: Registry, candidate: Candidate) -> Trial:
    """Serve a candidate's logged model before it has a version. Raises ModelRefused, EvaluationError, RegistryError."""
    model = registry.download(candidate.model_uri)  # audited before any of its code runs
    return _tried(run, registry, candidate, (str(model), candidate.model_digest), ALIKE)


def try_version(run: Run, candidate: str, version: int) -> float:
    """Serve a registered version; return the largest difference to what was judged (0..1).

    Raises EvaluationError when the server does not come up, ModelRefused when it answers otherwise or names another
    version, or when its files are not what was registered, RegistryError.
    """
    registry = run.registry()
    registry.download(version)
    served = (f"models:/{run.settings.model_name}/{version}", str(version))
    return _tried(run, registry, find_candidate(run.store(), candidate), served, TOLERANCE).largest_difference


def _tried(run: Run, registry: Registry, candidate: Candidate, served: tuple[str, str], tolerance: float) -> Trial:
    both, dataset = pair(run, registry, candidate.digest, None), Dataset(run.settings)
    places = np.unique(np.linspace(0, len(both.rows) - 1, RADIOGRAPHS).astype(int))
    expected = both.tables[0][places]
    files = [dataset.read(row.digest, row.suffix) for row in both.rows.iloc[places].itertuples()]
    model, version = served
    with serving(run.settings, model) as address:
        answers = ask(address, files)
    trial = compared(answers, expected, run.settings.classes, version, tolerance)
    log.info("the model server on %s answered %d radiographs, off by %.1e", model, len(files), trial.largest_difference)
    return trial


def compared(
    answers: Sequence[Mapping[str, Any]],
    expected: npt.NDArray[np.float64],
    classes: Sequence[str],
    version: str,
    tolerance: float,
) -> Trial:
    """Compare a server's answers with the probabilities [N, C] that were judged.

    Raises ModelRefused for a radiograph it can't read, another version's name, or a probability off by more than
    `tolerance`.
    """
    for index, answer in enumerate(answers):
        if answer.get("model_version") != version or answer.get("error"):
            about = {name: answer.get(name) for name in ("model_version", "error")}
            raise ModelRefused(f"the model server answered {about} for radiograph {index}, asked about {version[:12]}")
    said = np.array([[answer[name] for name in classes] for answer in answers], dtype=np.float64)
    if said.shape != expected.shape:
        raise ModelRefused(f"the model server gave {said.shape} probabilities where {expected.shape} were evaluated")
    off = np.abs(said - expected).max(axis=1)
    if not (off <= tolerance).all():
        raise ModelRefused(
            f"the model server on {version[:12]} answers {int((~(off <= tolerance)).sum())} of {len(off)} held-out "
            f"radiographs otherwise than was judged, by up to {off.max():.2g} (allowed: {tolerance:g}): look at the "
            f"versions of its packages here and where it was trained"
        )
    return Trial(len(off), float(off.max()), environment())


@contextmanager
def serving(settings: Settings, model: str, seconds: float = BOOT_SECONDS) -> Iterator[str]:
    """Run `mlflow models serve` on a model until the block or this process ends; yield its address on this machine.

    `model` is a version as models:/NAME/VERSION, or an audited folder. Raises EvaluationError with the end of
    its log when it does not answer within `seconds`.
    """
    port = _free_port()
    address = f"http://127.0.0.1:{port}"
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
            requests.get(url, timeout=5).raise_for_status()
            return
        except requests.RequestException:
            time.sleep(0.3)
    why = f"ended with {server.returncode}" if server.returncode is not None else f"did not answer in {seconds:.0f} s"
    tail = " / ".join(output.read_text(errors="replace").splitlines()[-5:])
    raise EvaluationError(f"the model server {why}: {tail}")


def ask(address: str, files: Sequence[bytes]) -> list[dict[str, Any]]:
    """Return a server's answers to image files, one row of columns each. Raises EvaluationError."""
    rows = [[base64.b64encode(data).decode()] for data in files]
    body: dict[str, Any] = {"dataframe_split": {"columns": ["image"], "data": rows}}
    try:
        reply = requests.post(f"{address}/invocations", json=body, timeout=ANSWER_SECONDS)
        reply.raise_for_status()
        answers: list[dict[str, Any]] = reply.json()["predictions"]
    except requests.HTTPError as error:
        raise EvaluationError(f"the model server could not answer: {reply.text[:300]}") from error
    except (requests.RequestException, ValueError, LookupError, TypeError) as error:
        raise EvaluationError(f"the model server could not answer: {error}") from error
    return answers


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
