from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from xray_pipeline.base.settings import IntakeRules, Settings
from xray_pipeline.dataset.history import EMPTY
from xray_pipeline.dataset.table import Row, of_rows
from xray_pipeline.intake import expectations
from xray_pipeline.intake.deliveries import Delivery, Inventory
from xray_pipeline.intake.drift import Drift
from xray_pipeline.intake.verdicts import Intake, judge

DELIVERY = Delivery("2026-11-24", "/incoming/2026-11-24", 1, 3, 1234, "f" * 64, True)


def row(number: int, **fields: Any) -> Row:
    usual = {
        "source_digest": f"{number:064x}",
        "format": "jpeg",
        "width": 80,
        "height": 96,
        "mode": "L",
        "bits": 8,
        "patient": f"{number:032x}",
        "label": ("NORMAL", "PNEUMONIA")[number % 2],
        "side": ("train", "validation", "held-out")[number % 3],
        "verdict": "accepted",
        "digest": f"{number:064x}",
        "suffix": ".jpg",
        "phash": f"{number:064x}",
    }
    return Row(f"NORMAL/{number:04}.jpg", 100, "v", **{**usual, **fields})


def bad(number: int, reason: str) -> Row:
    return row(number, verdict="quarantined", side="", digest="", reason=reason)


def table(*rows: Row) -> pd.DataFrame:
    return of_rows(rows)


def judged(settings: Settings, *rows: Row, delivery: Delivery = DELIVERY, **rules: Any) -> Intake:
    inventory = Inventory(delivery, table(*rows), EMPTY.reference(0), ["labels.csv"])
    return judge(inventory, settings.model_copy(update={"rules": IntakeRules(**rules)}))


GOOD = tuple(row(number) for number in range(12))


def test_a_good_delivery_is_fit(settings: Settings) -> None:
    outcome = judged(settings, *GOOD)
    assert outcome.fit
    assert outcome.failures == ()
    assert all(finding["success"] for finding in outcome.result["expectations"])
    assert json.loads(json.dumps(outcome.result)) == outcome.result


_LEAK = "Few images or patients are on two sides of the split"


@pytest.mark.parametrize(
    ("rows", "rules", "failed"),
    [
        ((), {}, {"Enough files are accepted"}),
        (GOOD, {"min_files": 13}, {"Enough files are accepted"}),
        ((*GOOD, *(bad(n, "corrupt") for n in range(20, 24))), {}, {"Few files are quarantined, duplicates aside"}),
        (GOOD[::2], {"max_class_share": 0.9}, {"No class crowds out the others"}),
        ((*GOOD, row(20, digest=f"{0:064x}")), {}, {"No accepted image comes twice"}),
        ((*GOOD, row(20, label="HERNIA")), {}, {"Labels are classes"}),
        ((*GOOD, row(20, width=10)), {}, {"The shorter side is long enough"}),
        ((*GOOD, row(20, width=10**6, height=10**6)), {}, {"Images are not too large"}),
        ((*GOOD, bad(20, "patient-on-two-sides"), bad(21, "copy-across-split")), {}, {_LEAK}),
    ],
)
def test_each_rule_can_reject(
    settings: Settings, rows: tuple[Row, ...], rules: dict[str, Any], failed: set[str]
) -> None:
    outcome = judged(settings, *rows, **rules)
    assert not outcome.fit
    assert {f["sentence"] for f in outcome.result["expectations"] if not f["success"]} == failed
    assert len(outcome.failures) == len(failed)


def test_failures_say_what_was_seen_and_wanted(settings: Settings) -> None:
    outcome = judged(settings, *GOOD[:3], bad(20, "corrupt"))
    assert outcome.failures == ("Few files are quarantined, duplicates aside: 25.0%, wanted 20.0% or less.",)


def test_duplicates_and_litter_do_not_count_as_quarantined(settings: Settings) -> None:
    assert judged(settings, *GOOD[:2], *(bad(n, "duplicate") for n in range(20, 40)), bad(50, "system-file")).fit


def test_a_delivery_of_nothing_but_duplicates_is_not_fit(settings: Settings) -> None:
    outcome = judged(settings, *(bad(n, "duplicate") for n in range(20, 40)))
    assert outcome.failures == ("Enough files are accepted: 0, wanted 1 or more.",)


def test_result_counts(settings: Settings) -> None:
    result = judged(settings, *GOOD, bad(20, "corrupt"), bad(21, "blank")).result
    assert (result["rows"], result["accepted"]) == (14, 12)
    assert result["quarantined"] == {"blank": 1, "corrupt": 1}
    assert result["bookkeeping"] == ["labels.csv"]
    assert result["great_expectations"].startswith("1.")


def test_equal_tables_give_equal_pages_and_results(settings: Settings) -> None:
    first, second = judged(settings, *GOOD), judged(settings, *GOOD)
    assert (first.page, first.result) == (second.page, second.result)


def test_each_expectation_is_one_of_great_expectations_own(settings: Settings) -> None:
    asked = expectations._expectations(settings, table(*GOOD), Drift(0, 0, ()), ())
    assert len({one.sentence for one in asked}) == len(asked)
    assert len({(one.batch, one.kind, one.column) for one in asked}) == len(asked)
    core = expectations._great_expectations().expectations.core
    assert all(getattr(core, one.kind).expectation_type for one in asked)


def test_the_expectations_are_written_without_importing_great_expectations() -> None:
    code = (
        "import sys; from xray_pipeline.base.settings import Settings; from xray_pipeline.intake import expectations; "
        "assert expectations.written(Settings(home='home')); assert 'great_expectations' not in sys.modules"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=60)


# the page


class Page(HTMLParser):
    """Collects what a browser would fetch, and whether tags are balanced."""

    VOID = ("meta", "br", "link", "img", "input", "hr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [value for name, value in attrs if name in ("src", "href", "data", "action") and value]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_one_file_without_requests_or_scripts(settings: Settings) -> None:
    for outcome in (judged(settings, *GOOD, bad(20, "corrupt")), judged(settings), judged(settings, bad(1, "blank"))):
        page = Page(outcome.page)
        assert (page.fetched, page.open) == ([], [])
        assert not re.search(r"https?://|@import|url\(|<script", outcome.page)


def shown(page: str) -> str:
    """The words of a page without its markup."""
    return re.sub(r"<[^>]+>", "", page)


def test_page_says_verdict_reasons_and_rows(settings: Settings) -> None:
    page = judged(settings, *GOOD, bad(5000, "corrupt"), bad(5001, "corrupt")).page
    assert "Fit to ingest" in page
    assert "breaks its own format" in page
    assert "12, 13" in shown(page)
    assert "copy or export the file again" in page
    assert "NORMAL/" not in page
    rejected = judged(settings, *(bad(n, "corrupt") for n in range(30))).page
    assert "Rejected" in rejected
    assert "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, …" in shown(rejected)


def test_page_of_an_addition(settings: Settings) -> None:
    addition = Delivery("day", "u", 3, 1, 1, "f" * 64, True)
    assert "since part 2 was committed" in judged(settings, *GOOD, delivery=addition).page


def test_page_escapes_names(settings: Settings) -> None:
    evil = Delivery("<script>alert(1)</script>", "u", 1, 1, 1, "f" * 64, True)
    assert "<script>" not in judged(settings, *GOOD, delivery=evil).page


def test_great_expectations_is_silent_offline_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """In a process of its own: no analytics thread, no connection, no file in the working folder, nothing printed."""
    code = (
        "import socket, sys, threading, logging; logging.basicConfig(level=logging.INFO)\n"
        "def refuse(*a): raise OSError('no network in this test')\n"
        "socket.socket.connect = refuse\n"
        "import test_expectations as t\n"
        "from xray_pipeline.base.settings import Settings\n"
        "assert t.judged(Settings(home='home'), *t.GOOD).fit\n"
        "assert not [t for t in threading.enumerate() if type(t).__module__.split('.')[0] == 'posthog']\n"
    )
    path = os.pathsep.join(
        p
        for p in (
            str(Path(__file__).parent),
            str(Path(__file__).parents[1] / "builders"),
            str(Path(__file__).parents[2]),
        )
    )
    env = {**os.environ, "PYTHONPATH": path, "HOME": str(tmp_path / "user"), "GX_ANALYTICS_ENABLED": ""}
    (tmp_path / "work").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "work", env=env, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "great_expectations" not in done.stderr
    assert list(tmp_path.rglob("*")) == [tmp_path / "work"]


def test_data_docs_name_no_file_and_take_any_key(settings: Settings, tmp_path: Path) -> None:
    delivery = Delivery("Tag 3, Raum%2F2 ä~1", "u", 2, 1, 1, "f" * 64, True)
    twice = table(*GOOD, row(0), row(3, patient="MRN-4711", digest="e" * 64))
    judge(Inventory(delivery, twice, EMPTY.reference(0)), settings, data_docs=tmp_path)
    pages = [path.read_text() for path in tmp_path.rglob("*.html")]
    assert any("Failed" in page for page in pages)
    assert not any("NORMAL/0" in page or "MRN-4711" in page for page in pages)


def test_importing_the_check_does_not_import_great_expectations() -> None:
    code = "import sys, xray_pipeline.intake.check; assert 'great_expectations' not in sys.modules"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=60)
