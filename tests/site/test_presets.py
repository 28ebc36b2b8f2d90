"""A dataset in the form in which it was published, to a champion: one night, with XRAY_LABELS and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import phantom
import pytest
from mlflow_server import lay_database
from published import laid_out
from two_nights import SETTINGS

from xray_pipeline.base.settings import Settings
from xray_pipeline.base.shipped import names
from xray_pipeline.night import whole
from xray_pipeline.night.run import Run
from xray_pipeline.registry.mlflow_registry import Registry

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("preset", names("intake", "mappings"))
def test_a_published_dataset_ends_in_a_champion(tmp_path: Path, empty_mlflow: Path, preset: str) -> None:
    lay_database(empty_mlflow, tmp_path)
    (laid,) = phantom.lay(tmp_path / "laid", deliveries=1, patients=120, seed=0)
    images: dict[str, tuple[Path, bool]] = {}
    for number, path in enumerate(sorted(laid.rglob("*.*")), 1):
        if path.parent.name in ("NORMAL", "PNEUMONIA"):
            images[str(number)] = (path, path.parent.name == "PNEUMONIA")
    tables, files = laid_out(preset, [(number, ill) for number, (_, ill) in images.items()])
    delivery = tmp_path / "incoming" / "download"
    for name, text in tables.items():
        (delivery / name).parent.mkdir(parents=True, exist_ok=True)
        (delivery / name).write_text(text)
    for (path, _), name in zip(images.values(), files, strict=True):
        (delivery / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, delivery / name)
    settings = Settings(home=tmp_path, **SETTINGS, labels=preset, promotion="auto")
    whole.whole(Run(settings, {}, "schedule"))
    assert Registry(settings).aliases()["champion"] == 1
