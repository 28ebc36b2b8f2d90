"""The Great Expectations suite that decides whether a delivery is fit to ingest, and the page that shows why.

Four batches are validated: every row of the intake table, its accepted rows, its quarantined rows, and one row that
sums up. The delivery is fit when every expectation holds. Great Expectations runs in memory with its analytics off and
leaves nothing on disk; importing it takes seconds, so only `judge` does. Its own Data Docs load files from outside when
they are opened, so they are written only on request, and the page is ours: one HTML file that names rows by number,
never a path or a patient.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from xray_pipeline.base.pages import template
from xray_pipeline.base.settings import IntakeRules, Settings
from xray_pipeline.dataset.revisions import CONFLICT
from xray_pipeline.dataset.split import SIDES
from xray_pipeline.dataset.table import COLUMNS, of_rows
from xray_pipeline.intake import rules
from xray_pipeline.intake.drift import Channel, Drift, level_of
from xray_pipeline.intake.layout import LITTER

if TYPE_CHECKING:
    from xray_pipeline.intake.deliveries import Delivery

_SHA256, _HASH = r"^[0-9a-f]{64}$", r"^[0-9a-f]{32}$"
_LEAKS = ("copy-across-split", "patient-on-two-sides")
_NEAR_COUNTS = {"across_split": "across the split", "two_labels": "two labels", "same_side": "same side"}
_NEAR = {"copy-across-split": "across the split", CONFLICT: "two labels", "": "same side"}
_NEAR_LISTED = 1000  # near copies listed in a result
_EXAMPLES = 12  # row numbers shown for one reason
_ROWS = "{:,.0f} rows differ".format


@dataclass(frozen=True)
class Finding:
    """One expectation as a person reads it: what must hold, what was seen, what was asked for, and whether it held.

    One that does not hold rejects the delivery, unless `stops` is false: then it only warns. `broken` says what is so
    then, where the sentence alone would read as if it held.
    """

    sentence: str
    observed: str
    threshold: str
    success: bool
    stops: bool = True
    broken: str = ""

    @property
    def complaint(self) -> str:
        """What is said of it when it does not hold."""
        return f"{self.broken or self.sentence}: {self.observed}, wanted {self.threshold}."


@dataclass(frozen=True)
class Outcome:
    """Whether the delivery is fit, the sentences of what failed and of what only warns, the result and the page."""

    fit: bool
    failures: tuple[str, ...]
    result: dict[str, Any]
    page: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Rule:
    """One expectation: the batch it is for, its words, and how what it observed is said."""

    batch: str
    sentence: str
    threshold: str
    expectation: Any
    says: Callable[[float], str] = "{:,.0f}".format
    stops: bool = True
    broken: str = ""


def judge(
    delivery: Delivery,
    table: pd.DataFrame,
    settings: Settings,
    bookkeeping: Sequence[str] = (),
    drift: Drift | None = None,
    acknowledged: Collection[str] = (),
    data_docs: Path | None = None,
    notes: Sequence[str] = (),
) -> Outcome:
    """Validate an intake table (columns of `Row`) and return the verdict on its delivery.

    `bookkeeping` names the delivery's files that have no row (labels.csv, _SUCCESS); `drift` is how the delivery
    compares with the dataset, and `acknowledged` names the channels whose alarm a person has settled. With `data_docs`,
    a folder, Great Expectations writes its own Data Docs of the validation there. `notes` are warnings beside those of
    expectations. Raises OSError when Data Docs can't be written.
    """
    table = table.assign(statistics="", thumbnail="")  # two thirds of its memory, and no rule is about what is in them
    batches = _batches(table, drift, acknowledged)
    rules = [*_rules(settings), _depth_rule(table), *_drift_rules(drift, settings.rules, acknowledged)]
    findings = _validate(batches, rules, delivery.key, data_docs)
    failed = [finding for finding in findings if not finding.success]
    fit = not any(finding.stops for finding in failed)
    failures, warnings = (
        tuple(finding.complaint for finding in failed if finding.stops is stops) for stops in (True, False)
    )
    result = {
        "delivery": delivery.key,
        "fingerprint": delivery.fingerprint,
        "rules": settings.rules.digest(),
        "success": fit,
        "great_expectations": _version(),
        "expectations": [asdict(finding) for finding in findings],
        "rows": len(table),
        "accepted": len(batches["accepted"]),
        "quarantined": _counts(batches["quarantined"], "reason"),
        "near_copies": near_copies(table),
        "bookkeeping": list(bookkeeping),
        "drift": drift.to_dict() if drift else None,
    }
    page = _page(delivery, table, findings, fit, bookkeeping, drift, notes=notes)
    return Outcome(fit, failures, result, page, (*warnings, *notes))


def unjudged(delivery: Delivery, why: str) -> str:
    """Return the page of a delivery that can't be judged as a whole; it holds no file's row."""
    return _page(delivery, of_rows([]), [], False, (), None, why)


def written(settings: Settings) -> list[tuple[str, str, bool]]:
    """Return every expectation in words: what must hold, what is asked for, and whether it stops a delivery."""
    unmeasured = Drift(0, 0, tuple(Channel(name, None, level_of(settings.rules), "") for name in _ALIKE))
    rules = [*_rules(settings), _depth_rule(of_rows([])), *_drift_rules(unmeasured, settings.rules, ())]
    return [(rule.sentence, rule.threshold, rule.stops) for rule in rules]


def png_depths(table: pd.DataFrame) -> dict[str, int]:
    """Return how many 16-bit PNGs of an intake table hold values of how many bits, and so are scaled if not of 16."""
    return _counts(table[(table["format"] == "png") & (table["mode"] == "I;16")], "bits")


def near_copies(table: pd.DataFrame) -> dict[str, Any]:
    """Return the near copies of an intake table as JSON-able values: `across_split` and `two_labels` count files that
    are quarantined for it, `same_side` accepted ones.

    `listed` has the first 1,000 as {"row", "of", "verdict", "why"}: `of` is "row N" (of this delivery) or "dataset
    <digest, 12 digits>", and `why` says which of the three it is.
    """
    near = table[table["near_copy"] != ""]
    compared = table[(table["verdict"] == "accepted") | (table["near_copy"] != "") | (table["reason"] == CONFLICT)]
    here = {digest: int(row) for row, digest in compared["digest"][::-1].items()}
    why = near["reason"].map(_NEAR).dropna()
    counts = why.value_counts()
    listed = [
        {
            "row": int(row),
            "of": f"row {here[near.at[row, 'near_copy']]}"
            if near.at[row, "near_copy"] in here
            else f"dataset {near.at[row, 'near_copy'][:12]}",
            "verdict": str(near.at[row, "verdict"]),
            "why": text,
        }
        for row, text in why.head(_NEAR_LISTED).items()
    ]
    return {name: int(counts.get(text, 0)) for name, text in _NEAR_COUNTS.items()} | {"listed": listed}


def _batches(table: pd.DataFrame, drift: Drift | None, acknowledged: Collection[str]) -> dict[str, pd.DataFrame]:
    accepted = table[table["verdict"] == "accepted"]
    quarantined = table[table["verdict"] != "accepted"]
    counted, files = (len(table) - int(table["reason"].isin(out).sum()) for out in (rules.NOT_COUNTED, [LITTER]))
    shares = accepted["label"].value_counts(normalize=True)
    summary: dict[str, float | None] = {
        "accepted": len(accepted),
        "quarantined_share": (counted - len(accepted)) / counted if counted else 0.0,
        "class_share": float(shares.max()) if len(shares) else 0.0,
        "png_depths": len(png_depths(accepted)),
        "leak_share": int(quarantined["reason"].isin(_LEAKS).sum()) / files if files else 0.0,
    }
    for channel in drift.channels if drift else ():
        # What can't be said, or was settled by a person, is no reason to stop.
        settled = channel.p is None or channel.name in acknowledged
        summary[f"drift_{channel.name}"] = 1.0 if settled else channel.p
    return {
        "files": table,
        "accepted": accepted.assign(
            pixels=accepted["width"] * accepted["height"], short_side=accepted[["width", "height"]].min(axis=1)
        ),
        "quarantined": quarantined,
        "summary": pd.DataFrame([summary]),
    }


def _rules(settings: Settings) -> list[_Rule]:
    return [*_table_rules(), *_file_rules(settings), *_share_rules(settings.rules)]


def _table_rules() -> list[_Rule]:
    core = _core()

    columns = list(COLUMNS)
    reasons = [rule.code for rule in rules.RULES if rule.outcome == "quarantined"]
    verdicts = ["accepted", "quarantined"]
    return [
        _Rule("files", "The delivery brings files", "1 or more", core.ExpectTableRowCountToBeBetween(min_value=1)),
        _Rule(
            "files",
            "The intake table has its columns",
            f"{len(columns)} columns in order",
            core.ExpectTableColumnsToMatchOrderedList(column_list=columns),
        ),
        _Rule("files", "Every file has one row", "all rows", core.ExpectColumnValuesToBeUnique(column="file"), _ROWS),
        _Rule(
            "files",
            "Every file is accepted or quarantined",
            "all rows",
            core.ExpectColumnValuesToBeInSet(column="verdict", value_set=verdicts),
            _ROWS,
        ),
        _Rule(
            "quarantined",
            "Quarantined files have a written reason",
            "all rows",
            core.ExpectColumnValuesToBeInSet(column="reason", value_set=reasons),
            _ROWS,
        ),
    ]


def _file_rules(settings: Settings) -> list[_Rule]:
    """What each accepted row must be."""
    core = _core()

    rules, classes = settings.rules, list(settings.classes)
    in_set, matches = core.ExpectColumnValuesToBeInSet, core.ExpectColumnValuesToMatchRegex
    between, unique = core.ExpectColumnValuesToBeBetween, core.ExpectColumnValuesToBeUnique
    side, pixels = f"{rules.min_side} pixels or more", f"{rules.max_pixels:,} pixels or less"
    return [
        _Rule("accepted", sentence, threshold, expectation, _ROWS)
        for sentence, threshold, expectation in (
            ("Accepted images have a digest", "SHA-256", matches(column="digest", regex=_SHA256)),
            ("Accepted images have a perceptual hash", "64 digits", matches(column="phash", regex=_SHA256)),
            ("No accepted image comes twice", "all different", unique(column="digest")),
            ("Patients are keyed hashes", "32 digits", matches(column="patient", regex=_HASH)),
            ("Sides are of the split", ", ".join(SIDES), in_set(column="side", value_set=list(SIDES))),
            ("Labels are classes", ", ".join(classes), in_set(column="label", value_set=classes)),
            ("The shorter side is long enough", side, between(column="short_side", min_value=rules.min_side)),
            ("Images are not too large", pixels, between(column="pixels", max_value=rules.max_pixels)),
        )
    ]


def _share_rules(rules: IntakeRules) -> list[_Rule]:
    core = _core()

    between, percent = core.ExpectColumnMaxToBeBetween, "{:.1%}".format
    few, mixed = rules.max_quarantined_share, rules.max_class_share
    return [
        _Rule(
            "summary",
            "Enough files are accepted",
            f"{rules.min_files:,} or more",
            between(column="accepted", min_value=rules.min_files),
        ),
        _Rule(
            "summary",
            "Few files are quarantined, duplicates aside",
            f"{few:.1%} or less",
            between(column="quarantined_share", max_value=few),
            percent,
        ),
        _Rule(
            "summary",
            "No class crowds out the others",
            f"{mixed:.1%} or less",
            between(column="class_share", max_value=mixed),
            percent,
        ),
        _Rule(
            "summary",
            "Few images or patients are on two sides of the split",
            f"{rules.max_leak_share:.1%} or less",
            between(column="leak_share", max_value=rules.max_leak_share),
            percent,
        ),
    ]


def _depth_rule(table: pd.DataFrame) -> _Rule:
    found = png_depths(table[table["verdict"] == "accepted"])
    return _Rule(
        "summary",
        "16-bit PNGs hold values of one depth",
        "all of one depth",
        _core().ExpectColumnMaxToBeBetween(column="png_depths", max_value=1),
        lambda _: ", ".join(f"{count:,} of {bits} bits" for bits, count in found.items()) or "there are none",
        stops=False,
        broken="16-bit PNGs hold values of different depths, so a dark one may be taken for one of fewer bits (say how "
        "many in the column bits of labels.csv, or in XRAY_RULES__PNG_BITS)",
    )


_ALIKE = {
    "pixels": ("Pixels look like the dataset's", "Pixels do not look like the dataset's"),
    "labels": ("The mix of classes and ages is the dataset's", "The mix of classes and ages is not the dataset's"),
}


def _drift_rules(drift: Drift | None, rules: IntakeRules, acknowledged: Collection[str]) -> list[_Rule]:
    core = _core()

    def says(channel: Channel) -> Callable[[float], str]:
        p = channel.text if channel.p is None else f"p = {channel.p:.4f}; {channel.text}"
        settled = "; the alarm is acknowledged" if channel.alarm and channel.name in acknowledged else ""
        return lambda _: p + settled

    return [
        _Rule(
            "summary",
            _ALIKE[channel.name][0],
            f"p above {channel.level:.4f}",
            core.ExpectColumnMinToBeBetween(
                column=f"drift_{channel.name}",
                min_value=channel.level,
                strict_min=True,
                severity="critical" if rules.drift == "stop" else "warning",
            ),
            says(channel),
            rules.drift == "stop",
            _ALIKE[channel.name][1],
        )
        for channel in (drift.channels if drift else ())
    ]


def _validate(
    batches: dict[str, pd.DataFrame], rules: list[_Rule], run_name: str, data_docs: Path | None
) -> list[Finding]:
    """Run the expectations, one validation a batch, and return their findings in the order of the rules."""
    from great_expectations import ExpectationSuite, RunIdentifier, ValidationDefinition

    context, run = _context(), RunIdentifier(run_name=run_name)
    source = context.data_sources.add_pandas("intake")
    found: dict[int, Finding] = {}
    for name, frame in batches.items():
        numbered = [(number, rule) for number, rule in enumerate(rules) if rule.batch == name]
        asset = source.add_dataframe_asset(name)
        suite = context.suites.add(ExpectationSuite(name=name, expectations=[rule.expectation for _, rule in numbered]))
        data = asset.add_batch_definition_whole_dataframe("all")
        validation = context.validation_definitions.add(ValidationDefinition(name=name, data=data, suite=suite))
        validated = validation.run(batch_parameters={"dataframe": frame}, result_format=_COUNTS_ONLY, run_id=run)
        # Results come in an order of their own: what each is of, its configuration says.
        results = {_identity(result.expectation_config): result for result in validated.results}
        for number, rule in numbered:
            result = results[_identity(rule.expectation.configuration)]
            observed = _observed(rule, result)
            found[number] = Finding(
                rule.sentence, observed, rule.threshold, bool(result.success), rule.stops, rule.broken
            )
    if data_docs:
        context.add_data_docs_site("intake", _data_docs_site(data_docs))
        context.build_data_docs()
    return [found[number] for number in range(len(rules))]


_COUNTS_ONLY = {"result_format": "BASIC", "partial_unexpected_count": 0}  # unexpected values may be paths


def _data_docs_site(folder: Path) -> Any:
    return {
        "class_name": "SiteBuilder",
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
        "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder.absolute())},
        "show_how_to_buttons": False,
    }


def _identity(configuration: Any) -> tuple[str, str]:
    return str(configuration.type), str(configuration.kwargs.get("column", ""))


def _observed(rule: _Rule, result: Any) -> str:
    if result.exception_info.get("raised_exception"):
        return "it could not be computed"
    seen = result.result.get("observed_value", result.result.get("unexpected_count"))
    return f"{len(seen)} columns" if isinstance(seen, list) else rule.says(seen)


def _core() -> Any:
    """Import Great Expectations' own expectations: silent, and without analytics, whose switch is read at import."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    return importlib.import_module("great_expectations.expectations.core")


def _context() -> Any:
    """Return a context that lives in memory."""
    from great_expectations import get_context
    from great_expectations.data_context.types.base import (
        DataContextConfig,
        InMemoryStoreBackendDefaults,
        ProgressBarsConfig,
    )

    config = DataContextConfig(
        store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
        analytics_enabled=False,
        progress_bars=ProgressBarsConfig(globally=False),
    )
    return get_context(mode="ephemeral", project_config=config)


def _version() -> str:
    import great_expectations

    return str(great_expectations.__version__)


def _counts(frame: pd.DataFrame, column: str) -> dict[str, int]:
    return {str(value): int(count) for value, count in sorted(frame[column].value_counts().items())}


def _page(
    delivery: Delivery,
    table: pd.DataFrame,
    findings: list[Finding],
    fit: bool,
    bookkeeping: Sequence[str],
    drift: Drift | None,
    why: str = "",
    notes: Sequence[str] = (),
) -> str:
    accepted = table[table["verdict"] == "accepted"]
    quarantined = table[table["verdict"] != "accepted"]
    words = {rule.code: rule.text for rule in rules.RULES}
    reasons = [
        {
            "code": str(code),
            "text": words.get(str(code), ""),
            "count": len(rows),
            "rows": [int(row) for row in rows.index[:_EXAMPLES]],
        }
        for code, rows in sorted(quarantined.groupby("reason"), key=lambda item: (-len(item[1]), str(item[0])))
    ]
    warnings = [finding for finding in findings if not finding.success and not finding.stops]
    split = pd.crosstab(accepted["label"], accepted["side"]).reindex(columns=list(SIDES), fill_value=0)
    return template("intake", "delivery.html.j2").render(
        delivery=delivery,
        fit=fit,
        findings=findings,
        failures=[finding for finding in findings if not finding.success and finding.stops],
        warnings=warnings,
        alarmed=any(finding.broken == broken for finding in warnings for _, broken in _ALIKE.values()),
        drift=drift,
        files=len(table) - int((table["reason"] == LITTER).sum()),
        accepted=len(accepted),
        patients=accepted["patient"].nunique(),
        reasons=reasons,
        near=near_copies(table),
        examples=_EXAMPLES,
        sides=SIDES,
        split=[(str(label), [int(count) for count in row]) for label, row in split.iterrows()],
        patients_by_side=[int(accepted.loc[accepted["side"] == side, "patient"].nunique()) for side in SIDES],
        kinds=_kinds(accepted),
        scaled=[(bits, count) for bits, count in png_depths(accepted).items() if bits != "16"],
        sizes=_sizes(accepted),
        known=_known(accepted),
        bookkeeping=list(bookkeeping),
        why=why,
        notes=notes,
    )


def _kinds(accepted: pd.DataFrame) -> list[tuple[str, str, int, int]]:
    grouped = accepted.groupby(["format", "mode", "bits"]).size()
    return [(str(kind[0]), str(kind[1]), int(kind[2]), int(count)) for kind, count in grouped.items()]


def _sizes(accepted: pd.DataFrame) -> list[tuple[str, int, int, int]]:
    """Return (what, smallest, median, largest) in pixels; nothing without accepted files."""
    if accepted.empty:
        return []
    return [
        (name, int(accepted[name].min()), int(accepted[name].median()), int(accepted[name].max()))
        for name in ("width", "height")
    ]


def _known(accepted: pd.DataFrame) -> list[tuple[str, int]]:
    """Return how many accepted files say what of the exposure and the patient."""
    known = [(column, int((accepted[column] != "").sum())) for column in ("view", "sex", "scanner")]
    return [*known, ("age", int(accepted["age_years"].notna().sum()))]
