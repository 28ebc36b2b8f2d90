"""What training costs: beside the article's own script, as history grows, and over a million rows.

    python benchmarks/training.py [PART...] [--data FOLDER] [--small FOLDER] [--images N] [--json FILE]

Parts (all without any named; those whose folder is not given are left out):
  features   recipe article-features on kept features beside the script, from empty and from full caches
  finetune   recipe article-finetune beside the script
  feeding    one core: pixels from the memory map beside ImageFolder, with and without augmentation and normalising
  nights     a night with the same number of new radiographs after short and long histories, then one with none: what
             the tasks do, without start and imports, and with 10 radiographs under stress, so that nothing that costs
             the same each night can hide what grows
  rows       snapshot, split and head of a dataset of made features: seconds and the process's peak memory

--data has full-resolution radiographs by class, --small ones of 224 pixels (both: FOLDER/<CLASS>/*). Both sides of a
comparison see the same images, split, backbone, weights and number of epochs, run one after the other in this process
with the same number of threads, and start from decoded nothing. Ratios are given by the clock and by CPU seconds, which
other load on the machine disturbs less (with --threads 1 hardly). Without network access only efficientnet_lite0 has
ImageNet weights, so AUCs are its; with --backbone resnet18 --weights none speed is that of the article's network and
AUC means nothing.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from article import loader
from article import train as train_as_the_article
from pydantic import SecretStr
from sklearn.metrics import roc_auc_score
from tasks import Site, by_task, deliver

from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import open_store
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.models import backbones
from xray_pipeline.night import intake_steps
from xray_pipeline.night.run import Run
from xray_pipeline.training.augmenting import augmented
from xray_pipeline.training.checkpoints import Checkpoints
from xray_pipeline.training.feeding import Feeder
from xray_pipeline.training.fitting import fit
from xray_pipeline.training.recipe import Recipe, load_recipe
from xray_pipeline.training.trainer import Trainer

CLASSES = ("NORMAL", "PNEUMONIA")
KEY = SecretStr("of a benchmark, no secret")  # the same split each time
JUDGED = ("find_deliveries", "check_delivery", "commit_deliveries", "look_ahead", "train", "evaluate", "decide")
SPLIT: dict[str, Any] = {"split_validation": 0.2, "split_held_out": 0.3}


class Home:
    """A dataset of some images by class in a folder of its own, and the same images as ImageFolder wants them."""

    def __init__(self, root: Path, source: Path, count: int) -> None:
        self.settings = Settings(home=root / "home", settle_seconds=0, patient_key=KEY, **SPLIT)
        deliver(Path(self.settings.incoming), "first", source, 0, count)
        run = Run(self.settings)
        intake_steps.check_delivery(run, "first")
        intake_steps.commit_deliveries(run, ["first"])
        self.dataset = Dataset(self.settings)
        snapshot = self.dataset.snapshot()
        assert snapshot is not None
        self.rows = self.dataset.rows(snapshot)
        self.folder = root / "images"
        for row in self.rows.itertuples():
            place = self.folder / row.side / row.label
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{row.digest}{row.suffix}").write_bytes(self.dataset.read(row.digest, row.suffix))

    def empty_cache(self) -> None:
        """Forget decoded pixels and features."""
        shutil.rmtree(self.settings.cache, ignore_errors=True)

    def train(self, recipe: Recipe) -> dict[str, float]:
        """Train with a recipe; return seconds by the clock and of CPU, and held-out AUC."""
        backbone = backbones.load(recipe.backbone, recipe.weights)
        with tempfile.TemporaryDirectory() as name:
            start, cpu = time.perf_counter(), time.process_time()
            trainer = Trainer(recipe, backbone, self.dataset, self.rows, self.settings)
            fit(trainer, Checkpoints(open_store(name)), lambda epoch, metrics: None)
            model = trainer.classifier()
            seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
        held_out = self.rows[self.rows["side"] == "held-out"]
        trainer.pixels.ensure(held_out, self.dataset.read)
        scores = model.probabilities(trainer.pixels.get(list(held_out["digest"])))[:, 1]
        auc = float(roc_auc_score(held_out["label"] == CLASSES[1], scores))
        return {"seconds": seconds, "cpu_seconds": cpu_seconds, "auc": auc}


def features(source: Path, count: int, asked: argparse.Namespace) -> dict[str, Any]:
    """article-features: the script, then the recipe from empty and from full caches."""
    recipe = load_recipe("article-features", {"backbone": asked.backbone, "weights": asked.weights})
    with tempfile.TemporaryDirectory() as name:
        home = Home(Path(name), source, count)
        script = train_as_the_article(home.folder, "features", recipe.epochs, recipe.backbone, recipe.weights)
        home.empty_cache()
        cold, warm = home.train(recipe), home.train(recipe)
    ratios = {"cold": _ratios(script, cold), "warm": _ratios(script, warm)}
    return {"images": len(home.rows), "script": script, "cold": cold, "warm": warm, "ratios": ratios}


def _ratios(script: dict[str, float], ours: dict[str, float]) -> dict[str, float]:
    return {
        "by_clock": script["seconds"] / ours["seconds"],
        "by_cpu": script["cpu_seconds"] / ours["cpu_seconds"],
    }


def finetune(source: Path, count: int, asked: argparse.Namespace) -> dict[str, Any]:
    """article-finetune: the script, then the recipe from empty caches."""
    given = {"backbone": asked.backbone, "weights": asked.weights, "epochs": asked.epochs}
    recipe = load_recipe("article-finetune", given)
    with tempfile.TemporaryDirectory() as name:
        home = Home(Path(name), source, count)
        script = train_as_the_article(home.folder, "finetune", recipe.epochs, recipe.backbone, recipe.weights)
        home.empty_cache()
        ours = home.train(recipe)
    ratios = _ratios(script, ours)
    return {"images": len(home.rows), "epochs": recipe.epochs, "script": script, "recipe": ours, "ratios": ratios}


def feeding(source: Path, count: int) -> dict[str, Any]:
    """Milliseconds a radiograph on one core, from ImageFolder and from the memory map."""
    recipe = load_recipe("article-finetune")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        home = Home(Path(name), source, count)
        train = home.rows[home.rows["side"] == "train"]
        start = time.process_time()
        for _ in loader(home.folder, "train", True):
            continue
        script = 1000 * (time.process_time() - start) / len(train)
        trainer = Trainer(
            load_recipe("article-finetune", {"weights": "none"}),
            backbones.load("resnet18", "none"),
            home.dataset,
            home.rows,
            home.settings,
        )
        trainer.pixels.ensure(train, home.dataset.read)
        ours = {
            "pixels": _fed(trainer, train, recipe, lambda batch, generator: batch),
            "augmented": _fed(
                trainer,
                train,
                recipe,
                lambda batch, generator: backbones.normalise(
                    augmented(recipe.augmentation, batch, recipe.crop, generator), (0.5,) * 3, (0.25,) * 3
                ),
            ),
        }
    torch.set_num_threads(threads)
    ratios = {what: script / milliseconds for what, milliseconds in ours.items()}
    return {"images": len(train), "script_ms": script, "recipe_ms": ours, "ratios": ratios}


def _fed(trainer: Trainer, train: pd.DataFrame, recipe: Recipe, work: Callable[..., torch.Tensor]) -> float:
    labels = torch.zeros(len(train), dtype=torch.int64)
    taken = []
    with Feeder(trainer.pixels.rows.view(list(train["digest"])), labels, 32, 0, torch.device("cpu")) as feeder:
        generator = torch.Generator().manual_seed(0)
        for epoch in range(21):
            start = time.process_time()
            for step in range(feeder.steps):
                work(feeder.take(epoch, step)[0], generator)
            taken.append(1000 * (time.process_time() - start) / len(train))
    return statistics.median(taken[1:])


def nights(source: Path, base: int, new: int, factors: list[int]) -> dict[str, Any]:
    """Time a night with `new` radiographs after `base` times each factor, and one with none, with recipe `head`.

    The time is the tasks' work up to the decision: whether one candidate is registered and another refused is chance.
    """
    found = []
    for factor in factors:
        with tempfile.TemporaryDirectory() as name:
            site = Site(Path(name), stress_images=10)
            deliver(site.incoming, "history", source, 0, base * factor)
            if "promote" not in by_task(site.night()):
                raise SystemExit(f"a history of {base} makes no champion to compare with; give a larger --base")
            deliver(site.incoming, "new", source, base * factor, new)
            second = by_task(site.night())
            before = _kept(site.home / "cache")
            third = by_task(site.night())
            after = _kept(site.home / "cache")
        judged = [second[task].work for task in JUDGED]
        found.append(
            {
                "history": base * factor,
                "new": new,
                "seconds": sum(clock for clock, _ in judged),
                "cpu_seconds": sum(cpu for _, cpu in judged),
                "steps": {name: task.work for name, task in second.items()},
                "seconds_without_new_files": sum(task.work[0] for task in third.values()),
                "decoded_or_extracted_without_new_files": after - before,
            }
        )
        print(f"  history {base * factor}: {found[-1]['seconds']:.1f} s", file=sys.stderr)
    return {"nights": found, "ratios": _ratios(found[-1], found[0])}


def _kept(cache: Path) -> int:
    """How many rows of pixels and features are kept."""
    return sum(len(json.loads(path.read_bytes())["digests"]) for path in cache.glob("*-*/*.json"))


def rows(count: int, width: int) -> dict[str, Any]:
    """Snapshot, split and head of `count` made radiographs with `width` made features, in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, str(Path(__file__).with_name("made_rows.py")), name, str(count), str(width)]
        subprocess.run([*command, "make"], check=True)
        done = subprocess.run([*command, "train"], check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout))


def table(result: dict[str, Any]) -> str:
    """Return what was measured as lines of Markdown."""
    lines = ["| measured | script, or short history | recipe, or long history | ratio |", "| --- | --- | --- | --- |"]
    return "\n".join([*lines, *_beside_the_script(result), *_growing(result)])


def _beside_the_script(result: dict[str, Any]) -> list[str]:
    lines = []
    for source in ("full", "224"):
        if part := result.get(f"features_{source}"):
            for how in ("cold", "warm"):
                what = f"article-features, {source}, {how}, {part['images']} images"
                lines.append(_line(what, _shown(part["script"]), _shown(part[how]), _both(part["ratios"][how])))
        if part := result.get(f"finetune_{source}"):
            what = f"article-finetune, {source}, {part['images']} images, {part['epochs']} epochs"
            lines.append(_line(what, _shown(part["script"]), _shown(part["recipe"]), _both(part["ratios"])))
    if part := result.get("feeding"):
        for what, ratio in part["ratios"].items():
            script, ours = f"{part['script_ms']:.1f} ms", f"{part['recipe_ms'][what]:.3f} ms"
            lines.append(_line(f"feeding a radiograph, {what}, one core", script, ours, f"{ratio:.0f}"))
    return lines


def _growing(result: dict[str, Any]) -> list[str]:
    lines = []
    if part := result.get("nights"):
        first, last = part["nights"][0], part["nights"][-1]
        short, long = (f"{n['seconds']:.1f} s after {n['history']}" for n in (first, last))
        lines.append(_line(f"night with {first['new']} new radiographs", short, long, _both(part["ratios"])))
        again = sum(n["decoded_or_extracted_without_new_files"] for n in part["nights"])
        lines.append(_line("decoded or extracted in a night without new files", "", str(again), ""))
    if part := result.get("rows"):
        seconds = ", ".join(f"{name} {value:.1f} s" for name, value in part["seconds"].items())
        lines.append(_line(f"{part['rows']:,} rows, {part['width']} features", "", seconds, ""))
        lines.append(_line("peak memory of that", "", f"{part['peak_mb']} MB", ""))
    return lines


def _shown(run: dict[str, float]) -> str:
    return f"{run['seconds']:.2f} s, AUC {run['auc']:.3f}"


def _both(ratios: dict[str, float]) -> str:
    return f"{ratios['by_clock']:.1f} by clock, {ratios['by_cpu']:.1f} by CPU"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


PARTS = ("features", "finetune", "feeding", "nights", "rows")


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Run the parts that were asked for and whose data is there."""
    wanted = asked.parts or PARTS
    sources = [(name, folder, n) for name, folder, n in _sources(asked) if folder]
    result: dict[str, Any] = {
        "date": date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "backbone": asked.backbone,
        "weights": asked.weights or "ImageNet",
    }
    for name, folder, count in sources:
        if "features" in wanted:
            result[f"features_{name}"] = features(folder, count, asked)
        if "finetune" in wanted:
            result[f"finetune_{name}"] = finetune(folder, count, asked)
    if "feeding" in wanted and asked.data:
        result["feeding"] = feeding(asked.data, asked.images)
    if "nights" in wanted and asked.small:
        result["nights"] = nights(asked.small, asked.base, asked.new, asked.factors)
    if "rows" in wanted:
        result["rows"] = rows(asked.rows, asked.width)
    result["own_peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return result


def _sources(asked: argparse.Namespace) -> list[tuple[str, Path, int]]:
    return [("full", asked.data, asked.images), ("224", asked.small, asked.images)]


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="all without any")
    parser.add_argument("--data", type=Path, help="full-resolution radiographs by class")
    parser.add_argument("--small", type=Path, help="224-pixel radiographs by class")
    parser.add_argument("--images", type=int, default=100, help="of each comparison")
    parser.add_argument("--epochs", type=int, default=10, help="of finetune, on both sides")
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--weights", default="")
    parser.add_argument("--base", type=int, default=300, help="history of the shortest night")
    parser.add_argument("--new", type=int, default=200)
    parser.add_argument("--factors", type=int, nargs="*", default=[1, 4, 16])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--threads", type=int, default=0, help="of torch, for both sides; 0: one per core")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    if asked.threads:
        torch.set_num_threads(asked.threads)
    result = measure(asked)
    if asked.json:
        asked.json.write_text(json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))
    print(table(result))


if __name__ == "__main__":
    main()
