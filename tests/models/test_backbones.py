from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from s3_server import BUCKET, S3Server

from xray_pipeline.base.errors import ConfigError, WeightsError
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import reader
from xray_pipeline.models import backbones
from xray_pipeline.models.backbones import Network

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


def test_an_unknown_backbone_is_named() -> None:
    with pytest.raises(ConfigError, match="'resnet19'"):
        backbones.load("resnet19")


@pytest.mark.parametrize(("name", "wider"), [("efficientnet_lite0", 1568), ("resnet18", 1920), ("vgg16", 0)])
def test_levels_widen_the_head(name: str, wider: int) -> None:
    backbone = backbones.build(name)
    network = Network(backbone, 2, levels=True).eval()
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 96, 96), np.uint8))
    with torch.inference_mode():
        assert network.features(pixels).shape == (3, network.head.in_features)
        assert network(pixels).shape == (3, 2)
    assert network.head.in_features == backbone.features + wider


def test_features_do_not_depend_on_the_batch() -> None:
    network = Network(backbones.load(SMALL, "none"), 2, levels=True).eval()
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 64, 64), np.uint8))
    with torch.inference_mode():
        together = network.features(pixels)
        alone = torch.cat([network.features(pixels[i : i + 1]) for i in range(4)])
    assert torch.allclose(together, alone, atol=1e-5)
