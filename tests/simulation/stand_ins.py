"""What the package's own code runs on in a simulation: time, chance, store, MLflow, and what takes a network.

Everything that is patched is patched here, and only while `installed` lasts:

- time, sleep, dates, random names: the scheduler's
- boto3's client: a bucket in memory (memory_s3); MLflow's clients and files: memory_mlflow
- threads: work that is handed to a pool is done at once, in its order
- reading an image, training, loading a network, trying the model server, judging by figures: they are not what is
  tested; a trained candidate is a few bytes, and how good it is follows from its digest
"""

from __future__ import annotations

import contextlib
import datetime as dates
import hashlib
import importlib
import json
import logging
import pkgutil
import random
import secrets
import sys
import time
import types
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import mlflow
from memory_mlflow import MemoryMlflow
from memory_s3 import MemoryS3

import xray_pipeline
from xray_pipeline.base import s3_store
from xray_pipeline.base.errors import ModelRefused, RegistryError
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.evaluation.shadow import Shadow
from xray_pipeline.gate.policy import Clause, Decision, Verdict, load_policy
from xray_pipeline.intake import commit as intake_commit
from xray_pipeline.models.mlflow_client import MlflowClient
from xray_pipeline.night import contender, judging, kept_rows, promotion, shadow, tidy  # noqa: F401  (all rooms below)
from xray_pipeline.registry import loading, model_files, run_files
from xray_pipeline.registry.calls import ask
from xray_pipeline.training import mlflow_files, mlflow_run
from xray_pipeline.training import train as training
from xray_pipeline.training.candidate import BATCH

POLICY = load_policy("default")
CONFIDENCE = POLICY.clause("confidence").number  # type: ignore[union-attr]
MUCH = 0.4
"""How much better than the champion a candidate must be for the held-out radiographs alone to show it."""


class InlinePool:
    """A pool of threads that does what it is handed at once, so that one seed gives one order."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __enter__(self) -> InlinePool:
        return self

    def __exit__(self, *_: object) -> None: ...

    def map(self, function: Callable[..., Any], *columns: Iterable[Any]) -> Iterator[Any]:
        return iter([function(*row) for row in zip(*columns, strict=False)])


@dataclass(frozen=True)
class FakeClassifier:
    """A network of no layers; `digest` is that of what it was saved as."""

    digest: str
    engine: str = ""
    threshold: float = 0.5

    @classmethod
    def load(cls, folder: Any, digest: str = "") -> FakeClassifier:
        actual = model_digest(folder)
        if digest and digest != actual:
            raise ModelRefused(f"the classifier has digest {actual[:12]}, {digest[:12]} is expected")
        return cls(actual)

    def save(self, _: Path) -> str:
        return self.digest


class FakeTrainer:
    """A training of which only the result matters: weights that follow from the snapshot's rows and the recipe."""

    def __init__(self, recipe: Any, _: Any, __: Any, rows: Any, *___: Any) -> None:
        self.recipe, self.weights_digest, self.device = recipe, "none", "cpu"
        self.extracted = types.SimpleNamespace(engine=types.SimpleNamespace(name="none"))
        said = [recipe.digest(), *rows["digest"], *rows["label"]]
        self._weights = hashlib.sha256(json.dumps(said).encode()).hexdigest()
        self.settings, self.shown = ___[0], sorted(rows["digest"])

    def classifier(self) -> FakeClassifier:
        return FakeClassifier(model_digest(model_of(self._weights)))


def keep(trainer: FakeTrainer, _: Any, folder: Any, __: str) -> None:
    """Keep a picture that names what it shows."""
    folder.write(BATCH, "\n".join(trainer.shown).encode())


def model_of(weights: str) -> dict[str, bytes]:
    """Return the files of a logged model."""
    return {"weights": weights.encode()}


def model_digest(files: Any) -> str:
    """Return the digest of a saved classifier, as it is in these files."""
    return hashlib.sha256(b"classifier" + files["weights"]).hexdigest()


def inventory(files: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}


def artifact_digest(files: dict[str, bytes]) -> str:
    return hashlib.sha256(json.dumps(inventory(files)).encode()).hexdigest()


def accuracy(candidate: str) -> float:
    """How good a candidate is on held-out radiographs, by its digest."""
    return int(candidate[:8], 16) / 16**8


def decision(candidate: str, champion: str, automatic: bool, shown: bool = False) -> Decision:
    """What the policy says: registered when it is better, promoted when that is much, or `shown` in shadow."""
    gain = accuracy(candidate) - accuracy(champion) if champion else 1.0
    held = gain > MUCH or (gain > 0 and shown)
    verdict: Verdict = "registered" if gain > 0 else "refused"
    why = f"accuracy {accuracy(candidate):.3f}"
    clause = Clause(CONFIDENCE, "promote", "", None, None, held, why)
    return Decision(
        verdict, held, held and automatic, (clause,), (why,), POLICY.digest, "simulated", candidate, champion, ""
    )


def in_shadow(run: Any, turn: shadow.Turn) -> Shadow:
    """Say that the version was better on whatever came since its turn began."""
    count = len(turn.deliveries(Dataset(run.settings)))
    return Shadow(turn.number, count, count, 0.1, 9.0)


@contextlib.contextmanager
def installed(scheduler: Any, mlflow_server: MemoryMlflow, s3: MemoryS3) -> Iterator[None]:
    """Have the package's code run on these for the block."""
    names = random.Random(scheduler.random.random())

    class Clock(dates.datetime):
        @classmethod
        def now(cls, tz: dates.tzinfo | None = None) -> dates.datetime:  # type: ignore[override]
            return dates.datetime.fromtimestamp(scheduler.now(), tz)

    def token(size: int = 16) -> str:
        return f"{names.getrandbits(8 * size):0{2 * size}x}"

    def new_uuid() -> uuid.UUID:
        return uuid.UUID(token())

    def opened(_: str) -> MemoryS3:
        return s3

    everywhere = {
        dates.datetime: Clock,
        ThreadPoolExecutor: InlinePool,
        MlflowClient: lambda *_: mlflow_server,
    }
    earlier, disabled = random.getstate(), logging.root.manager.disable
    random.seed(names.random())
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.ExitStack() as stack:
            patch = stack.enter_context
            for module, name, kind in _FOUND:
                patch(mock.patch.object(module, name, everywhere[kind]))
            patch(mock.patch.object(time, "time", scheduler.now))
            patch(mock.patch.object(time, "sleep", scheduler.sleep))
            patch(mock.patch.object(secrets, "token_hex", token))
            patch(mock.patch.object(uuid, "uuid4", new_uuid))
            patch(mock.patch.object(s3_store, "_client", opened))
            patch(mock.patch.object(mlflow, "search_model_versions", mlflow_server.search_model_versions))
            for module, name, value in _heavy(mlflow_server):
                patch(mock.patch.object(module, name, value))
            yield
    finally:
        logging.disable(disabled)
        random.setstate(earlier)


def _places() -> list[tuple[Any, str, Any]]:
    """Return where modules of the package hold what is stood in for, by name."""
    for found in pkgutil.walk_packages(xray_pipeline.__path__, "xray_pipeline."):
        if not found.name.startswith(("xray_pipeline.airflow_ui", "xray_pipeline.command")):
            importlib.import_module(found.name)
    kinds = (dates.datetime, ThreadPoolExecutor, MlflowClient)
    modules = [module for name, module in sorted(sys.modules.items()) if name.startswith("xray_pipeline.")]
    return [
        (module, name, value)
        for module in modules
        for name, value in vars(module).items()
        if any(value is kind for kind in kinds)
    ]


_FOUND = _places()


def _heavy(server: MemoryMlflow) -> list[tuple[Any, str, Any]]:
    """Return the stand-ins for what takes a network, an image or a file of a model."""

    def files_of(model: Any) -> dict[str, bytes]:
        if not model.artifact:
            raise ModelRefused(f"{model.uri} has no record of its files")
        files = ask(f"downloading {model.uri}", server.download, model.uri)
        if not files:
            raise RegistryError(f"files of {model.uri} are missing; restore them from a backup")
        if artifact_digest(files) != model.artifact:
            raise ModelRefused(f"{model.uri}: the model's files are not those that were recorded")
        return files

    @contextlib.contextmanager
    def audited(model: Any, _: Path) -> Iterator[dict[str, bytes]]:
        yield files_of(model)

    def log_classifier(run_id: str, classifier: FakeClassifier, _: Path, tags: dict[str, str]) -> str:
        files = made[classifier.digest] | {"MLmodel": secrets.token_hex().encode()}  # MLflow's differ, too
        digests = {"xray.model": classifier.digest, "xray.artifact": artifact_digest(files)}
        return server.log_model(run_id, {**tags, **digests, "xray.files": json.dumps(inventory(files))}, files)

    made: dict[str, dict[str, bytes]] = {}

    def fit(trainer: FakeTrainer, *_: Any) -> None:
        files = model_of(trainer._weights)
        made[model_digest(files)] = files

    def reread(delivery: Any, file: str, *_: Any) -> Any:
        data = delivery.read(file)
        return types.SimpleNamespace(digest=hashlib.sha256(data).hexdigest(), data=data)

    def judged(run: Any, key: str) -> tuple[Any, Decision]:
        """Read evidence that the simulated night kept."""
        said = json.loads(run.store().read(key))
        seen = shadow.standing(run, said["candidate"])
        decided = decision(**said, automatic=run.settings.promotion == "auto", shown=bool(seen and seen.deliveries))
        return types.SimpleNamespace(comparison=None, shadow=seen), decided

    backbone = types.SimpleNamespace(weights_digest="none")
    return [
        (model_files, "fetch", lambda model, _: files_of(model)),
        (model_files, "audited", audited),
        (loading, "Classifier", FakeClassifier),
        (intake_commit, "reread", reread),
        (mlflow_files, "get_artifact_repository", server.artifacts),
        (run_files, "get_artifact_repository", server.artifacts),
        (kept_rows, "drop_erased", lambda *_, **__: 0),
        (kept_rows, "left", lambda _: []),
        (mlflow_run, "system_metrics", lambda _: contextlib.nullcontext()),
        (mlflow_run, "log_recipe", lambda *_: None),
        (mlflow_run, "log_snapshot", lambda *_: None),
        (mlflow_run, "log_classifier", log_classifier),
        (training, "backbone_of", lambda *_: backbone),
        (training, "Trainer", FakeTrainer),
        (training, "environment", lambda *_: {"simulated": True}),
        (training, "fit", fit),
        (training, "metric_log", lambda _: None),
        (training, "pictures", types.SimpleNamespace(keep=keep)),
        (training, "launching", types.SimpleNamespace(processes=lambda *_: 1)),
        (judging, "judged", judged),
        (contender, "judged", judged),
        (shadow, "of", in_shadow),
        (promotion.trial, "try_version", lambda *_: 0.0),
        (promotion.versions, "refresh", lambda _: None),
    ]
