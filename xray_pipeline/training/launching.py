"""A network trained by several processes: this one starts them, the last checkpoint is what they leave.

The process that asks for it decodes, fits the first head and keeps a checkpoint; the others go on from there as after
any interruption, and so does the asking process from theirs, to choose temperature and threshold. So every way to be
interrupted and to go on, with another number of processes, too, is the one that a single process has. The trade-off:
some seconds to start, once a training. multiprocessing, and torch.multiprocessing on it, can't start them: a worker
process of Celery is a daemon to it, which may have no children.

    python -m xray_pipeline.training.launching FOLDER NUMBER

is what each of them runs. They stop together, after a checkpoint, when one of them gets SIGTERM, and are killed when
the asking process ends.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pandas as pd
import torch

from xray_pipeline.base import errors
from xray_pipeline.base.children import child
from xray_pipeline.base.errors import OutOfMemory, RadiographError, TrainingError, XrayError
from xray_pipeline.base.scratch import scratch
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import open_store
from xray_pipeline.dataset.parquet import read_parquet
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.models.mlflow_client import metric_log, use
from xray_pipeline.training.checkpoints import Checkpoints
from xray_pipeline.training.device import halved, pick_device
from xray_pipeline.training.fitting import fit, terminable
from xray_pipeline.training.network_fit import prepare
from xray_pipeline.training.parallel import joined
from xray_pipeline.training.pretrained import backbone_of
from xray_pipeline.training.recipe import Recipe
from xray_pipeline.training.trainer import Trainer

log = logging.getLogger(__name__)

SECONDS = 120
"""Until processes that were told to stop, and have a step and a checkpoint to finish, are killed."""


def processes(recipe: Recipe, settings: Settings, device: torch.device) -> int:
    """Return how many processes train a recipe on a device: as set, else one a GPU; `head` has one in any case.

    Never more than a batch has radiographs. Raises TrainingError for more than there are GPUs.
    """
    gpus = torch.cuda.device_count() if device.type == "cuda" and device.index is None else 1
    asked = settings.train_processes or gpus
    if device.type == "cuda" and asked > gpus:
        raise TrainingError(f"train_processes {asked}: device {settings.device} has {gpus} GPUs; set it to 0, or fewer")
    return 1 if recipe.mode == "head" else min(asked, recipe.batch_size)


def fit_in_processes(trainer: Trainer, checkpoints: Checkpoints, run_id: str, count: int) -> None:
    """Train in `count` processes up to the last checkpoint; `fitting.fit` then has nothing left to do.

    Raises what they raise, TrainingError when one of them was ended or all were told to stop; a checkpoint is kept.
    """
    prepare(trainer, checkpoints)
    most = trainer.recipe.batch_size
    while True:
        try:
            _fit(trainer, checkpoints, run_id, count, most)
            return
        except OutOfMemory as error:
            log.warning("%s", error)
            most = halved(most, trainer.device, error, count)


_SECRET = {name for name, field in Settings.model_fields.items() if "Secret" in str(field.annotation)}


def _fit(trainer: Trainer, checkpoints: Checkpoints, run_id: str, count: int, most: int) -> None:
    with scratch("xray-processes-") as folder:
        job = {
            "settings": trainer.settings.model_dump(mode="json", exclude=_SECRET),
            "recipe": trainer.recipe.model_dump(mode="json"),
            "checkpoints": checkpoints.store.uri,
            "run_id": run_id,
            "most": most,
            "count": count,
        }
        (folder / "job.json").write_text(json.dumps(job))
        pd.concat(trainer.rows.values())[["digest", "suffix", "label", "side", "width", "height"]].to_parquet(
            folder / "rows.parquet"
        )
        failed = _run(folder, count)
        if failed and failed.returncode < 0:
            named = signal.Signals(-failed.returncode).name
            raise TrainingError(
                f"training process {failed.pid} was ended by {named}; the others were stopped; a checkpoint is kept, "
                "run it again"
            )
        if failed:
            said = open_store(folder).read("error.json") if (folder / "error.json").exists() else None
            unsaid = f"training process {failed.pid} ended with {failed.returncode}; the log has what it said"
            kind, message = json.loads(said) if said else ("TrainingError", unsaid)
            raise getattr(errors, kind, TrainingError)(message)


def _run(folder: Path, count: int) -> subprocess.Popen[bytes] | None:
    """Run the processes until all have ended, or one of them badly: return that one."""
    environment = {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // count)), **os.environ}
    command = [sys.executable, "-m", "xray_pipeline.training.launching", str(folder)]
    log.info("training in %d processes", count)
    with terminable() as stop, _logged() as output, ExitStack() as started:
        group = [
            started.enter_context(child([*command, str(number)], env=environment, stdout=output, stderr=output))
            for number in range(count)
        ]
        while _all_is_well(group) and not stop.wait(0.1):
            continue
        if stop.is_set():
            for process in group:
                process.terminate()
        until = time.monotonic() + SECONDS
        while _all_is_well(group) and time.monotonic() < until:
            time.sleep(0.1)
        failed = [p for p in group if p.poll()] or [p for p in group if p.poll() is None]  # these are killed now
    return min(failed, key=lambda process: process.returncode, default=None)  # a signal first: its code is negative


def _all_is_well(group: Sequence[subprocess.Popen[bytes]]) -> bool:
    """Say whether some of the processes train, and none has ended badly."""
    codes = [process.poll() for process in group]
    return None in codes and not any(codes)


@contextmanager
def _logged() -> Iterator[int]:
    """Open a pipe, to log what programs write to it."""
    reading, writing = os.pipe()

    def pass_on() -> None:
        with open(reading, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                log.info("%s", line.rstrip())

    thread = threading.Thread(target=pass_on, daemon=True)
    thread.start()
    try:
        yield writing
    finally:
        os.close(writing)
        thread.join(SECONDS)


def _train(folder: Path, number: int) -> None:
    """Be one of the processes. Raises what `fit` raises."""
    job = json.loads((folder / "job.json").read_text())
    settings, recipe = Settings(**job["settings"]), Recipe.model_validate(job["recipe"])
    if pick_device(settings.device).type == "cuda":
        settings = settings.model_copy(update={"device": f"cuda:{number}"})
    rows = read_parquet((folder / "rows.parquet").read_bytes())
    backbone = backbone_of(recipe, settings)
    use(settings.tracking_uri)
    with joined(pick_device(settings.device), number, job["count"], folder / "meeting"):
        trainer = Trainer(recipe, backbone, Dataset(settings), rows, settings)
        record = metric_log(job["run_id"]) if number == 0 else _forget
        fit(trainer, Checkpoints(open_store(job["checkpoints"], settings)), record, job["most"])


def _forget(epoch: int, metrics: Mapping[str, float]) -> None:
    log.debug("epoch %d is recorded by the first process", epoch)


def main() -> None:
    """Train as one of the processes, and write the first error where the asking process finds it."""
    folder, number = Path(sys.argv[1]), int(sys.argv[2])
    level = logging.WARNING if number else logging.INFO
    logging.basicConfig(level=level, format=f"process {number}: %(message)s")
    try:
        _train(folder, number)
    except Exception as error:
        ours = isinstance(error, XrayError) and not isinstance(error, RadiographError)  # that takes more than a message
        kind, message = type(error).__name__, str(error)
        if not ours:
            log.exception("it failed")
            kind, message = "TrainingError", f"training process {os.getpid()} failed: {kind}: {message}"
        open_store(folder).write_if_absent("error.json", json.dumps([kind, message]).encode())  # whole, or not there
        sys.exit(1)


if __name__ == "__main__":
    main()
