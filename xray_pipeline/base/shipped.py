"""Files of values that a room ships under a name, and that people may give as a file of their own."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

from xray_pipeline.base.errors import ConfigError
from xray_pipeline.base.text import did_you_mean


def names(room: str, folder: str) -> list[str]:
    """Return the names of the TOML files in a folder of a room, sorted."""
    shipped = files(f"xray_pipeline.{room}") / folder
    return sorted(file.name.removesuffix(".toml") for file in shipped.iterdir())


def read_toml(room: str, folder: str, what: str, name_or_path: str) -> tuple[str, dict[str, Any]]:
    """Return the text and the content of a shipped file, or of the TOML file at a path; `what` it is, for people.

    Raises ConfigError for one that is not there, and for text that is not TOML.
    """
    shipped = files(f"xray_pipeline.{room}") / folder / f"{Path(name_or_path).name}.toml"
    try:
        text = (Path(name_or_path) if name_or_path.endswith(".toml") else shipped).read_text(encoding="utf-8")
        return text, tomllib.loads(text)
    except OSError as error:
        there = names(room, folder)
        raise ConfigError(
            f"no {what} {name_or_path!r}: give a .toml file or one of {', '.join(there)}"
            f"{did_you_mean(name_or_path, there)}"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{what} {name_or_path!r} is not TOML: {error}") from error
