"""Files of runs and logged models behind a real MLflow server, which hands them on."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow_server import MlflowServer
from small_models import logged

from xray_pipeline.base.errors import RegistryError
from xray_pipeline.base.settings import Settings
from xray_pipeline.models.mlflow_client import MlflowClient, use
from xray_pipeline.training import mlflow_files

pytestmark = pytest.mark.slow


def test_a_run_and_its_model_lose_their_files_and_nothing_else_does(
    mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    settings = Settings(home=tmp_path, tracking_uri=mlflow_server.uri)
    client = MlflowClient(use(mlflow_server.uri))
    ours, other = logged(settings), logged(settings, seed=1)
    client.log_text(ours.run_id, "figures", "report.html")
    models = mlflow_files.logged(ours.run_id)
    assert [f"models:/{model.model_id}" for model in models] == [ours.model_uri]
    files, size = mlflow_files.size(ours.run_id, models)
    assert files > 20
    assert size > 1_000_000
    for _ in range(2):  # as after a kill
        mlflow_files.remove(ours.run_id, models, "files removed")
    assert mlflow_files.logged(ours.run_id) == []
    assert mlflow_files.size(ours.run_id, []) == (0, 0)
    assert client.get_run(ours.run_id).data.tags["xray.tidied"] == "files removed"
    theirs = mlflow_files.logged(other.run_id)
    assert mlflow_files.size(other.run_id, theirs)[0] > 20
    left = [path for path in mlflow_server.artifacts.rglob("*") if path.is_file()]
    assert not any(word in str(path) for path in left for word in (ours.run_id, models[0].model_id))
    assert mlflow_files.place_of(settings) == ""


def test_a_run_that_mlflow_has_lost_has_no_files(mlflow_server: MlflowServer) -> None:
    use(mlflow_server.uri)
    assert mlflow_files.logged("0" * 32) == []
    assert mlflow_files.size("0" * 32, []) == (0, 0)
    mlflow_files.remove("0" * 32, [], "nothing")


def test_a_place_that_others_may_share_is_left_alone(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    ours = logged(Settings(home=tmp_path, tracking_uri=mlflow_server.uri))
    (model,) = mlflow_files.logged(ours.run_id)
    model.artifact_location = model.artifact_location.rpartition(f"/{model.model_id}")[0]
    with pytest.raises(RegistryError, match="others may share"):
        mlflow_files.remove(ours.run_id, [model], "files removed")
    assert mlflow_files.size(ours.run_id, mlflow_files.logged(ours.run_id))[0] > 20
