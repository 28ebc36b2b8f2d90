from __future__ import annotations

import hashlib
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from samples import jpeg
from small_models import BACKBONE, small_classifier

from xray_pipeline.base.settings import Settings
from xray_pipeline.dataset.pixels import MappedRows, PixelCache, RowCache
from xray_pipeline.models import backbones
from xray_pipeline.models.engine import engine_for
from xray_pipeline.training import features
from xray_pipeline.training.features import Features, KeptScorer, Standardised, feature_dtype, kept_scorer
from xray_pipeline.training.feeding import Feeder
from xray_pipeline.training.recipe import load_recipe

CPU = torch.device("cpu")


def digest(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def kept(folder: Path, shards: list[int], width: int = 3) -> tuple[RowCache, list[str]]:
    """A cache of random rows in shards of the given sizes, and its digests in another order."""
    cache, rng, digests = RowCache(folder, (width,), np.float32), np.random.default_rng(0), []
    for size in shards:
        names = [digest(len(digests) + n) for n in range(size)]
        cache.add(names, rng.normal(5, 3, (size, width)).astype(np.float32))
        digests += names
    return cache, sorted(digests)


@pytest.fixture
def made(tmp_path: Path) -> tuple[Features, pd.DataFrame]:
    """Features of a small network, and radiographs whose pixels are not decoded yet."""
    model = small_classifier()
    pixels = PixelCache(tmp_path, model.side)
    weights = backbones.digest_of(model.network.backbone)
    rows = pd.DataFrame({"digest": [digest(n) for n in range(10)], "suffix": ".jpg"})
    return Features(model.network, BACKBONE, weights, pixels, tmp_path), rows


def read(name: str, suffix: str) -> bytes:
    return jpeg(seed=int(name[:6], 16))


def test_mapped_rows_are_the_kept_rows(tmp_path: Path) -> None:
    cache, digests = kept(tmp_path, [4, 1, 6])
    view = cache.view(digests)
    order = np.array([9, 0, 3, 3, 10])
    assert np.array_equal(view[order], cache.get(digests)[order])
    view.release()
    assert np.array_equal(view[order], cache.get(digests)[order])
    assert len(view[np.array([], np.int64)]) == 0
    with pytest.raises(KeyError):
        cache.view(["unknown"])


def test_company_in_a_batch_changes_no_bit(made: tuple[Features, pd.DataFrame], tmp_path: Path) -> None:
    extracted, rows = made
    extracted.pixels.ensure(rows, read)
    together = extracted.rows(list(rows["digest"]))[np.arange(10)]
    apart = Features(extracted.network, BACKBONE, "apart", extracted.pixels, tmp_path)
    alone = [apart.rows([name])[np.arange(1)][0] for name in rows["digest"]]
    assert np.array_equal(together, alone)


@pytest.mark.parametrize("view", [0, 1])
def test_the_number_of_threads_changes_no_bit(made: tuple[Features, pd.DataFrame], tmp_path: Path, view: int) -> None:
    network, rows = made[0].network, made[1]
    pixels = PixelCache(tmp_path, 224)  # fewer are computed by one thread in any case
    pixels.ensure(rows, read)
    drawn, answers, before = load_recipe("head").augmentation, [], torch.get_num_threads()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        try:
            apart = Features(network, BACKBONE, f"{count} threads", pixels, tmp_path)
            answers.append(apart.rows(list(rows["digest"]), view, drawn)[np.arange(10)])
        finally:
            torch.set_num_threads(before)
    assert np.array_equal(answers[0], answers[1])
    assert np.array_equal(answers[0], answers[2])


def test_another_engine_keeps_features_of_its_own(made: tuple[Features, pd.DataFrame], tmp_path: Path) -> None:
    extracted, _ = made
    by_torch = engine_for(extracted.network, wanted="torch")
    other = Features(extracted.network, BACKBONE, extracted.facts[1], extracted.pixels, tmp_path, by_torch)
    assert other.cache().folder != extracted.cache().folder


def test_features_are_in_float32_on_a_cpu_whatever_the_recipe_asks() -> None:
    assert feature_dtype(load_recipe("article-features"), CPU) is None
    assert feature_dtype(load_recipe("head"), CPU) is None


def test_an_interruption_keeps_the_shards_before_it(
    made: tuple[Features, pd.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    extracted, rows = made
    extracted.pixels.ensure(rows, read)
    monkeypatch.setattr(features, "SHARD", 4)
    monkeypatch.setattr(features, "batch_for", lambda device: 2)

    def stop(done: int, total: int, what: str) -> None:
        if done > 8:
            raise KeyboardInterrupt

    names = list(rows["digest"])
    with pytest.raises(KeyboardInterrupt):
        extracted.rows(names, progress=stop)
    assert extracted.cache().missing(names) == names[8:]
    seen: list[tuple[int, int]] = []
    extracted.rows(names, progress=lambda done, total, what: seen.append((done, total)))
    assert seen == [(2, 2)]


def test_scoring_by_kept_features_is_scoring(made: tuple[Features, pd.DataFrame]) -> None:
    extracted, rows = made
    model = small_classifier()
    scorer = KeptScorer(model, extracted)
    scorer.ensure(rows, read)
    names = list(rows["digest"])
    found = scorer.probabilities(scorer.get(names))
    assert found == pytest.approx(model.probabilities(extracted.pixels.get(names)), abs=1e-6)


def test_a_model_without_kept_features_is_scored_by_pixels(settings: Settings) -> None:
    assert kept_scorer(small_classifier(), settings) is None


@pytest.mark.parametrize("in_memory", [2**30, 0])
def test_standardised_columns_in_memory_and_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: int
) -> None:
    monkeypatch.setattr(features, "IN_MEMORY", in_memory)
    monkeypatch.setattr(features, "BLOCK_BYTES", 4 * 3 * 4)  # four rows
    cache, digests = kept(tmp_path / "rows", [7, 6])
    view = cache.view(digests)
    found = Standardised([view, view], tmp_path / "scratch", CPU)
    whole = cache.get(digests).astype(np.float64)
    assert found.mean.numpy() == pytest.approx(whole.mean(0), rel=1e-6)
    assert found.std.numpy() == pytest.approx(whole.std(0), rel=1e-6)
    for _ in range(2):
        blocks = [block.clone() for block in found]
        rows = torch.cat(blocks).numpy()
        assert rows == pytest.approx(np.tile((whole - whole.mean(0)) / whole.std(0), (2, 1)), abs=1e-5)
    assert list((tmp_path / "scratch").glob("*")) == []


def batches(rows: MappedRows, places: list[tuple[int, int]]) -> list[list[int]]:
    with Feeder(rows, torch.arange(len(rows)), 4, 7, CPU) as feeder:
        return [feeder.take(*place)[1].tolist() for place in places]


def test_batches_depend_on_seed_epoch_and_step_alone(tmp_path: Path) -> None:
    cache, digests = kept(tmp_path, [10])
    rows = cache.view(digests)
    places = [(epoch, step) for epoch in range(2) for step in range(3)]
    found = batches(rows, places)
    for epoch in (found[:3], found[3:]):
        assert sorted(chain.from_iterable(epoch)) == list(range(10))
    assert found[:3] != found[3:]
    assert batches(rows, places[4:]) == found[4:]
    assert batches(rows, places[::-1]) == found[::-1]


def test_a_batch_holds_the_pixels_of_its_labels(tmp_path: Path) -> None:
    cache, digests = kept(tmp_path, [6, 4])
    with Feeder(cache.view(digests), torch.arange(10), 4, 7, CPU) as feeder:
        batch, labels, places = feeder.take(0, 1)
    assert np.array_equal(batch[:, 0].numpy(), cache.get(digests)[labels.numpy()])
    assert torch.equal(places, labels)  # each radiograph's label is its place
