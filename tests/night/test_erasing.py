"""What is erased is nowhere any more and cannot come back; the books and the chain stay whole."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from erasable import WHY, Erasable
from laid import ingest, lay
from mlflow_server import lay_database
from planted import readable
from pydantic import SecretStr
from s3_server import BUCKET, S3Server
from samples import dicom, jpeg, picture, png

from xray_pipeline.base import records
from xray_pipeline.base.errors import AmendmentError, RadiographErased, RegistryUnavailable
from xray_pipeline.base.settings import IntakeRules, Settings
from xray_pipeline.base.storage import TEMPORARY, DirectoryStore, Store
from xray_pipeline.command import answers
from xray_pipeline.dataset.commits import Version
from xray_pipeline.dataset.fingerprints import decoded
from xray_pipeline.dataset.manifests import Manifests
from xray_pipeline.dataset.pixels import RowCache
from xray_pipeline.dataset.store import Dataset
from xray_pipeline.dataset.thumbnails import Shown
from xray_pipeline.evaluation.predictions import predictions
from xray_pipeline.images.png import png_bytes
from xray_pipeline.intake import books, commit
from xray_pipeline.night import amend, before, erasing, intake_steps, kept_rows, repair, review
from xray_pipeline.night.amend import Named
from xray_pipeline.night.naming import By
from xray_pipeline.night.review import ToLabel, Unlabelled
from xray_pipeline.night.run import Run
from xray_pipeline.registry.run_files import RunFiles
from xray_pipeline.training import mlflow_run

BROKEN = png(picture(2, 200, 180))[:400]
MONDAY = {
    **{f"NORMAL/patient{n}_1.png": png(picture(n, 200, 180)) for n in (1, 2, 3)},
    "NORMAL/patient2_2.png": BROKEN,
    "PNEUMONIA/patient4_1.png": png(picture(4, 200, 180)),
    "PNEUMONIA/named.dcm": dicom(picture(5, 200, 180), PatientID="4711^Ada", PatientSex="F", PatientAge="077Y"),
}
WEDNESDAY = {f"NORMAL/patient{n}_1.png": png(picture(n, 200, 180)) for n in (7, 8)}
TUESDAY = {
    "NORMAL/other_copy.jpg": jpeg(picture(2, 200, 180), quality=60),  # a near copy of patient2_1, of somebody else
    "NORMAL/patient2_9.png": png(picture(52, 200, 180)),
    "NORMAL/patient6_1.png": png(picture(6, 200, 180)),
}


@pytest.fixture
def run(settings: Settings, empty_mlflow: Path) -> Run:
    """Two deliveries, committed to a directory."""
    return _committed(settings, empty_mlflow)


@pytest.fixture
def on_either(settings: Settings, store: Store, empty_mlflow: Path, request: pytest.FixtureRequest) -> Run:
    """The same, in a directory, then on S3: one in memory, then a real one."""
    update = {"store": store.uri}
    if store.uri.startswith(f"s3://{BUCKET}/"):
        server: S3Server = request.getfixturevalue("s3")
        update["s3_endpoint"] = server.endpoint
    return _committed(settings.model_copy(update=update), empty_mlflow)


def _committed(settings: Settings, empty_mlflow: Path) -> Run:
    lay_database(empty_mlflow, settings.home)
    rules = IntakeRules(max_quarantined_share=1, max_leak_share=1)
    run = Run(settings.model_copy(update={"rules": rules, "patient_key": SecretStr("k" * 32)}), who="Ada")
    for name, files in (("mon", MONDAY), ("tue", TUESDAY)):
        lay(run.settings, name, files)
        ingest(run)
    return run


def erased(run: Run, by: By, name: str) -> dict[str, object]:
    return amend.amend(run, [Named("withdraw", by, name, erase=True)], WHY)


def table(run: Run, key: str) -> pd.DataFrame:
    return Dataset(run.settings).manifest(key)


def told(run: Run, needles: list[str | bytes]) -> list[str]:
    """Where something is told in the store, but for amendments."""
    store = run.store()
    contents = {
        entry.key: entry.key.encode() + readable(entry.key, store.read(entry.key))
        for entry in store.list()
        if not entry.key.startswith("dataset/commits/")
    }
    wanted = [needle if isinstance(needle, bytes) else needle.encode() for needle in needles]
    return [key for key, content in contents.items() if any(needle in content for needle in wanted)]


def test_an_erased_patient_is_nowhere_in_the_store_and_stays_out(on_either: Run) -> None:
    run = on_either
    dataset = Dataset(run.settings)
    old = dataset.snapshot()
    assert old is not None
    mine = table(run, "mon").set_index("file").loc["NORMAL/patient2_1.png"]
    tuesday = table(run, "tue").set_index("file")
    copy = tuesday.loc["NORMAL/other_copy.jpg"]
    hers = {mine["digest"], copy["digest"], tuesday["digest"]["NORMAL/patient2_9.png"]}
    shown = [row[what] for row in (mine, copy) for what in ("phash", "statistics", "patient")]
    for row in (mine, copy):
        thumbnail = dataset.thumbnails.text(Shown(row["digest"], row["suffix"], row["phash"], row["reason"] == ""))
        shown += [thumbnail, png_bytes(decoded(thumbnail))]
    needles = [*shown, "patient2_", "other_copy", dataset.read(mine["digest"], mine["suffix"])]
    _lay_results(run, list(dataset.rows(old)["digest"]), old.digest)
    assert len(told(run, needles)) > 4
    balances = {key: books.of_delivery(run.settings, key) for key in ("mon", "tue")}
    everything = dataset.rows(old)

    answer = erased(run, "patient", "patient2")
    assert answer["changes"][0]["radiographs"] == 3  # type: ignore[index]
    assert told(run, needles) == []
    assert erasing.verify(run) == (
        True,
        "nothing is left of 3 erased radiographs, in the store, MLflow or this cache",
    )
    for check in (books.verify, books.amended, books.split):
        assert check(run.settings)[0], check
    for key, balance in balances.items():
        now = books.of_delivery(run.settings, key)
        assert now is not None
        assert balance is not None
        assert {**now, "digest": ""} == {**balance, "digest": ""}  # the paths it is over are hashes now
    kept = table(run, "mon")
    assert [file.partition(":")[0] for file in kept["file"]].count("erased") == 2  # the broken one, too
    assert kept.loc[kept["digest"] == mine["digest"], ["verdict", "side"]].to_numpy().tolist() == [
        ["accepted", mine["side"]]
    ]

    # The old snapshot can't be trained on any more; who learned from it is still known.
    fresh = Dataset(run.settings)
    were = set(everything["digest"])
    assert were - set(fresh.rows(old)["digest"]) == were & hers
    assert set(fresh.rows(old, erased=True)["digest"]) == were
    with pytest.raises(RadiographErased, match="nothing can be trained on it again"):
        fresh.require_whole(old)
    with pytest.raises(RadiographErased, match="was erased"):
        fresh.read(mine["digest"], mine["suffix"])
    assert repair.repair(run).lost == ()

    # It still lies in its delivery, and comes again in another one.
    assert intake_steps.find_deliveries(run) == []
    assert intake_steps.rejudge(run, "mon")["judged"] == 0
    again = {"NORMAL/patient2_8.png": png(picture(58, 200, 180)), "NORMAL/x.png": MONDAY["NORMAL/patient2_1.png"]}
    lay(run.settings, "wed", {**again, "NORMAL/patient7_1.png": png(picture(7, 200, 180))})
    ingest(run)
    assert sorted(table(run, "wed")["reason"]) == ["", "withdrawn", "withdrawn"]
    assert told(run, [*needles, "NORMAL/x.png"]) == []
    assert intake_steps.find_deliveries(run) == []
    assert erasing.verify(run)[0]
    with pytest.raises(AmendmentError, match="nothing of it can come back"):
        amend.amend(run, [Named("undo", "amendment", "3")], WHY)
    with pytest.raises(AmendmentError, match="amendment 3 erased it"):
        erased(run, "patient", "patient2")


def _lay_results(run: Run, digests: list[str], snapshot: str) -> None:
    """Lay what a night leaves of radiographs."""
    rows, store = pd.DataFrame({"digest": digests, "suffix": ".png"}), run.store()
    for folder in ("predictions/m", "stress/m/blur"):
        predictions(folder, ("A", "B"), rows, lambda block: np.full((len(block), 2), 0.5), store)
    suspects = [{"digest": digest, "kind": "outlier", "score": 1.0} for digest in digests]
    records.write(store, f"suspects/{snapshot}.json", suspects)
    cards = "".join(f"<!--radiograph {digest[:12]}-->said<!--/radiograph-->" for digest in digests)
    store.write("reports/c/against-none/report.html", f"<html>{cards}".encode())
    records.write(store, "reviews/newest.json", {"disagreements": digests})
    records.write(store, f"reviews/readings/{digests[0]}.json", {"label": "A"})


def test_what_was_withdrawn_before_is_erased_and_nothing_is_trained_anew(run: Run) -> None:
    amend.amend(run, [Named("withdraw", "patient", "patient4")], WHY)
    snapshot = Dataset(run.settings).snapshot()
    erased(run, "patient", "patient4")
    assert Dataset(run.settings).snapshot() == snapshot
    assert told(run, ["patient4_"]) == []


def test_an_erased_delivery_keeps_what_another_brought(run: Run) -> None:
    lay(run.settings, "wed", {"NORMAL/patient3_1.png": MONDAY["NORMAL/patient3_1.png"], "NORMAL/z_1.png": png(seed=80)})
    ingest(run)
    change = erased(run, "delivery", "mon")["changes"][0]  # type: ignore[index]
    files = list(table(run, "mon")["file"])
    assert [file for file in files if not file.startswith("erased:")] == ["NORMAL/patient3_1.png"]
    left = set(change["left"])
    assert left >= set(table(run, "mon").loc[table(run, "mon")["file"] == "NORMAL/patient3_1.png", "digest"])
    assert erasing.verify(run)[0]
    assert told(run, ["4711^Ada", "named.dcm", "patient4_"]) == []


def test_a_rejected_delivery_of_an_erased_patient_is_judged_anew_without(run: Run) -> None:
    strict = Run(run.settings.model_copy(update={"rules": IntakeRules(min_files=50)}), who="Ada")
    lay(run.settings, "wed", {f"NORMAL/patient{n}_5.png": png(picture(n + 80, 200, 180)) for n in (2, 8)})
    assert not intake_steps.check_delivery(strict, "wed").fit
    assert told(run, ["patient2_5"])
    erased(run, "patient", "patient2")
    assert told(run, ["patient2_5"]) == []
    assert intake_steps.check_delivery(strict, "wed").quarantined == {"withdrawn": 1}
    assert told(run, ["patient2_5"]) == []


def test_what_is_left_is_found_and_removed(run: Run) -> None:
    """A night that was running, a stale draft, a machine's cache: all that may come back after the erasure."""
    dataset = Dataset(run.settings)
    mine = table(run, "mon").set_index("file").loc["NORMAL/patient2_1.png"]
    data, draft = dataset.read(mine["digest"], mine["suffix"]), dataset.store.read("manifests/mon.parquet")
    cache = RowCache(run.settings.cache / "pixels-8", (2,), np.uint8)
    cache.add([mine["digest"], "0" * 64], np.array([[1, 2], [3, 4]], np.uint8))
    erased(run, "patient", "patient2")
    assert RowCache(cache.folder, (2,), np.uint8).missing([mine["digest"], "0" * 64]) == [mine["digest"]]

    dataset.put(mine["digest"], mine["suffix"], data)
    dataset.store.write("drafts/mon.0.parquet", draft)
    dataset.store.write("manifests/mon.parquet", draft)
    cache.add([mine["digest"]], np.array([[1, 2]], np.uint8))
    _lay_results(run, [mine["digest"], "1" * 64], "s")
    holds, text = erasing.verify(run)
    assert not holds
    assert text.startswith("10 files tell of what was erased, run `xray repair`: ")
    repair.repair(run)
    assert erasing.verify(run)[0]
    assert records.read(run.store(), "suspects/s.json", list[dict[str, object]])[0]["digest"] == "1" * 64


def test_another_machine_drops_it_from_its_cache_at_its_next_run(run: Run, tmp_path: Path) -> None:
    mine = str(table(run, "mon").set_index("file")["digest"]["NORMAL/patient2_1.png"])
    other = Dataset(run.settings.model_copy(update={"cache": tmp_path / "other"}))
    cache = RowCache(tmp_path / "other" / "features-ab", (1,), np.float32)
    cache.add([mine, "0" * 64], np.zeros((2, 1), np.float32))
    assert kept_rows.drop_erased(other) == 0
    erased(run, "patient", "patient2")
    assert kept_rows.left(other)
    assert kept_rows.drop_erased(other) == 1
    assert kept_rows.left(other) == []
    assert kept_rows.drop_erased(other) == 0


def test_an_erasure_that_mlflow_could_not_follow_is_finished_by_the_next_night(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = str(table(run, "mon").set_index("file")["digest"]["NORMAL/patient2_1.png"])

    def away(*args: object) -> None:
        raise RegistryUnavailable("MLflow did not answer")

    with monkeypatch.context() as broken:
        broken.setattr(erasing, "RunFiles", away)
        answer = erased(run, "patient", "patient2")
    assert "not all is erased yet" in str(answer["warnings"])
    assert f"dataset/radiographs/{mine[:2]}/{mine}.png" in [entry.key for entry in run.store().list("dataset")]
    before.look(run)
    assert erasing.verify(run)[0]


@pytest.mark.slow
def test_what_is_erased_is_in_no_file_of_store_cache_and_mlflow(erasable: Callable[[str], Erasable]) -> None:
    site = erasable("site")
    kinds = {place.split(" in ")[0].split(" of ")[0] for place in site.told()}
    assert kinds >= {"the bytes", "the name", "the patient", "the thumbnail", "the phash", "the statistics", "the card"}
    answer = amend.amend(site.run, site.asked, WHY)
    assert set(answer["removed"]) >= {"MLflow", "cache", "candidates", "dataset", "predictions", "reports", "suspects"}
    left = site.told()
    assert {hit for hit in left if not ("the patient of" in hit and "dataset/commits/" in hit)} == set()
    assert [one["text"] for one in answers.verify(site.settings) if not one["holds"]] == []
    shutil.rmtree(site.settings.home)


def test_a_list_of_what_to_label_that_fits_its_delivery_no_more_goes(run: Run) -> None:
    """Its rows may be those of other files by now, or of none: nobody can tell whom the list shows."""
    loose = png(picture(90, 200, 180))
    lay(run.settings, "wed", {**WEDNESDAY, "loose1.png": loose, "loose2.png": png(picture(91, 200, 180))})
    intake_steps.check_deliveries(run, ["wed"])
    out = review.kept_out(Dataset(run.settings), "wed")
    rows = out.index[out["reason"] == "no-class"]
    source, places = records.digest_of(loose), tuple(("wed", int(row)) for row in rows)
    file = Unlabelled("wed", places[0][1], source, "d" * 64, "", "NORMAL", 0.5, 1.0, 0.5)
    listed = ToLabel("m", places, (file,))
    erased(run, "patient", "patient2")
    for of, row, stays in ((places, rows[0], True), (places[:1], rows[0], False), (places, 999, False)):
        review.keep_to_label(run.store(), replace(listed, places=of, files=(replace(file, row=int(row)),)))
        before.look(run)
        assert run.store().exists(review.TO_LABEL) is stays
    assert erasing.verify(run)[0]


def test_what_comes_back_later_is_found_by_a_last_look_and_by_repair(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = table(run, "mon").set_index("file").loc["NORMAL/patient2_1.png"]
    dataset = Dataset(run.settings)
    data, clock = dataset.read(mine["digest"], mine["suffix"]), DirectoryStore.clock
    erased(run, "patient", "patient2")
    monkeypatch.setattr(DirectoryStore, "clock", lambda store: clock(store) + kept_rows.AGAIN_SECONDS + 60)
    for look in (before.look, repair.repair):
        dataset.put(mine["digest"], mine["suffix"], data)
        look(run)
        assert erasing.verify(run)[0], look


def test_files_that_were_not_read_are_those_of_whom_the_delivery_names(run: Run) -> None:
    lines = "file,label,patient_id\nNORMAL/a7.png,NORMAL,7\nodd/letter.png,NORMAL,4711\nodd/no.png,NORMAL,4711\n"
    lines += "odd/no.png,PNEUMONIA,4711\n"
    letters = {"odd/letter.png": b"dear colleague", "odd/no.png": png(picture(91, 200, 180))}
    files = {"NORMAL/a7.png": png(picture(7, 200, 180)), "odd/patient4711_1.png": png(picture(92, 200, 180)), **letters}
    lay(run.settings, "wed", {**files, "labels.csv": lines.encode()})
    ingest(run)
    names = ["letter.png", "no.png", "patient4711_1.png"]
    assert [told(run, [name]) != [] for name in names] == [True, True, True]
    amend.amend(run, [Named("withdraw", "patient", name, erase=True) for name in ("4711", "patient4711")], WHY)
    assert [told(run, [name]) for name in names] == [[], [], []]
    assert table(run, "wed")["file"].str.startswith("erased:").sum() == 3


def test_an_old_snapshot_does_not_grow_when_one_side_of_a_conflict_is_erased(run: Run) -> None:
    lay(run.settings, "wed", {**WEDNESDAY, "PNEUMONIA/x.jpg": jpeg(picture(3, 200, 180), quality=60)})
    ingest(run)
    dataset = Dataset(run.settings)
    old, mine = dataset.snapshot(), table(run, "mon").set_index("file")["digest"]["NORMAL/patient3_1.png"]
    assert old is not None
    before = set(dataset.rows(old)["digest"])
    assert mine not in before  # its near copy came under another label
    erased(run, "delivery", "wed")
    gone = set(table(run, "wed")["digest"])
    assert set(Dataset(run.settings).rows(old)["digest"]) == before - gone
    now = Dataset(run.settings).snapshot()
    assert now is not None
    assert mine in set(Dataset(run.settings).rows(now)["digest"])


def test_all_runs_of_a_candidate_are_looked_at(run: Run) -> None:
    """Its model was deleted in MLflow and trained anew, in another run; and its run is not on record any more."""
    snapshot = Dataset(run.settings).snapshot()
    assert snapshot is not None
    folder, runs = run.store().child(f"candidates/{'c' * 64}"), RunFiles(run.settings)
    for _ in range(3):
        folder.delete("run.json")
        made = mlflow_run.run_of(folder, run.settings, "c", {"xray.candidate": "c" * 64}, snapshot.digest)
        runs.write(f"{made}/training-batch.png", b"picture")
    folder.delete("run.json")
    folder.write("training-batch.png", b"picture")
    erased(run, "patient", "patient2")
    found = runs.of_candidate("c" * 64)
    assert len(found) == 3
    assert [key for one in found for key in runs.list(one)] == []
    assert not folder.exists("training-batch.png")
    assert erasing.verify(run)[0]


def test_what_a_commit_had_stored_goes_with_the_erasure(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The erasure takes the place of the commit, which is judged anew; or the commit is killed and never repeated."""
    for name, number in (("wed", 2), ("thu", 3)):
        lay(run.settings, name, {**WEDNESDAY, f"NORMAL/patient{number}_5.png": png(picture(90 + number, 200, 180))})
        intake_steps.check_delivery(run, name)
    checked = {name: review.table_of(Dataset(run.settings), name) for name in ("wed", "thu")}
    mine = {n: str(t.loc[t["file"].str.endswith("_5.png"), "digest"].iloc[0]) for n, t in checked.items()}
    real = commit._store_radiographs

    def erase_first(*given: object) -> None:
        monkeypatch.setattr(commit, "_store_radiographs", real)
        erased(run, "patient", "patient2")
        real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(commit, "_store_radiographs", erase_first)
    intake_steps.commit_deliveries(run, ["wed"])
    assert list(table(run, "wed")["reason"]) == ["withdrawn", "", ""]
    assert _stored(run, mine["wed"]) == []

    with monkeypatch.context() as killed:
        killed.setattr(Dataset, "append", _kill)
        with pytest.raises(KeyboardInterrupt):
            intake_steps.commit_deliveries(run, ["thu"])
    assert _stored(run, mine["thu"])
    shutil.rmtree(Path(run.settings.incoming, "thu"))
    erased(run, "patient", "patient3")
    assert _stored(run, mine["thu"]) == []
    assert erasing.verify(run)[0]


def _kill(*args: object) -> None:
    raise KeyboardInterrupt


def test_what_is_withdrawn_later_is_no_trace_of_an_erasure(run: Run) -> None:
    """A commit that lost its place may have stored it; nobody looks for it once the erasure is done with."""
    erased(run, "patient", "patient1")
    amend.amend(run, [Named("withdraw", "patient", "patient7")], WHY)
    lay(run.settings, "wed", WEDNESDAY)
    ingest(run)
    out = table(run, "wed").iloc[0]
    assert (out["reason"], out["file"]) == ("withdrawn", "NORMAL/patient7_1.png")
    Dataset(run.settings).put(out["digest"], ".png", b"its bytes")
    assert erasing.verify(run)[0]


def _stored(run: Run, digest: str) -> list[str]:
    return [entry.key for entry in run.store().list("dataset/radiographs") if digest in entry.key]


@pytest.mark.parametrize("when", ["_make", "_bytes"])
def test_an_erasure_beside_a_commit_does_not_trouble_it(run: Run, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """It rewrites the manifest before the commit, which stands, has made it; or between reading and writing it."""
    lay(run.settings, "wed", {**WEDNESDAY, "NORMAL/patient2_5.png": png(picture(92, 200, 180))})
    intake_steps.check_delivery(run, "wed")
    real = getattr(Manifests, when)

    def beside(manifests: Manifests, version: Version) -> object:
        if version.manifest != "wed":
            return real(manifests, version)
        monkeypatch.setattr(Manifests, when, real)
        data = real(manifests, version) if when == "_bytes" else None
        erased(run, "patient", "patient2")
        return data or real(manifests, version)

    monkeypatch.setattr(Manifests, when, beside)
    assert "wed" in intake_steps.commit_deliveries(run, ["wed"]).deliveries
    assert erasing.verify(run)[0]
    assert len([key for key in Dataset(run.settings).store.list("manifests") if "wed" in key.key]) == 1


def test_writes_and_scans_that_were_killed_are_found_and_removed(run: Run) -> None:
    mine = table(run, "mon").set_index("file").loc["NORMAL/patient2_1.png"]
    erased(run, "patient", "patient2")
    write, scan = Path(run.settings.store, "dataset", f"{TEMPORARY}x"), run.settings.cache / "intake" / "x.jsonl"
    write.write_bytes(b"bytes")
    assert erasing.verify(run)[0]  # somebody may be writing it
    os.utime(write, (time.time() - 3600, time.time() - 3600))
    assert f"{TEMPORARY}x" in erasing.verify(run)[1]
    scan.parent.mkdir(parents=True, exist_ok=True)
    scan.write_text(f'["k", ["", "{mine["digest"]}"]]\n')
    assert erasing.verify(run)[1].startswith("2 files")
    assert kept_rows.drop_erased(Dataset(run.settings)) == 1
    before.look(run)
    assert erasing.verify(run)[0]
    assert not write.exists()
