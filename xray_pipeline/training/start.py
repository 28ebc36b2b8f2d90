"""Warm start: training goes on from the champion instead of from ImageNet's weights.

Which champion that was is written down once for each snapshot and recipe, so that the night can be repeated after a
promotion and still finds the candidate it trained. The trade-off: a candidate then depends on all its ancestors, and
can be made again only while they are kept.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Protocol

from xray_pipeline.base import records
from xray_pipeline.base.errors import ObjectNotFound, TrainingError
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import Store
from xray_pipeline.training.recipe import Recipe

if TYPE_CHECKING:
    from xray_pipeline.models.classifier import Classifier

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """The champion that training starts from: its version, None for none, and the digest of its model."""

    version: int | None
    model: str


class Champions(Protocol):
    """Where the champion is found: the registry, which the night hands in."""

    def champion(self) -> int | None:
        """Return the version in production, None without one."""

    def load(self, version: int) -> Classifier:
        """Return the model of a version."""


def start_of(recipe: Recipe, settings: Settings, store: Store, digest: str, champions: Champions) -> Classifier | None:
    """Return the champion that the candidate `digest` starts from; None where there is none, or not of this network.

    Asked again, the answer is that of the first time. Raises TrainingError when that champion's number means another
    model now, and what `champions` raises.
    """
    key = f"candidates/{digest}/start.json"
    first, loaded = None, None
    if not store.exists(key):
        first = champions.champion()
        loaded = champions.load(first) if first is not None else None
        records.write(store, key, asdict(Start(first, loaded.digest if loaded else "")), if_absent=True)
    kept = recorded(store, digest)
    version = kept.version
    if version is None:
        log.info("there is no champion to start from; training starts from the pretrained network")
        return None
    found = loaded if loaded and version == first else champions.load(version)
    if found.digest != kept.model:
        raise TrainingError(
            f"version {version} is another model now, {found.digest[:12]}, than the one that training was to start "
            f"from, {kept.model[:12]}; {store.uri}/{key} is of before the registry was put back: delete it"
        )
    ours = (recipe.backbone, settings.classes, recipe.levels)
    theirs = (found.backbone, found.classes, found.network.levels)
    if ours != theirs:
        log.warning(
            "version %d is another network %s than this recipe's %s; training starts anew", version, theirs, ours
        )
        return None
    log.info("training starts from version %d", version)
    return found


def recorded(store: Store, digest: str) -> Start:
    """Return what was written down for the candidate `digest`. Raises TrainingError when nothing was, DatasetError."""
    try:
        return records.read(store, key := f"candidates/{digest}/start.json", Start)
    except ObjectNotFound as error:
        raise TrainingError(
            f"which champion it started from is not known: {key} in {store.uri} is missing; restore it from a backup"
        ) from error


def digest_from(digest: str, start: Classifier | None) -> str:
    """Return a candidate's digest that also names what it starts from."""
    return hashlib.sha256(f"{digest} {start.digest}".encode()).hexdigest() if start else digest
