"""What the last layer is fitted to: the labels, and that a radiograph's views get the same answer.

A chest keeps its diagnosis when it is framed, exposed or exported otherwise, so what its logits change between views is
a shortcut (collimation, aspect, exposure), and is made dear. The trade-off: a few tenths of a percent on radiographs
that come like the training ones, for a specificity that holds on those that don't.
"""

from __future__ import annotations

from torch import Tensor, nn

from xray_pipeline.training.recipe import Recipe


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
