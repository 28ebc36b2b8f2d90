"""Pretrained tensors: read without unpickling anything else, named as the network names them, and put into it.

Who published an encoder rarely kept the names that torchvision or timm use. A common prefix is taken off (`module.`,
`backbone.`, `teacher.backbone.`), a network of timm has timm's own filter for checkpoints applied, and three channels
of the first convolution are summed for a network of one.

This file travels with each logged model, beside backbones.py.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from xray_pipeline.base.errors import WeightsError


def tensors(data: bytes, what: str) -> Mapping[str, Tensor]:
    """Return the tensors by name of a state dict: safetensors by its ending, else what torch.save wrote.

    Raises WeightsError for anything but tensors in it.
    """
    try:
        if what.endswith(".safetensors"):
            return load_safetensors(data)
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # unpickler, zip and safetensors each have errors of their own
        raise WeightsError(f"{what} is not a readable state dict: {error}") from error
    for key in ("state_dict", "model", "teacher"):
        state = state[key] if isinstance(state, Mapping) and isinstance(state.get(key), Mapping) else state
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{what} holds {type(state).__name__}, not a state dict of tensors")
    return state


def assign(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Put a state dict's tensors into a network; those it has no place for, such as a classifier's, are left out.

    Raises WeightsError when one is missing or has another shape.
    """
    wanted = module.state_dict()
    state = _renamed(module, state, what)
    missing = sorted(set(wanted) - set(state))
    if missing:
        raise WeightsError(f"{what} does not fit: {len(missing)} tensors missing, the first {missing[0]}")
    fitting = {}
    for key, tensor in wanted.items():
        found = state[key]
        if found.ndim == 4 and found.shape[1] == 3 and tensor.shape[1] == 1:
            found = found.sum(1, keepdim=True)
        if found.shape != tensor.shape:
            raise WeightsError(f"{what} does not fit: {key} is {tuple(found.shape)}, not {tuple(tensor.shape)}")
        fitting[key] = found
    module.load_state_dict(fitting)


def _renamed(module: nn.Module, state: Mapping[str, Tensor], what: str) -> Mapping[str, Tensor]:
    """Return tensors by the names that the network has."""
    wanted = list(module.state_dict())
    if "_conv_stem.weight" in state and wanted[0] == "conv_stem.weight":
        # EfficientNet-PyTorch lists the same layers in the same order as timm does; its classifier comes last.
        return dict(zip(wanted, state.values(), strict=False))
    if wanted[-1] not in state:
        prefixes = [key.removesuffix(wanted[-1]) for key in state if key.endswith(f".{wanted[-1]}")]
        prefix = min(prefixes, key=len, default="")
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    theirs = sys.modules[type(module).__module__]
    convert = getattr(theirs, "checkpoint_filter_fn", None) if theirs.__name__.startswith("timm.") else None
    fits = all(key in state and state[key].shape == value.shape for key, value in module.state_dict().items())
    if fits or convert is None:
        return state
    try:
        converted: Mapping[str, Tensor] = convert(dict(state), module)
    except Exception as error:  # it expects the checkpoints that its family was published as
        raise WeightsError(f"{what} does not fit: timm can't convert it ({error})") from error
    return converted
