"""An installation after two nights of which two patients are to be erased, and what would tell of them."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from once import Once
from planted import readable
from two_nights import SETTINGS, lay_copy

from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import open_store
from xray_pipeline.dataset.fingerprints import fingerprint
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.images.radiograph import decode
from xray_pipeline.night import review
from xray_pipeline.night.amend import Named
from xray_pipeline.night.run import Run
from xray_pipeline.registry.run_files import RunFiles
from xray_pipeline.training import candidate as training

WHY = "asked for by the patients"


@dataclass(frozen=True)
class Erasable:
    """A copy of the installation; `rows` are those of the two patients in the manifests, with their keys."""

    settings: Settings
    rows: pd.DataFrame
    needles: dict[str, bytes]

    @property
    def run(self) -> Run:
        return Run(self.settings, who="Ada")

    @property
    def asked(self) -> list[Named]:
        """Both patients, each by one of the radiographs."""
        first = self.rows.drop_duplicates("patient")
        return [Named("withdraw", "patient-of", place, "", erase=True) for place in first["key"] + "/" + first["row"]]

    def told(self) -> set[str]:
        """What of the two patients is in any file of store, cache and MLflow, and where: "needle in file"."""
        return {
            f"{what} in {name}"
            for name, content in _files(self.settings.home)
            for what, needle in self.needles.items()
            if needle in content
        }


def _files(home: Path) -> Iterator[tuple[str, bytes]]:
    """Yield each file with its own path and its content, what a Parquet file or an archive holds unpacked."""
    for path in sorted(home.rglob("*")):
        name = str(path.relative_to(home))
        if path.is_file() and not name.startswith("incoming/"):
            content = readable(name, path.read_bytes())
            if name.endswith("examples.npz"):
                with np.load(io.BytesIO(path.read_bytes()[32:])) as file:
                    content += b"".join(file[key].tobytes() for key in file.files)
            yield name, name.encode() + content


@pytest.fixture
def erasable(once: Once, two_nights: Callable[[Path], None], tmp_path: Path) -> Callable[[str], Erasable]:
    """Return what lays a copy, of which no delivery is left, in a folder of this name."""

    def make(home: Path) -> None:
        two_nights(home)
        _show_in_mlflow(Settings(home=home, **SETTINGS))

    made = once("erasable", make)

    def lay(name: str) -> Erasable:
        home = tmp_path / name
        (home / "incoming").mkdir(parents=True)
        lay_copy(made, home, {folder: folder for folder in ("store", "artifacts", "cache")})
        return _chosen(Settings(home=home, **SETTINGS))

    return lay


def _show_in_mlflow(settings: Settings) -> None:
    """Let MLflow have the pictures, as with the setting `mlflow_pictures`."""
    store, runs = open_store(settings.store), RunFiles(settings)
    for candidate, run_id, _ in training.trained_on(store):
        for name in (training.BATCH, training.ANSWERS):
            runs.write(f"{run_id}/{name}", store.read(f"candidates/{candidate}/{name}"))
        for entry in store.list(f"reports/{candidate}"):
            if entry.key.endswith("report.html"):
                runs.write(f"{run_id}/report.html", store.read(entry.key))


def _chosen(settings: Settings) -> Erasable:
    """Choose a patient whom a report shows as an error, and one whom it shows as a suspect."""
    store, dataset = open_store(settings.store), Dataset(settings)
    tables = {key: dataset.manifest(key) for key in dataset.manifests()}
    rows = pd.concat([t.assign(key=key, row=[str(at) for at in range(len(t))]) for key, t in tables.items()])
    shown = set()
    for entry in store.list("reports"):
        if entry.key.endswith("report.html"):
            shown |= set(re.findall(r"<!--radiograph (\w+)-->", store.read(entry.key).decode()))
    snapshot = dataset.snapshot()
    assert snapshot is not None
    suspects = {suspect.digest for suspect in review.listed(store, snapshot.digest) or ()}
    seen = rows[rows["digest"].str[:12].isin(shown)]
    patients = [
        seen.loc[seen["side"] == "held-out", "patient"].iloc[0],
        seen.loc[seen["digest"].isin(suspects), "patient"].iloc[0],
    ]
    mine = rows[rows["patient"].isin(patients)]
    needles = {}
    for row in mine.itertuples():
        of = f"{row.key}/{row.row}"
        needles |= {
            f"the name of {of}": row.file.rpartition("/")[2].encode(),
            f"the patient of {of}": row.patient.encode(),
        }
        needles |= {f"the {what} of {of}": getattr(row, what).encode() for what in ("phash", "statistics")}
        needles[f"the bytes of {of}"] = dataset.read(row.digest, row.suffix)
        needles[f"the thumbnail of {of}"] = fingerprint(decode(needles[f"the bytes of {of}"])).thumbnail.encode()
        for index in settings.cache.glob("*/*.json"):
            listed = json.loads(index.read_bytes()).get("digests", [])
            if row.digest in listed:
                kept = np.load(index.with_suffix(".npy"))[listed.index(row.digest)]
                needles[f"the {index.parent.name.partition('-')[0]} of {of} in {index.stem}"] = kept.tobytes()
        needles[f"the card of {of}"] = f"<!--radiograph {row.digest[:12]}".encode()
    return Erasable(settings, mine, needles)
