"""How much of a model's accuracy is luck of its operating threshold, by the rule that chooses it.

    python benchmarks/threshold.py --data FOLDER [--splits 20] [--images N] [--cache FOLDER] [--json FILE]

FOLDER holds <CLASS>/* below any number of folders. Features of the frozen backbone of recipe `head` are computed once
and kept in --cache. Each split by patient fits a quick head (the recipe's loss on the 400 main directions of the
features) twice: on a third of the patients, and on all, as a night with three times the radiographs does. Each rule
sees the validation patients alone, or out-of-fold answers of the training patients, which five further heads give, and
is judged on the same held-out ones.

- `cut`, `accuracy`, `below the best`: of all patients; the spread of the cut over splits is its noise, the last how far
  accuracy lies below that of the best cut on the held-out patients themselves.
- `framed otherwise`: accuracy and specificity with the first class cut and stretched as in quality.py.
- `unseen`: accuracy on all radiographs of a source that nothing was fitted to, nor a cut chosen on, and on held-out
  ones of the other class; the mean over sources.
- `few`: the spread of the cut when a fifteenth of the patients that a rule looks at is there.
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
from scipy.special import expit, log_softmax, logit
from sklearn.metrics import roc_auc_score, roc_curve

from xray_pipeline.evaluation.sweep import AtCuts, at_cuts
from xray_pipeline.training.calibration import operating_threshold, temperature
from xray_pipeline.training.head_fit import HeadFit
from xray_pipeline.training.pretrained import backbone_of
from xray_pipeline.training.recipe import Recipe, load_recipe
from xray_pipeline.training.trainer import Trainer

DIRECTIONS = 400
FEW = 15
FOLDS = 5

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


@dataclass(frozen=True)
class Fitted:
    """What a head fitted to a share of the patients answers: `folds` are out-of-fold answers of its training patients,
    `tests` those that it is judged by."""

    validation: Answers
    folds: tuple[Answers, ...]
    tests: tuple[Answers, ...]


Cut = Callable[[Floats, npt.NDArray[np.int64]], float]
"""From probabilities of class 1 and truth to a cut."""
Rule = Callable[[Fitted], tuple[float, float]]
"""From what a fit shows to a temperature and a cut on probabilities at it."""


def best_youden(probabilities: Floats, truth: npt.NDArray[np.int64]) -> float:
    """Return the best cut among the values themselves."""
    false_positive, true_positive, cuts = roc_curve(truth, probabilities, drop_intermediate=False)
    return float(min(cuts[np.argmax(true_positive - false_positive)], 1.0))


def joined(parts: Sequence[Answers]) -> Answers:
    """Return all answers of some parts."""
    return Answers(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("logits", "truth", "patient")))


def rules(recipe: Recipe) -> Mapping[str, Rule]:
    """Each way to choose a temperature and a cut on probabilities of class 1 from what a fit shows."""

    def by(threshold: str, anchor: int) -> Cut:
        asked = recipe.model_copy(update={"threshold": threshold, "anchor": anchor, "sensitivity": 0.95})
        return lambda p, truth: operating_threshold(p, truth, asked)

    def on(answers: Answers, cut: Cut) -> tuple[float, float]:
        heat = temperature(answers.logits, answers.truth)
        return heat, cut(expit((answers.logits[:, 1] - answers.logits[:, 0]) / heat), answers.truth)

    def validation(cut: Cut) -> Rule:
        return lambda fitted: on(fitted.validation, cut)

    def crossed(cut: Cut) -> Rule:
        return lambda fitted: on(joined([fitted.validation, *fitted.folds]), cut)

    def averaged(cut: Cut) -> Rule:
        def rule(fitted: Fitted) -> tuple[float, float]:
            """The mean of each part's cut on the logits, at the temperature of all parts."""
            parts = [on(part, cut) for part in (fitted.validation, *fitted.folds)]
            heat = temperature(joined(fitted.folds).logits, joined(fitted.folds).truth)
            return heat, float(expit(np.mean([own * logit(p) for own, p in parts]) / heat))

        return rule

    return {
        "balanced, anchor 100 (head)": validation(by("balanced", 100)),
        "balanced": validation(by("balanced", 0)),
        "sensitivity .95, anchor 100": validation(by("sensitivity", 100)),
        "sensitivity .95": validation(by("sensitivity", 0)),
        "best of the values": validation(best_youden),
        "half": validation(by("half", 0)),
        "cross-fitted balanced, 100": crossed(by("balanced", 100)),
        "cross-fitted balanced": crossed(by("balanced", 0)),
        "cross-fitted sensitivity": crossed(by("sensitivity", 0)),
        "averaged balanced, 100": averaged(by("balanced", 100)),
        "averaged balanced": averaged(by("balanced", 0)),
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
        self.source = self.rows["source"].to_numpy()
        plain, other, framed = self._features()
        mean, deviation = plain.mean(0), plain.std(0).clip(1e-6)
        plain, other, framed = ((view - mean) / deviation for view in (plain, other, framed))
        directions = np.linalg.eigh((plain.T @ plain).astype(np.float64))[1][:, -DIRECTIONS:].astype(np.float32)
        self.plain, self.other, self.framed = (view @ directions for view in (plain, other, framed))

    def _features(self) -> tuple[Singles, Singles, Singles]:
        """Features [N, F] as they are, of the recipe's other view, and with the first class framed otherwise."""
        backbone = backbone_of(self.recipe, self.bench.settings)
        whole = self.rows.assign(side="train")
        trainer = Trainer(self.recipe, backbone, self.bench.folder, whole, self.bench.settings)  # type: ignore[arg-type]
        digests, drawn = list(self.rows["digest"]), self.recipe.augmentation
        trainer.pixels.ensure(whole, self.bench.folder.read)
        plain, other = (trainer.extracted.rows(digests, view, drawn).part(0, len(digests)) for view in (0, 1))
        framed, first = plain.copy(), np.flatnonzero(self.truth == 0)
        for at in np.array_split(first, max(1, len(first) // 64)):
            pixels = torch.from_numpy(taller(trainer.pixels.get([digests[i] for i in at])))
            framed[at] = trainer.extracted.engine.features(pixels.unsqueeze(1)).numpy()
        return plain, other, framed

    def _head(self, training: npt.NDArray[np.int64]) -> Callable[[Singles, npt.NDArray[np.int64]], Answers]:
        """Fit a head to some radiographs; return what it answers by features and places."""
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

        return answers

    def fitted(self, seed: int, share: float, unseen: str = "") -> Fitted:
        """Fit a head to a share of the patients, in one split, without a source: its tests then are that source and the
        other class; else they are all held-out radiographs, and these reframed."""
        sides = self.bench.folder.split(seed).set_index("digest")["side"].loc[list(self.rows["digest"])].to_numpy()
        rng = np.random.default_rng(seed)
        seen = (rng.random(self.patient.max() + 1)[self.patient] < share) & (self.source != unseen)
        fold = rng.integers(0, FOLDS, self.patient.max() + 1)[self.patient]
        training, validation = (np.flatnonzero((sides == side) & seen) for side in ("train", "validation"))
        answers, held_out = self._head(training), np.flatnonzero(sides == "held-out")
        folds = []
        for number in range(FOLDS):
            own = fold[training] == number
            folds.append(self._head(training[~own])(self.plain, training[own]))
        if unseen:
            of_it = self.source == unseen
            other = (sides == "held-out") & (self.truth != self.truth[of_it][0])
            tests = (answers(self.plain, np.flatnonzero(of_it | other)),)
        else:
            tests = (answers(self.plain, held_out), answers(self.framed, held_out))
        return Fitted(answers(self.plain, validation), tuple(folds), tests)


def at(answers: Answers, heat: float, cuts: npt.ArrayLike) -> AtCuts:
    """Return what answers come to at some cuts."""
    return at_cuts(expit((answers.logits[:, 1] - answers.logits[:, 0]) / heat), answers.truth, cuts)


def judged(bed: Bed, seed: int) -> dict[str, dict[str, float]]:
    """Return what one split says of each rule."""
    small, large = bed.fitted(seed, 1 / 3), bed.fitted(seed, 1.0)
    unseen = [bed.fitted(seed, 1.0, str(source)) for source in np.unique(bed.source)]
    rng = np.random.default_rng(seed)
    few = Fitted(large.validation.some(1 / FEW, rng), tuple(f.some(1 / FEW, rng) for f in large.folds), ())
    areas = [roc_auc_score(a.truth, log_softmax(a.logits, 1)[:, 1]) for a in (small.tests[0], large.tests[0])]
    found = {}
    for name, rule in rules(bed.recipe).items():
        heat, own = rule(large)
        accuracy = at(large.tests[0], heat, own).accuracy[0]
        framed = at(large.tests[1], heat, own)
        values = {
            "cut": own,
            "accuracy": accuracy,
            "below the best": at(large.tests[0], heat, np.linspace(0.02, 0.98, 97)).accuracy.max() - accuracy,
            "framed otherwise": framed.accuracy[0],
            "framed, specificity": framed.specificity[0],
            "unseen": np.mean([at(one.tests[0], *rule(one)).accuracy[0] for one in unseen]),
            "few": rule(few)[1],
            "refused": areas[1] > areas[0] and accuracy <= at(small.tests[0], *rule(small)).accuracy[0],
        }
        found[name] = {what: float(value) for what, value in values.items()}
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
    splits = []
    for seed in range(arguments.splits):
        splits.append(judged(bed, seed))
        print(f"split {seed} is judged", flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(splits, indent=1))
    print("\n".join(table(splits)))


if __name__ == "__main__":
    main()
