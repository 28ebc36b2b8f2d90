"""Every recipe trains networks of every kind to a model that loads and answers, on tiny data with random weights."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from xray_pipeline.base.errors import ConfigError, TrainingError
from xray_pipeline.base.settings import Settings
from xray_pipeline.dataset.pixels import PixelCache
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.models import backbones, engine
from xray_pipeline.models.backbones import Network
from xray_pipeline.models.classifier import Classifier
from xray_pipeline.models.stages import networks, stages
from xray_pipeline.registry.loading import Champions, load
from xray_pipeline.registry.mlflow_registry import Registry
from xray_pipeline.training.device import Precision
from xray_pipeline.training.features import kept_scorer
from xray_pipeline.training.pretrained import backbone_of
from xray_pipeline.training.recipe import load_recipe
from xray_pipeline.training.state import State
from xray_pipeline.training.step import take_step
from xray_pipeline.training.train import train
from xray_pipeline.training.trainer import Trainer

NETWORKS = [
    *("vgg16", "vgg16_bn", "resnet18", "resnet50", "densenet121", "inception_v3", "googlenet", "regnet_y_400mf"),
    *("convnext_tiny", "vit_b_16", "swin_t", "timm/test_vit", "timm/test_convnext", "timm/test_vit+shufflenet_v2_x0_5"),
]
LIGHT = ["resnet18", "regnet_y_400mf", "timm/test_vit", "timm/test_vit+shufflenet_v2_x0_5"]
"""What whole trainings are made of in each run of the tests; the others take minutes and gigabytes."""
SIDES = {"vit_b_16": 224}  # torchvision's takes no other
SHORT: dict[str, Any] = {"weights": "none", "epochs": 1, "batch_size": 32, "head_first": 0, "views": 1}


def answers(settings: Settings, recipe: str, backbone: str, **changes: Any) -> Classifier:
    side = SIDES.get(backbone, 96)
    own = {"mean": None, "std": None} if "+" in backbone else {}
    given = {**SHORT, "backbone": backbone, "side": side, "crop": 0, **own, **changes}
    dataset = Dataset(settings)
    snapshot = dataset.snapshot()
    assert snapshot is not None
    registry = Registry(settings)
    candidate = train(dataset, snapshot, load_recipe(recipe, given), settings, Champions(registry))
    model = load(registry, candidate.model_uri)
    probabilities = model.probabilities(np.random.default_rng(0).integers(0, 256, (2, side, side), np.uint8))
    assert np.isfinite(probabilities).all()
    return model


@pytest.mark.parametrize("backbone", NETWORKS)
def test_partial_trains_the_upper_stages_of_networks_of_every_kind(backbone: str) -> None:
    """One step: what is fixed keeps its weights and running statistics, what is not learns."""
    side, recipe = SIDES.get(backbone, 96), load_recipe("partial", {**SHORT, "backbone": backbone, "optimizer": "sgd"})
    network = Network(backbones.load(backbone, "none", side=side), 2, levels=recipe.levels)
    before = {name: value.clone() for name, value in network.backbone.state_dict().items()}
    state, truth = State(network, recipe, 2, Precision(torch.device("cpu"))), torch.tensor([0, 1])
    pixels = torch.randint(0, 256, (2, 1, side, side), generator=torch.Generator().manual_seed(0)).float()
    take_step(state, network, torch.nn.CrossEntropyLoss(), pixels, truth, 0)
    moved = {name for name, value in network.backbone.state_dict().items() if not value.equal(before[name])}
    upper = set()
    for every in map(stages, networks(network.backbone)):
        fixed = round(0.6 * len(every))
        for number, stage in enumerate(every):
            inside = {id(parameter) for parameter in stage.parameters()}
            names = {name for name, parameter in network.backbone.named_parameters() if id(parameter) in inside}
            assert (not names & moved) if number < fixed else (names & moved), (number, fixed)
        upper |= {id(tensor) for stage in every[fixed:] for module in stage.modules for tensor in module.buffers()}
    assert all(id(buffer) in upper for name, buffer in network.backbone.named_buffers() if name in moved)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", NETWORKS if os.environ.get("XRAY_ALL_NETWORKS") else LIGHT)
def test_recipes_train_networks_of_every_kind(grown: Settings, backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where OpenVINO is not installed: a process keeps compiled copies, of networks of half a gigabyte here."""
    monkeypatch.setattr(engine, "openvino", None)
    head = answers(grown, "head", backbone)
    assert head.network.levels
    answers(grown, "article-features", backbone)
    partial, whole = answers(grown, "partial", backbone), answers(grown, "article-finetune", backbone)
    fresh = head.network.state_dict()
    moved = {
        name: [
            key for key, value in model.network.backbone.named_parameters() if not fresh[f"backbone.{key}"].equal(value)
        ]
        for name, model in (("partial", partial), ("whole", whole))
    }
    everything = dict(whole.network.backbone.named_parameters())
    assert 0 < len(moved["partial"]) < len(everything)
    assert len(moved["whole"]) > 0.9 * len(everything)


@pytest.mark.parametrize(("name", "backbone"), [("fixed_stages", "resnet18"), ("trained_stages", "timm/test_vit")])
def test_more_stages_than_there_are_is_refused(grown: Settings, name: str, backbone: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} 99: {backbone} has . stages"):
        answers(grown, "partial", backbone, **{name: 99, "fixed_share": 0})


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["article-features", "article-finetune", "head"])
def test_a_model_of_the_articles_view_serves_what_it_was_trained_on(grown: Settings, recipe: str) -> None:
    """The radiographs of this dataset are no squares; from a file, and from the cache, the same pixels are made."""
    views = {"head": {"fit": "shorter-side", "views": 2}}.get(recipe, {})
    model = answers(grown, recipe, "timm/test_convnext", **views)
    assert model.fit == "shorter-side"
    dataset = Dataset(grown)
    snapshot = dataset.snapshot()
    assert snapshot is not None
    rows = dataset.rows(snapshot).head(3)
    assert (rows["width"] != rows["height"]).all()
    cache = PixelCache(grown.cache, model.side, model.fit)
    cache.ensure(rows, dataset.read)
    kept = cache.get(list(rows["digest"]))
    files = [dataset.read(digest, suffix) for digest, suffix in zip(rows["digest"], rows["suffix"], strict=True)]
    assert np.array_equal(kept, np.stack([model.pixels(data) for data in files]))
    assert not np.array_equal(kept, cache.squashed(list(rows["digest"])))
    said = [answer.probabilities for answer in model.classify(files)]
    np.testing.assert_allclose(said, model.probabilities(kept), atol=1e-6)


def test_a_champion_of_other_shapes_is_not_started_from(grown: Settings) -> None:
    dataset = Dataset(grown)
    snapshot = dataset.snapshot()
    assert snapshot is not None
    recipe = load_recipe("partial", {**SHORT, "backbone": "timm/test_vit", "side": 64})
    other = Network(backbones.build("timm/test_vit", 96), 2, levels=recipe.levels)
    champion = Classifier(other, "timm/test_vit", grown.classes, 96)
    with pytest.raises(TrainingError, match=r"other shapes; set warm_start=false.*pos_embed"):
        Trainer(recipe, backbone_of(recipe, grown), dataset, dataset.rows(snapshot), grown, start=champion)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["head", "partial"])
def test_answers_over_several_views_are_scored_as_they_are_served(grown: Settings, recipe: str) -> None:
    """Kept features that the scoring uses are the mean over the views, those that the head learned from are not."""
    model = answers(grown, recipe, "timm/test_convnext", answer_views=3)
    assert model.views == 3
    dataset = Dataset(grown)
    snapshot = dataset.snapshot()
    assert snapshot is not None
    rows = dataset.rows(snapshot)
    rows = rows[rows["side"] == "validation"]
    cache = PixelCache(grown.cache, model.side)
    cache.ensure(rows, dataset.read)
    expected = model.probabilities(cache.get(list(rows["digest"])))
    kept = kept_scorer(model, grown)
    assert (kept is None) == (recipe == "partial")
    if kept:
        np.testing.assert_allclose(kept.probabilities(kept.get(list(rows["digest"]))), expected, atol=1e-6)
    once = replace(model, views=1)
    assert np.abs(once.probabilities(cache.get(list(rows["digest"]))) - expected).max() > 1e-4


@pytest.mark.slow
def test_a_network_of_one_channel_is_trained_and_loaded(grown: Settings) -> None:
    model = answers(grown, "head", "timm/test_vit", mean=[0.5], std=[1 / 2048])
    assert (model.network.mean, model.network.std) == ((0.5,), (1 / 2048,))
