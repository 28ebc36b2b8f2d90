"""How many radiographs a CPU second turns into features: torch, OpenVINO, and ONNX Runtime where it is installed.

    python benchmarks/engine.py [--radiographs 64] [--rounds 5] [--onnxruntime FOLDER] [--json FILE]

efficientnet_lite0 with ImageNet weights on made-up radiographs of 224 pixels, with and without `levels`, one thread.
The engines take turns in each round, so that what else the machine does meets all of them; the best round counts.
Ratios are to torch in float32. `--onnxruntime` is a folder made by `pip install --target FOLDER onnxruntime onnx`;
neither is among the project's packages.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xray_pipeline.models import backbones
from xray_pipeline.models.backbones import Network
from xray_pipeline.models.engine import engine_for
from xray_pipeline.training.device import has_bfloat16

SIDE, BATCH = 224, 16
Features = Callable[[torch.Tensor], torch.Tensor]


class Headless(torch.nn.Module):
    """A network without its last layer: its answer is its features."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.network.features(pixels)


def engines(network: Network, with_onnx: bool) -> Iterator[tuple[str, Features]]:
    """Yield each way to compute the network's features, by name."""
    dtypes = [None, torch.bfloat16] if has_bfloat16() else [None]
    for wanted in ("torch", "auto"):
        for dtype in dtypes:
            engine = engine_for(network, dtype, wanted)
            yield engine.name, engine.features
    if with_onnx:
        yield onnxruntime_of(network)


def onnxruntime_of(network: Network) -> tuple[str, Features]:
    """Return the network in ONNX Runtime, a batch at a time."""
    import onnxruntime

    graph = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        example = torch.zeros(BATCH, 1, SIDE, SIDE)
        torch.onnx.export(Headless(network), (example,), graph, dynamo=False, input_names=["pixels"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph.getvalue(), options, providers=["CPUExecutionProvider"])

    def features(pixels: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(session.run(None, {"pixels": pixels.unsqueeze(1).float().numpy()})[0])

    return f"onnxruntime {onnxruntime.__version__} float32", features


def measured(network: Network, pixels: torch.Tensor, rounds: int, with_onnx: bool) -> list[dict[str, Any]]:
    """Return, for each engine, its images a CPU second, the ratio to the first, what compiling took, and how far its
    features are off."""
    ways = dict(engines(network, with_onnx))
    first_round: dict[str, float] = {}
    seconds: dict[str, float] = {}
    answers: dict[str, torch.Tensor] = {}
    for turn in range(rounds + 1):
        for name, features in ways.items():
            start = time.process_time()
            answers[name] = torch.cat([features(pixels[at : at + BATCH]) for at in range(0, len(pixels), BATCH)])
            taken = time.process_time() - start
            if turn:
                seconds[name] = min(taken, seconds.get(name, taken))
            else:
                first_round[name] = taken  # which compiles
    first = next(iter(ways))
    truth = answers[first]
    return [
        {
            "engine": name,
            "images_per_cpu_second": round(len(pixels) / seconds[name], 1),
            "ratio": round(seconds[first] / seconds[name], 2),
            "to_compile": round(max(0.0, first_round[name] - seconds[name]), 2),
            "off": float(torch.linalg.vector_norm(answers[name] - truth) / torch.linalg.vector_norm(truth)),
        }
        for name in ways
    ]


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--radiographs", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--onnxruntime", type=Path)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    if asked.onnxruntime:
        sys.path.append(str(asked.onnxruntime))
    torch.set_num_threads(1)
    noise = np.random.default_rng(0).integers(0, 256, (asked.radiographs, SIDE, SIDE), np.uint8)
    outcome: dict[str, Any] = {
        "cpu": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "date": datetime.now(UTC).date().isoformat(),
    }
    for levels in (False, True):
        network = Network(backbones.load("efficientnet_lite0"), 2, levels=levels).eval().requires_grad_(False)
        outcome["levels" if levels else "plain"] = measured(
            network, torch.from_numpy(noise), asked.rounds, bool(asked.onnxruntime)
        )
        print("with levels" if levels else "without levels")
        for row in outcome["levels" if levels else "plain"]:
            print(
                f"  {row['engine']:32} {row['images_per_cpu_second']:6.0f} images a CPU second, "
                f"{row['ratio']:5.2f} times torch's, off by {row['off']:.1e}, {row['to_compile']:.2f} CPU s to compile"
            )
    if asked.json:
        asked.json.write_text(json.dumps(outcome, indent=1) + "\n")


if __name__ == "__main__":
    main()
