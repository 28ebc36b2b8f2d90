"""How good each recipe is on patients it has not seen, under stress, and on sources it has not seen.

    python benchmarks/quality.py --data FOLDER [--recipes head "head;views=1;consistency=0"] [--seeds 0 1 2]
                                 [--images N] [--tested N] [--sources] [--json FILE]

FOLDER holds <CLASS>/* below any number of folders. A recipe may be followed by KEY=VALUE, separated by semicolons. Each
seed splits the patients anew (70 % train, 15 % validation, 15 % held-out); all choices are made on validation patients
and each figure is at the threshold the model would ship with.

- `held-out`: as they are. `stress`: mean and worst over the perturbations of stress.py (its baseline aside).
- `framed otherwise`: only the first class, cut to 77 % of its height and stretched back: a chest that looks taller, as
  the other class does in the Kermany set. A model that reads the framing fails here, as it does in the next hospital.
- `without SOURCE` (with --sources): trained without all radiographs whose file names belong to one source, tested on
  those and on held-out ones of the other class. Sensitivity or specificity tells how many of the source are found.

--images takes that many training radiographs and a quarter as many for validation, --tested at most that many for each
row; the first by digest, which is as good as random. Features and pixels are kept in --cache. Recipes that train the
network take hours on a CPU, so give them --images.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from xray_pipeline.base.errors import RadiographError
from xray_pipeline.base.settings import IntakeRules, Settings
from xray_pipeline.base.storage import open_store
from xray_pipeline.dataset.pixels import PixelCache
from xray_pipeline.dataset.split import side_of
from xray_pipeline.evaluation import stress
from xray_pipeline.evaluation.metric_table import HEADLINE
from xray_pipeline.images import radiograph
from xray_pipeline.models.classifier import Classifier
from xray_pipeline.training import overrides
from xray_pipeline.training.candidate import versions
from xray_pipeline.training.checkpoints import Checkpoints
from xray_pipeline.training.fitting import fit
from xray_pipeline.training.pretrained import backbone_of
from xray_pipeline.training.recipe import Recipe, load_recipe
from xray_pipeline.training.trainer import Trainer

SOURCES = re.compile(r"(NORMAL2|IM)-|_(bacteria|virus)_")
STRESSED = 100  # radiographs a perturbation is measured on

Metrics = dict[str, float]
Images = np.ndarray


class Folder:
    """Labelled files as the trainer wants them: rows by digest, and bytes by digest."""

    def __init__(self, data: Path, classes: Sequence[str]) -> None:
        patient, found = re.compile(IntakeRules().patient_pattern), {}
        self.paths: dict[str, Path] = {}
        for path in sorted(data.rglob("*")):
            if path.parent.name not in classes or path.name.startswith("."):
                continue
            try:
                file = radiograph.normalise(path.read_bytes(), radiograph.Limits())
            except RadiographError as error:
                print(f"left out: {path.name}: {error}")
                continue
            named, source = patient.match(path.name), SOURCES.search(path.name)
            found[file.digest] = {
                "digest": file.digest,
                "suffix": file.suffix,
                "label": path.parent.name,
                "patient": named[1] if named else path.name,
                "source": (source[1] or source[2]) if source else "other",
                "width": file.facts.width,
                "height": file.facts.height,
            }
            self.paths[file.digest] = path
        self.rows = pd.DataFrame(found.values()).sort_values("digest", ignore_index=True)

    def read(self, digest: str, suffix: str) -> bytes:
        """Return the stored form of a radiograph."""
        return radiograph.normalise(self.paths[digest].read_bytes(), radiograph.Limits()).data

    def split(self, seed: int) -> pd.DataFrame:
        """Return the rows with a side each, a function of seed and patient."""
        keys = {name: hashlib.sha256(f"{seed} {name}".encode()).hexdigest() for name in self.rows["patient"]}
        sides = {name: side_of(key, "", "patient", 0.15, 0.15) for name, key in keys.items()}
        return self.rows.assign(side=self.rows["patient"].map(sides))


class Bench:
    """Everything that stays the same from recipe to recipe."""

    def __init__(self, data: Path, cache: Path, images: int, tested: int) -> None:
        self.settings = Settings(home=cache, cache=cache / "cache")
        self.folder = Folder(data, self.settings.classes)
        self.images, self.tested = images or None, tested or None
        self.results = cache / "results"

    def kept(
        self, recipe: Recipe, what: object, measure: Callable[[Recipe, Any], dict[str, Metrics]]
    ) -> dict[str, Metrics]:
        """Return `measure(recipe, what)`, from an earlier run if it was measured there."""
        facts = [recipe.digest(), measure.__name__, what, self.images, self.tested, versions(), *self.folder.paths]
        path = self.results / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()}.json"
        if not path.exists():
            found = measure(recipe, what)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(found))
        result: dict[str, Metrics] = json.loads(path.read_text())
        return result

    def trained(self, recipe: Recipe, rows: pd.DataFrame) -> Classifier:
        """Train on some rows: at most `images` of side train and a quarter as many of validation."""
        quarter = self.images // 4 if self.images else None
        limits = (("train", self.images), ("validation", quarter))
        rows = pd.concat([rows[rows["side"] == side][:limit] for side, limit in limits], ignore_index=True)
        backbone = backbone_of(recipe, self.settings)
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(recipe, backbone, self.folder, rows, self.settings)  # type: ignore[arg-type]
            fit(trainer, Checkpoints(open_store(folder)), lambda epoch, metrics: None)
            return trainer.classifier()

    def answers(self, model: Classifier, rows: pd.DataFrame, change: Callable[[Images], Images]) -> np.ndarray:
        """Return the probability of the last class for each radiograph after `change`."""
        cache = PixelCache(self.settings.cache, model.side, model.fit)
        cache.ensure(rows, self.folder.read)
        return model.probabilities(change(cache.get(list(rows["digest"]))))[:, 1]

    def judged(self, model: Classifier, rows: pd.DataFrame, found: np.ndarray) -> Metrics:
        """Return the metrics at the threshold the model ships with."""
        truth, said = self.truth(rows), found >= model.threshold
        return {
            "accuracy": float((said == truth).mean()),
            "auc": float(roc_auc_score(truth, found)),
            "sensitivity": float(said[truth].mean()),
            "specificity": float((~said[~truth]).mean()),
        }

    def truth(self, rows: pd.DataFrame) -> np.ndarray:
        """Return whether each radiograph is of the last class."""
        return (rows["label"] == self.settings.positive).to_numpy()

    def by_seed(self, recipe: Recipe, seed: int) -> dict[str, Metrics]:
        """Train on one split and measure what does not need another training."""
        rows = self.folder.split(seed)
        began = time.monotonic()
        model = self.trained(recipe, rows)
        seconds = time.monotonic() - began
        held_out = rows[rows["side"] == "held-out"][: self.tested]
        sample = held_out.head(STRESSED)
        named = {
            name: self.judged(model, sample, self.answers(model, sample, change))
            for name, change in stress.PERTURBATIONS.items()
            if name not in (stress.UNTOUCHED, stress.BASELINE)
        }
        found = self.answers(model, held_out, as_they_are)
        reframed, first = found.copy(), ~self.truth(held_out)
        reframed[first] = self.answers(model, held_out[first], taller)
        return {
            "held-out": self.judged(model, held_out, found),
            "framed otherwise": self.judged(model, held_out, reframed),
            "stress, mean": {key: float(np.mean([m[key] for m in named.values()])) for key in HEADLINE},
            "stress, worst": {key: min(m[key] for m in named.values()) for key in HEADLINE},
            **{f"stress: {name}": metrics for name, metrics in named.items()},
            "settings": {"threshold": model.threshold, "temperature": model.temperature, "seconds": seconds},
        }

    def by_source(self, recipe: Recipe, source: str) -> dict[str, Metrics]:
        """Train without a source; measure on it and on held-out radiographs of the other classes."""
        rows = self.folder.split(0)
        of_it = rows["source"] == source
        label = rows.loc[of_it, "label"].iloc[0]
        others = rows[(rows["side"] == "held-out") & (rows["label"] != label)]
        model = self.trained(recipe, rows[~of_it])
        tested = pd.concat([rows[of_it][: self.tested], others[: self.tested]], ignore_index=True)
        return {f"without {source}": self.judged(model, tested, self.answers(model, tested, as_they_are))}


def as_they_are(pixels: Images) -> Images:
    """Change nothing."""
    return pixels


def taller(pixels: Images) -> Images:
    """Cut each picture to 77 % of its height and stretch that back."""
    side, cut = pixels.shape[-1], round(pixels.shape[-1] * 0.115)
    box = (0, cut, side, side - cut)
    stretched = [Image.fromarray(p).resize((side, side), Image.Resampling.BILINEAR, box=box) for p in pixels]
    return np.stack([np.asarray(picture) for picture in stretched])


def summary(runs: Sequence[dict[str, Metrics]]) -> dict[str, dict[str, list[float]]]:
    """Return mean and standard deviation over seeds, by row and metric."""
    return {
        row: {
            key: [float(np.mean([r[row][key] for r in runs])), float(np.std([r[row][key] for r in runs]))] for key in m
        }
        for row, m in runs[0].items()
    }


def table(name: str, result: dict[str, dict[str, list[float]]]) -> str:
    """Return lines for people: each metric as mean and deviation over seeds."""
    lines = [f"{name:<44}" + "".join(f"{key:>16}" for key in HEADLINE)]
    for row, metrics in result.items():
        if row != "settings":
            lines.append(f"  {row:<42}" + "".join("{:>9.3f} ± {:.3f}".format(*metrics[key]) for key in HEADLINE))
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="radiographs by class")
    parser.add_argument("--recipes", nargs="+", default=["head", "head;views=1;threshold=balanced"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=0, help="train on at most so many; 0: all")
    parser.add_argument("--tested", type=int, default=400, help="measure on at most so many; 0: all")
    parser.add_argument("--sources", action="store_true", help="leave out one source at a time as well")
    parser.add_argument("--cache", type=Path, default=Path("bench/quality"))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    bench = Bench(arguments.data, arguments.cache.absolute(), arguments.images, arguments.tested)
    machine = (
        f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    counted = bench.folder.rows["source"].value_counts()
    print(f"{len(bench.folder.rows)} radiographs of {bench.folder.rows['patient'].nunique()} patients; {machine}")
    results: dict[str, Any] = {
        "machine": machine,
        "images": arguments.images,
        "tested": arguments.tested,
        "recipes": {},
    }
    for text in arguments.recipes:
        name, *changes = text.split(";")
        recipe = load_recipe(name, overrides.parse(changes))
        found = (
            summary([bench.kept(recipe, seed, bench.by_seed) for seed in arguments.seeds]) if arguments.seeds else {}
        )
        if arguments.sources:
            for source in counted.index:
                found |= summary([bench.kept(recipe, str(source), bench.by_source)])
        results["recipes"][text] = found
        print(table(text, found), flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
