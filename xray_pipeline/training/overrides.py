"""Values of a recipe as people type them: on the command line, or in one field of Airflow's form.

Nothing heavy is imported here, so that a DAG can be parsed with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from xray_pipeline.base import shipped
from xray_pipeline.base.errors import ConfigError

SHORT = {"lr": "learning_rate", "backbones": "backbone"}


def parse(items: Iterable[str]) -> dict[str, Any]:
    """Return name to value of some KEY=VALUE; the value is JSON where it can be, else text. Raises ConfigError."""
    values: dict[str, Any] = {}
    for item in items:
        name, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not name:
            raise ConfigError(f"{item!r} is not KEY=VALUE")
        try:
            values[name] = json.loads(value)
        except json.JSONDecodeError:
            values[name] = value
    return values


def parse_text(text: str | Mapping[str, Any]) -> dict[str, Any]:
    """Return name to value of a JSON object, or of KEY=VALUE separated by lines or semicolons. Raises ConfigError."""
    if isinstance(text, Mapping):
        return dict(text)
    if not text.lstrip().startswith("{"):
        return parse(item for item in re.split(r"[\n;]", text) if item.strip())
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"the overrides {text!r} are not JSON: {error}; write {{...}} or KEY=VALUE lines") from error
    return dict(found)


def merged(content: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's content with some values replaced; "augmentation.flip" names a value inside a table."""
    result = {
        SHORT.get(name, name): dict(value) if isinstance(value, Mapping) else value for name, value in content.items()
    }
    for name, value in changes.items():
        table, dot, key = SHORT.get(name, name).partition(".")
        if dot:
            inner = result.setdefault(table, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"{name}: {table} is one value, not a table")
            inner[key] = value
        elif isinstance(value, Mapping) and isinstance(result.get(table), dict):
            result[table].update(value)
        else:
            result[table] = value
    return result


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the package, sorted."""
    return shipped.names("training", "recipes")


def backbone_names() -> list[str]:
    """Return the names of the backbones that `models.backbones.build` knows, sorted, without importing torch."""
    return (files("xray_pipeline.training") / "backbones.txt").read_text(encoding="utf-8").split()


def timm_names() -> list[str]:
    """Return timm/NAME of all networks of the timm that is installed, sorted; of none where it is not.

    They are read from its source, as importing it imports torch.
    """
    found = find_spec("timm")
    folders = (found and found.submodule_search_locations) or []
    sources = (file.read_text(encoding="utf-8") for place in folders for file in Path(place, "models").glob("*.py"))
    return sorted(f"timm/{name}" for text in sources for name in re.findall(r"@register_model\s+def (\w+)\(", text))
