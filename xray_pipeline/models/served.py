"""What MLflow runs when it loads a registered model: image bytes in, probabilities out.

This file is the model's code ("models from code"), logged as plain source beside the modules it needs, so that nothing
is unpickled on load. One row in, one row out: a row that is no radiograph gets an `error` and no label, and the rows
beside it are answered all the same. Needs only what the model's requirements list.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

if TYPE_CHECKING:
    from xray_pipeline.models.classifier import Classifier


class ServedClassifier(PythonModel):
    """A Classifier behind MLflow's interface."""

    classifier: Classifier
    version: str

    def load_context(self, context: Any) -> None:
        """Load the classifier; its version is the registry's, or the model digest where no registry was asked."""
        folder = Path(context.artifacts["classifier"])
        with _without_bytecode():
            from xray_pipeline.models.classifier import Classifier

            self.classifier = Classifier.load(folder)
        self.version = _registered_version(folder.parents[1]) or self.classifier.digest

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Answer radiographs (JPEG, PNG or DICOM bytes in column `image`), one row each.

        Columns: one probability per class (0..1, the rows sum to 1), `label`, `model_version`, `error` ("" when all is
        well; else probabilities are missing and `label` is "").
        """
        answers = self.classifier.classify(list(model_input["image"]))
        rows: list[dict[str, Any]] = []
        for answer in answers:
            probabilities = answer.probabilities or (None,) * len(self.classifier.classes)
            row: dict[str, Any] = dict(zip(self.classifier.classes, probabilities, strict=True))
            rows.append({**row, "label": answer.label, "model_version": self.version, "error": answer.error})
        columns = [*self.classifier.classes, "label", "model_version", "error"]
        # Objects: a missing probability must become null in JSON, which has no NaN.
        return pd.DataFrame(rows, columns=columns, dtype=object)


def _registered_version(folder: Path) -> str:
    """Read the version from the file MLflow writes beside a model that was asked for by name and version or alias."""
    meta = folder / "registered_model_meta"
    if not meta.is_file():
        return ""
    lines = dict(line.split(": ", 1) for line in meta.read_text().splitlines() if ": " in line)
    version = lines.get("model_version", "").strip("'\"")
    return version if version.isdigit() else ""  # "null" for a model that is asked for by its id


@contextlib.contextmanager
def _without_bytecode() -> Iterator[None]:
    """Leave a model that is loaded in place as it was: compiled files in its folder would change its digest."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def _drop_own_bytecode() -> None:
    """Remove the compiled copy of this file, which Python wrote before it ran the first line."""
    cached = globals().get("__cached__")
    if cached and not __name__.startswith("xray_pipeline"):
        Path(cached).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # other files' copies are in it
            Path(cached).parent.rmdir()


_drop_own_bytecode()
set_model(ServedClassifier())
