"""A candidate on record: what names it, and what its training wrote down."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass

import xray_pipeline
from xray_pipeline.base import records
from xray_pipeline.base.errors import Damaged, ObjectNotFound, TrainingError
from xray_pipeline.base.storage import Store
from xray_pipeline.training.recipe import Recipe


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
