"""A network trained by several processes: torchrun starts them, the last checkpoint is what they leave.

The process that asks for it decodes, fits the first head and keeps a checkpoint; torchrun's processes go on from there
as after any interruption, and so does the asking process from theirs, to choose temperature and threshold. So every way
to be interrupted and to go on, with another number of processes, too, is the one that a single process has. The
trade-off: some seconds to start, once a training.

    torchrun --standalone --nproc-per-node N -m xray_pipeline.learning.launching FOLDER

is what it runs. The processes stop together, after a checkpoint, when one of them gets SIGTERM, or when their standard
input ends: then nobody waits for them any more.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pandas as pd
import torch

from xray_pipeline.base import errors
from xray_pipeline.base.errors import OutOfMemory, RadiographError, TrainingError, XrayError
from xray_pipeline.base.scratch import scratch
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import open_store, reader
from xray_pipeline.dataset.parquet import read_parquet
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.models import backbones
from xray_pipeline.models.mlflow_client import metric_log, use
from xray_pipeline.training.checkpoints import Checkpoints
from xray_pipeline.training.device import halved, pick_device
from xray_pipeline.training.fitting import Record, Trainer, terminable
from xray_pipeline.training.parallel import group_of, local_device
from xray_pipeline.training.recipe import Recipe

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


def fit(trainer: Trainer, checkpoints: Checkpoints, run_id: str, count: int) -> None:
    """Train in `count` processes up to the last checkpoint; `trainer.fit` then has nothing left to do.

    Raises what they raise, TrainingError when one of them was ended or all were told to stop; a checkpoint is kept.
    """
    trainer.prepare(checkpoints)
    most = trainer.recipe.batch_size
    while True:
        try:
            _fit(trainer, checkpoints, run_id, count, most)
            return
        except OutOfMemory as error:
            log.warning("%s", error)
            most = halved(most, trainer.device, error, count)


def _fit(trainer: Trainer, checkpoints: Checkpoints, run_id: str, count: int, most: int) -> None:
    with scratch("xray-processes-") as folder:
        job = {
            "settings": trainer.settings.model_dump(mode="json", exclude=_SECRET),
            "recipe": trainer.recipe.model_dump(mode="json"),
            "checkpoints": checkpoints.store.uri,
            "run_id": run_id,
            "most": most,
        }
        (folder / "job.json").write_text(json.dumps(job))
        pd.concat(trainer.rows.values())[["digest", "suffix", "label", "side"]].to_parquet(folder / "rows.parquet")
        code, said = _run(folder, count)
        if (folder / "error.json").exists():
            kind, message = json.loads((folder / "error.json").read_text())
            named = getattr(errors, kind, TrainingError)
            raise (TrainingError if named is RadiographError else named)(message)  # that one takes more than a message
        if code:
            raise TrainingError(f"{_ended(said)}; the others were stopped; a checkpoint is kept, run it again")


_SECRET = {name for name, field in Settings.model_fields.items() if "Secret" in str(field.annotation)}


def _run(folder: Path, count: int) -> tuple[int, str]:
    """Run torchrun until it ends, log what its processes say; return its exit code and the last of it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    command += ["-m", "xray_pipeline.training.launching", str(folder)]
    threads = str(max(1, torch.get_num_threads() // count))
    environment = {"OMP_NUM_THREADS": threads, **os.environ}
    said: deque[str] = deque(maxlen=200)
    log.info("training in %d processes", count)
    with (
        terminable() as stop,
        subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process,
        _stopped_at_the_end(process, said),
    ):
        while process.poll() is None and not stop.wait(0.1):
            continue
    return process.returncode, "\n".join(said)


@contextmanager
def _stopped_at_the_end(process: subprocess.Popen[str], said: deque[str]) -> Iterator[None]:
    """Whatever happens here, no process is left behind: first they are asked to stop, in the end they are killed."""
    assert process.stdin is not None
    assert process.stdout is not None
    reader = threading.Thread(target=_pass_on, args=(process.stdout, said), daemon=True)
    reader.start()
    try:
        yield
    finally:
        process.stdin.close()
        for send in (process.terminate, process.kill):
            try:
                process.wait(SECONDS)
                break
            except subprocess.TimeoutExpired:
                log.warning("the training processes do not stop; they are sent a signal")
                send()
        reader.join(SECONDS)  # as long as any of them lives it can write


def _pass_on(lines: IO[str], said: deque[str]) -> None:
    for line in lines:
        said.append(line.rstrip())
        log.info("%s", said[-1])


def _ended(said: str) -> str:
    found = re.findall(r"Signal \d+ \((\w+)\) received by PID (\d+)", said)
    if found:  # torchrun ends the others by SIGTERM
        signal, process = min(found, key=lambda each: each[0] == "SIGTERM")
        return f"training process {process} was ended by {signal}"
    last = [line for line in said.splitlines() if re.match(r"(\[rank\d+\]: *)?\w+(\.\w+)*(Error|Exception)\b", line)]
    return f"a training process failed: {last[0] if last else said[-300:]}"


def _process(folder: Path) -> None:
    """Be one of the processes. Raises what `Trainer.fit` raises."""
    job = json.loads((folder / "job.json").read_text())
    settings, recipe = Settings(**job["settings"]), Recipe.model_validate(job["recipe"])
    device = local_device(pick_device(settings.device))
    settings = settings.model_copy(update={"device": str(device)})
    rows = read_parquet((folder / "rows.parquet").read_bytes())
    backbone = backbones.load(recipe.backbone, recipe.weights, reader(settings))
    checkpoints = Checkpoints(open_store(job["checkpoints"], settings))
    stop = threading.Event()
    threading.Thread(target=_wait_for_end_of_input, args=(stop,), daemon=True).start()
    with group_of(device) as group:
        trainer = Trainer(recipe, backbone, Dataset(settings), rows, settings, group=group)
        trainer.most = job["most"]
        trainer.fit(checkpoints, _record(job["run_id"], settings) if group.rank == 0 else _forget, stop)


def _record(run_id: str, settings: Settings) -> Record:
    use(settings.tracking_uri)
    return metric_log(run_id)


def _forget(epoch: int, metrics: Mapping[str, float]) -> None:
    log.debug("epoch %d is recorded by the first process", epoch)


def _wait_for_end_of_input(stop: threading.Event) -> None:
    while os.read(0, 4096):
        continue
    stop.set()


def main() -> None:
    """Train as one of torchrun's processes, and write a named error where the asking process finds it."""
    folder, rank = Path(sys.argv[1]), os.environ["RANK"]
    logging.basicConfig(level=logging.INFO if rank == "0" else logging.WARNING, format=f"process {rank}: %(message)s")
    try:
        _process(folder)
    except XrayError as error:
        try:
            with (folder / "error.json").open("x") as file:
                json.dump([type(error).__name__, str(error)], file)
        except FileExistsError:
            log.warning("%s", error)
        sys.exit(1)


if __name__ == "__main__":
    main()
