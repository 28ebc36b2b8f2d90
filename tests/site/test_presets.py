"""A dataset in the form in which it was published, to a champion: one night, with XRAY_LABELS and nothing else."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import phantom
import pytest
from mlflow_server import lay_database
from published import laid_out
from two_nights import SETTINGS

from xray_pipeline.base.settings import Settings
from xray_pipeline.base.shipped import names
from xray_pipeline.night import intake_steps, whole
from xray_pipeline.night.run import Run
from xray_pipeline.registry.mlflow_registry import Registry

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def delivered(tmp_path: Path, preset: str, patients: int) -> Path:
    """A delivery of phantoms in the form of a dataset."""
    (laid,) = phantom.lay(tmp_path / "laid", deliveries=1, patients=patients, seed=0)
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
    return delivery


@pytest.mark.parametrize("preset", names("intake", "mappings"))
def test_a_published_dataset_is_taken_as_it_is(tmp_path: Path, preset: str) -> None:
    delivery = delivered(tmp_path, preset, 30)
    run = Run(Settings(home=tmp_path, **SETTINGS, labels=preset))
    keys = intake_steps.find_deliveries(run)
    assert intake_steps.check_delivery(run, keys[0]).fit
    committed = intake_steps.commit_deliveries(run, keys)
    images = sum(path.is_file() and path.suffix not in (".csv",) for path in delivery.rglob("*"))
    assert 20 <= committed.images >= images - 5  # five of the phantoms are no radiographs


# The intake alone tells them apart; with XRAY_ALL_PRESETS=1 each has its night.
@pytest.mark.parametrize("preset", names("intake", "mappings") if os.environ.get("XRAY_ALL_PRESETS") else ["nih-cxr14"])
def test_a_published_dataset_ends_in_a_champion(tmp_path: Path, empty_mlflow: Path, preset: str) -> None:
    lay_database(empty_mlflow, tmp_path)
    delivered(tmp_path, preset, 120)
    settings = Settings(home=tmp_path, **SETTINGS, labels=preset, promotion="auto")
    whole.whole(Run(settings, {}, "schedule"))
    assert Registry(settings).aliases()["champion"] == 1
    [page] = (tmp_path / "store" / "reports").rglob("report.html")
    tables = "none in new" if preset == "kermany" else r"SHA-256 [0-9a-f]{12} \(1 new delivery\)"
    assert re.search(f"Label tables</td><td><code>{tables}", page.read_text())
