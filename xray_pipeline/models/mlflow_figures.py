"""What MLflow's pages say of a model: the data it saw, its figures where versions sort and chart, and three lines.

Figures stand on the run and, with the data that they were measured on, on the logged model. All of it may be written
again: a figure that was written before is the same one, because it carries the time at which its run began.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric

from xray_pipeline.models.mlflow_client import MlflowClient, calls


@dataclass(frozen=True)
class Seen:
    """Data that a run looked at: a name, a digest, and what MLflow's drawer says of it, by name.

    `use` is what for: "training" or "evaluation". Never a patient or a file: `profile` holds counts.
    """

    name: str
    digest: str
    use: str
    profile: Mapping[str, int | str]

    @property
    def short(self) -> str:
        """The digest as long as MLflow takes one."""
        return self.digest[:36]


def log_data(run_id: str, seen: Seen) -> None:
    """Name data as an input of a run. Raises RegistryError, RegistryUnavailable."""
    source = json.dumps({"digest": seen.digest})
    profile = json.dumps(dict(seen.profile))
    data = Dataset(seen.name, seen.short, "xray dataset", source, profile=profile)
    with calls("logging data"):
        MlflowClient().log_inputs(run_id, [DatasetInput(data, [InputTag("mlflow.data.context", seen.use)])])


def log_figures(run_id: str, model_uri: str, figures: Mapping[str, float], seen: Seen) -> None:
    """Log figures that were measured on data with a run and its logged model. Raises RegistryError and its kin."""
    client, model = MlflowClient(), model_uri.removeprefix("models:/")
    log_data(run_id, seen)
    with calls("logging figures"):
        began = client.get_run(run_id).info.start_time
        about = {"model_id": model, "dataset_name": seen.name, "dataset_digest": seen.short}
        client.log_batch(run_id, [Metric(name, value, began, 0, **about) for name, value in figures.items()])


def describe(run_id: str, lines: Sequence[str]) -> None:
    """Set a run's description, one paragraph of Markdown a line. Raises RegistryError, RegistryUnavailable."""
    with calls("describing the run"):
        MlflowClient().set_tag(run_id, "mlflow.note.content", "\n\n".join(lines))


def artifact_links(run_id: str, *names: str) -> list[str]:
    """Return links (Markdown) from one of MLflow's pages to files of a run. Raises RegistryError and its kin."""
    with calls("asking for the run"):
        experiment = MlflowClient().get_run(run_id).info.experiment_id
    return [f"[{name}](#/experiments/{experiment}/runs/{run_id}/artifacts/{name})" for name in names]
