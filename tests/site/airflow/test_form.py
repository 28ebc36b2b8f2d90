"""The forms: each field says what it is and what it holds now; a night's takes nothing that makes no sense."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import ParamValidationError

from xray_pipeline.airflow_ui import links

DAGS = Path(__file__).resolve().parents[3] / "dags"


def fields(form: str) -> Any:
    spec = importlib.util.spec_from_file_location(form, DAGS / f"{form}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = getattr(module, f"xray_{form}")()
    return {name: made.params.get_param(name) for name in made.params}


@pytest.fixture(scope="module")
def params(airflow_db: None) -> Any:
    """The fields of xray_retrain."""
    return fields("retrain")


@pytest.mark.usefixtures("airflow_db")
@pytest.mark.parametrize("form", ["amend", "compare", "delivery", "promote", "retrain", "rollback", "watch"])
def test_each_field_has_a_line_of_help_and_says_what_it_holds(form: str) -> None:
    found = fields(form)
    assert found
    for name, param in found.items():
        assert param.description, name
        assert param.value is not None or any(word in param.description.lower() for word in ("empty:", "only")), name
        assert None not in param.schema.get("enum", [])  # shown as "null"


def test_recipes_and_backbones_are_listed(params: Any) -> None:
    assert set(params["recipe"].schema["examples"]) >= {"head", "partial"}
    assert set(params["backbone"].schema["examples"]) >= {"efficientnet_lite0", "resnet18", "densenet121"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("epochs", value) for value in ("-3", "0", "1001", "1e2", "many", -3, 0, 1001, 2.5)),
        *(("seed", value) for value in ("-1", "1.5", -1)),
        ("promotion", "perhaps"),
        ("promotion", None),
    ],
)
def test_what_makes_no_sense_is_refused(params: Any, name: str, value: object) -> None:
    with pytest.raises(ParamValidationError):
        params[name].resolve(value)


@pytest.mark.parametrize(("given", "number"), [("3", 3), (3, 3), (None, None), ("", "")])
def test_a_number_counts_however_it_is_written(params: Any, given: object, number: object) -> None:
    if given != "":
        assert params["epochs"].resolve(given) == given
    assert links.as_numbers({"epochs": given, "recipe": "head"}, "epochs", "seed")["epochs"] == number
