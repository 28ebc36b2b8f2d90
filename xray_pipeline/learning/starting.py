"""Warm start: training goes on from the champion instead of from ImageNet's weights.

Which champion that was is written down once for each snapshot and recipe, so that the night can be repeated after a
promotion and still finds the candidate it trained. The trade-off: a candidate then depends on all its ancestors, and
can be made again only while they are kept.
"""

from __future__ import annotations

import hashlib
import logging

from xray_pipeline import records
from xray_pipeline.errors import TrainingError
from xray_pipeline.learning.recipe import Recipe
from xray_pipeline.serving import Classifier
from xray_pipeline.settings import Settings
from xray_pipeline.storage import Store

log = logging.getLogger(__name__)


def champion(recipe: Recipe, settings: Settings, store: Store, digest: str) -> Classifier | None:
    """Return the champion that the candidate `digest` starts from; None where there is none, or not of this network.

    Asked again, the answer is that of the first time. Raises TrainingError for mode `head`, whose features are the
    pretrained network's, and what the registry raises.
    """
    if recipe.mode == "head":
        raise TrainingError("warm_start is of no use to mode head: set mode to partial or finetune")
    from xray_pipeline.registry import Registry

    registry, key = Registry(settings), f"candidates/{digest}/start.json"
    if not store.exists(key):
        records.write(store, key, {"version": registry.ledger.state().champion}, if_absent=True)
    version = version_of(store, digest)
    if version is None:
        log.info("there is no champion to start from; training starts from the pretrained network")
        return None
    found = registry.load(int(version))
    ours = (recipe.backbone, settings.classes, recipe.levels)
    theirs = (found.backbone, found.classes, found.network.levels)
    if ours != theirs:
        log.warning(
            "version %d is another network %s than this recipe's %s; training starts anew", version, theirs, ours
        )
        return None
    log.info("training starts from version %d", version)
    return found


def version_of(store: Store, digest: str) -> int | None:
    """Return the version that was written down for the candidate `digest`. Raises DatasetError, ObjectNotFound."""
    return records.read(store, f"candidates/{digest}/start.json", dict[str, int | None])["version"]


def digest_from(digest: str, start: Classifier | None) -> str:
    """Return a candidate's digest that also names what it starts from."""
    return hashlib.sha256(f"{digest} {start.digest}".encode()).hexdigest() if start else digest
