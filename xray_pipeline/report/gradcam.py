"""Grad-CAM: where in a radiograph a network's answer comes from (Selvaraju et al. 2017), by captum.

The map is taken at the last layer that still has a picture (for most networks 7 x 7 cells), so it is coarse: it shows
which region counted, not which edge. It can mislead; what it is good for is catching a model that looks beside the
lungs. A test checks that it follows the weights (Adebayo et al. 2018, "Sanity checks for saliency maps").
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from captum.attr import LayerAttribution, LayerGradCam
from torch import Tensor, nn

from xray_pipeline.models.backbones import Network

log = logging.getLogger(__name__)


def maps(
    network: Network, pixels: npt.NDArray[np.uint8], targets: Sequence[int], batch_size: int = 16
) -> npt.NDArray[np.float32] | None:
    """Return maps float32 [N, S, S] in 0..1 of what speaks for class `targets[i]` in pixels uint8 [N, S, S].

    Each map is scaled by its own maximum; one without any evidence for the class is all 0. None for a network without
    a layer that has a picture.
    """
    network.eval()
    device = network.head.weight.device
    layer = _last_picture(network, torch.from_numpy(np.array(pixels[:1])).to(device))
    if layer is None:
        log.info("no Grad-CAM: the network has no layer with a picture")
        return None
    method = LayerGradCam(network, layer)
    side = pixels.shape[-1]
    seen = network.crop or side  # the network looks at a centre crop; what lies outside it can't count
    margin = (side - seen) // 2
    batches = []
    for start in range(0, len(pixels), batch_size):
        # Floats that ask for a gradient: the network's own weights may be frozen.
        batch = torch.from_numpy(np.array(pixels[start : start + batch_size], dtype=np.float32)).to(device)
        target = torch.as_tensor(list(targets[start : start + batch_size]), device=device)
        with torch.enable_grad():
            coarse = method.attribute(batch.requires_grad_(), target=target, relu_attributions=True)
        fine = LayerAttribution.interpolate(coarse.detach(), (seen, seen), interpolate_mode="bilinear")
        most = fine.amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
        scaled = np.zeros((len(batch), side, side), dtype=np.float32)
        scaled[:, margin : margin + seen, margin : margin + seen] = (fine / most)[:, 0].float().cpu().numpy()
        batches.append(scaled)
    return np.concatenate(batches) if batches else np.empty((0, side, side), dtype=np.float32)


def _last_picture(network: Network, pixels: Tensor) -> nn.Module | None:
    """The module that finishes last of those that give [1, C, h, w] with h > 1: the deepest picture."""
    seen: list[nn.Module] = []

    def note(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[-1] > 1:
            seen.append(module)

    hooks = [m.register_forward_hook(note) for m in network.modules() if m is not network]
    try:
        with torch.inference_mode():
            network(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    return seen[-1] if seen else None
