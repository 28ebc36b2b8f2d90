"""Train a registered version again from its record, and compare: proof, or a list of what differs.

Nothing that was kept is trusted: pixels and features are computed anew in a folder that goes with the run. Nothing is
registered, logged or changed. The trade-off: it takes as long as training from an empty cache. It runs on a CPU with as
many threads and the engine that the record names, because only so are equal inputs promised equal bits; an engine that
is not installed is replaced by torch, and named.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from xray_pipeline.base.errors import (
    ConfigError,
    DatasetError,
    EvaluationError,
    RadiographDamaged,
    TrainingError,
    WeightsError,
)
from xray_pipeline.base.progress import Progress
from xray_pipeline.base.scratch import scratch
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import open_store
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.models.backbones import Backbone
from xray_pipeline.models.classifier import Classifier
from xray_pipeline.models.engine import Wanted, engine_name, torch_threads
from xray_pipeline.night import lineage
from xray_pipeline.night.versions import registered
from xray_pipeline.registry import loading
from xray_pipeline.registry.mlflow_registry import Registry
from xray_pipeline.training import candidate as training
from xray_pipeline.training import train
from xray_pipeline.training.candidate import Candidate
from xray_pipeline.training.checkpoints import Checkpoints
from xray_pipeline.training.features import feature_dtype
from xray_pipeline.training.fitting import fit
from xray_pipeline.training.pretrained import backbone_of
from xray_pipeline.training.recipe import Recipe
from xray_pipeline.training.start import digest_from, recorded, start_of
from xray_pipeline.training.trainer import Trainer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reproduction:
    """What came of training a version again.

    `reproduced`: weights, temperature, threshold and all other facts are equal, bit for bit. `trained`: False when the
    record is not whole enough to train from. `inputs` says what went in differently or is missing, `outputs` which
    tensors and facts came out differently. `artifact` is the digest of all files of the version.
    """

    version: int
    candidate: str
    reproduced: bool
    trained: bool
    recorded_digest: str
    digest: str
    tensors: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    artifact: str

    def lines(self) -> list[str]:
        """Say it to a person."""
        if self.reproduced:
            head = f"version {self.version} is reproduced: {self.tensors} tensors and all facts are equal, bit for bit"
        elif self.trained:
            head = f"version {self.version} is NOT reproduced: its digest is {self.recorded_digest[:12]}, "
            head += f"training again gave {self.digest[:12]}"
        else:
            head = f"version {self.version} can't be trained again"
        return [head, *(f"  goes in: {text}" for text in self.inputs), *(f"  came out: {t}" for t in self.outputs)]


@dataclass(frozen=True)
class _Inputs:
    """What a candidate was trained from by its record, and what is otherwise today."""

    recipe: Recipe
    rows: pd.DataFrame
    backbone: Backbone
    start: Classifier | None
    environment: Mapping[str, Any]
    differences: tuple[str, ...]


def reproduce(settings: Settings, version: int, progress: Progress | None = None) -> Reproduction:
    """Train the candidate of a registered version again and compare it with what is registered.

    Raises LedgerError for a version that was never registered, ModelRefused when its own files can't be trusted,
    TrainingError, RegistryUnavailable, StorageUnavailable.
    """
    registry = Registry(settings)
    meant = registered(registry.ledger.state(), version)
    candidate = training.find_candidate(open_store(settings.store, settings), meant.candidate)
    expected, about = loading.load(registry, version), {"version": version, "artifact": meant.artifact}
    dataset = Dataset(settings)
    try:
        inputs = _inputs(settings, dataset, candidate, registry)
    except (ConfigError, DatasetError, EvaluationError, TrainingError, WeightsError) as error:
        return _outcome(about, candidate, expected, None, (str(error),))
    environment = inputs.environment
    threads = environment.get("threads", torch.get_num_threads())
    with scratch("reproduce-", settings.cache) as folder, torch_threads(threads):
        rules = settings.rules.model_copy(update=asdict(expected.limits))
        update = {"cache": folder / "cache", "device": "cpu", "engine": _engine(environment), "rules": rules}
        again = settings.model_copy(update=update)
        trainer = Trainer(inputs.recipe, inputs.backbone, dataset, inputs.rows, again, progress, inputs.start)
        try:
            fit(trainer, Checkpoints(open_store(folder / "checkpoints")), _forgotten)
        except RadiographDamaged as error:
            return _outcome(about, candidate, expected, None, (*inputs.differences, str(error)))
        classifier = trainer.classifier()
        classifier.save(folder / "classifier")
        found = Classifier.load(folder / "classifier")
    return _outcome(about, candidate, expected, found, inputs.differences)


def _forgotten(epoch: int, metrics: Mapping[str, float]) -> None:
    log.info("epoch %d is not logged: the original's metrics stand", epoch)


def _inputs(settings: Settings, dataset: Dataset, candidate: Candidate, registry: Registry) -> _Inputs:
    """Read what a candidate was trained from. Raises the error that names the first part which is gone or damaged."""
    store = open_store(settings.store, settings)
    recipe, runs = lineage.recipe_of(store, candidate.digest), lineage.environments(store, candidate.digest)
    snapshot = dataset.open_snapshot(candidate.snapshot)
    dataset.require_whole(snapshot)
    rows = dataset.rows(snapshot)
    backbone = backbone_of(recipe, settings)
    start: Classifier | None = None
    differences: list[str] = []
    if before := lineage.before_start(candidate, recipe, runs):
        recorded(store, before)  # one that is missing must not be written anew
        start = start_of(recipe, settings, store, before, loading.Champions(registry))
    if not runs:
        differences.append("no record of device, threads and package versions is kept with this candidate")
    elif len(runs) > 1:
        differences.append(f"training went on in {len(runs)} different environments; the last is compared")
    environment = runs[-1] if runs else {}
    differences += _differing(environment, backbone, candidate, recipe, start)
    return _Inputs(recipe, rows, backbone, start, environment, tuple(differences))


def _differing(
    environment: Mapping[str, Any],
    backbone: Backbone,
    candidate: Candidate,
    recipe: Recipe,
    start: Classifier | None,
) -> list[str]:
    cpu = torch.device("cpu")
    engine = engine_name(cpu, feature_dtype(recipe, cpu), _engine(environment))
    now = train.environment(cpu, backbone.weights_digest, engine)
    found = []
    for name, then in environment.items():
        if name not in ("versions", "threads") and now.get(name) != then:
            found.append(f"{name}: {_short(now.get(name))}, recorded {_short(then)}")
    for name, then in environment.get("versions", {}).items():
        if now["versions"].get(name) != then:
            found.append(f"version of {name}: {now['versions'].get(name, 'not installed')}, recorded {then}")
    digest = digest_from(training.candidate_digest(candidate.snapshot, recipe, backbone.weights_digest), start)
    if digest != candidate.digest and not found:
        found.append(f"candidate digest: {digest[:12]}, recorded {candidate.digest[:12]}")
    return found


def _engine(environment: Mapping[str, Any]) -> Wanted:
    """Return the engine to compute features with: torch, too, for a record from before there was another."""
    return "auto" if str(environment.get("engine")).startswith("openvino") else "torch"


def _short(value: object) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text


def _outcome(
    about: Mapping[str, Any],
    candidate: Candidate,
    expected: Classifier,
    found: Classifier | None,
    inputs: tuple[str, ...],
) -> Reproduction:
    outputs: list[str] = []
    if expected.digest != candidate.model_digest:
        outputs.append(f"registered are weights {expected.digest[:12]}, trained were {candidate.model_digest[:12]}")
    if found is not None:
        outputs += _came_out(expected, found)
    digest = found.digest if found else ""
    return Reproduction(
        **about,
        candidate=candidate.digest,
        reproduced=digest == candidate.model_digest == expected.digest,
        trained=found is not None,
        recorded_digest=candidate.model_digest,
        digest=digest,
        tensors=len(expected.network.state_dict()),
        inputs=inputs,
        outputs=tuple(outputs),
    )


def _parts(classifier: Classifier) -> dict[str, Any]:
    """What a model's digest names, each by its name."""
    facts = {name: getattr(classifier, name) for name in ("backbone", "classes", "side", "threshold", "temperature")}
    return {**facts, **{f"tensor {name}": value for name, value in classifier.network.state_dict().items()}}


def _came_out(expected: Classifier, again: Classifier) -> list[str]:
    """Name the parts of two models that are not equal to the last bit."""
    ours, theirs = _parts(expected), _parts(again)
    return [
        f"{name} is another"
        for name in sorted(ours.keys() | theirs.keys())
        if name not in ours or name not in theirs or not np.array_equal(ours[name], theirs[name])
    ]
