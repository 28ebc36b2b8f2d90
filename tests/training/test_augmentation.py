from __future__ import annotations

import pytest
import torch

from xray_pipeline.training.augmentation import Augmentation
from xray_pipeline.training.augmenting import augmented, view
from xray_pipeline.training.recipe import load_recipe

PICTURES = torch.linspace(0, 255, 64 * 64).reshape(1, 1, 64, 64).repeat(3, 1, 1, 1)
DIGESTS = ["1" * 64, "2" * 64, "3" * 64]


def drawn(seed: int, augmentation: Augmentation, side: int = 64) -> torch.Tensor:
    return augmented(augmentation, PICTURES, side, torch.Generator().manual_seed(seed))


def test_the_default_changes_nothing() -> None:
    assert torch.equal(drawn(0, Augmentation()), PICTURES)


@pytest.mark.parametrize("name", ["head", "default", "partial", "article-finetune"])
def test_shipped_augmentations_stay_in_range_and_differ(name: str) -> None:
    augmentation = load_recipe(name).augmentation
    one, two = drawn(0, augmentation, 48), drawn(1, augmentation, 48)
    assert one.shape == (3, 1, 48, 48)
    assert 0 <= float(one.min()) <= float(one.max()) <= 255
    assert not torch.equal(one, two)
    assert torch.equal(one, drawn(0, augmentation, 48))
    assert not torch.equal(one[0], one[1])


def test_zooming_out_repeats_the_edge() -> None:
    white = torch.full_like(PICTURES, 200)
    assert torch.allclose(augmented(Augmentation(area=(1.5, 1.5)), white, 64), white)
    far = drawn(0, Augmentation(area=(2.25, 2.25)))
    assert float(far.diff(dim=2).max()) == pytest.approx(1.5 * float(PICTURES.diff(dim=2).max()), rel=0.05)


def test_a_covered_border_is_black_and_the_middle_is_not_touched() -> None:
    white = torch.full((40, 1, 64, 64), 200.0)
    covered = augmented(Augmentation(border=0.25), white, 64, torch.Generator().manual_seed(0))
    assert set(covered.unique().tolist()) == {0.0, 200.0}
    assert bool((covered[:, :, 16:48, 16:48] == 200).all())
    corners = covered[:, 0, [0, 0, 63, 63], [0, 63, 0, 63]]
    assert 0.6 < float((corners == 0).float().mean()) < 0.9  # of two edges that meet there, each in half of them


def test_never_upside_down() -> None:
    """The gradient from top to bottom keeps its sign under the strongest shipped geometry."""
    augmentation = load_recipe("head").augmentation.model_copy(update={"border": 0.0})
    for seed in range(20):
        rows = drawn(seed, augmentation).mean(dim=(1, 3))
        assert bool((rows[:, -8:].mean(1) > rows[:, :8].mean(1)).all())


def test_a_lasting_view_depends_on_digest_and_number_alone() -> None:
    augmentation = load_recipe("head").augmentation
    whole = view(augmentation, PICTURES, 64, DIGESTS, 1)
    assert torch.equal(view(augmentation, PICTURES[1:2], 64, DIGESTS[1:2], 1), whole[1:2])
    assert not torch.equal(view(augmentation, PICTURES, 64, DIGESTS, 2), whole)
