"""The logged model must answer, in a process of its own, as the evaluation says it does.

What is registered is not the network that was evaluated but files that MLflow gives back: weights, code, preparation of
the image. So those files are loaded the way a server loads them and shown held-out radiographs as files. The trade-off:
some of the held-out radiographs (the first by digest, as good as random) instead of all: whatever goes wrong on the way
into the registry goes wrong for each.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xray_pipeline.base.children import child
from xray_pipeline.base.errors import ModelRefused
from xray_pipeline.base.scratch import scratch

log = logging.getLogger(__name__)

RADIOGRAPHS = 64
TOLERANCE = 1e-5
TIMEOUT_SECONDS = 900


@dataclass(frozen=True)
class Rehearsal:
    """How many radiographs were answered anew, and the largest difference of any probability from the evaluation's."""

    radiographs: int
    largest_difference: float

    def to_dict(self) -> dict[str, Any]:
        """Return this as JSON-able values."""
        return asdict(self)


def rehearse(
    model: Path, radiographs: Sequence[bytes], expected: npt.NDArray[np.float64], classes: Sequence[str]
) -> Rehearsal:
    """Load an audited model folder in a fresh process and compare its answers with `expected` [N, C] (0..1).

    `radiographs` are N stored files. Raises ModelRefused when the model does not load, answers with code that is not
    its own, can't read a radiograph, or a probability is off by more than TOLERANCE.
    """
    with scratch("xray-rehearsal-") as folder:
        for index, data in enumerate(radiographs):
            (folder / f"{index:06d}").write_bytes(data)
        said = _ask(model, folder)
    if not Path(said["code"]).is_relative_to(model.resolve()):
        raise ModelRefused(f"the model in {model} answered with code from {said['code']}, not its own; log it anew")
    answers = said["answers"]
    for index, answer in enumerate(answers):
        if answer["error"]:
            raise ModelRefused(f"the logged model can't read held-out radiograph {index}: {answer['error']}")
    found = np.array([[answer[name] for name in classes] for answer in answers], dtype=np.float64)
    if found.shape != expected.shape:
        raise ModelRefused(f"the logged model gave {found.shape} probabilities where {expected.shape} were evaluated")
    off = np.abs(found - expected).max(axis=1)
    if not (off <= TOLERANCE).all():
        raise ModelRefused(
            f"loaded back from MLflow, the model answers {int((~(off <= TOLERANCE)).sum())} of {len(off)} held-out "
            f"radiographs otherwise than it was evaluated, by up to {off.max():.2g} (allowed: {TOLERANCE:g}); it is "
            "not registered. Compare the package versions of the machines that trained and registered it"
        )
    log.info("loaded back from MLflow in a fresh process: %d radiographs within %.1e", len(off), off.max())
    return Rehearsal(len(off), float(off.max()))


def _ask(model: Path, radiographs: Path) -> dict[str, Any]:
    script = Path(__file__).with_name("fresh.py")
    # -P: without it the script's folder, this package's, would be searched for every import. -B: the model's folder is
    # the cache's, which others audit meanwhile.
    command = [sys.executable, "-P", "-B", str(script), str(model.resolve()), str(radiographs)]
    pipe = subprocess.PIPE
    with child(command, cwd=radiographs.parent, stdout=pipe, stderr=pipe) as process:
        try:
            answer, complaint = process.communicate(timeout=TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise ModelRefused(
                f"the model in {model} did not answer within {TIMEOUT_SECONDS} s in a fresh process"
            ) from error
    if process.returncode != 0:
        last = complaint.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        raise ModelRefused(f"the model in {model} fails in a fresh process (exit {process.returncode}): {last[0]}")
    said: dict[str, Any] = json.loads(answer[answer.index(b'{"answers"') :])
    return said
