"""The page and the card say what was decided, show everything, load nothing and name nobody."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from small_models import small_classifier

from xray_pipeline.base.settings import IntakeRules
from xray_pipeline.base.storage import open_store
from xray_pipeline.dataset.pixels import PixelCache
from xray_pipeline.evaluation import answer_drift, predictions, stress
from xray_pipeline.evaluation.answer_drift import AnswerDrift, unmeasured
from xray_pipeline.evaluation.bootstrap import Resampling
from xray_pipeline.evaluation.cases import Answers, prepare
from xray_pipeline.evaluation.metric_table import METRICS, Interval
from xray_pipeline.evaluation.metrics import evaluate
from xray_pipeline.evaluation.slices import slices as all_slices
from xray_pipeline.evaluation.suspected import Suspect
from xray_pipeline.evaluation.sweep import Cuts
from xray_pipeline.evaluation.watching import Delivery
from xray_pipeline.gate.evidence import Evidence
from xray_pipeline.gate.policy import decide, load_policy
from xray_pipeline.report.contents import IN_PRODUCTION, Arrival, Record, Report, Subject, Suspects
from xray_pipeline.report.examples import examples
from xray_pipeline.report.page import model_card, render, with_version, without_pictures
from xray_pipeline.report.wording import cuts_in_words, difference, headline, in_words, percent, tries, warnings

CHROMIUM = Path("/usr/bin/chromium")
TWO, THREE = ("NORMAL", "PNEUMONIA"), ("BACTERIA", "NORMAL", "VIRUS")
HOSTILE = '<script>alert("x")</script>|`$a$'


def read(digest: str, suffix: str) -> bytes:
    """A stored radiograph made from its digest."""
    pixels = np.random.default_rng(int(digest, 16)).integers(0, 256, (5, 6), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels.repeat(16, axis=0).repeat(16, axis=1)).save(data, "PNG")
    return data.getvalue()


def held_out(classes: tuple[str, ...], n: int) -> pd.DataFrame:
    index = np.arange(n)
    return pd.DataFrame(
        {
            "digest": [f"{i:03x}" + "abcdef0123" * 6 + "a" for i in range(n)],
            "suffix": ".png",
            "label": [classes[i % len(classes)] for i in index],
            "patient": [f"patient-{i // 2}" for i in index],
            "source": np.where(index % 2 == 0, "IM", "virus"),
            "delivery": [f"night-{i % 15:02d}" for i in index],
            "scanner": "",
            "view": "PA",
            "sex": "",
            "mode": "L",
            "age_years": np.nan,
            "width": 96,
            "height": 80,
        }
    )


@dataclass(frozen=True)
class Made:
    """Two small real classifiers on made radiographs, with all that a report needs."""

    rows: pd.DataFrame
    models: list[Any]
    tables: list[Any]
    report: Report


def make(
    folder: Path, classes: tuple[str, ...] = TWO, champion: bool = True, n: int = 90, stressed: bool = True
) -> Made:
    rows, store, cache = held_out(classes, n), open_store(folder / "store"), PixelCache(folder / "cache", 64)
    models: list[Any] = []
    for seed in range(2 if champion else 1):
        loose = small_classifier(seed, classes=classes)
        digest = loose.save(folder / str(seed))
        model = replace(loose, digest=digest)
        middle = float(np.median(_table(model, rows, cache, store)[:, -1]))
        models.append((replace(model, threshold=middle), cache))
    tables = [_table(model, rows, cache, store) for model, _ in models]
    answers = [Answers(table, model.threshold, model.digest) for (model, _), table in zip(models, tables, strict=True)]
    cases, resampling = prepare(answers, rows["label"], rows["patient"], classes), Resampling(100)
    evaluations, comparison = evaluate(cases, resampling, "5" * 64)
    found, other = (*evaluations, None)[:2]
    theirs = tables[1] if champion else None
    slices = all_slices(rows, cases, resampling)
    strained = stress.stress(models, rows, read, store, 20, resampling) if stressed else None
    evidence = Evidence(found, other, champion, comparison, "5" * 64, "approve", 3.0, slices, strained, withdrawn=0)
    disagreements, errors = examples(models, rows, tables, read, limit=6)
    arrivals = (
        Arrival("night-14", True, 88, {"duplicate": 2}, ("Two probable mislabels.",)),
        Arrival("night-13", True, 40, {"copy-across-split": 3}, tonight=False),
        Arrival("bad", False, 0, {}, ("No class PNEUMONA.",)),
    )
    made = Report(
        Subject("chest-xray", "c" * 64, None, 1 if champion else None, "scheduled-1", "2026-11-30 02:41"),
        decide(evidence, load_policy("default")),
        evidence,
        list(rows["label"]),
        tables[0],
        theirs,
        disagreements,
        errors,
        arrivals,
        {"train": 400, "held-out": n},
        {"backbone": "shufflenet_v2_x0_5"},
        {"Airflow run": "scheduled-1"},
    )
    return Made(rows, models, tables, made)


def record(count: int, alarm: bool = False) -> Record:
    """A champion's record of which two deliveries say something special: nobody new, and answers unlike the others."""
    like = AnswerDrift(0.4, 0.0033, False, "mean probability of PNEUMONIA 0.61 here, 0.60 when held out")
    unlike = replace(like, p=0.0003, alarm=True, text="mean probability of PNEUMONIA 0.93 here, 0.60 when held out")
    deliveries = []
    for n in range(count):
        accuracy, width = 0.93 + 0.04 * float(np.sin(7 * n)), 0.6 / (n + 2) ** 0.7
        at = f"2026-{n // 28 + 1:02d}-{n % 28 + 1:02d}T02:00:00+00:00"
        ends = (max(0.0, 0.93 - width), min(1.0, 0.93 + width), 0.0)
        deliveries.append(Delivery(f"night-{n:02d}", at, 60 + n, 50, accuracy, *ends, like))
    deliveries[-3] = replace(deliveries[-3], patients=1, accuracy=None, drift=unmeasured("too few", IntakeRules()))
    deliveries[-2] = replace(deliveries[-2], drift=unlike)
    said = "Version 1 is no longer as good as it was." if alarm else "No alarm about version 1."
    told = answer_drift.in_words([(one.key, one.drift) for one in deliveries if one.drift])
    return Record((said, told), alarm, 0.935, tuple(deliveries), count)


def _table(model: Any, rows: pd.DataFrame, cache: PixelCache, store: Any) -> Any:
    columns = [f"p_{name}" for name in model.classes]
    return predictions.score(model, rows, cache, read, store)[columns].to_numpy()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Made:
    made = make(tmp_path_factory.mktemp("two"))
    return replace(made, report=replace(made.report, record=record(40)))


@pytest.fixture(scope="module")
def page(two: Made) -> str:
    return render(two.report)


class Links(HTMLParser):
    """Everything a page would load or lead to."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "xlink:href", "data")]


def parsed(page: str) -> Links:
    links = Links()
    links.feed(page)
    return links


def test_the_page_loads_nothing_and_runs_nothing(page: str) -> None:
    found = parsed(page)
    assert not {"script", "link", "iframe", "object"} & set(found.tags)
    assert all(link.startswith(("data:image/", "#")) for link in found.links)
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    assert len(page) < 2_000_000


def test_the_decision_comes_first(two: Made, page: str) -> None:
    body = page[page.index("<body>") :]
    assert body.index(headline(two.report.decision)) < body.index("What the policy asks") < body.index("<svg")
    for clause in two.report.decision.clauses:
        assert f"<td>{clause.number}</td>" in body


def test_it_says_in_words_what_was_found(two: Made) -> None:
    told = " ".join(in_words(two.report.evidence, IN_PRODUCTION))
    against = two.report.evidence.comparison
    assert against is not None
    assert "90 radiographs of 45 patients" in told
    assert f"only the candidate is right, on {against.only_champion_right} only the model in production" in told


@pytest.mark.parametrize(
    ("p", "said"),
    [
        (1.0, "every time"),
        (0.96, "in more than 9 of 10 tries"),
        (0.62, "in about 6 of 10 tries"),
        (0.15, "in about 2 of 10 tries"),
        (0.125, "in about 1 of 8 tries"),
        (0.0004, "in about 1 of 2,500 tries"),
        (1e-6, "in about 1 of 1,000,000 tries"),
        (1e-12, "in fewer than 1 of a million tries"),
        (0.0, "in fewer than 1 of a million tries"),
    ],
)
def test_how_often_luck_does_it_in_words(p: float, said: str) -> None:
    assert tries(p) == said


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (0.0, "0.0 %"),
        (0.0004, "under 0.1 %"),
        (0.931, "93.1 %"),
        (0.9996, "over 99.9 %"),
        (1.0, "100.0 %"),
        (float("nan"), "an unknown share"),
    ],
)
def test_not_quite_all_never_reads_as_all(share: float, said: str) -> None:
    assert percent(share).replace("\N{NO-BREAK SPACE}", " ") == said


@pytest.mark.parametrize(
    ("ours", "theirs", "p", "said"),
    [
        (0, 0, 1.0, "The two models name the same radiographs right."),
        (3, 9, 0.98, "On 3 radiographs only the candidate is right, on 9 only the model in production. The candidate is"
         " not ahead."),
        (4, 4, 0.64, "The candidate is not ahead."),
        (1, 0, 0.5, "On 1 radiograph only the candidate is right, on 0 only the model in production. If both were"
         " equally good, luck alone would put the candidate this far ahead or further in about 5 of 10 tries."),
        (40, 0, 0.0, "this far ahead or further in fewer than 1 of a million tries."),
        (2, 1, float("nan"), "How often luck would do as much is not known."),
    ],
)  # fmt: skip
def test_who_is_ahead_is_said_for_every_p(two: Made, ours: int, theirs: int, p: float, said: str) -> None:
    against = two.report.evidence.comparison
    assert against is not None
    against = replace(against, only_candidate_right=ours, only_champion_right=theirs, p_value=p)
    told = in_words(replace(two.report.evidence, comparison=against), IN_PRODUCTION)[-1]
    assert told.endswith(said)
    assert ("luck" in told) == (ours > theirs)


def test_one_radiograph_of_one_patient_is_said_in_the_singular(two: Made) -> None:
    ours = two.report.evidence.candidate
    assert ours is not None
    told = in_words(replace(two.report.evidence, candidate=replace(ours, n=1, patients=1)), IN_PRODUCTION)[0]
    assert told.startswith("The candidate read 1 radiograph of 1 patient that no training ever saw")


@pytest.mark.parametrize(
    ("own", "auc", "said"),
    [
        ((0.83, 0.93), (0.992, 0.985), "the candidate ranks radiographs better"),
        ((0.93, 0.83), (0.985, 0.992), ""),  # nor is it better at .5
        ((0.93, 0.83), (0.992, 0.985), ""),
        ((0.83, 0.83), (0.992, 0.985), ""),
        ((0.83, 0.93), (0.985, 0.985), ""),
    ],
)
def test_that_the_cut_made_the_difference_is_said_only_then(
    own: tuple[float, float], auc: tuple[float, float], said: str
) -> None:
    told = cuts_in_words(Cuts(own, (0.96, 0.94), auc), (0.86, 0.58), IN_PRODUCTION).replace("\N{NO-BREAK SPACE}", " ")
    assert ("The threshold, not the ranking, made the difference" in told) == bool(said)
    assert said in told
    assert "At a cut of .5 the candidate would name 96.0 % right, the model in production 94.0 %" in told


def test_a_candidate_that_wins_by_its_cut_alone_is_told() -> None:
    told = cuts_in_words(Cuts((0.93, 0.83), (0.94, 0.96), (0.985, 0.992)), (0.58, 0.86), IN_PRODUCTION)
    assert "the model in production ranks radiographs better" in told


def test_the_report_shows_the_sweep_and_says_what_a_cut_of_one_half_gives(two: Made, page: str) -> None:
    assert page.count('aria-label="accuracy by cut for PNEUMONIA"') == 1
    assert page.count('aria-label="sensitivity and specificity by cut for PNEUMONIA"') == 1
    truth = two.rows["label"] == "PNEUMONIA"
    half = [float(((table[:, 1] >= 0.5) == truth).mean()) for table in two.tables]
    said = (
        f"At a cut of .5 the candidate would name {percent(half[0])} right, the model in production {percent(half[1])}"
    )
    assert said in page
    assert said in model_card(two.report)


def test_the_header_names_version_night_and_date(two: Made, page: str) -> None:
    head = page[page.index("<h1>") : page.index('<section class="verdict')]
    assert "candidate cccccccccccc" in head
    assert "Version: not registered." in head
    assert "Compared with version 1, the model in production," in head
    assert "Decided 2026-11-30 02:41 UTC, Airflow run scheduled-1." in head
    known = render(replace(two.report, subject=replace(two.report.subject, version=7)))
    for before, after in ((page, known), (model_card(two.report), "")):
        named = with_version(before, 7)
        assert "Version: 7." in named
        assert "not registered" not in named.split("Policy ")[0]
        assert with_version(named, 7) == named
        assert after in ("", named)


def test_one_digest_names_the_candidate_but_for_lineage_and_data(two: Made, page: str) -> None:
    ours, card = two.report.evidence.candidate, model_card(two.report)
    assert ours is not None
    for text, lineage in ((page, '<h2 id="lineage">'), (card, "## Lineage")):
        assert two.report.subject.candidate[:12] in text
        assert ours.model_digest[:12] not in text[: text.index(lineage)]


def test_the_header_warns_of_alarms_and_of_a_model_that_reads_the_border(two: Made, page: str) -> None:
    evidence = two.report.evidence
    assert warnings(two.report.decision, evidence) == []
    assert '<p class="warning">' not in page
    parts = tuple(
        replace(part, candidate={**part.candidate, "auc": Interval(0.875, low, 0.95)})
        if part.value == stress.BASELINE
        else part
        for low in (0.81,)
        for part in evidence.stress or ()
    )
    loud, default = replace(evidence, alarms=("monday: pixels",), stress=parts), load_policy("default")
    told = replace(two.report, evidence=loud, decision=decide(loud, default))
    bad = render(told)
    head = bad[bad.index("<h1>") : bad.index('<section class="verdict')]
    assert head.count('<p class="warning">') == 2
    assert "Drift alarm: monday: pixels." in head
    assert "AUC 0.875" in head
    assert "0.875" not in bad[bad.index('<section class="verdict') : bad.index("<nav")]  # said once
    assert '<td class="outcome mixed">! warning</td>' in bad
    assert "Drift alarm: monday: pixels." in model_card(told)
    unsure = replace(evidence, stress=tuple(replace(p, candidate={"auc": Interval(0.9, 0.6, 1.0)}) for p in parts))
    assert warnings(decide(unsure, default), unsure) == []


def test_without_pictures_all_else_stays(two: Made, page: str) -> None:
    bare = without_pictures(page)
    assert "data:image" not in bare
    assert "<img" not in bare
    assert (bare.count("<svg"), bare.count("<figure")) == (page.count("<svg"), page.count("<figure"))


def test_headlines(two: Made) -> None:
    decision: Any = two.report.decision
    said = [
        headline(replace(decision, verdict=verdict, may_promote=may, automatic=automatic))
        for verdict, may, automatic in (
            ("refused", False, False),
            ("registered", False, False),
            ("registered", True, False),
            ("registered", True, True),
        )
    ]
    assert len(set(said)) == 4
    assert said[0].startswith("Refused")


def test_no_patient_and_no_whole_digest_of_a_radiograph_is_named(two: Made, page: str) -> None:
    for text in (page, model_card(two.report)):
        assert not re.search(r"patient-\d", text)
        assert not any(digest in text for digest in two.rows["digest"])


def test_every_slice_is_there_small_ones_marked(two: Made, page: str) -> None:
    parts = two.report.evidence.slices or ()
    for part in parts:
        if part.dimension == "delivery":
            assert f">{part.value} <span" in page
    assert page.count("few patients</span>") >= 15
    assert "3 more, none with a lower accuracy" in page
    assert "Not known for any radiograph: scanner, sex, age group." in page


def test_the_stress_table_sets_the_baseline_apart(page: str) -> None:
    assert all(name in page for name in stress.PERTURBATIONS)
    assert page.count('class="baseline"') == 1


def test_what_came_in_is_shown(page: str) -> None:
    night = page[page.index('id="night"') : page.index('id="suspects"')]
    came = {
        row.split("<")[0]: re.findall(r'<td class="when">([^<]*)</td>', row)
        for row in night.split('<tr><td class="name">')[1:]
    }
    assert came == {"night-14": ["this night"], "night-13": ["earlier"], "bad": ["waits"]}
    for text in ("2 duplicate", "Two probable mislabels.", "3 copy-across-split", "rejected", "No class PNEUMONA."):
        assert text in night
    assert "a copy of a held-out image into training: 3." in night
    assert "Drift: not measured." in night
    assert "scheduled-1" in page


def test_suspects_are_shown_and_counted(two: Made) -> None:
    pixels = np.zeros((64, 64), np.uint8)
    shown = tuple((Suspect(f"{i}" * 64, "mislabel", "NORMAL", "PNEUMONIA", 0.98, 0.0), pixels) for i in range(2))
    told = replace(two.report, suspects=Suspects(500, {"mislabel": 7}, shown))
    page, card = render(told), model_card(told)
    part = page[page.index('id="suspects"') : page.index('id="lineage"')]
    assert "Among the 500 training and validation radiographs" in part
    assert "Probable mislabels: 7" in part
    assert "The 2 worst." in part
    assert part.count("<img ") == 2
    assert "PNEUMONIA 0.98" in part
    assert "1" * 64 not in page
    assert "probable mislabels: 7; outliers: 0. None was removed." in card


def test_the_card_says_what_came_in_and_what_each_clause_found(two: Made) -> None:
    card = model_card(two.report)
    assert "- night-13 (earlier): 40 accepted, 3 quarantined: 3 copy-across-split.\n" in card
    assert "- bad (rejected): 0 accepted, 0 quarantined. No class PNEUMONA.\n" in card
    for clause in two.report.decision.clauses:
        assert f"\n| {clause.number} | " in card
    assert all(f"| {name} | " in card for name in stress.PERTURBATIONS)


def test_the_same_report_gives_the_same_page(two: Made, page: str) -> None:
    assert render(two.report) == page


def test_the_galleries_hold_what_they_say(two: Made) -> None:
    labels = list(two.rows["label"])
    says = [model.label(table) for (model, _), table in zip(two.models, two.tables, strict=True)]
    wrong = sum(said != label for said, label in zip(says[0], labels, strict=True))
    assert len(two.report.errors) == min(6, wrong)
    for example in two.report.errors:
        assert example.candidate_says != example.label
        assert example.candidate_map is not None
        assert example.candidate_map.shape == (64, 64)
    sure = [dict(zip(TWO, e.candidate, strict=True))[e.label] for e in two.report.errors]
    assert sure == sorted(sure)
    assert two.report.disagreements
    for example in two.report.disagreements:
        assert example.candidate_says != example.champion_says
        assert example.champion_map is not None


def test_a_first_model_has_no_column_for_a_champion(tmp_path: Path) -> None:
    made = make(tmp_path, champion=False, n=40, stressed=False)
    page, card = render(made.report), model_card(made.report)
    assert "Champion" not in page
    assert "Where the two differ" not in page
    assert "There is no model in production" in page
    assert "| metric | candidate |\n| --- | --- |\n" in card
    assert made.report.disagreements == ()


def test_each_of_three_classes_has_its_curves(tmp_path: Path) -> None:
    made = make(tmp_path, THREE, n=30, stressed=False)
    page, card = render(made.report), model_card(made.report)
    for name in THREE:
        part = page[page.index(f"<h3>{name} against the rest") :].split("</table>")[0]
        assert [row.split("<")[0] for row in part.split('<td class="name">')[1:]] == [
            metric.title for metric in METRICS
        ]
        assert '<th class="n">Champion</th>' in part
        assert f"### {name} against the rest" in card
        assert f'aria-label="ROC curves for {name}"' in page
    assert page.count('<svg role="img"') == 15


def test_hostile_names_stay_text(two: Made) -> None:
    made = two.report
    ours = made.evidence.candidate
    assert ours is not None
    bad = replace(
        made,
        subject=replace(made.subject, model_name=HOSTILE, night=HOSTILE),
        arrivals=(Arrival(HOSTILE, False, 0, {HOSTILE: 1}, (HOSTILE,)),),
        lineage={"Airflow run": HOSTILE},
        recipe={"name": HOSTILE},
        evidence=replace(made.evidence, candidate=replace(ours, classes=("NORMAL", HOSTILE))),
        labels=[HOSTILE if label == "PNEUMONIA" else label for label in made.labels],
    )
    page, card = render(bad), model_card(bad)
    assert "script" not in parsed(page).tags
    assert page.count("&lt;script&gt;") >= 10
    assert "<script" not in card


def test_a_difference_is_coloured_only_beyond_doubt_and_the_right_way() -> None:
    up, down, unclear = Interval(0.1, 0.05, 0.2), Interval(-0.1, -0.2, -0.05), Interval(0.1, -0.1, 0.2)
    assert [difference(d).tone for d in (up, down, unclear, None)] == ["good", "bad", "", ""]
    assert [difference(d, higher_is_better=False).tone for d in (up, down)] == ["bad", "good"]


def section(page: str, anchor: str) -> str:
    return page.partition(f'<h2 id="{anchor}">')[2].partition("<h2 ")[0]


def test_the_champions_record_has_its_section(two: Made, page: str) -> None:
    shown = section(page, "record")
    assert "No alarm about version 1." in shown
    assert "of 39 deliveries compared, 1 had answers unlike the held-out ones, night-38 last (p = 0.0003" in shown
    assert "The newest 12 of 40 deliveries." in shown
    assert shown.index("night-39") < shown.index("night-28")
    assert "night-27" not in shown
    assert shown.count('class="mark">unlike') == 1
    assert "not measured: too few" in shown
    assert "95 % of all so far" in shown
    assert page.index('href="#record"') < page.index('id="record"')
    assert 'class="warning">Version 1' in section(render(replace(two.report, record=record(3, alarm=True))), "record")


def test_a_record_of_nothing_yet_has_its_sentence_and_without_a_champion_there_is_no_section(two: Made) -> None:
    nothing = Record(("Version 1 has been asked about no delivery yet.",), False, 0.93, (), 0)
    shown = section(render(replace(two.report, record=nothing)), "record")
    assert "asked about no delivery yet" in shown
    assert not {"svg", "table"} & set(parsed(shown).tags)
    known_patients = replace(record(4), deliveries=tuple(replace(d, accuracy=None) for d in record(4).deliveries))
    assert "svg" not in parsed(section(render(replace(two.report, record=known_patients)), "record")).tags
    assert 'record"' not in render(replace(two.report, record=None))


def test_a_hostile_name_of_a_delivery_stays_text_in_the_record(two: Made) -> None:
    made = record(5)
    named = replace(made, deliveries=tuple(replace(one, key=HOSTILE) for one in made.deliveries), words=(HOSTILE,))
    shown = render(replace(two.report, record=named, subject=replace(two.report.subject, pages="https://air")))
    assert "script" not in parsed(shown).tags
    assert "https://air/deliveries/%3Cscript%3E" in shown


def test_the_card_has_the_sections_of_a_model_card(two: Made) -> None:
    card = model_card(two.report)
    sections = ["Model details", "Intended use", "What the policy asks", "Factors", "Metrics", "Evaluation data"]
    sections += ["Training data", "Quantitative analyses", "Ethical considerations", "Caveats", "Lineage"]
    for section in sections:
        assert f"\n## {section}\n" in card
    assert re.search(r"\| Accuracy \| 0\.\d{3} \(0\.\d{3} to \d\.\d{3}\) \| ", card)
    assert "\n\n\n" not in card


# --- in a real browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM.exists():
        pytest.skip(f"no browser: {CHROMIUM} is missing")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield opened
        opened.close()


CONTRAST = """() => {
  const rgb = c => c.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
    .map(v => v <= .03928 ? v / 12.92 : Math.pow((v + .055) / 1.055, 2.4));
  const light = c => { const [r, g, b] = rgb(c); return .2126 * r + .7152 * g + .0722 * b; };
  const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + .05) / (y + .05); };
  const ground = getComputedStyle(document.body).backgroundColor;
  const words = [...document.querySelectorAll('p, td, th, h1, h2, h3, small, a')].map(e => getComputedStyle(e).color);
  const drawn = [...document.querySelectorAll('svg text')].map(e => getComputedStyle(e).fill);
  return Math.min(...[...words, ...drawn].map(c => ratio(c, ground)));
}"""


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 1200), ("light", 390), ("dark", 390)])
def test_it_reads_well_offline_in_light_and_dark_and_on_a_phone(
    browser: Any, page: str, tmp_path: Path, scheme: str, width: int
) -> None:
    path = tmp_path / "report.html"
    path.write_text(page)
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True)
    tab, heard = context.new_page(), []
    tab.on("console", lambda message: heard.append(message.text))
    tab.on("request", lambda request: heard.append(request.url) if request.url.startswith("http") else None)
    tab.goto(path.as_uri())
    assert heard == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert tab.evaluate(CONTRAST) >= 4.5
    context.close()


def test_it_prints_within_the_page_in_black_on_white(browser: Any, page: str, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(page)
    context = browser.new_context(viewport={"width": 688, "height": 900}, color_scheme="dark")  # A4 less its margins
    tab = context.new_page()
    tab.goto(path.as_uri())
    folded = "[...document.querySelectorAll('details:not(.data) td')].filter(cell => cell.checkVisibility()).length"
    assert tab.evaluate(folded) == 0
    tab.emulate_media(media="print")
    assert tab.evaluate(folded) == tab.locator("details:not(.data) td").count() > 0  # nothing can be unfolded on paper
    assert tab.evaluate("document.documentElement.scrollWidth") <= 688
    assert tab.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    context.close()
