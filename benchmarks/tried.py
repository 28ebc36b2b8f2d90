"""What was tried against shift with frozen features, each beside recipe `head` on the same splits.

    python benchmarks/tried.py --data FOLDER [--images 600] [--seeds 0 1 2] [--only NAME ...] [--cache FOLDER]
                               [--json FILE]

FOLDER holds <CLASS>/* below any number of folders. Features are computed once and kept in --cache. Each seed splits the
patients anew, as in quality.py, and fits the last layer to the first --images training radiographs by digest (0: all),
the cut to a quarter as many of validation. All held-out radiographs are `held-out` and `framed` (the first class cut
and stretched, quality.py's `taller`), 200 of them `perturbed` (mean over stress.py); `unseen` is the mean over sources,
each left out in training and tested with held-out radiographs of the other class. Of `head` it
prints the means over seeds, of the others the mean difference to that, with its standard error.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from quality import Bench, Images, taller
from scipy import ndimage
from scipy.special import expit
from sklearn.metrics import roc_auc_score
from threshold import Blocks, Singles
from torch import Tensor

from xray_pipeline.dataset.pixels import RowCache
from xray_pipeline.evaluation import stress
from xray_pipeline.models import framing
from xray_pipeline.training import augmenting
from xray_pipeline.training.calibration import operating_threshold, temperature
from xray_pipeline.training.head_fit import HeadFit, HeadLoss
from xray_pipeline.training.pretrained import backbone_of
from xray_pipeline.training.recipe import Recipe, load_recipe
from xray_pipeline.training.trainer import Trainer

STRESSED, TESTED, SUBSETS, SURE, BINS = 200, 400, 5, 0.9, 15
WHAT = ("accuracy", "AUC", "calibration error")
PERTURBATIONS = [name for name in stress.PERTURBATIONS if name not in (stress.UNTOUCHED, stress.BASELINE)]
HEAD = "head"


@dataclass(frozen=True)
class Try:
    """A change to `head`: what it learns from, through what it looks, how it is fitted, and to what it adapts."""

    looks: tuple[str, ...] = ("plain", "view 1")
    backbones: tuple[str, ...] = ("efficientnet_lite0",)
    through: str = "plain"
    groups: str = ""
    adapts: str = ""
    recipe: Mapping[str, object] = field(default_factory=dict)


FOUR, BOTH = ("plain", "view 1", "view 2", "view 3"), ("efficientnet_lite0", "efficientnet_lite2")
HALF = ("plain", "plain", *FOUR)  # the price is that of views that differ
TRIES = {
    HEAD: Try(),
    "three views": Try(FOUR[:3]),
    "four views": Try(FOUR),
    "four views, the plain one for half": Try(HALF, recipe={"consistency": 0.08 * 5 / 3}),
    "consistency .3": Try(recipe={"consistency": 0.3}),
    "four views, consistency .3": Try(FOUR, recipe={"consistency": 0.3}),
    "penalty 400": Try(recipe={"penalty": 400.0}),
    "sources weigh the same": Try(groups="weights"),
    "last layer on balanced sources": Try(groups="subsets"),
    "features standardised by delivery": Try(adapts="delivery"),
    "self-training on a delivery": Try(adapts="itself"),
    "frame of the other class": Try(("plain", "view 1", "other frame")),
    "lungs alone as a view": Try(("plain", "view 1", "lungs")),
    "lungs alone, in answers too": Try(through="lungs"),
    "answers over 3 views": Try(through="3 views"),
    "efficientnet_lite2": Try(backbones=("efficientnet_lite2",)),
    "lite0 and lite2 side by side": Try(backbones=BOTH),
}


class Eyes:
    """A frozen backbone and what it said of radiographs, kept by the way they were shown to it."""

    def __init__(self, bench: Bench, backbone: str) -> None:
        recipe, rows = load_recipe("head", {"backbone": backbone}), bench.folder.rows
        loaded = backbone_of(recipe, bench.settings)
        self.drawn, self.folder, self.seconds, self.seen = recipe.augmentation, bench.settings.cache, 0.0, 0
        self.trainer = Trainer(recipe, loaded, bench.folder, rows.assign(side="train"), bench.settings)  # type: ignore[arg-type]
        self.trainer.pixels.ensure(rows, bench.folder.read)

    def features(self, look: str, digests: Sequence[str], through: str = "plain") -> Singles:
        """Return features [N, F] of radiographs shown in that way."""
        facts = json.dumps([*self.trainer.extracted.facts, look, through, self.drawn.model_dump_json()])
        folder = self.folder / f"tried-{hashlib.sha256(facts.encode()).hexdigest()[:16]}"
        cache = RowCache(folder, (self.trainer.network.head.in_features,), np.float32)
        missing = cache.missing(digests)
        for start in range(0, len(missing), 64):
            part = missing[start : start + 64]
            cache.add(part, self.answers(self._shown(look, part), through))
        return np.asarray(cache.get(digests), np.float32)

    def answers(self, pixels: Images | Tensor, through: str) -> Singles:
        """Return features of pixels [N, S, S]."""
        began = time.process_time()
        if through == "lungs":
            pixels = lungs(np.asarray(pixels).reshape(len(pixels), *pixels.shape[-2:]))
        shown = torch.as_tensor(pixels).reshape(len(pixels), 1, *pixels.shape[-2:])
        views = framing.views(shown, 3) if through == "3 views" else [shown]
        mean = torch.stack([self.trainer.extracted.engine.features(view) for view in views]).mean(0)
        self.seconds, self.seen = self.seconds + time.process_time() - began, self.seen + len(pixels)
        return mean.numpy()

    def _shown(self, look: str, digests: list[str]) -> Images | Tensor:
        pixels = self.trainer.pixels.get(digests)
        if look.startswith("view "):
            number = int(look.removeprefix("view "))
            return augmenting.view(self.drawn, torch.from_numpy(pixels).unsqueeze(1), pixels.shape[-1], digests, number)
        changes = {"plain": lambda images: images, "taller": taller, "lungs": lungs, **stress.PERTURBATIONS}
        return changes[look](pixels)


def lungs(images: Images) -> Images:
    """Cover all but what may be lung (dark, in the middle, widened) in the mean grey of what is left."""
    side = images.shape[-1]
    away = (np.indices((side, side)) - (side - 1) / 2) / (side / 2)
    middle = (away[0] / 0.9) ** 2 + (away[1] / 0.92) ** 2 < 1
    made = np.empty_like(images)
    for at, image in enumerate(images):
        smooth = ndimage.gaussian_filter(image.astype(np.float32), side / 60)
        found, _ = ndimage.label(middle & (smooth < np.median(smooth[middle])))
        sizes = np.bincount(found.ravel())[1:]
        largest = np.isin(found, 1 + np.argsort(sizes)[-2:])
        kept = ndimage.binary_fill_holes(ndimage.binary_dilation(largest, iterations=side // 20))
        made[at] = np.where(kept, image, np.uint8(image[kept].mean()))
    return made


class GroupLoss(HeadLoss):
    """`head`'s loss with a weight for each radiograph."""

    def __init__(self, labels: Tensor, views: int, weights: Tensor, recipe: Recipe) -> None:
        super().__init__(labels, views, None, recipe)
        self.shares = weights / weights.sum()

    def __call__(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return both parts, to be added."""
        _, change = super().__call__(logits)
        entropies = torch.nn.functional.cross_entropy(logits, self.labels, reduction="none")
        return (entropies * self.shares.repeat(self.views) / self.views).sum(), change


@dataclass(frozen=True, eq=False)
class Layer:
    """A fitted last layer with the moments of the features it was fitted to."""

    weight: Singles
    bias: Singles
    mean: Singles
    std: Singles

    def logits(self, features: Singles, own: bool = False) -> npt.NDArray[np.float64]:
        """Return logits [N, C]; `own`: of features that are standardised by their own moments."""
        mean, std = (features.mean(0), features.std(0).clip(1e-3)) if own else (self.mean, self.std)
        return (((features - mean) / std) @ self.weight.T + self.bias).astype(np.float64)


def fitted(views: Sequence[Singles], labels: npt.NDArray[np.int64], recipe: Recipe, weights: Singles | None) -> Layer:
    """Fit a last layer to views [n, F] of radiographs; `weights` [n] say how much each counts (None: as classes do)."""
    rows = np.concatenate(views)
    mean, std = rows.mean(0), rows.std(0).clip(1e-6)
    truth = torch.from_numpy(labels)
    counts = torch.bincount(truth, minlength=2).float()
    fit = HeadFit(Blocks(*((view - mean) / std for view in views)), truth, recipe, counts.sum() / (2 * counts))  # type: ignore[arg-type]
    if weights is not None:
        fit.loss = GroupLoss(truth, len(views), torch.from_numpy(weights), recipe)
    for _ in range(recipe.epochs):
        fit.advance()
    return Layer(fit.weight.detach().numpy(), fit.bias.detach().numpy(), mean, std)


class Fit:
    """One try fitted to one training set, and what it answers."""

    def __init__(self, bench: Bench, eyes: Mapping[str, Eyes], tried: Try, rows: pd.DataFrame) -> None:
        self.bench, self.tried, self.eyes = bench, tried, [eyes[name] for name in tried.backbones]
        self.recipe = load_recipe("head", tried.recipe)
        quarter = bench.images // 4 if bench.images else None
        train = rows[rows["side"] == "train"][: bench.images].reset_index(drop=True)
        validation = rows[rows["side"] == "validation"][:quarter]
        self.labels = bench.truth(train).astype(np.int64)
        self.views = [self._learned(look, train) for look in tried.looks]
        self.layer = self._layer(train)
        found, truth = self._logits(self.shown("plain", validation)), bench.truth(validation).astype(np.int64)
        self.heat = temperature(found, truth)
        self.cut = operating_threshold(expit((found[:, 1] - found[:, 0]) / self.heat), truth, self.recipe)

    def shown(self, look: str, rows: pd.DataFrame) -> Singles:
        """Return all backbones' features, side by side, of radiographs as this try looks at them."""
        digests = list(rows["digest"])
        return np.concatenate([eye.features(look, digests, self.tried.through) for eye in self.eyes], axis=1)

    def _learned(self, look: str, train: pd.DataFrame) -> Singles:
        # An answer over several views is that of a layer that learned from one.
        through = "plain" if self.tried.through == "3 views" else self.tried.through
        digests = list(train["digest"])
        if look != "other frame":
            return np.concatenate([eye.features(look, digests, through) for eye in self.eyes], axis=1)
        pixels = self.eyes[0].trainer.pixels.get(digests)
        rng, others = np.random.default_rng(0), [np.flatnonzero(self.labels != label) for label in (0, 1)]
        edge = round(pixels.shape[-1] * stress.BORDER)
        framed = pixels[[rng.choice(others[label]) for label in self.labels]]
        framed[:, edge:-edge, edge:-edge] = pixels[:, edge:-edge, edge:-edge]
        return np.concatenate(
            [self.eyes[0].answers(part, through) for part in np.array_split(framed, len(pixels) // 32)]
        )

    def _layer(self, train: pd.DataFrame) -> Layer:
        groups = np.unique(train["label"] + train["source"], return_inverse=True)[1]
        counts = np.bincount(groups)
        if self.tried.groups == "weights":
            return fitted(self.views, self.labels, self.recipe, (1 / counts[groups]).astype(np.float32))
        if self.tried.groups == "subsets":
            rng, layers = np.random.default_rng(0), []
            for _ in range(SUBSETS):
                drawn = [
                    rng.choice(np.flatnonzero(groups == g), counts.min(), replace=False) for g in range(len(counts))
                ]
                at = np.concatenate(drawn)
                layers.append(fitted([view[at] for view in self.views], self.labels[at], self.recipe, None))
            scaled = np.mean([one.weight / one.std for one in layers], 0)
            bias = np.mean([one.bias - (one.weight / one.std) @ one.mean for one in layers], 0)
            return Layer(scaled, bias, np.zeros_like(layers[0].mean), np.ones_like(layers[0].std))
        return fitted(self.views, self.labels, self.recipe, None)

    def _logits(self, features: Singles) -> npt.NDArray[np.float64]:
        if self.tried.adapts == "delivery":
            return self.layer.logits(features, own=True)
        return self.layer.logits(features)

    def probabilities(self, features: Singles) -> npt.NDArray[np.float64]:
        """Return the probability of class 1; one that adapts to a half of a delivery is judged on the other."""
        logits = self._logits(features)
        if self.tried.adapts == "itself":
            half = np.arange(len(features)) % 2
            for own in (0, 1):
                logits[half == own] = self._taught(features[half != own]).logits(features[half == own])
        return expit((logits[:, 1] - logits[:, 0]) / self.heat)

    def _taught(self, unlabelled: Singles) -> Layer:
        """Fit again, with radiographs that the first fit is sure of as if they were labelled so."""
        logits = self.layer.logits(unlabelled)
        ill = expit((logits[:, 1] - logits[:, 0]) / self.heat)
        sure = (ill > SURE) | (ill < 1 - SURE)
        labels = np.concatenate([self.labels, (ill[sure] > SURE).astype(np.int64)])
        return fitted([np.concatenate([view, unlabelled[sure]]) for view in self.views], labels, self.recipe, None)

    def judged(self, rows: pd.DataFrame, features: Singles) -> tuple[float, float, float]:
        """Return accuracy at the shipped cut, AUC, and expected calibration error over bins of equal mass."""
        truth, found = self.bench.truth(rows), self.probabilities(features)
        bins = np.array_split(np.argsort(found, kind="stable"), BINS)
        error = sum(abs((found[at] - truth[at]).sum()) for at in bins) / len(found)
        return float(((found >= self.cut) == truth).mean()), float(roc_auc_score(truth, found)), float(error)


def measured(bench: Bench, eyes: Mapping[str, Eyes], tried: Try, seed: int) -> dict[str, list[float]]:
    """Return what `WHAT` says by column, of one split."""
    rows = bench.folder.split(seed)
    fit, held_out = Fit(bench, eyes, tried, rows), rows[rows["side"] == "held-out"].reset_index(drop=True)
    plain = fit.shown("plain", held_out)
    framed, first = plain.copy(), ~bench.truth(held_out)
    framed[first] = fit.shown("taller", held_out[first])
    sample = held_out.head(STRESSED)
    stressed = np.array([fit.judged(sample, fit.shown(name, sample)) for name in PERTURBATIONS])
    unseen = []
    for source in sorted(rows["source"].unique()):
        of_it = rows["source"] == source
        others = rows[(rows["side"] == "held-out") & (rows["label"] != rows.loc[of_it, "label"].iloc[0])]
        tested = pd.concat([rows[of_it][:TESTED], others[:TESTED]], ignore_index=True)
        tested = tested.sample(frac=1, random_state=0)  # halves of it hold both
        without = Fit(bench, eyes, tried, rows[~of_it])
        unseen.append(without.judged(tested, without.shown("plain", tested)))
    columns = {
        "held-out": fit.judged(held_out, plain),
        "framed": fit.judged(held_out, framed),
        "perturbed": stressed.mean(0),
        "worst": [*stressed.min(0)[:2], stressed.max(0)[2]],
        "unseen": np.mean(unseen, 0),
    }
    return {name: [float(value) for value in values] for name, values in columns.items()}


def table(found: Mapping[str, Sequence[Mapping[str, Sequence[float]]]]) -> str:
    """Return lines for people: of `head` means, of others mean differences to it with their standard errors."""
    columns = list(found[HEAD][0])
    lines = []
    for number, what in enumerate(WHAT):
        lines.append(f"{what:<36}" + "".join(f"{column:>20}" for column in columns))
        for name, splits in found.items():
            own = np.array([[split[column][number] for column in columns] for split in splits])
            gains = own - [[split[column][number] for column in columns] for split in found[HEAD]]
            errors = gains.std(0, ddof=1) / np.sqrt(len(own)) if len(own) > 1 else np.full(len(columns), np.nan)
            shown = [f"{gain:+.4f} ± {error:.4f}" for gain, error in zip(gains.mean(0), errors, strict=True)]
            shown = [f"{value:.4f}" for value in own.mean(0)] if name == HEAD else shown
            lines.append(f"  {name:<34}" + "".join(f"{text:>20}" for text in shown))
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="radiographs by class")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=600, help="fit to at most so many; 0: all")
    parser.add_argument("--only", nargs="+", default=list(TRIES), choices=TRIES, help="these, beside head")
    parser.add_argument("--cache", type=Path, default=Path("bench/quality"))
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    bench = Bench(asked.data, asked.cache.absolute(), asked.images, 0)
    tries = {name: TRIES[name] for name in [HEAD, *asked.only]}
    eyes = {name: Eyes(bench, name) for name in {name: 0 for tried in tries.values() for name in tried.backbones}}
    found: dict[str, Any] = {}
    for name, tried in tries.items():
        found[name] = [measured(bench, eyes, tried, seed) for seed in asked.seeds]
        print(f"{name} is measured", flush=True)
        if asked.json:
            asked.json.write_text(json.dumps(found, indent=1))
    print(table(found))
    for name, eye in eyes.items():
        if eye.seen:
            print(f"{name}: {1000 * eye.seconds / eye.seen:.1f} ms of CPU for the features of a radiograph")


if __name__ == "__main__":
    main()
