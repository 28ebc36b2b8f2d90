"""The rules of the intake as a page for people, from the values that the code itself judges by."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from xray_pipeline.base.settings import IntakeRules, Settings
from xray_pipeline.images import dicom_words
from xray_pipeline.intake import expectations
from xray_pipeline.intake.rules import NORMALISED, QUARANTINED

HEAD = """# What the intake asks of a file and of a delivery

Made by `xray rules` from the code; a test fails when this page is out of date. A file ends accepted or quarantined, by
the first rule that fits; quarantined files stay in the delivery, which is never changed, and can be judged anew with
`xray rejudge` after a rule changed.
"""

WORDS = """## Words in DICOM

What people type into BodyPartExamined, ViewPosition and the descriptions of series, protocol and processing, in the
languages of hospitals. Accents, capitals, digits and punctuation don't count, a lost letter may be a question mark, and
any usual character set will do. A star stands for the rest of a longer word, `=` for nothing else beside it. Codes
(SNOMED CT, SRT) count before the words of their meaning, and ViewPosition before the view's code before descriptions.
`XRAY_RULES__CHEST_WORDS` and `XRAY_RULES__LATERAL_WORDS` add a site's own words, for example `["CAJA TORACICA*"]`; a
model that is trained afterwards takes them along.
"""


def page() -> str:
    """Return all rules as Markdown: files, what is normalised, deliveries, and the settings that decide."""
    quarantined = [(f"`{code}`", reason.rule, reason.advice) for code, reason in QUARANTINED.items()]
    normalised = [(f"`{what}`", rule) for what, rule in NORMALISED.items()]
    return "\n".join(
        [
            HEAD,
            "## A file is quarantined\n",
            _table(("reason", "rule", "what to do"), quarantined),
            "## A file is normalised\n",
            _table(("what", "rule"), normalised),
            WORDS,
            _table(("says", "words"), _words()),
            "## A delivery is fit when all of this holds\n",
            _table(("expectation", "default", "otherwise"), _expectations()),
            "## Settings\n",
            _table(("variable", "default", "meaning"), _settings()),
        ]
    )


def _expectations() -> list[tuple[str, str, str]]:
    otherwise = {True: "rejected", False: "accepted with a warning"}
    defaults = Settings.model_construct()  # whatever the environment says
    return [(sentence, wanted, otherwise[stops]) for sentence, wanted, stops in expectations.written(defaults)]


def _words() -> Iterator[tuple[str, str]]:
    for meaning, table in (("the chest", dicom_words.CHEST), ("a lateral or oblique view", dicom_words.SIDE)):
        for language, words in table.items():
            yield f"{meaning} ({language})", ", ".join(words)
    yield "not the chest, beside a word for it", ", ".join(dicom_words.NOT_CHEST)
    for view, words in dicom_words.FRONTAL.items():
        yield f"the view {view}; beside a lateral one in a description: both are in the series", ", ".join(words)
    yield "nothing, as if it were empty", ", ".join(dicom_words.NOTHING)


def _settings() -> list[tuple[str, str, str]]:
    return [
        (f"`XRAY_RULES__{name.upper()}`", f"`{field.default}`", str(field.description))
        for name, field in IntakeRules.model_fields.items()
    ]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)
