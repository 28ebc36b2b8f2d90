"""Answers radiographs with a logged model in a process that holds nothing but that model: `fresh.py MODEL RADIOGRAPHS`.

Run as a file, never imported: this package must not be in the process before MLflow has put the model's own copy of it
first, or the check would test the wrong code. Prints JSON: `answers` (one row of columns each) and `code`, the folder
that the classifier's code came from.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import mlflow
import pandas as pd

if __name__ == "__main__":
    model = mlflow.pyfunc.load_model(sys.argv[1])
    images = [path.read_bytes() for path in sorted(Path(sys.argv[2]).iterdir())]
    answers = model.predict(pd.DataFrame({"image": images}))
    code = str(Path(sys.modules["xray_pipeline.models.bundle"].__file__ or "").parent)
    json.dump({"answers": answers.to_dict("records"), "code": code}, sys.stdout)
