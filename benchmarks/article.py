"""The article's training as a plain script: what the recipes are measured against.

    python benchmarks/article.py FOLDER --mode finetune [--epochs 10] [--backbone resnet18] [--weights none]

FOLDER has train, validation and held-out, each with a folder per class. As in the article: ImageFolder, batches of 4,
no worker processes, RandomResizedCrop(224) and a horizontal flip for training, Resize(256) and CenterCrop(224)
otherwise, mean 0.5, deviation 0.25, SGD 0.001 with momentum 0.9, a tenth of it after 7 epochs, the weights of the most
accurate validation epoch; with `features` all but the last layer is frozen. The backbone comes from this package, so
that both sides start from the same weights; nothing else does.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import nn, optim
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from xray_pipeline.models import backbones

NORMALISE = [transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.25] * 3)]
TRAIN = transforms.Compose([transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), *NORMALISE])
OTHERWISE = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), *NORMALISE])


def loader(folder: Path, side: str, training: bool) -> DataLoader[Any]:
    """Return the article's loader of one side."""
    dataset = datasets.ImageFolder(str(folder / side), TRAIN if training else OTHERWISE)
    return DataLoader(dataset, batch_size=4, shuffle=training, num_workers=0)


def train(folder: Path, mode: str, epochs: int, backbone: str, weights: str, seed: int = 0) -> dict[str, float]:
    """Train as the article does; return seconds by the clock and of CPU, and held-out AUC."""
    torch.manual_seed(seed)
    found = backbones.load(backbone, weights)
    if mode == "features":
        found.module.requires_grad_(False)
    model = nn.Sequential(found.module, nn.Linear(found.features, 2))
    start, cpu = time.perf_counter(), time.process_time()
    model = _fit(model, folder, epochs)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "auc": _auc(model, loader(folder, "held-out", False))}


def _fit(model: nn.Module, folder: Path, epochs: int) -> nn.Module:
    loaders = {side: loader(folder, side, side == "train") for side in ("train", "validation")}
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.001, momentum=0.9)
    scheduler = optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)
    best, best_accuracy = copy.deepcopy(model.state_dict()), 0.0
    for _ in range(epochs):
        for side, batches in loaders.items():
            training, right = side == "train", 0
            model.train(training)
            for inputs, labels in batches:
                optimizer.zero_grad()
                with torch.set_grad_enabled(training):
                    outputs = model(inputs)
                    loss = criterion(outputs, labels)
                    if training:
                        loss.backward()
                        optimizer.step()
                right += int((outputs.argmax(1) == labels).sum())
            if training:
                scheduler.step()
            elif right / len(batches.dataset) > best_accuracy:
                best, best_accuracy = copy.deepcopy(model.state_dict()), right / len(batches.dataset)
    model.load_state_dict(best)
    return model


def _auc(model: nn.Module, batches: DataLoader[Any]) -> float:
    model.eval()
    scores, truth = [], []
    with torch.inference_mode():
        for inputs, labels in batches:
            scores.append(torch.softmax(model(inputs), 1)[:, 1].numpy())
            truth.append(labels.numpy())
    return float(roc_auc_score(np.concatenate(truth), np.concatenate(scores)))


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mode", choices=["features", "finetune"], default="finetune")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--weights", default="")
    asked = parser.parse_args()
    print(json.dumps(train(asked.folder, asked.mode, asked.epochs, asked.backbone, asked.weights), indent=1))


if __name__ == "__main__":
    main()
