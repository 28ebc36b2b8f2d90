from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from s3_server import BUCKET, S3Server

from xray_pipeline.base.errors import ConfigError, WeightsError
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import reader
from xray_pipeline.models import backbones
from xray_pipeline.models.backbones import Network
from xray_pipeline.models.stages import networks

SMALL = "shufflenet_v2_x0_5"


def saved(state: object) -> tuple[bytes, str]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue(), hashlib.sha256(buffer.getvalue()).hexdigest()


def test_the_offline_default_equals_the_reference_network() -> None:
    """timm's own network with the package's weights gives features that tell an image from its negative."""
    backbone = backbones.load("efficientnet_lite0")
    assert backbone.features == 1280
    assert backbone.weights_digest == "3397d49c531fce5bfef9b6f0fff47d04d12f09dc71cd27bb04946ab00ff8f16e"
    pixels = torch.arange(2 * 64 * 64).reshape(2, 1, 64, 64) % 256
    with torch.inference_mode():
        features = backbone.module.eval()(backbones.normalise(pixels, backbone.mean, backbone.std))
    assert features.shape == (2, 1280)
    assert float(features.std()) > 0.01


def test_grey_is_normalised_as_three_channels() -> None:
    pixels = torch.tensor([[[[0, 255]]]], dtype=torch.uint8)
    same = backbones.normalise(pixels, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert same[0, :, 0, 0].tolist() == [-1, -1, -1]
    assert same[0, :, 0, 1].tolist() == [1, 1, 1]
    other = backbones.normalise(pixels, (0.5, 0.4, 0.3), (0.5, 0.4, 0.3))
    assert other[0, :, 0, 1].tolist() == pytest.approx([1, 1.5, 7 / 3])


def test_random_weights_are_always_the_same() -> None:
    assert backbones.load(SMALL, "none").weights_digest == backbones.load(SMALL, "none").weights_digest


@pytest.mark.parametrize(
    "name", ["resnet18", "vgg16", "densenet121", "mobilenet_v2", "efficientnet_b0", "googlenet", SMALL]
)
def test_torchvision_classifiers_lose_only_their_last_layer(name: str) -> None:
    backbone = backbones.build(name)
    with torch.inference_mode():
        features = backbone.module.eval()(torch.zeros(1, 3, 64, 64))
    assert features.shape == (1, backbone.features)


def test_weights_from_a_file_with_its_digest(tmp_path: Path) -> None:
    source = backbones.build(SMALL).module
    data, digest = saved(source.state_dict())
    (tmp_path / "w.pth").write_bytes(data)
    loaded = backbones.load(SMALL, f"{tmp_path / 'w.pth'}#sha256={digest}")
    assert loaded.weights_digest == backbones.digest_of(source)


def test_weights_from_s3(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3

    source = backbones.build(SMALL).module
    data, digest = saved(source.state_dict())
    boto3.client("s3", endpoint_url=s3.endpoint).put_object(Bucket=BUCKET, Key="weights/w.pth", Body=data)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    loaded = backbones.load(SMALL, f"s3://{BUCKET}/weights/w.pth#sha256={digest}", reader(Settings()))
    assert loaded.weights_digest == backbones.digest_of(source)


@pytest.mark.parametrize("broken", ["digest", "truncated", "pickle", "other network"])
def test_wrong_weights_are_named(tmp_path: Path, broken: str) -> None:
    module = backbones.build("shufflenet_v2_x1_0" if broken == "other network" else SMALL).module
    data, digest = saved(Path("x") if broken == "pickle" else module.state_dict())
    if broken == "truncated":
        data = data[:1000]
        digest = hashlib.sha256(data).hexdigest()
    if broken == "digest":
        digest = "0" * 64
    (tmp_path / "w.pth").write_bytes(data)
    with pytest.raises(WeightsError, match=r"w\.pth"):
        backbones.load(SMALL, f"{tmp_path / 'w.pth'}#sha256={digest}")


def test_a_file_without_digest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="need their digest"):
        backbones.load(SMALL, str(tmp_path / "w.pth"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet19", "'resnet19'"),
        ("timm/vit_smal_patch16_224", "did you mean vit_small_patch16_224"),
        ("timm/vit_small_patch16_224.nonsense", "nonsense"),
        ("timm/hf-hub:somebody/something", "not known to timm"),
        ("timm/", "not known to timm"),
    ],
)
def test_an_unknown_backbone_is_named(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        backbones.load(name, "none")


def test_packages_of_further_networks_hold_their_weights() -> None:
    """Real files: features of a picture differ from those of its negative, and each network has its own side."""
    pixels = torch.arange(64 * 64).reshape(1, 1, 64, 64) % 256
    for name, side in (("efficientnet_lite1", 240), ("efficientnet_lite2", 260)):
        backbone = backbones.load(name)
        assert (backbone.side, backbone.features) == (side, 1280)
        network = Network(backbone, 2).eval()
        with torch.inference_mode():
            assert float((network.features(pixels) - network.features(255 - pixels)).std()) > 0.01


VIT = "timm/test_vit"


def test_networks_of_timm_have_their_own_side_mean_and_std() -> None:
    backbone = backbones.build("timm/eva02_tiny_patch14_336")
    assert backbone.side == 336
    assert backbone.mean == pytest.approx((0.4815, 0.4578, 0.4082), abs=1e-4)


def test_weights_of_timm_are_fetched_only_when_asked_for() -> None:
    with pytest.raises(ConfigError, match="use 'timm'"):
        backbones.load(VIT)
    with pytest.raises(WeightsError, match="could not be had"):
        backbones.load("timm/convnext_atto_rms", "timm")  # of which timm has no weights


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "teacher.backbone."])
def test_an_encoders_names_may_have_a_prefix(tmp_path: Path, prefix: str) -> None:
    source = backbones.build(VIT).module
    state = {f"{prefix}{key}": value for key, value in source.state_dict().items()} | {
        "head.weight": torch.zeros(3, 64)
    }
    data = safetensors.torch.save(state)
    (tmp_path / "w.safetensors").write_bytes(data)
    place = f"{tmp_path / 'w.safetensors'}#sha256={hashlib.sha256(data).hexdigest()}"
    assert backbones.load(VIT, place).weights_digest == backbones.digest_of(source)


def test_positions_are_resampled_for_another_side(tmp_path: Path) -> None:
    source = backbones.build(VIT)
    data, digest = saved(source.module.state_dict())
    (tmp_path / "w.pth").write_bytes(data)
    loaded = backbones.load(VIT, f"{tmp_path / 'w.pth'}#sha256={digest}", side=64)
    assert loaded.module.get_parameter("pos_embed").shape == (1, 1 + 16, 64)
    assert source.module.get_parameter("pos_embed").shape == (1, 1 + 100, 64)
    with torch.inference_mode():
        assert loaded.module.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 64)


def test_dinov2_is_taken_as_it_was_published(tmp_path: Path) -> None:
    """With a mask token, which timm's networks don't have, and positions for 518 pixels."""
    name = "timm/vit_small_patch14_dinov2"
    source = backbones.build(name).module.state_dict()
    data, digest = saved({**source, "mask_token": torch.zeros(1, 384)})
    (tmp_path / "dinov2.pth").write_bytes(data)
    loaded = backbones.load(name, f"{tmp_path / 'dinov2.pth'}#sha256={digest}", side=224).module.state_dict()
    assert loaded["pos_embed"].shape == (1, 1 + 16**2, 384)
    assert all(torch.equal(loaded[key], source[key]) for key in source if key != "pos_embed")


def test_torchxrayvisions_densenet_is_taken_once_exported(tmp_path: Path) -> None:
    """Of one channel, with eighteen findings and their thresholds, which are left out."""
    source = backbones.build("densenet121", channels=1).module
    theirs = {
        "classifier.weight": torch.zeros(18, 1024),
        "classifier.bias": torch.zeros(18),
        "op_threshs": torch.zeros(18),
    }
    data, digest = saved({**source.state_dict(), **theirs})
    (tmp_path / "xrv.pt").write_bytes(data)
    place = f"{tmp_path / 'xrv.pt'}#sha256={digest}"
    assert backbones.load("densenet121", place, channels=1).weights_digest == backbones.digest_of(source)
    with pytest.raises(WeightsError, match=r"conv0.weight is \(64, 1, 7, 7\), not \(64, 3, 7, 7\)"):
        backbones.load("densenet121", place)


@pytest.mark.parametrize(("name", "side"), [("vit_b_16", 256), (VIT, 100)])
def test_a_side_that_a_network_cannot_take_is_named(name: str, side: int) -> None:
    with pytest.raises(ConfigError, match=f"{side}"):
        Network(backbones.build(name, side), 2)


@pytest.mark.parametrize("name", ["densenet121", VIT, "efficientnet_lite0"])
def test_a_network_of_one_channel_answers_grey_as_that_of_three_does(tmp_path: Path, name: str) -> None:
    """What the first convolution has for three channels is summed; one value of mean and std is for all of them."""
    three = backbones.load(name, "none")
    data, digest = saved(three.module.state_dict())
    (tmp_path / "w.pth").write_bytes(data)
    one = backbones.load(name, f"{tmp_path / 'w.pth'}#sha256={digest}", channels=1)
    pixels = torch.arange(one.side**2).reshape(1, 1, one.side, one.side) % 256
    with torch.inference_mode():
        grey = one.module.eval()(backbones.normalise(pixels, (0.5,), (0.25,)))
        colour = three.module.eval()(backbones.normalise(pixels, (0.5,) * 3, (0.25,) * 3))
    assert torch.allclose(grey, colour, rtol=1e-3, atol=1e-4)


def test_pixels_may_have_another_range() -> None:
    """torchxrayvision's networks want -1024 to 1024."""
    pixels = torch.tensor([[[[0, 255]]]], dtype=torch.uint8)
    assert backbones.normalise(pixels, (0.5,), (1 / 2048,)).flatten().tolist() == [-1024, 1024]


@pytest.mark.parametrize(("name", "wider"), [("efficientnet_lite0", 1568), ("resnet18", 1920), ("vgg16", 2944)])
def test_levels_widen_the_head(name: str, wider: int) -> None:
    backbone = backbones.build(name)
    network = Network(backbone, 2, levels=True).eval()
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 96, 96), np.uint8))
    with torch.inference_mode():
        assert network.features(pixels).shape == (3, network.head.in_features)
        assert network(pixels).shape == (3, 2)
    assert network.head.in_features == backbone.features + wider


def test_networks_side_by_side_see_what_each_sees_alone() -> None:
    """One wants another mean and deviation than the other; after the features of both come the levels of both."""
    names = ("timm/test_vit", SMALL)
    alone = [Network(backbones.load(name, "none", side=96), 2, levels=True).eval() for name in names]
    assert alone[0].mean != alone[1].mean
    backbone = backbones.load("+".join(names), "none", side=96)
    together = Network(backbone, 2, levels=True).eval()
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 96, 96), np.uint8))
    with torch.inference_mode():
        first, second = (network.features(pixels) for network in alone)
        features = together.features(pixels)
    widths = [backbones.build(name).features for name in names]
    assert backbone.features == sum(widths)
    parts = [first[:, : widths[0]], second[:, : widths[1]], first[:, widths[0] :], second[:, widths[1] :]]
    assert torch.allclose(features, torch.cat(parts, dim=1), rtol=1e-4, atol=1e-4)


def test_networks_side_by_side_have_weights_of_their_own(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        data, digest = saved(backbones.build(SMALL).module.state_dict())
    (tmp_path / "w.pth").write_bytes(data)
    one = f"{tmp_path / 'w.pth'}#sha256={digest}"
    both = backbones.load(f"{SMALL}+{SMALL}", f"{one},none")
    first, second = (backbones.digest_of(network) for network in networks(both.module))
    assert first == backbones.load(SMALL, one).weights_digest
    assert second == backbones.load(SMALL, "none").weights_digest
    assert backbones.load(f"{SMALL}+{SMALL}", "none").weights_digest != both.weights_digest
    with pytest.raises(ConfigError, match=r"are 3, but .* is 2 networks"):
        backbones.load(f"{SMALL}+{SMALL}", "none,none,none")


def test_features_do_not_depend_on_the_batch() -> None:
    network = Network(backbones.load(SMALL, "none"), 2, levels=True).eval()
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 64, 64), np.uint8))
    with torch.inference_mode():
        together = network.features(pixels)
        alone = torch.cat([network.features(pixels[i : i + 1]) for i in range(4)])
    assert torch.allclose(together, alone, atol=1e-5)
