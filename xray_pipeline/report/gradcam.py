"""Grad-CAM: where in a radiograph a network's answer comes from (Selvaraju et al. 2017).

The map is taken at the last part of the network that hands on a picture from which the answer still follows (for most
networks 7 x 7 cells; for a transformer the grid of its tokens), so it is coarse: it shows which region counted, not
which edge. Of several networks side by side it is the map of the first. It can mislead; what it is good for is
catching a model that looks beside the lungs. A test checks that it follows the weights (Adebayo et al. 2018, "Sanity
checks for saliency maps").
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xray_pipeline.models.backbones import Network
from xray_pipeline.models.stages import networks, parts, picture

log = logging.getLogger(__name__)


def maps(
    network: Network, pixels: npt.NDArray[np.uint8], targets: Sequence[int], batch_size: int = 16
) -> npt.NDArray[np.float32] | None:
    """Return maps float32 [N, S, S] in 0..1 of what speaks for class `targets[i]` in pixels uint8 [N, S, S].

    Each map is scaled by its own maximum; one without any evidence for the class is all 0. None for a network without
    a layer that has a picture.
    """
    network.eval()
    side = pixels.shape[-1]
    seen = network.crop or side  # the network looks at a centre crop; what lies outside it can't count
    margin = (side - seen) // 2
    batches = []
    for start in range(0, len(pixels), batch_size):
        coarse = _coarse(network, pixels[start : start + batch_size], list(targets[start : start + batch_size]))
        if coarse is None:
            log.info("no Grad-CAM: the network has no layer with a picture")
            return None
        fine = F.interpolate(coarse, (seen, seen), mode="bilinear")
        most = fine.amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
        scaled = np.zeros((len(fine), side, side), dtype=np.float32)
        scaled[:, margin : margin + seen, margin : margin + seen] = (fine / most)[:, 0].float().cpu().numpy()
        batches.append(scaled)
    return np.concatenate(batches) if batches else np.empty((0, side, side), dtype=np.float32)


def _coarse(network: Network, pixels: npt.NDArray[np.uint8], targets: list[int]) -> Tensor | None:
    """Return maps [N, 1, h, h] of what speaks for the targets at the last picture that the answers follow from.

    A transformer answers from its class token: of its last block's tokens the answers don't follow from the others.
    """
    device = network.head.weight.device
    outputs: list[Tensor] = []

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        seen = picture(output)
        if seen is not None and seen.shape[-1] > 1:
            outputs.append(output)

    hooks = [part.register_forward_hook(note) for part in parts(networks(network.backbone)[0])]
    try:
        # Floats that ask for a gradient: the network's own weights may be frozen.
        batch = torch.from_numpy(np.array(pixels, dtype=np.float32)).to(device).requires_grad_()
        with torch.enable_grad():
            logits = network(batch)
    finally:
        for hook in hooks:
            hook.remove()
    asked = logits.gather(1, torch.as_tensor(targets, device=device)[:, None]).sum()
    for output in reversed(outputs):
        (slope,) = torch.autograd.grad(asked, output, retain_graph=True, allow_unused=True)
        slopes, values = picture(slope), picture(output)
        if slopes is not None and values is not None and slopes.any():
            return F.relu((slopes.mean(dim=(2, 3), keepdim=True) * values).sum(1, keepdim=True)).detach()
    return torch.zeros(len(batch), 1, 1, 1, device=device) if outputs else None
