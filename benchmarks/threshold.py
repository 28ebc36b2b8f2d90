"""How much of a model's accuracy is luck of its operating threshold, by the rule that chooses it.

    python benchmarks/threshold.py --data FOLDER [--splits 20] [--images N] [--cache FOLDER] [--json FILE]

FOLDER holds <CLASS>/* below any number of folders. Features of the frozen backbone of recipe `head` are computed once
and kept in --cache. Each split by patient fits a quick head (the recipe's loss on the 400 main directions of the
features) twice: on a third of the patients, and on all, as a night with three times the radiographs does. Each rule
sees the validation patients alone and is judged on the same held-out ones.

- `cut`, `accuracy`, `below the best`: of all patients; the spread of the cut over splits is its noise, the last how far
  accuracy lies below that of the best cut on the held-out patients themselves.
- `framed otherwise`: accuracy and specificity with the first class cut and stretched as in quality.py.
- `few`: the spread of the cut when a fifteenth of the validation patients is there.
- `refused`: splits of which the larger night ranks better (AUC) and yet names fewer right, each at its own cut.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from quality import Bench, taller
from scipy.special import expit, log_softmax
from sklearn.metrics import roc_auc_score, roc_curve

from xray_pipeline.evaluation.sweep import AtCuts, at_cuts
from xray_pipeline.models import backbones
from xray_pipeline.training.calibration import operating_threshold, temperature
from xray_pipeline.training.head_fit import HeadFit
from xray_pipeline.training.recipe import Recipe, load_recipe
from xray_pipeline.training.trainer import Trainer

DIRECTIONS = 400
FEW = 15

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]


class Blocks:
    """Views of some radiographs' features, as `HeadFit` goes over them; they are standardised already."""

    def __init__(self, *views: Singles) -> None:
        self.views, self.width, self.device = views, views[0].shape[1], torch.device("cpu")
        self._rows = torch.from_numpy(np.concatenate(views))

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter([self._rows])


@dataclass(frozen=True)
class Answers:
    """Logits [N, C] and truth [N] of some radiographs, and their patients [N]."""

    logits: Floats
    truth: npt.NDArray[np.int64]
    patient: npt.NDArray[np.int64]

    def some(self, share: float, rng: np.random.Generator) -> Answers:
        """Return those of a share of the patients."""
        patients = np.unique(self.patient)
        kept = np.isin(self.patient, rng.choice(patients, max(2, int(len(patients) * share)), replace=False))
        return Answers(self.logits[kept], self.truth[kept], self.patient[kept])


def best_youden(probabilities: Floats, truth: npt.NDArray[np.int64]) -> float:
    """Return the best cut among the values themselves."""
    false_positive, true_positive, cuts = roc_curve(truth, probabilities, drop_intermediate=False)
    return float(min(cuts[np.argmax(true_positive - false_positive)], 1.0))


def rules(recipe: Recipe) -> Mapping[str, Callable[[Floats, npt.NDArray[np.int64]], float]]:
    """Each way to choose a cut from probabilities of class 1 and truth."""

    def by(threshold: str, anchor: int) -> Callable[[Floats, npt.NDArray[np.int64]], float]:
        asked = recipe.model_copy(update={"threshold": threshold, "anchor": anchor, "sensitivity": 0.95})
        return lambda p, truth: operating_threshold(p, truth, asked)

    return {
        "balanced, anchor 100 (head)": by("balanced", 100),
        "balanced": by("balanced", 0),
        "sensitivity .95, anchor 100": by("sensitivity", 100),
        "sensitivity .95": by("sensitivity", 0),
        "best of the values": best_youden,
        "half": by("half", 0),
    }


class Bed:
    """Features of all radiographs in their main directions, and heads fitted to parts of them."""

    def __init__(self, bench: Bench, recipe: Recipe) -> None:
        self.bench, self.recipe = bench, recipe
        rows = bench.folder.rows
        rows = rows.sample(min(bench.images or len(rows), len(rows)), random_state=0).sort_values("digest")
        self.rows = rows.reset_index(drop=True)
        self.truth = bench.truth(self.rows).astype(np.int64)
        self.patient = np.unique(self.rows["patient"], return_inverse=True)[1]
        plain, other, framed = self._features()
        mean, deviation = plain.mean(0), plain.std(0).clip(1e-6)
        plain, other, framed = ((view - mean) / deviation for view in (plain, other, framed))
        directions = np.linalg.eigh((plain.T @ plain).astype(np.float64))[1][:, -DIRECTIONS:].astype(np.float32)
        self.plain, self.other, self.framed = (view @ directions for view in (plain, other, framed))

    def _features(self) -> tuple[Singles, Singles, Singles]:
        """Features [N, F] as they are, of the recipe's other view, and with the first class framed otherwise."""
        backbone = backbones.load(self.recipe.backbone, self.recipe.weights)
        whole = self.rows.assign(side="train")
        trainer = Trainer(self.recipe, backbone, self.bench.folder, whole, self.bench.settings)  # type: ignore[arg-type]
        digests, drawn = list(self.rows["digest"]), self.recipe.augmentation
        trainer.pixels.ensure(whole, self.bench.folder.read)
        plain, other = (trainer.extracted.rows(digests, view, drawn).part(0, len(digests)) for view in (0, 1))
        framed, first = plain.copy(), np.flatnonzero(self.truth == 0)
        trainer.network.eval()
        with torch.inference_mode():
            for at in np.array_split(first, max(1, len(first) // 64)):
                pixels = torch.from_numpy(taller(trainer.pixels.get([digests[i] for i in at])))
                framed[at] = trainer.network.features(pixels.unsqueeze(1)).float().numpy()
        return plain, other, framed

    def fitted(self, seed: int, share: float) -> tuple[Answers, Answers, Answers]:
        """Fit a head to a share of the patients; return its answers to validation, held-out and held-out reframed."""
        sides = self.bench.folder.split(seed).set_index("digest")["side"].loc[list(self.rows["digest"])].to_numpy()
        drawn = np.random.default_rng(seed).random(self.patient.max() + 1)[self.patient] < share
        training = np.flatnonzero((sides == "train") & drawn)
        labels = torch.from_numpy(self.truth[training])
        counts = torch.bincount(labels, minlength=2).float()
        blocks = Blocks(self.plain[training], self.other[training])
        fit = HeadFit(blocks, labels, self.recipe, counts.sum() / (2 * counts))  # type: ignore[arg-type]
        for _ in range(self.recipe.epochs):
            fit.advance()
        weight, bias = fit.weight.detach().numpy(), fit.bias.detach().numpy()

        def answers(features: Singles, at: npt.NDArray[np.int64]) -> Answers:
            logits = (features[at] @ weight.T + bias).astype(np.float64)
            return Answers(logits, self.truth[at], self.patient[at])

        validation, held_out = np.flatnonzero((sides == "validation") & drawn), np.flatnonzero(sides == "held-out")
        return (
            answers(self.plain, validation),
            answers(self.plain, held_out),
            answers(self.framed, held_out),
        )


def at(answers: Answers, heat: float, cuts: npt.ArrayLike) -> AtCuts:
    """Return what answers come to at some cuts."""
    return at_cuts(expit((answers.logits[:, 1] - answers.logits[:, 0]) / heat), answers.truth, cuts)


def judged(bed: Bed, seed: int) -> dict[str, dict[str, float]]:
    """Return what one split says of each rule."""
    small, large = bed.fitted(seed, 1 / 3), bed.fitted(seed, 1.0)
    few = large[0].some(1 / FEW, np.random.default_rng(seed))
    areas = [roc_auc_score(a.truth, log_softmax(a.logits, 1)[:, 1]) for a in (small[1], large[1])]
    found = {}
    for name, rule in rules(bed.recipe).items():

        def chosen(
            validation: Answers, rule: Callable[[Floats, npt.NDArray[np.int64]], float] = rule
        ) -> tuple[float, float]:
            heat = temperature(validation.logits, validation.truth)
            margin = validation.logits[:, 1] - validation.logits[:, 0]
            return heat, rule(expit(margin / heat), validation.truth)

        heat, own = chosen(large[0])
        accuracy = at(large[1], heat, own).accuracy[0]
        smaller_heat, smaller_own = chosen(small[0])
        before = at(small[1], smaller_heat, smaller_own).accuracy[0]
        framed = at(large[2], heat, own)
        found[name] = {
            "cut": own,
            "accuracy": accuracy,
            "below the best": at(large[1], heat, np.linspace(0.02, 0.98, 97)).accuracy.max() - accuracy,
            "framed otherwise": framed.accuracy[0],
            "framed, specificity": framed.specificity[0],
            "few": chosen(few)[1],
            "refused": areas[1] > areas[0] and accuracy <= before,
        }
        found[name] = {what: float(value) for what, value in found[name].items()}
    return found


def table(splits: Sequence[Mapping[str, Mapping[str, float]]]) -> list[str]:
    """Return lines for people: means over splits with spread, and how many were refused."""
    keys = list(splits[0]["half"])
    lines = [f"{'rule':<30}" + "".join(f"{key:>20}" for key in keys)]
    for name in splits[0]:
        values = {key: np.array([split[name][key] for split in splits]) for key in keys}
        shown = [f"{v.mean():.4f} ± {v.std():.4f}" for key, v in values.items() if key != "refused"]
        lines.append(f"{name:<30}" + "".join(f"{text:>20}" for text in [*shown, f"{values['refused'].sum():.0f}"]))
    return lines


def main() -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="radiographs by class")
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--images", type=int, default=0, help="at most so many; 0: all")
    parser.add_argument("--cache", type=Path, default=Path("bench/quality"))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    bed = Bed(Bench(arguments.data, arguments.cache.absolute(), arguments.images, 0), load_recipe("head"))
    print(f"{len(bed.rows)} radiographs of {bed.patient.max() + 1} patients, {arguments.splits} splits", flush=True)
    splits = [judged(bed, seed) for seed in range(arguments.splits)]
    print("\n".join(table(splits)))
    if arguments.json:
        arguments.json.write_text(json.dumps(splits, indent=1))


if __name__ == "__main__":
    main()
