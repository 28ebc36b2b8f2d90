"""The last layer alone, fitted to kept features: a convex problem with one answer.

It is fitted to the labels, and to giving a radiograph's views the same answer: a chest keeps its diagnosis when it is
framed, exposed or exported otherwise, so what its logits change between views is a shortcut (collimation, aspect,
exposure), and is made dear. The trade-off: a few tenths of a percent on radiographs that come like the training ones,
for a specificity that holds on those that don't.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from xray_pipeline.training.features import Standardised
from xray_pipeline.training.recipe import Recipe
from xray_pipeline.training.trainer import Trainer

ITERATIONS = 5
"""L-BFGS iterations in a round of `head`."""


class HeadLoss:
    """Class-weighted cross-entropy over all views, and `recipe.consistency` times the change between them.

    The change is the squared difference between a view's logits and those of view 0, after each radiograph's logits are
    centred (only their differences mean anything), summed over classes and averaged over views and radiographs with
    the class weights.
    """

    def __init__(self, labels: Tensor, views: int, class_weights: Tensor | None, recipe: Recipe) -> None:
        self.views, self.strength = views, recipe.consistency
        self.labels = labels.repeat(views)
        self.entropy = nn.CrossEntropyLoss(class_weights, label_smoothing=recipe.label_smoothing)
        shares = class_weights[labels] if class_weights is not None else labels.new_ones(len(labels)).float()
        self.shares = shares / shares.sum()

    def __call__(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return both parts, to be added, for logits [views * n, C] in the order of the views."""
        entropy: Tensor = self.entropy(logits, self.labels)
        if self.views == 1 or not self.strength:
            return entropy, entropy.new_zeros(())
        centred = (logits - logits.mean(1, keepdim=True)).reshape(self.views, -1, logits.shape[1])
        change = (centred[1:] - centred[0]).square().sum(2).mean(0)
        return entropy, self.strength * (change * self.shares).sum()


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
            self.logits, self.judged = logits.detach()[: self.count].cpu(), self.weight.detach().clone()
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
        if not torch.equal(self.judged, self.weight):  # a line search may go back to a step that it tried before
            objective()
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


def head_fit(trainer: Trainer, views: int) -> HeadFit:
    """Return the fit of a trainer's last layer to the kept features of that many views, at its beginning."""
    kept = [trainer.kept_features("train", view) for view in range(views)]
    features = Standardised(kept, trainer.settings.cache / "scratch", trainer.device)
    return HeadFit(features, trainer.labels("train"), trainer.recipe, trainer.class_weights())
