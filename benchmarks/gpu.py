"""What a GPU does with the training and the networks of this package, and whether its numbers are right.

    python benchmarks/gpu.py [PART...] [--images FOLDER] [--device NAME] [--minutes 8] [--tiny] [--json FILE]

It needs torch, torchvision, timm, safetensors, numpy and Pillow, not Airflow, MLflow or anything else, so it runs on a
machine that is lent for minutes. Radiographs are made up; those in FOLDER/**/<CLASS>/* (shared/data/chest_xray, where
that is carried along) come first. Parts, all without any named:
  features    float32 features beside those of the CPU: within 1e-4 of the largest
  loss        the loss of mixed-precision steps beside that of float32 steps on the CPU: within 2 %
  checkpoint  steps, a checkpoint, steps beside as many steps in one go: the same weights, to the last bit on a CPU
  memory      a batch that does not fit is halved, and leaves the same gradient: within 1 %
  plain       a loop as the article writes it (ImageFolder, batches of 4, float32): img/s; the ratios are to it
  speed       ResNet-18 and EfficientNet-Lite0 at 224 px, bf16, channels last, with and without torch.compile: img/s of
              training (feeding, augmentation, step) and of answering, share of time that training waited for data, and
              MFU: multiply-adds that the network needs over what the card can do
Each part prints what it came to, or its error; the exit code is 1 when a check failed or a part broke. --tiny takes
seconds on a CPU and says nothing about speed. Compiling is left out when the minutes run short.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import logging
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchvision import datasets, transforms

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from xray_pipeline.base.errors import WeightsError  # noqa: E402 - from the working tree, which needs no installing
from xray_pipeline.models import backbones  # noqa: E402
from xray_pipeline.models.backbones import Network  # noqa: E402
from xray_pipeline.training.device import Precision, deterministic, pick_device  # noqa: E402
from xray_pipeline.training.feeding import Feeder, generator_of  # noqa: E402
from xray_pipeline.training.state import State  # noqa: E402
from xray_pipeline.training.step import Logits, take_step  # noqa: E402

AUGMENTED = importlib.util.find_spec("pydantic") is not None
if AUGMENTED:  # what describes an augmentation is one of its models
    from xray_pipeline.training.augmentation import Augmentation
    from xray_pipeline.training.augmenting import augmented

CLASSES = ("NORMAL", "PNEUMONIA")
NETWORKS = ("resnet18", "efficientnet_lite0")
CPU = torch.device("cpu")
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12, "T4": 65e12}
"""Dense 16-bit tensor core operations a second, from the vendor's data sheets."""


@dataclass(frozen=True)
class Recipe:
    """The values of a recipe that training by steps reads; those of article-finetune."""

    batch_size: int
    backbone: str = "resnet18"
    mode: str = "finetune"
    fixed_share: float = 0.0
    fixed_stages: int | None = None
    trained_stages: int | None = None
    epochs: int = 1000
    optimizer: str = "sgd"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "constant"
    average: float = 0.0
    patience: int = 0


@dataclass(frozen=True)
class Asked:
    """What the command line asks for: where, how large, how long."""

    device: torch.device
    side: int
    batch: int
    steps: int
    seconds: float
    ends: float
    pixels: np.ndarray
    labels: Tensor
    tiny: bool


class Wrong(Exception):
    """A number is not what it must be."""


def radiographs(folder: Path | None, number: int, side: int) -> tuple[np.ndarray, Tensor]:
    """Return pixels uint8 [N, side, side] and labels [N]: those in the folder first, then made-up ones."""
    taken: list[tuple[np.ndarray, int]] = []
    for label, name in enumerate(CLASSES):
        files = sorted(folder.rglob(f"{name}/*.jp*g"))[: number // 4] if folder else []
        for path in files:
            with Image.open(path) as picture:
                taken.append((np.asarray(picture.convert("L").resize((side, side))), label))
    random = np.random.default_rng(0)
    for label in random.integers(0, 2, max(0, number - len(taken))):
        coarse = Image.fromarray(random.integers(0, 200, (8, 8)).astype(np.uint8)).resize((side, side))
        pixels = np.asarray(coarse).astype(np.int64) + random.integers(0, 20, (side, side))
        pixels[side // 3 : side // 2, side // 4 : side // 2] += 60 * int(label)  # what there is to learn
        taken.append((pixels.clip(0, 255).astype(np.uint8), int(label)))
    order = random.permutation(len(taken))
    return np.stack([taken[at][0] for at in order]), torch.tensor([taken[at][1] for at in order])


def network_of(name: str, device: torch.device) -> Network:
    """Return a network with its ImageNet weights where they are installed, else with random ones, always the same."""
    try:
        backbone = backbones.load(name, "" if name == "efficientnet_lite0" else "none")
    except WeightsError:
        backbone = backbones.load(name, "none")
    torch.manual_seed(0)
    return Network(replace(backbone, mean=(0.5,) * 3, std=(0.25,) * 3), len(CLASSES)).to(device)


def trained(state: State, asked: Asked, steps: int, pixels: Tensor) -> list[float]:
    """Take steps on consecutive batches of pixels [N, 1, S, S]; return the loss of each."""
    losses, size, device = [], state.recipe.batch_size, state.network.head.weight.device
    for number in range(state.number, state.number + steps):
        places = (torch.arange(size) + number * size) % len(pixels)
        before = state.loss
        take_step(
            *(state, state.network, nn.CrossEntropyLoss()),
            *(pixels[places].to(device), asked.labels[places].to(device), number),
        )
        losses.append((state.loss - before) / size)
        state.seen = 0  # a state notes no more answers than an epoch has
    return losses


def state_of(asked: Asked, device: torch.device, precision: Precision, **values: Any) -> State:
    """Return a ResNet-18 at the beginning of its training."""
    recipe = Recipe(batch_size=asked.batch, **values)
    return State(network_of("resnet18", device), recipe, 10**6, precision)  # type: ignore[arg-type]


def features(asked: Asked) -> dict[str, Any]:
    """Compare float32 features with the CPU's."""
    pixels, worst = torch.from_numpy(asked.pixels[: asked.batch]), {}
    for name in NETWORKS:
        computed = []
        for device in (CPU, asked.device):
            network = network_of(name, device).eval()
            with torch.inference_mode(), Precision(device, "float32").cast():
                computed.append(network.features(pixels.to(device)).double().cpu())
        worst[name] = float((computed[1] - computed[0]).abs().max() / computed[0].abs().max())
    return checked({"relative_difference": worst}, max(worst.values()) <= 1e-4, "above 1e-4")


def loss(asked: Asked) -> dict[str, Any]:
    """Compare the loss of mixed-precision steps with that of float32 steps on the CPU."""
    pixels = torch.from_numpy(asked.pixels).unsqueeze(1)
    exact = trained(state_of(asked, CPU, Precision(CPU, "float32")), asked, asked.steps, pixels)
    precision = Precision(asked.device, "bfloat16")
    mixed = trained(state_of(asked, asked.device, precision), asked, asked.steps, pixels)
    off = abs(sum(mixed) - sum(exact)) / sum(exact)
    result = {"type": str(precision.dtype), "float32": exact, "mixed": mixed, "relative_difference": off}
    return checked(result, off <= 0.02, "above 2 %")


def checkpoint(asked: Asked) -> dict[str, Any]:
    """Train, keep a checkpoint and go on from it; compare with training in one go."""
    pixels, precision = torch.from_numpy(asked.pixels).unsqueeze(1), Precision(asked.device)
    whole = state_of(asked, asked.device, precision, average=0.9)
    trained(whole, asked, 2 * asked.steps, pixels)
    first = state_of(asked, asked.device, precision, average=0.9)
    trained(first, asked, asked.steps, pixels)
    kept = io.BytesIO()
    torch.save(first.to_dict(), kept)
    again = state_of(asked, asked.device, precision, average=0.9)
    again.restore(torch.load(io.BytesIO(kept.getvalue()), map_location="cpu", weights_only=True))
    trained(again, asked, asked.steps, pixels)
    off = max(
        float((mine.double() - theirs.double()).abs().max() / theirs.double().abs().max().clamp(min=1e-6))
        for mine, theirs in zip(again.shown.state_dict().values(), whole.shown.state_dict().values(), strict=True)
    )
    limit = 0.0 if asked.device.type == "cpu" else 1e-2  # on a GPU sums are taken in no fixed order
    return checked({"bytes": len(kept.getvalue()), "relative_difference": off}, off <= limit, f"above {limit}")


def memory(asked: Asked) -> dict[str, Any]:
    """Take a step with room for all of the batch, and one without; compare what is learned."""
    pixels, precision = torch.from_numpy(asked.pixels).unsqueeze(1), Precision(asked.device, "float32")
    # All stages are fixed: their normalisation does not depend on the size of a part.
    values = {"mode": "partial", "fixed_share": 1.0}
    roomy, tight = (state_of(asked, asked.device, precision, **values) for _ in range(2))
    with room(asked, None) as peak:
        trained(roomy, asked, 1, pixels)
    with room(asked, peak()):
        trained(tight, asked, 1, pixels)
    learned = [state.network.head.weight.detach().cpu() for state in (roomy, tight)]
    start = network_of("resnet18", CPU).head.weight.detach()
    off = float((learned[1] - learned[0]).norm() / (learned[0] - start).norm())
    result = {"batch": asked.batch, "taken_at_once": tight.micro, "relative_difference": off}
    return checked(result, tight.micro < asked.batch and off <= 0.01, "not halved, or above 1 %")


@contextmanager
def room(asked: Asked, bytes_needed: int | None) -> Iterator[Callable[[], int]]:
    """Leave half of the memory that a step needs, or all; a CPU, which has no such limit, acts as if it were full."""
    if asked.device.type == "cpu":

        def full(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if bytes_needed is not None and isinstance(module, Network) and len(inputs[0]) > asked.batch // 2:
                raise torch.OutOfMemoryError("as if it were full")

        hook = nn.modules.module.register_module_forward_pre_hook(full)
        try:
            yield lambda: 0
        finally:
            hook.remove()
        return
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(asked.device)
    base, total = torch.cuda.memory_allocated(asked.device), torch.cuda.get_device_properties(asked.device).total_memory
    if bytes_needed is not None:
        torch.cuda.set_per_process_memory_fraction((base + bytes_needed / 2) / total, asked.device)
    try:
        yield lambda: torch.cuda.max_memory_allocated(asked.device) - base
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, asked.device)


def plain(asked: Asked) -> dict[str, Any]:
    """Train as the article does: ImageFolder, batches of 4, no worker processes, float32."""
    side = asked.side
    steps = [transforms.RandomResizedCrop(side), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    change = transforms.Compose([*steps, transforms.Normalize([0.5] * 3, [0.25] * 3)])
    with tempfile.TemporaryDirectory() as name:
        for at, (pixels, label) in enumerate(zip(asked.pixels[:200], asked.labels[:200], strict=True)):
            folder = Path(name, CLASSES[int(label)])
            folder.mkdir(exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{at}.jpeg")
        batches: DataLoader[Any] = DataLoader(datasets.ImageFolder(name, change), batch_size=4, shuffle=True)
        backbone = backbones.load("resnet18", "none")
        model = nn.Sequential(backbone.module, nn.Linear(backbone.features, len(CLASSES))).to(asked.device)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        seen, began = 0, time.perf_counter()
        while seen == 0 or time.perf_counter() - began < asked.seconds:
            for inputs, truth in batches:
                inputs, truth = inputs.to(asked.device), truth.to(asked.device)
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(inputs), truth).backward()
                optimizer.step()
                seen += len(truth)
        synchronise(asked.device)
        return {"images_per_second": seen / (time.perf_counter() - began)}


def speed(asked: Asked) -> dict[str, Any]:
    """Measure training and answering, of each network, with and without compiling it."""
    result: dict[str, Any] = {"augmented": AUGMENTED}
    for name in NETWORKS:
        for compiled in (False, True):
            key = f"{name}, compiled" if compiled else name
            if compiled and (asked.tiny or time.monotonic() > asked.ends - 120):
                result[key] = "left out"
                continue
            result[key] = {**training_speed(asked, name, compiled), **answering_speed(asked, name, compiled)}
            show(key, result[key])
    return result


def training_speed(asked: Asked, name: str, compiled: bool) -> dict[str, Any]:
    """Measure steps as the package takes them: fed from memory, augmented on the device, in mixed precision."""
    device, network = asked.device, network_of(name, asked.device)
    recipe = Recipe(batch_size=asked.batch, backbone=name)
    state = State(network, recipe, len(asked.labels), Precision(device))  # type: ignore[arg-type]
    called: Logits = torch.compile(network) if compiled else network
    ranges = Augmentation(area=(0.08, 1.0), ratio=(0.75, 1.33), flip=0.5) if AUGMENTED else None
    with Feeder(asked.pixels, asked.labels, asked.batch, 0, device) as feeder:  # type: ignore[arg-type]
        began = waited = seen = 0.0
        for number in count():
            state.step, state.seen = 0, 0
            batch, truth, _ = feeder.take(*divmod(number, feeder.steps))
            pixels = augmented(ranges, batch, asked.side, generator_of(number)) if ranges else batch
            take_step(state, called, nn.CrossEntropyLoss(), pixels, truth, number)
            if number == asked.steps:  # compiled, its memory taken, cuDNN's choices made
                synchronise(device)
                began, waited, seen = time.perf_counter(), feeder.waited, 0.0
            elif number > asked.steps:
                seen += len(truth)
                if time.perf_counter() - began > asked.seconds:
                    break
        synchronise(device)
        taken = time.perf_counter() - began
    rate = seen / taken
    # Backward costs twice the forward pass.
    return {
        "training_images_per_second": rate,
        "share_waiting": (feeder.waited - waited) / taken,
        "training_mfu": utilisation(asked, 3 * rate, network),
    }


def answering_speed(asked: Asked, name: str, compiled: bool) -> dict[str, Any]:
    """Measure answers to pixels that lie on the device, in mixed precision."""
    network = network_of(name, asked.device).eval()
    called: Logits = torch.compile(network) if compiled else network
    pixels = torch.from_numpy(asked.pixels[: asked.batch]).unsqueeze(1).to(asked.device)
    with torch.inference_mode(), Precision(asked.device, "bfloat16").cast():
        for _ in range(3):
            called(pixels)
        synchronise(asked.device)
        began, seen = time.perf_counter(), 0
        while seen == 0 or time.perf_counter() - began < asked.seconds:
            for _ in range(8):
                called(pixels)
            synchronise(asked.device)
            seen += 8 * len(pixels)
    rate = seen / (time.perf_counter() - began)
    return {"answers_per_second": rate, "answering_mfu": utilisation(asked, rate, network)}


def utilisation(asked: Asked, forward_passes: float, network: Network) -> float | None:
    """Return the share of the card's 16-bit operations that so many passes a second need; None for an unknown card."""
    card = torch.cuda.get_device_name(asked.device) if asked.device.type == "cuda" else ""
    peak = next((flops for model, flops in PEAK_FLOPS.items() if model in card), None)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.zeros(1, asked.side, asked.side, device=asked.device))
    return counter.get_total_flops() * forward_passes / peak if peak else None


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def checked(result: dict[str, Any], right: bool, wrong: str) -> dict[str, Any]:
    """Return the result. Raises Wrong, with what is wrong, when it is not right."""
    if not right:
        raise Wrong(f"{wrong}: {json.dumps(result)}")
    return result


def show(name: str, result: object) -> None:
    """Print a line of JSON."""
    print(json.dumps({name: result}), flush=True)


PARTS: dict[str, Callable[[Asked], dict[str, Any]]] = {
    "features": features,
    "loss": loss,
    "checkpoint": checkpoint,
    "memory": memory,
    "plain": plain,
    "speed": speed,
}


def table(results: dict[str, Any]) -> Iterator[str]:
    """Return what was measured as lines of Markdown."""
    alone = results.get("plain", {}).get("images_per_second")
    yield "| network | training img/s | waiting | MFU | ratio to the plain loop | answers/s | MFU |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for name, found in results.get("speed", {}).items():
        if isinstance(found, dict):
            rate, mfu = found["training_images_per_second"], [found["training_mfu"], found["answering_mfu"]]
            ratio = f"{rate / alone:.0f}" if alone and name.startswith("resnet18") else ""
            shares = ["" if share is None else f"{share:.2f}" for share in mfu]
            cells = [name, f"{rate:,.0f}", f"{found['share_waiting']:.2f}", shares[0], ratio]
            cells += [f"{found['answers_per_second']:,.0f}", shares[1]]
            yield f"| {' | '.join(cells)} |"


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="all without any")
    parser.add_argument("--images", type=Path, help="radiographs by class")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch", type=int, default=512, help="radiographs in a step of `speed`")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--tiny", action="store_true", help="small enough for a CPU")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    ends, device = time.monotonic() + 60 * given.minutes, pick_device(given.device)
    carried = next((f for f in (ROOT / "shared", ROOT.parent / "shared") if (f / "data").is_dir()), None)
    folder = given.images or (carried / "data" if carried else None)
    side, batch, number, steps, seconds = (64, 8, 40, 2, 0.0) if given.tiny else (224, given.batch, 4096, 10, 10.0)
    pixels, labels = radiographs(folder, number - number % batch, side)  # each batch is whole
    asked = Asked(device, side, batch, steps, seconds, ends, pixels, labels, given.tiny)
    about = {
        "date": date.today().isoformat(),
        "card": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU",
        "torch": torch.__version__,
        "batch": batch,
        "radiographs_of_people": str(folder) if folder else "none",
    }
    show("about", about)
    results: dict[str, Any] = {}
    failed = []
    for name in given.parts or PARTS:
        began = time.perf_counter()
        try:
            # The checks compare with a CPU, for which 32 radiographs a step are enough.
            small = asked if name == "speed" else replace(asked, batch=min(asked.batch, 32))
            with deterministic():  # as the package trains
                results[name] = PARTS[name](small)
            show(name, {**results[name], "seconds": round(time.perf_counter() - began, 1)})
        except Exception as error:  # the other parts go on
            failed.append(name)
            if not isinstance(error, Wrong):
                traceback.print_exc()
            show(name, {"error": f"{type(error).__name__}: {error}"})
    print("\n".join(table(results)))
    if given.json:
        given.json.write_text(json.dumps({"about": about, "failed": failed, **results}, indent=1))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
