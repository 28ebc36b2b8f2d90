"""Changes to a batch of radiographs that another patient position, exposure or scanner could have made.

Everything works on a whole batch on its own device: one resampling for all of the geometry, one pass for the grey
values. The trade-off: bilinear sampling without antialiasing, which is exact enough for the mild zooms used here. There
is no vertical flip, and a horizontal one (which puts the heart on the wrong side) only as a choice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from xray_pipeline.training.augmentation import Augmentation

_TRIES = 10  # draws of a crop before the whole picture is taken, as torchvision's RandomResizedCrop does


def augmented(
    ranges: Augmentation,
    pixels: Tensor,
    side: int,
    generator: Generator | None = None,
    part: tuple[int, int] | None = None,
    aspects: Tensor | None = None,
) -> Tensor:
    """Return float pixels [N, 1, side, side] in 0..255, drawn anew for each of `pixels` [N, 1, S, S] in 0..255.

    Draws come from `generator` (on the CPU), or from the global one. Where `pixels` are only a part of a batch,
    `part` is where it starts and how many radiographs the batch has: each gets what it would get in the whole. With
    `aspects` [N], width over height of the radiographs that `pixels` are squashes of, a crop's area and ratio are those
    in the radiograph; where none fits, its middle is taken, as torchvision's RandomResizedCrop does.
    """
    count, device = len(pixels), pixels.device
    first, total = part or (0, count)
    draws = torch.rand(total, _TRIES + 8, 2, generator=generator)[first : first + count]
    if not count:
        return pixels.new_empty((0, 1, side, side), dtype=torch.float32)
    picture = pixels.float()
    if ranges.moves or side != pixels.shape[-1] or aspects is not None:
        theta = _geometry(ranges, draws, aspects).to(device)
        grid = F.affine_grid(theta, [count, 1, side, side], align_corners=False)
        picture = F.grid_sample(picture, grid, padding_mode="border", align_corners=False)
    if ranges.border:
        picture = _covered(ranges, picture, draws[:, _TRIES + 2 : _TRIES + 4].to(device))
    picture = _blurred(ranges, picture, draws[:, _TRIES + 4, 0])
    picture = _exposed(ranges, picture, draws[:, _TRIES + 5 :].to(device))
    if ranges.noise:
        grain = torch.randn((total, *picture.shape[1:]), generator=generator)[first : first + count].to(device)
        picture = picture + 255 * ranges.noise * draws[:, _TRIES + 6, 1].view(-1, 1, 1, 1).to(device) * grain
    return picture.clamp(0, 255)


def _geometry(ranges: Augmentation, draws: Tensor, aspects: Tensor | None) -> Tensor:
    area = torch.empty_like(draws[:, :_TRIES, 0]).copy_(_between(draws[:, :_TRIES, 0], *ranges.area))
    ratio = torch.exp(_between(draws[:, :_TRIES, 1], *map(math.log, ranges.ratio)))
    widest = highest = torch.ones(len(draws))
    if aspects is not None:  # of shares of width and height: the ratio within the squash
        ratio = ratio / aspects[:, None]
        widest, highest = (ranges.ratio[1] / aspects).clamp(max=1), (aspects / ranges.ratio[0]).clamp(max=1)
    width, height = torch.sqrt(area * ratio), torch.sqrt(area / ratio)
    limit = max(1.0, math.sqrt(ranges.area[1]))  # beyond the picture its edge is repeated
    fits = (width <= limit) & (height <= limit)
    first = fits.int().argmax(1, keepdim=True)
    width = torch.where(fits.any(1), width.gather(1, first)[:, 0], widest)
    height = torch.where(fits.any(1), height.gather(1, first)[:, 0], highest)
    right = (2 * draws[:, _TRIES, 0] - 1) * (1 - width) * fits.any(1)
    down = (2 * draws[:, _TRIES, 1] - 1) * (1 - height) * fits.any(1)
    mirror = torch.where(draws[:, _TRIES + 1, 0] < ranges.flip, -1.0, 1.0)
    angle = (2 * draws[:, _TRIES + 1, 1] - 1) * math.radians(ranges.degrees)
    across = torch.stack([mirror * width * angle.cos(), -height * angle.sin(), right], 1)
    along = torch.stack([mirror * width * angle.sin(), height * angle.cos(), down], 1)
    return torch.stack([across, along], 1)


def _covered(ranges: Augmentation, picture: Tensor, draws: Tensor) -> Tensor:
    """Cover edges as a collimator's shadow does, each with probability 1/2."""
    side = picture.shape[-1]
    covered = (2 * draws - 1).clamp(min=0) * ranges.border * side  # [N, across or down, first or last edge]
    place = torch.arange(side, device=picture.device) + 0.5
    open_ = (place >= covered[:, :, :1]) & (place <= side - covered[:, :, 1:])
    return picture * (open_[:, 0, None, None, :] & open_[:, 1, None, :, None])


def _blurred(ranges: Augmentation, picture: Tensor, draw: Tensor) -> Tensor:
    if not ranges.blur:
        return picture
    count, reach = len(picture), math.ceil(2 * ranges.blur)
    sigma = (draw * ranges.blur).clamp(min=0.05).to(picture.device)
    offsets = torch.arange(-reach, reach + 1, device=picture.device, dtype=torch.float32)
    kernel = torch.exp(-(offsets**2) / (2 * sigma[:, None] ** 2))
    kernel = kernel / kernel.sum(1, keepdim=True)
    lines = F.pad(picture.transpose(0, 1), (reach,) * 4, mode="replicate")  # each radiograph a channel of its own
    lines = F.conv2d(lines, kernel.view(count, 1, 1, -1), groups=count)
    return F.conv2d(lines, kernel.view(count, 1, -1, 1), groups=count).transpose(0, 1)


def _exposed(ranges: Augmentation, picture: Tensor, draws: Tensor) -> Tensor:
    either = (2 * draws - 1).view(len(picture), -1, 1, 1, 1)
    if ranges.gamma:
        picture = 255 * (picture.clamp(min=0) / 255) ** torch.exp(ranges.gamma * either[:, 0])
    if ranges.contrast:
        mean = picture.mean((1, 2, 3), keepdim=True)
        picture = mean + (picture - mean) * (1 + ranges.contrast * either[:, 1])
    if ranges.brightness:
        picture = picture + 255 * ranges.brightness * either[:, 2]
    return picture


def view(
    ranges: Augmentation,
    pixels: Tensor,
    side: int,
    digests: Sequence[str],
    number: int,
    aspects: Tensor | None = None,
) -> Tensor:
    """Return one lasting view of each radiograph, as float pixels [N, 1, side, side] in 0..255; see `augmented`.

    What is drawn depends on the radiograph's digest and the view's number alone, so a view's features can be kept.
    """
    views = []
    for at, (picture, digest) in enumerate(zip(pixels, digests, strict=True)):
        generator = torch.Generator().manual_seed((int(digest[:15], 16) + number) % 2**60)
        aspect = None if aspects is None else aspects[at : at + 1]
        views.append(augmented(ranges, picture[None], side, generator, aspects=aspect))
    return torch.cat(views)


def _between(draw: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * draw
