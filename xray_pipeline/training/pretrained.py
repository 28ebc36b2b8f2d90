"""The pretrained network that a recipe starts from."""

from __future__ import annotations

from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import reader
from xray_pipeline.models import backbones
from xray_pipeline.models.backbones import Backbone
from xray_pipeline.training.recipe import Recipe


def backbone_of(recipe: Recipe, settings: Settings) -> Backbone:
    """Return a recipe's backbone with its weights, for the pixels that the recipe gives it.

    Raises ConfigError, WeightsError.
    """
    channels = 3 if recipe.mean is None else len(recipe.mean)
    return backbones.load(recipe.backbone, recipe.weights, reader(settings), recipe.seen, channels)
