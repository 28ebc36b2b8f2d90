from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from torch import nn

from xray_pipeline.dataset.pixels import RowCache
from xray_pipeline.models import backbones
from xray_pipeline.models.backbones import Network
from xray_pipeline.training.device import Precision
from xray_pipeline.training.features import Standardised
from xray_pipeline.training.head_fit import HeadFit
from xray_pipeline.training.recipe import Recipe, load_recipe
from xray_pipeline.training.state import State

LABELS = torch.arange(200) % 2


def features(seed: int) -> torch.Tensor:
    """Two views of 200 radiographs: column 0 shows the class, column 1 too but in view 0 only; the rest is noise."""
    drawn = torch.randn(2, 200, 6, generator=torch.Generator().manual_seed(seed))
    sign = 2.0 * LABELS - 1
    drawn[:, :, 0] = 1.5 * sign + torch.randn(200, generator=torch.Generator().manual_seed(seed + 1))
    drawn[0, :, 1] += 3 * sign
    return drawn


def fitted(rows: torch.Tensor, **values: float) -> torch.Tensor:
    """Weights [2, F] of a layer fitted to the rows [views, n, F]."""
    with TemporaryDirectory() as name:
        views, digests = [], [str(at) for at in range(rows.shape[1])]
        for number, view in enumerate(rows):
            cache = RowCache(Path(name) / str(number), (rows.shape[2],), np.float32)
            cache.add(digests, view.numpy())
            views.append(cache.view(digests))
        kept = Standardised(views, Path(name), torch.device("cpu"))
    fit = HeadFit(kept, LABELS, Recipe(penalty=1, views=len(rows), **values), None)
    for _ in range(10):
        fit.advance()
    head = nn.Linear(6, 2)
    fit.into(head)
    return head.weight.detach()


def test_without_a_price_the_shortcut_is_taken() -> None:
    weight = torch.sub(*fitted(features(0)[:1]).flip(0))
    assert float(weight[1]) > float(weight[0]) > 0


def test_what_changes_between_views_is_left_alone_for_a_price() -> None:
    rows = features(0)
    free, dear = (fitted(rows, consistency=price) for price in (0.0, 2.0))
    share = [float((w[1] - w[0])[1].abs() / (w[1] - w[0])[0].abs()) for w in (free, dear)]
    assert share[1] < share[0] / 3
    assert share[1] < 0.1


def test_a_price_on_views_that_agree_changes_nothing() -> None:
    rows = features(1)[:1].repeat(2, 1, 1)
    assert torch.allclose(fitted(rows), fitted(rows, consistency=5.0), atol=1e-5)


def test_the_average_forgets_where_training_began_and_is_what_is_judged() -> None:
    backbone = backbones.load("mobilenet_v2", "none")
    network, recipe = Network(backbone, 2, 0, False), load_recipe("head", {"mode": "finetune", "average": 0.9})
    state = State(network, recipe, 8, Precision(torch.device("cpu")))
    with torch.no_grad():
        for step in range(1, 200):
            network.head.weight.fill_(2.0 + (-1) ** step)
            assert state.average is not None
            state.average.update_parameters(network)
    assert state.shown.head.weight.flatten().tolist() == pytest.approx([2.0] * network.head.weight.numel(), abs=0.1)
    assert set(network.head.weight.flatten().tolist()) == {1.0}
    again = State(Network(backbone, 2, 0, False), recipe, 8, Precision(torch.device("cpu")))
    again.restore(state.to_dict())
    assert torch.equal(again.shown.head.weight, state.shown.head.weight)


def test_without_an_average_the_network_itself_is_judged() -> None:
    network = Network(backbones.load("mobilenet_v2", "none"), 2, 0, False)
    recipe = load_recipe("head", {"mode": "finetune"})
    assert State(network, recipe, 8, Precision(torch.device("cpu"))).shown is network
