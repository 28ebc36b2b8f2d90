"""A candidate on record: what names it, and what its training wrote down."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import xray_pipeline
from xray_pipeline.base import records
from xray_pipeline.base.errors import Damaged, ObjectNotFound, TrainingError
from xray_pipeline.base.storage import Store
from xray_pipeline.dataset.erasing import Trace
from xray_pipeline.training.recipe import Recipe

BATCH, ANSWERS = "training-batch.png", "validation-answers.png"
"""Pictures of radiographs that are kept beside a candidate, and where it is so set with its run (pictures.py)."""


@dataclass(frozen=True)
class Candidate:
    """A trained model: `digest` names what went in (snapshot, recipe, weights, versions), `model_digest` what came out.

    `model_uri` is MLflow's logged model; `threshold` the operating threshold it ships with (two classes).
    """

    digest: str
    run_id: str
    model_uri: str
    model_digest: str
    snapshot: str
    recipe: str
    threshold: float


def candidate_digest(
    snapshot: str, recipe: Recipe, weights_digest: str, packages: Mapping[str, str] | None = None
) -> str:
    """Return the SHA-256 over all that decides the weights: snapshot, recipe, pretrained weights and versions.

    `packages` are versions on record; None means those installed here.
    """
    return hashlib.sha256(
        json.dumps(
            {
                "snapshot": snapshot,
                "recipe": recipe.digest(),
                "weights": weights_digest,
                "versions": versions() if packages is None else dict(packages),
            },
            sort_keys=True,
        ).encode()
    ).hexdigest()


MAKERS = ("base", "images", "dataset", "models", "training")
"""The rooms whose code decides the weights."""


def versions() -> dict[str, str]:
    """Return the versions of the packages that training depends on."""
    names = ("torch", "torchvision", "timm", "numpy", "openvino")
    return {"xray-retrain": xray_pipeline.__version__, **{name: importlib.metadata.version(name) for name in names}}


def find_candidate(store: Store, digest: str) -> Candidate:
    """Return a candidate that was trained. Raises TrainingError when there is none, DatasetError for a damaged one."""
    key = f"candidates/{digest}/candidate.json"
    try:
        candidate = records.read(store, key, Candidate)
    except ObjectNotFound as error:
        raise TrainingError(f"candidate {digest[:12]} was not trained to its end; run `train` again") from error
    if candidate.digest != digest:
        raise Damaged(f"{key} in {store.uri} is that of candidate {candidate.digest[:12]}; restore it from a backup")
    return candidate


def trained_on(store: Store) -> Iterator[tuple[str, str, str]]:
    """Yield each candidate with its MLflow run and the snapshot it was, or is being, trained on; "" where that is not
    known. Raises StorageUnavailable."""
    for candidate in sorted({entry.key.split("/")[1] for entry in store.list("candidates")}):
        named = {}
        with contextlib.suppress(Damaged, ObjectNotFound):
            named = records.read(store, f"candidates/{candidate}/run.json", dict[str, str])
        with contextlib.suppress(TrainingError, Damaged):
            trained = find_candidate(store, candidate)
            named = {"run_id": trained.run_id, "snapshot": trained.snapshot}
        yield candidate, named.get("run_id", ""), named.get("snapshot", "")


def traces(store: Store, candidate: str) -> Iterator[Trace]:
    """Yield the files of a candidate that show radiographs, or what it says of each: pictures and checkpoints."""
    for entry in store.list(f"candidates/{candidate}"):
        if entry.key.endswith(".png") or "/checkpoints/" in entry.key:
            yield Trace(entry.key)
