"""The page *Review*, as its functions draw it; that Airflow shows it, and to whom, tests/site/browser says."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
import reviewed
from airflow.api_fastapi.core_api.security import get_user
from fastapi import FastAPI
from fastapi.testclient import TestClient
from httpx import Response
from phantoms import deliver
from PIL import Image

from xray_pipeline.airflow_ui import access, memory, review_page
from xray_pipeline.airflow_ui.shelf import Shelf
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import DirectoryStore
from xray_pipeline.night import amend, intake_steps, review
from xray_pipeline.night.review import Material
from xray_pipeline.night.run import Run


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One committed delivery of 30 phantoms, of which one file is torn and one a copy."""
    home = tmp_path_factory.mktemp("review")
    run = Run(Settings(home=home, settle_seconds=0, patient_key="demo key, not a secret"))
    deliver(run.settings, "mon", range(30), side=96)
    first, second = sorted(Path(run.settings.incoming, "mon", "PNEUMONIA").iterdir())[:2]
    (first.parent / "patient0990_1.png").write_bytes(second.read_bytes())
    first.write_bytes(first.read_bytes()[:-200])
    intake_steps.check_deliveries(run, ["mon"])
    intake_steps.commit_deliveries(run, ["mon"])
    return home


@pytest.fixture
def drawn(home: Path, monkeypatch: pytest.MonkeyPatch, airflow_db: None) -> Material:
    """What there is to review of it."""
    for name, value in {"HOME": home, "SETTLE_SECONDS": 0, "PATIENT_KEY": "demo key, not a secret"}.items():
        monkeypatch.setenv(f"XRAY_{name}", str(value))
    monkeypatch.setattr(access, "may_start", lambda user, dag_id: user.name == "operator")
    for remembered in (memory._overview, memory._commits):
        remembered.cache_clear()
    return reviewed.draw(Settings())


def asked(path: str, who: str = "operator") -> Response:
    app = FastAPI()
    for address, shows in review_page.ADDRESSES.items():
        app.get(address)(shows)
    app.dependency_overrides[get_user] = lambda: SimpleNamespace(name=who)
    return TestClient(app).get(path)


def picture(answer: Response) -> Image.Image:
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    return Image.open(io.BytesIO(answer.content))


def test_a_suspect_is_shown_with_what_is_known_of_it(drawn: Material) -> None:
    listed = asked("/review").text
    first, second, *_ = Shelf(Settings()).order("suspects")
    assert listed.index(first) < listed.index(second)
    assert "says NORMAL 0.97" in listed
    page = asked(f"/review/{second}").text
    for text in (
        "Labelled <b>PNEUMONIA</b>, train",
        "says NORMAL with 0.97",
        "Champion, version 1: PNEUMONIA",
        "2 of 3",
    ):
        assert text in page
    assert page.count("?side=160") == 4  # the radiographs most alike
    assert f'rel="prev" href="{first}?tab=suspects"' in page
    for text in (listed, page):
        assert "patient0" not in text
        assert "<script" not in text


def test_the_picture_is_stretched_and_a_map_laid_over_it(drawn: Material) -> None:
    digest = next(iter(drawn.explained))
    plain = picture(asked(f"/review/pictures/{digest}"))
    assert (plain.mode, plain.size, plain.getextrema()) == ("L", (96, 96), (0, 255))
    assert picture(asked(f"/review/pictures/{digest}?side=64")).size == (64, 64)
    over = picture(asked(f"/review/pictures/{digest}?of=champion"))
    assert over.mode == "RGB"
    red, _, blue = over.getpixel((28, 54))  # type: ignore[misc]
    assert red > blue + 50


@pytest.mark.parametrize(
    "path", [f"pictures/{'0' * 64}", "0" * 64, "files/mon/9999", "files/tue/0", "files/..%2Fledger/0/picture"]
)
def test_what_is_not_there_is_not_found(drawn: Material, path: str) -> None:
    assert asked(f"/review/{path}").status_code == 404


def test_disagreements_and_what_is_kept_out_are_listed(drawn: Material) -> None:
    page = asked("/review?tab=disagreements").text
    assert page.count("champion PNEUMONIA") == len(drawn.disagreements)
    table = asked("/review?tab=quarantine").text
    assert "reason=duplicate" in table
    assert "reason=truncated" in table
    of_reason = asked("/review?tab=quarantine&delivery=mon&reason=duplicate").text
    assert of_reason.count("data:image/png") == 1
    place = of_reason.partition('href="review/files/')[2].partition('"')[0]
    assert "the same image is in the delivery already" in asked(f"/review/files/{place}").text
    assert picture(asked(f"/review/files/{place}/picture")).size == (96, 96)
    torn = asked("/review?tab=quarantine&delivery=mon&reason=truncated").text
    place = torn.partition('href="review/files/')[2].partition('"')[0]
    assert "It can't be shown" in asked(f"/review/files/{place}").text
    assert asked(f"/review/files/{place}/picture").status_code == 404


def test_a_file_that_is_another_by_now_is_not_shown(drawn: Material) -> None:
    copy = Path(Settings().incoming, "mon", "PNEUMONIA", "patient0990_1.png")
    of_reason = asked("/review?tab=quarantine&delivery=mon&reason=duplicate").text
    place = of_reason.partition('href="review/files/')[2].partition('"')[0]
    before = copy.read_bytes()
    copy.write_bytes(sorted(copy.parent.iterdir())[3].read_bytes())
    assert asked(f"/review/files/{place}/picture").status_code == 404
    copy.write_bytes(before)


def test_a_picture_reads_no_commit_manifest_or_review_again(drawn: Material, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = next(iter(drawn.explained))
    asked(f"/review/pictures/{digest}")
    read: list[str] = []
    real = DirectoryStore.read
    monkeypatch.setattr(DirectoryStore, "read", lambda self, key: read.append(key) or real(self, key))
    asked(f"/review/pictures/{digest}?side=160")
    assert [key.split("/")[0] for key in read] == ["radiographs"]


def test_only_who_may_act_finds_forms(drawn: Material) -> None:
    digest = next(iter(drawn.explained))
    assert asked(f"/review/{digest}").text.count('data-dag="xray_amend"') == 3
    page = asked(f"/review/{digest}", who="viewer").text
    assert "You may look" in page
    assert "<form" not in page
    assert "<button" not in page


@pytest.mark.parametrize(
    ("action", "subject", "shown"),
    [
        *(("erase", "a" * 64, True), ("erase-delivery", "mon", True), ("relabel", "mon/12", True), ("undo", "3", True)),
        *(("erase-patient", "4711", False), ("erase-patient", "IM-0117", False), ("relabel", "Ada/Doe", False)),
        *(("erase", "tue", False), ("relabel", "tue/12", False), ("erase-patient", "a" * 12, False)),
    ],
)
def test_what_a_form_named_is_shown_only_where_it_names_no_patient(action: str, subject: str, shown: bool) -> None:
    assert review_page.told(action, subject, {"mon": {}}) == (subject if shown else "")


def test_what_was_amended_says_so_and_what_is_withdrawn_is_not_shown(drawn: Material) -> None:
    run = Run(Settings(), who="reader")
    first, second, third = Shelf(Settings()).order("suspects")
    review.act(run, "relabel", first, "NORMAL", "no infiltrate")
    review.act(run, "withdraw", second, "", "no chest")
    review.say(run, third, "", "two readers", {"ann": "NORMAL", "bob": "PNEUMONIA"})
    assert Shelf(Settings()).order("suspects") == [third]
    assert "relabel to NORMAL by reader" in asked(f"/review/{first}").text
    page = asked(f"/review/{second}").text
    assert "It is withdrawn" in page
    assert "<form" not in page
    assert asked(f"/review/pictures/{second}").status_code == 404
    assert "ann says NORMAL, bob says PNEUMONIA" in asked(f"/review/{third}").text
    assert "readers differ" in asked("/review").text
    table = asked("/review?tab=amendments").text
    assert "no infiltrate" in table
    for number in (2, 3):
        amend.amend(run, [amend.Named("undo", "amendment", str(number))], "for the next test")
    assert "undone" in asked("/review?tab=amendments").text


@pytest.mark.parametrize(
    ("tab", "says"),
    [
        ("suspects", "Nothing to look at yet"),
        ("to-label", "Nothing:"),
        ("quarantine", "Nothing is quarantined"),
        ("amendments", "None yet: nothing was ever corrected or withdrawn."),
    ],
)
def test_before_the_first_night_there_is_nothing(
    drawn: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tab: str, says: str
) -> None:
    monkeypatch.setenv("XRAY_HOME", str(tmp_path))
    assert says in asked(f"/review?tab={tab}").text
