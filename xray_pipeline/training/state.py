"""A network while it is trained by steps, and what of it is trained."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from xray_pipeline.base.errors import ConfigError
from xray_pipeline.models.backbones import Network
from xray_pipeline.models.stages import networks, stages
from xray_pipeline.training.device import Precision

if TYPE_CHECKING:  # benchmarks/gpu.py has values of its own
    from xray_pipeline.training.recipe import Recipe


class State:
    """All that changes while a network is trained: it is what a checkpoint holds."""

    def __init__(self, network: Network, recipe: Recipe, count: int, precision: Precision) -> None:
        self.network, self.recipe, self.count, self.precision = network, recipe, count, precision
        self.steps = math.ceil(count / recipe.batch_size)
        self.micro = recipe.batch_size
        network.requires_grad_(False)
        parameters = list(_trainable(network, recipe))
        for parameter in parameters:
            parameter.requires_grad_(True)
        rate, decay = recipe.learning_rate, recipe.weight_decay
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=True)
            if recipe.optimizer == "adamw"
            else torch.optim.SGD(parameters, lr=rate, momentum=recipe.momentum, weight_decay=decay, fused=True)
        )
        self.epoch = self.step = self.seen = 0
        self.loss = 0.0
        self.answers = torch.zeros(count, network.head.out_features)  # of this epoch so far, in the order they came
        self.truth = torch.zeros(count, dtype=torch.int64)
        self.best_score, self.best_epoch = -math.inf, 0
        self.best: dict[str, Tensor] = {}
        self.average = _average(network, recipe.average) if recipe.average else None

    @property
    def number(self) -> int:
        """Optimizer steps made so far."""
        return self.epoch * self.steps + self.step

    def advance(self, loss: float, answers: Tensor, truth: Tensor) -> None:
        """Take the optimizer's step, after a batch of that mean loss, with those logits [n, C] for the classes [n]."""
        place = slice(self.seen, self.seen + len(truth))
        self.answers[place], self.truth[place] = answers, truth
        rate = _rate(self.recipe, self.number, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.precision.scaler.step(self.optimizer)
        self.precision.scaler.update()
        if self.average:
            self.average.update_parameters(self.network)
        self.step += 1
        self.loss += loss * len(truth)
        self.seen += len(truth)

    @property
    def shown(self) -> Network:
        """The network that is judged: the moving average where the recipe asks for one."""
        return cast(Network, self.average.module) if self.average else self.network

    @property
    def exhausted(self) -> bool:
        """Whether `patience` epochs went by without a better one."""
        return 0 < self.recipe.patience <= self.epoch - self.best_epoch

    def close_epoch(self, score: float) -> None:
        """Go to the next epoch; keep the network when its score is the best so far."""
        if score > self.best_score:
            self.best_score, self.best_epoch, self.best = score, self.epoch + 1, copied(self.shown)
        self.epoch, self.step, self.loss, self.seen = self.epoch + 1, 0, 0.0, 0

    def to_dict(self) -> dict[str, Any]:
        """Return tensors and plain values."""
        return {
            "network": copied(self.network),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best,
            "best_score": self.best_score,
            "best_epoch": self.best_epoch,
            "average": copied(self.average) if self.average else {},
            "position": [self.epoch, self.step, self.seen],
            "loss": self.loss,
            "answers": self.answers[: self.seen].clone(),  # a copy, because of a view all is written
            "truth": self.truth[: self.seen].clone(),
            "micro": self.micro,
            "scaler": self.precision.scaler.state_dict(),
        }

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Inverse of `to_dict`."""
        self.network.load_state_dict(kept["network"])
        self.optimizer.load_state_dict(kept["optimizer"])
        self.best, self.best_score, self.loss = dict(kept["best"]), kept["best_score"], kept["loss"]
        self.best_epoch = kept["best_epoch"]
        if self.average:
            self.average.load_state_dict(kept["average"])
        self.epoch, self.step, self.seen = kept["position"]
        self.answers[: self.seen], self.truth[: self.seen] = kept["answers"], kept["truth"]
        self.micro = kept["micro"]
        self.precision.scaler.load_state_dict(kept["scaler"])


def _average(network: Network, decay: float) -> AveragedModel:
    """Return an exponential moving average of weights and running statistics (Polyak and Juditsky 1992).

    It forgets faster at the start, so that it does not remember where training began: after step n the old average
    keeps min(decay, (1 + n) / (10 + n)). Counters are copied.
    """

    def averaged(old: Tensor, new: Tensor, steps: Tensor | int) -> Tensor:
        keep = min(decay, (2 + int(steps)) / (11 + int(steps)))
        return old.lerp(new, 1 - keep) if new.is_floating_point() else new

    return AveragedModel(network, avg_fn=averaged, use_buffers=True)


def _rate(recipe: Recipe, number: int, steps: int) -> float:
    if recipe.schedule == "cosine":
        return recipe.learning_rate * (1 + math.cos(math.pi * number / (recipe.epochs * steps))) / 2
    if recipe.schedule == "step":
        return recipe.learning_rate * recipe.step_factor ** (number // steps // recipe.step_epochs)
    return recipe.learning_rate


def _trainable(network: Network, recipe: Recipe) -> Iterator[nn.Parameter]:
    if recipe.mode != "partial":
        yield from network.parameters()
        return
    for every in map(stages, networks(network.backbone)):
        for stage in every[_fixed(recipe, len(every)) :]:
            yield from stage.parameters()
    yield from network.head.parameters()


def _fixed(recipe: Recipe, count: int) -> int:
    """Return how many of a network's `count` stages, the first, `partial` keeps fixed. Raises ConfigError."""
    for name in ("fixed_stages", "trained_stages"):
        if (getattr(recipe, name) or 0) > count:
            raise ConfigError(f"{name} {getattr(recipe, name)}: {recipe.backbone} has {count} stages")
    if recipe.fixed_stages is not None:
        return recipe.fixed_stages
    if recipe.trained_stages is not None:
        return count - recipe.trained_stages
    return math.floor(recipe.fixed_share * count + 0.5)


def hold_fixed(network: Network, recipe: Recipe) -> None:
    """Keep the running statistics of stages that `partial` keeps fixed."""
    if recipe.mode == "partial":
        for every in map(stages, networks(network.backbone)):
            for module in (one for stage in every[: _fixed(recipe, len(every))] for one in stage.modules):
                module.eval()


def copied(network: nn.Module) -> dict[str, Tensor]:
    """Return a copy of all tensors, on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
