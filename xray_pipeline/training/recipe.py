"""How to train: a recipe is a small TOML file, each value of which can be overridden.

A recipe's digest is part of the candidate's, so every value that changes the weights belongs in it and nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from xray_pipeline.base.errors import ConfigError
from xray_pipeline.base.shipped import read_toml
from xray_pipeline.base.text import did_you_mean
from xray_pipeline.images.radiograph import Fit
from xray_pipeline.models.weights import each
from xray_pipeline.training.augmentation import Augmentation
from xray_pipeline.training.overrides import backbone_names, merged, timm_names

Mode = Literal["head", "partial", "finetune"]


class Recipe(BaseModel):
    """How to train a candidate. Defaults are those of `head`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field("head", description="for people; not part of the digest")
    backbone: str = Field(
        "efficientnet_lite0",
        description="efficientnet_lite0, a torchvision classifier's name, or timm/NAME; side by side: NAME+NAME",
    )
    weights: str = Field(
        "",
        description="'': the backbone's own; 'timm': its hub's; 'none': random; FILE#sha256=HEX; several with commas",
    )
    mode: Mode = Field("head", description="head: last layer on kept features; partial: upper stages; finetune: all")
    fixed_share: float = Field(0.6, ge=0, le=1, description="share of the stages, from the first, that `partial` fixes")
    fixed_stages: int | None = Field(None, ge=0, description="their number instead")
    trained_stages: int | None = Field(None, ge=0, description="number of the last stages, which it trains, instead")
    side: int = Field(224, ge=32, le=1024, description="pixels are kept as side x side")
    fit: Fit = Field("squash", description="squash: both sides become `side`; shorter-side: that does, the aspect kept")
    crop: int = Field(0, ge=0, le=1024, description="side of what the network sees; 0: the whole")
    levels: bool = Field(False, description="the last layer also sees mean and deviation of every block group")
    penalty: float = Field(60.0, gt=0, description="of `head`: L2 on standardised features, over the radiographs")
    views: int = Field(1, ge=1, le=32, description="lasting views of a training radiograph that `head` learns from")
    answer_views: int = Field(
        1, ge=1, le=32, description="framed views that an answer is the mean of, when it is scored and served"
    )
    consistency: float = Field(
        0.0, ge=0, le=100, description="of `head`: price of what the logits change between views"
    )
    augmentation: Augmentation = Augmentation()
    epochs: int = Field(20, ge=1, le=1000, description="of `head`: rounds of 5 L-BFGS iterations")
    batch_size: int = Field(32, ge=1, le=4096, description="not of `head`, which looks at all features at once")
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(3e-4, gt=0, le=10)
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    weight_decay: float = Field(0.0, ge=0, le=10)
    schedule: Literal["constant", "cosine", "step"] = "cosine"
    step_epochs: int = Field(7, ge=1, description="epochs between two steps of schedule `step`")
    step_factor: float = Field(0.1, gt=0, le=1)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    balanced: bool = Field(True, description="classes weigh the same in the loss, however many radiographs they have")
    best: Literal["auc", "accuracy"] = Field("auc", description="of validation: decides which epoch's network is kept")
    patience: int = Field(0, ge=0, description="epochs without a better one after which training ends; 0: never")
    average: float = Field(0.0, ge=0, lt=1, description="decay of the moving average of the weights; 0: no average")
    warm_start: bool = Field(False, description="start from the champion where it has the same network")
    head_first: int = Field(0, ge=0, le=100, description="rounds of `head` before the rest is let go")
    mean: tuple[float, ...] | None = Field(
        None, description="of pixels in 0..1; None: the backbone's; one value: a network of one channel"
    )
    std: tuple[PositiveFloat, ...] | None = None
    threshold: Literal["balanced", "sensitivity", "half"] = Field(
        "balanced",
        description="chosen on validation: best balanced accuracy of fitted normals, or a sensitivity; half: .5",
    )
    sensitivity: float = Field(0.95, gt=0, lt=1, description="of threshold `sensitivity`")
    anchor: int = Field(0, ge=0, description="validation radiographs of the smaller class that 0.5 weighs as much as")
    precision: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", description="mixed precision: auto: on a GPU; bfloat16: on a CPU that has it, too; float32: never"
    )
    compile: bool = Field(False, description="torch.compile the network: minutes at the start, faster steps on a GPU")
    seed: int = Field(0, ge=0)

    @field_validator("backbone", "weights", mode="before")
    @classmethod
    def _one_text_of_several(cls, given: object, info: ValidationInfo) -> object:
        listed = isinstance(given, list) and all(isinstance(one, str) for one in given)
        return ("+" if info.field_name == "backbone" else ",").join(given) if listed else given  # type: ignore[arg-type]

    @model_validator(mode="after")
    def _crop_lies_in_the_picture(self) -> Recipe:
        if self.crop > self.side:
            raise ValueError(f"crop {self.crop} is larger than side {self.side}")
        return self

    @model_validator(mode="after")
    def _says_things_once(self) -> Recipe:
        if self.fixed_stages is not None and self.trained_stages is not None:
            raise ValueError("fixed_stages and trained_stages say the same: leave one of them out")
        lengths = [len(values) for values in (self.mean, self.std) if values is not None]
        if lengths not in ([], [3], [1, 1], [3, 3]):
            raise ValueError("mean and std have three values each, or both have one, for a network of one channel")
        if lengths and "+" in self.backbone:
            raise ValueError(
                "of several backbones each has its own mean and std: leave them out, or set mean=null and std=null"
            )
        return self

    @property
    def seen(self) -> int:
        """The side of the pixels that the network sees."""
        return self.crop or self.side

    def digest(self) -> str:
        """Return the SHA-256 of everything but the name, in hexadecimal."""
        return hashlib.sha256(self.model_dump_json(exclude={"name"}).encode()).hexdigest()


def load_recipe(name_or_path: str, overrides: Mapping[str, object] | None = None) -> Recipe:
    """Return the recipe of that name shipped here, or in the TOML file at that path, with some values replaced.

    Raises ConfigError, naming key and value, for what is unknown or out of range; it says what is near.
    """
    _, content = read_toml("training", "recipes", "recipe", name_or_path)
    try:
        recipe = Recipe.model_validate({"name": Path(name_or_path).stem, **merged(content, overrides or {})})
    except ValidationError as error:
        raise ConfigError(f"recipe {name_or_path!r}: {_said(error)}") from error
    for backbone, _ in each(recipe.backbone, recipe.weights):
        _check_known(backbone, name_or_path)
    if recipe.warm_start and recipe.mode == "head":  # whose features are the pretrained network's
        raise ConfigError("warm_start is of no use to mode head: set mode to partial or finetune")
    return recipe


def _check_known(backbone: str, recipe: str) -> None:
    """Refuse the name of a network that nobody has; what follows a dot in timm's is for timm to know."""
    names, of_timm, bare = backbone_names(), backbone.startswith("timm/"), backbone.partition(".")[0]
    if backbone in names:
        return
    theirs = timm_names()
    if of_timm and (not theirs or bare in theirs):  # the machine that trains has it
        return
    near = did_you_mean(bare, theirs if of_timm else names) or did_you_mean(f"timm/{bare}", theirs)
    known = "efficientnet_lite0, a torchvision classifier's name or timm/NAME"
    raise ConfigError(f"recipe {recipe!r}: backbone {backbone!r} is not known; use {known}{near}")


def _said(error: ValidationError) -> str:
    """Say what is wrong with the first value of a recipe that pydantic refuses."""
    first = error.errors()[0]
    if not first["loc"]:
        return first["msg"]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] != "extra_forbidden":
        return f"{key}: {first['msg']}, got {first['input']!r}"
    names = [*Recipe.model_fields, *(f"augmentation.{name}" for name in Augmentation.model_fields)]
    return f"{key} is no value of a recipe{did_you_mean(key, names)}"
