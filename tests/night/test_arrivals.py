"""What waits that a night would judge, told without starting one."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from laid import FILES, ingest, lay
from s3_server import BUCKET, S3Server
from samples import dicom, jpeg

from xray_pipeline.base.errors import StorageUnavailable
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import open_store
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.intake import deliveries
from xray_pipeline.night import intake_steps
from xray_pipeline.night.arrivals import Arrivals
from xray_pipeline.night.run import Run


@pytest.fixture
def run(settings: Settings) -> Run:
    Path(settings.incoming).mkdir(parents=True)
    return Run(settings)


def keys(arrivals: Arrivals) -> list[str]:
    return sorted(one.partition(" ")[0] for one in arrivals.look())


def test_a_delivery_waits_until_it_is_committed(run: Run) -> None:
    arrivals = Arrivals(run.settings)
    assert keys(arrivals) == []
    lay(run.settings, "mon", FILES)
    assert keys(arrivals) == ["mon"]
    intake_steps.check_delivery(run, "mon")
    assert keys(arrivals) == ["mon"]  # a run that died before its commit has not taken it
    intake_steps.commit_deliveries(run, ["mon"])
    assert keys(arrivals) == []
    assert keys(Arrivals(run.settings)) == []
    lay(run.settings, "mon", {"NORMAL/late.jpg": jpeg(seed=77)})
    assert keys(arrivals) == ["mon+2"]


def test_a_rejected_delivery_does_not_wait_until_it_changes(run: Run) -> None:
    arrivals = Arrivals(run.settings)
    lay(run.settings, "mon", {"NORML/a.jpg": jpeg()})
    assert keys(arrivals) == ["mon"]
    assert not intake_steps.check_delivery(run, "mon").fit
    assert keys(arrivals) == []
    lay(run.settings, "mon", {"NORML/b.jpg": jpeg(seed=2)})
    assert keys(arrivals) == ["mon"]


def test_what_is_arriving_does_not_wait_yet(run: Run) -> None:
    settings = run.settings.model_copy(update={"settle_seconds": 2.0})
    lay(settings, "mon", FILES)
    arrivals = Arrivals(settings)
    assert keys(arrivals) == []
    time.sleep(2.1)
    assert keys(arrivals) == ["mon"]


def test_a_grown_table_waits_only_where_it_gives_a_label(run: Run, tmp_path: Path) -> None:
    (tmp_path / "ris.toml").write_text(
        'table = "../ris.csv"\n[key]\nby = "accession"\ncolumns = ["id"]\n[label]\ncolumn = "label"\n'
    )
    run = Run(run.settings.model_copy(update={"labels": str(tmp_path / "ris.toml")}))
    table = Path(run.settings.incoming, "ris.csv")
    table.write_text("id,label\nA1,normal\n")
    lay(run.settings, "mon", {f"{n}": dicom(seed=n, AccessionNumber=f"A{n}") for n in (1, 2)})
    ingest(run)
    arrivals = Arrivals(run.settings)
    assert keys(arrivals) == []
    table.write_text("id,label\nA1,normal\nA9,normal\n")
    assert keys(arrivals) == []
    table.write_text("id,label\nA1,normal\nA9,normal\nA2,pneumonia\n")
    assert keys(arrivals) == ["mon+2"]
    ingest(run)
    assert keys(arrivals) == []


def test_a_look_lists_once_and_reads_the_dataset_only_after_a_change(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    lay(run.settings, "mon", FILES)
    ingest(run)
    lay(run.settings, "tue", {"NORML/a.jpg": jpeg()})
    arrivals, listed, read = Arrivals(run.settings), [], []
    listing, history = deliveries.listing, Dataset.history
    monkeypatch.setattr(deliveries, "listing", lambda *a, **k: listed.append(a) or listing(*a, **k))
    monkeypatch.setattr(Dataset, "history", lambda self: read.append(self) or history(self))
    for _ in range(3):
        assert keys(arrivals) == ["tue"]
    assert (len(listed), len(read)) == (3, 1)


def test_a_missing_folder_is_no_empty_one(settings: Settings) -> None:
    with pytest.raises(StorageUnavailable, match="is it mounted"):
        Arrivals(settings).look()


@pytest.mark.slow
def test_on_s3(s3: S3Server, settings: Settings) -> None:
    uri = f"s3://{BUCKET}/arrivals"
    settings = settings.model_copy(update={"incoming": uri, "s3_endpoint": s3.endpoint})
    arrivals = Arrivals(settings)
    assert keys(arrivals) == []
    incoming = open_store(uri, settings)
    for name, data in FILES.items():
        incoming.write(f"mon/{name}", data)
    assert keys(arrivals) == ["mon"]
