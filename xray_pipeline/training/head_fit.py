"""The last layer alone, fitted to kept features: a convex problem with one answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from xray_pipeline.training.features import Standardised
from xray_pipeline.training.objective import HeadLoss
from xray_pipeline.training.recipe import Recipe

ITERATIONS = 5
"""L-BFGS iterations in a round of `head`."""


class HeadFit:
    """A linear layer by L-BFGS: `HeadLoss` plus penalty / (2 n) times the squared weights.

    `features` are standardised, and the layer that `into` writes takes them as they were. `labels` [n] are those of the
    radiographs, of which each view has all.
    """

    def __init__(self, features: Standardised, labels: Tensor, recipe: Recipe, class_weights: Tensor | None) -> None:
        self.features, device = features, features.device
        self.count, self.strength = len(labels), recipe.penalty / len(labels)
        classes = int(labels.max()) + 1
        self.weight = torch.zeros(classes, features.width, device=device, requires_grad=True)
        self.bias = torch.zeros(classes, device=device, requires_grad=True)
        self.loss = HeadLoss(labels.to(device), len(features.views), class_weights, recipe)
        self.optimizer = torch.optim.LBFGS(
            [self.weight, self.bias], max_iter=ITERATIONS, history_size=10, line_search_fn="strong_wolfe"
        )
        self.round = 0

    def advance(self) -> float:
        """Make one round of iterations; return the cross-entropy it ended with.

        `logits` [n, C] then holds the answers to view 0 that it was taken from.
        """

        def objective() -> Tensor:
            # Only the logits of all rows are held at once; the layer's gradient follows from theirs.
            with torch.no_grad():
                parts = [nn.functional.linear(rows, self.weight, self.bias) for rows in self.features]
            logits = torch.cat(parts).requires_grad_()
            with torch.enable_grad():
                entropy, change = self.loss(logits)
                cost = entropy + change
            (slope,) = torch.autograd.grad(cost, logits)
            self.entropies.append(float(entropy.detach()))
            self.logits = logits.detach()[: self.count].cpu()
            with torch.no_grad():
                gradient = self.strength * self.weight
                start = 0
                for rows in self.features:
                    gradient += slope[start : start + len(rows)].T @ rows
                    start += len(rows)
                self.weight.grad, self.bias.grad = gradient, slope.sum(0)
                return cost.detach() + self.strength / 2 * self.weight.square().sum()

        self.entropies: list[float] = []
        self.optimizer.step(objective)  # type: ignore[no-untyped-call]
        self.round += 1
        return self.entropies[-1]

    def into(self, head: nn.Linear) -> None:
        """Write the layer for features that are not standardised."""
        with torch.no_grad():
            scaled = self.weight / self.features.std
            head.weight.copy_(scaled)
            head.bias.copy_(self.bias - scaled @ self.features.mean)

    def to_dict(self) -> dict[str, Any]:
        """Return tensors and plain values."""
        return {
            "weight": self.weight.detach().cpu(),
            "bias": self.bias.detach().cpu(),
            "optimizer": self.optimizer.state_dict(),
            "round": self.round,
        }

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Inverse of `to_dict`."""
        with torch.no_grad():
            self.weight.copy_(kept["weight"])
            self.bias.copy_(kept["bias"])
        self.optimizer.load_state_dict(kept["optimizer"])
        self.round = kept["round"]
