from __future__ import annotations

import pytest
import torch

from xray_pipeline.augmentation import Augmentation, view
from xray_pipeline.recipe import load_recipe

PICTURES = torch.linspace(0, 255, 64 * 64).reshape(1, 1, 64, 64).repeat(3, 1, 1, 1)
DIGESTS = ["1" * 64, "2" * 64, "3" * 64]


def drawn(seed: int, augmentation: Augmentation, side: int = 64) -> torch.Tensor:
    return augmentation(PICTURES, side, torch.Generator().manual_seed(seed))


def test_the_default_changes_nothing() -> None:
    assert torch.equal(drawn(0, Augmentation()), PICTURES)


@pytest.mark.parametrize("name", ["head", "finetune", "article-finetune"])
def test_shipped_augmentations_stay_in_range_and_differ(name: str) -> None:
    augmentation = load_recipe(name).augmentation
    one, two = drawn(0, augmentation, 48), drawn(1, augmentation, 48)
    assert one.shape == (3, 1, 48, 48)
    assert 0 <= float(one.min()) <= float(one.max()) <= 255
    assert not torch.equal(one, two)
    assert torch.equal(one, drawn(0, augmentation, 48))
    assert not torch.equal(one[0], one[1])


def test_never_upside_down() -> None:
    """The gradient from top to bottom keeps its sign under the strongest shipped geometry."""
    augmentation = load_recipe("head").augmentation
    for seed in range(20):
        rows = drawn(seed, augmentation).mean(dim=(1, 3))
        assert bool((rows[:, -8:].mean(1) > rows[:, :8].mean(1)).all())


def test_a_lasting_view_depends_on_digest_and_number_alone() -> None:
    augmentation = load_recipe("head").augmentation
    whole = view(augmentation, PICTURES, 64, DIGESTS, 1)
    assert torch.equal(view(augmentation, PICTURES[1:2], 64, DIGESTS[1:2], 1), whole[1:2])
    assert not torch.equal(view(augmentation, PICTURES, 64, DIGESTS, 2), whole)
