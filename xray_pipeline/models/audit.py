"""What a logged model's folder may hold, judged before anything of it is loaded or run.

It needs neither torch nor MLflow, so that whoever moves models about can judge them.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

import yaml
from safetensors import SafetensorError, safe_open

from xray_pipeline.base.errors import ModelRefused
from xray_pipeline.models.saved import FACTS, WEIGHTS, file_digest

# Modules by their form: a model that an earlier version logged came with that version's.
_CODE = re.compile(r"code/xray_pipeline/([a-z_]+/)?[a-z_]+\.py")
_TENSORS = f"artifacts/classifier/{WEIGHTS}"
_REQUIRED = frozenset({"MLmodel", _TENSORS, f"artifacts/classifier/{FACTS}", "served.py"})
# The module that loads the classifier; the second name is that of models logged before version 0.2.
_LOADERS = ("code/xray_pipeline/models/classifier.py", "code/xray_pipeline/serving.py")
_OPTIONAL = frozenset(
    {"conda.yaml", "python_env.yaml", "requirements.txt", "input_example.json", "serving_input_example.json"}
)
_WRITTEN_ON_LOAD = "registered_model_meta"  # by MLflow, with the name and version that were asked for
_TEXT_LIMIT = 4_000_000


def inventory(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below `folder` by relative path, sorted; without the one MLflow adds on load.

    Raises ModelRefused for a symbolic link or anything else that is not a regular file.
    """
    files: dict[str, str] = {}
    for root, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            path = Path(root) / name
            mode = path.lstat().st_mode
            place = path.relative_to(folder).as_posix()
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise ModelRefused(f"{place!r} in the model is a link or special file; a model holds plain files only")
            if stat.S_ISREG(mode) and place != _WRITTEN_ON_LOAD:
                files[place] = file_digest(path)
    return dict(sorted(files.items()))


def artifact_digest(files: Mapping[str, str]) -> str:
    """Return the SHA-256 of an inventory: it names every byte of a logged model, code and weights alike."""
    return hashlib.sha256("".join(f"{sha}  {place}\n" for place, sha in sorted(files.items())).encode()).hexdigest()


def audit(folder: Path, expect_digest: str | None = None) -> str:
    """Refuse a downloaded model folder that holds anything but what `log_model` puts there; return its artifact digest.

    Modules of an earlier version of this package count as such. Names, kinds and contents of files are judged (a
    pickle, archive or link under any name is refused) before anything is loaded or run; with `expect_digest`, every
    byte is. Raises ModelRefused.
    """
    if not folder.is_dir():
        raise ModelRefused(f"{folder} is not a folder, so not a model")
    files = inventory(folder)
    for place in files:
        if place not in _REQUIRED | _OPTIONAL and not _CODE.fullmatch(place):
            raise ModelRefused(f"{place!r} does not belong in a model; it was not loaded")
        _check_content(folder / place, place)
    missing = sorted(_REQUIRED - files.keys())
    if not any(name in files for name in _LOADERS):
        missing.append(_LOADERS[0])
    if missing:
        raise ModelRefused(f"the model lacks {', '.join(missing)}")
    _check_description(folder / "MLmodel")
    digest = artifact_digest(files)
    if expect_digest and digest != expect_digest:
        raise ModelRefused(f"the model's files have digest {digest[:12]}, recorded is {expect_digest[:12]}")
    return digest


def _check_content(path: Path, place: str) -> None:
    if place == _TENSORS:
        _check_safetensors(path)
        return
    if path.stat().st_size > _TEXT_LIMIT:
        raise ModelRefused(f"{place!r} is larger than {_TEXT_LIMIT:,} bytes; it was not loaded")
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ModelRefused(f"{place!r} is not text; it was not loaded") from error
    if "\0" in text:
        raise ModelRefused(f"{place!r} holds NUL bytes, so is not text; it was not loaded")


def _check_safetensors(path: Path) -> None:
    """Check that a file is tensors from the first byte to the last: safetensors opens no file with room for more."""
    try:
        with safe_open(path, "numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise ModelRefused(f"{path.name} is not a file of tensors alone ({error}); it was not loaded") from error


def _check_description(path: Path) -> None:
    """Check that MLmodel asks for our source file and no other loader: the pickle loader is named there, too."""
    try:
        description = yaml.safe_load(path.read_text())
        flavors = description["flavors"]
        loader = flavors["python_function"]
        code = Path(loader["model_code_path"]).name
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise ModelRefused("MLmodel does not describe a model made of plain source; it was not loaded") from error
    expected = ("mlflow.pyfunc.loaders.code_model", "served.py", ["python_function"])
    if (loader.get("loader_module"), code, list(flavors)) != expected or "python_model" in loader:
        raise ModelRefused(f"MLmodel asks for {loader.get('loader_module')!r} and {code!r}; it was not loaded")
