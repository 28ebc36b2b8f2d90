from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torchvision

from xray_pipeline.base.errors import ConfigError
from xray_pipeline.models.weights import PACKAGES
from xray_pipeline.night.run import Run
from xray_pipeline.training.overrides import backbone_names, parse, parse_text, timm_names
from xray_pipeline.training.recipe import load_recipe


def test_values_are_json_where_they_can_be() -> None:
    found = parse(["lr=0.01", "levels=false", "backbone = resnet18", "augmentation.area=[0.5, 1]", "weights="])
    assert found == {
        "lr": 0.01,
        "levels": False,
        "backbone": "resnet18",
        "augmentation.area": [0.5, 1],
        "weights": "",
    }


@pytest.mark.parametrize("item", ["epochs", "=3", ""])
def test_what_is_not_key_value_is_named(item: str) -> None:
    with pytest.raises(ConfigError, match="is not KEY=VALUE"):
        parse([item])


@pytest.mark.parametrize("text", ["epochs=3\nlr=0.5\n", "epochs=3; lr=0.5", '{"epochs": 3, "lr": 0.5}'])
def test_the_form_takes_lines_or_json(text: str) -> None:
    run = Run.of({"recipe": "head", "epochs": None, "overrides": text, "seed": 7})
    recipe = run.recipe()
    assert (recipe.epochs, recipe.learning_rate, recipe.seed) == (3, 0.5, 7)


def test_broken_json_says_what_to_write() -> None:
    with pytest.raises(ConfigError, match="KEY=VALUE lines"):
        parse_text("{epochs: 3}")


@pytest.mark.parametrize("changes", [{"augmentation.flip": 0.5}, {"augmentation": {"flip": 0.5}}])
def test_one_value_of_a_table_leaves_the_others(changes: dict[str, object]) -> None:
    before, after = load_recipe("head").augmentation, load_recipe("head", changes).augmentation
    assert after == before.model_copy(update={"flip": 0.5})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"crop": 256}, "crop 256 is larger than side 224"),
        ({"augmentation.ratio": [0, 1]}, "augmentation.ratio.0: .*greater than 0"),
        ({"augmentation.area": [-0.5, 1]}, "augmentation.area.0: .*greater than 0"),
        ({"std": [0, 0, 0]}, "std.0: .*greater than 0"),
        ({"mean": [0.5, 0.5]}, "three values each"),
        ({"mean": [0.5]}, "both have one"),
        ({"mean": [0.5], "std": [0.5, 0.5, 0.5]}, "both have one"),
        ({"fixed_stages": 2, "trained_stages": 2}, "leave one of them out"),
        ({"fixed_share": 1.5}, "fixed_share: .*less than or equal to 1"),
    ],
)
def test_what_no_training_could_use_is_refused_before_it_starts(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_recipe("head", changes)


def test_a_value_is_no_table() -> None:
    with pytest.raises(ConfigError, match="epochs is one value"):
        load_recipe("head", {"epochs.flip": 1})


@pytest.mark.parametrize("form", [{"policy": "mine.toml"}, {"overrides": "policy=mine.toml"}])
def test_who_starts_a_night_does_not_choose_its_policy(form: dict[str, str]) -> None:
    run = Run.of(form)
    assert run.settings.policy == "default"
    with pytest.raises(ConfigError, match="policy"):
        run.recipe()


def test_several_backbones_are_a_list_or_one_text(tmp_path: Path) -> None:
    file = tmp_path / "two.toml"
    file.write_text('backbones = ["resnet18", "timm/test_vit"]\nweights = ["", "none"]\n')
    listed = load_recipe(str(file))
    assert (listed.backbone, listed.weights) == ("resnet18+timm/test_vit", ",none")
    assert load_recipe(str(file), parse(["backbone=resnet34", "weights="])).backbone == "resnet34"
    assert load_recipe("head", parse(['backbones=["resnet18", "resnet34"]'])).backbone == "resnet18+resnet34"


def test_names_of_timm_are_read_without_importing_it() -> None:
    assert timm_names() == sorted(f"timm/{name}" for name in timm.list_models())


def test_the_forms_list_of_backbones_is_whole() -> None:
    classifiers = torchvision.models.list_models(module=torchvision.models)
    assert backbone_names() == sorted([*PACKAGES, *classifiers])
