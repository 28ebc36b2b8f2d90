"""The Great Expectations suite that decides whether a delivery is fit to ingest.

Two batches are validated: the accepted rows of the intake table, and one row that sums it up. The delivery is fit when
every expectation that stops one holds. Great Expectations runs in memory with its analytics off and leaves nothing on
disk; importing it takes seconds, so only `validate` does. Its own Data Docs load files from outside when they are
opened, so they are written only on request; the page that people read is `delivery_page`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd

from xray_pipeline.base.settings import IntakeRules, Settings
from xray_pipeline.dataset.table import of_rows
from xray_pipeline.intake.drift import Channel, Drift, level_of
from xray_pipeline.intake.layout import LITTER
from xray_pipeline.intake.rules import NOT_COUNTED
from xray_pipeline.intake.tallies import png_depths

_LEAKS = ("copy-across-split", "patient-on-two-sides")


@dataclass(frozen=True)
class Observation:
    """One expectation as a person reads it: what must hold, what was seen, what was asked for, and whether it held.

    One that does not hold rejects the delivery, unless `stops` is false: then it only warns. `broken` says what is so
    then, where the sentence alone would read as if it held; `channel` names the drift channel that it is about, if any.
    """

    sentence: str
    observed: str
    threshold: str
    success: bool
    stops: bool = True
    broken: str = ""
    channel: str = ""

    @property
    def complaint(self) -> str:
        """What is said of it when it does not hold."""
        return f"{self.broken or self.sentence}: {self.observed}, wanted {self.threshold}."


@dataclass(frozen=True)
class _Expectation:
    """One expectation: the batch and column it is for, its kind in Great Expectations with the arguments, its words,
    and how what it observed is said."""

    batch: str
    column: str
    kind: str
    arguments: Mapping[str, Any]
    sentence: str
    threshold: str
    says: Callable[[float], str] = "{:,.0f}".format
    stops: bool = True
    broken: str = ""
    channel: str = ""


def validate(
    table: pd.DataFrame,
    settings: Settings,
    drift: Drift,
    acknowledged: Collection[str],
    run_name: str,
    data_docs: Path | None = None,
) -> list[Observation]:
    """Validate an intake table (columns of `Row`) and return every expectation with what was observed.

    `drift` is how the delivery compares with the dataset, and `acknowledged` names the channels whose alarm a person
    has acknowledged. With `data_docs`, a folder, Great Expectations writes its own Data Docs of the validation there,
    under `run_name`. Raises OSError when they can't be written.
    """
    table = table.assign(statistics="", thumbnail="")  # two thirds of its memory, and no expectation is about them
    asked = _expectations(settings, table, drift, acknowledged)
    return _observed(asked, _batches(table, drift, acknowledged), run_name, data_docs)


def written(settings: Settings) -> list[tuple[str, str, bool]]:
    """Return every expectation in words: what must hold, what is asked for, and whether it stops a delivery."""
    unmeasured = Drift(0, 0, tuple(Channel(name, None, level_of(settings.rules), "") for name in _ALIKE))
    asked = _expectations(settings, of_rows([]), unmeasured, ())
    return [(expectation.sentence, expectation.threshold, expectation.stops) for expectation in asked]


def version() -> str:
    """Return Great Expectations' own version."""
    return str(_great_expectations().__version__)


def _batches(table: pd.DataFrame, drift: Drift, acknowledged: Collection[str]) -> dict[str, pd.DataFrame]:
    accepted = table[table["verdict"] == "accepted"]
    counted, files = (len(table) - int(table["reason"].isin(out).sum()) for out in (NOT_COUNTED, [LITTER]))
    leaks = int(table["reason"].isin(_LEAKS).sum())
    shares = accepted["label"].value_counts(normalize=True)
    summary: dict[str, float | None] = {
        "accepted": len(accepted),
        "quarantined_share": (counted - len(accepted)) / counted if counted else 0.0,
        "class_share": float(shares.max()) if len(accepted) else 0.0,
        "leak_share": leaks / files if files else 0.0,
        "png_depths": len(png_depths(accepted)),
    }
    for channel in drift.channels:
        # What can't be said, or was acknowledged by a person, is no reason to stop.
        passed = channel.p is None or channel.name in acknowledged
        summary[f"drift_{channel.name}"] = 1.0 if passed else channel.p
    pixels, short_side = accepted["width"] * accepted["height"], accepted[["width", "height"]].min(axis=1)
    return {
        "accepted": accepted.assign(pixels=pixels, short_side=short_side),
        "summary": pd.DataFrame([summary]),
    }


def _expectations(
    settings: Settings, table: pd.DataFrame, drift: Drift, acknowledged: Collection[str]
) -> list[_Expectation]:
    return [
        *_of_files(settings),
        *_of_shares(settings.rules),
        _of_depths(table),
        *_of_drift(drift, settings.rules, acknowledged),
    ]


def _of_files(settings: Settings) -> list[_Expectation]:
    """What each accepted radiograph must be."""
    rules, classes, differ = settings.rules, list(settings.classes), "{:,.0f} rows differ".format

    def each(column: str, kind: str, arguments: Mapping[str, Any], sentence: str, threshold: str) -> _Expectation:
        return _Expectation("accepted", column, f"ExpectColumnValuesToBe{kind}", arguments, sentence, threshold, differ)

    return [
        each("digest", "Unique", {}, "No accepted image comes twice", "all different"),
        each("label", "InSet", {"value_set": classes}, "Labels are classes", ", ".join(classes)),
        each(
            "short_side",
            "Between",
            {"min_value": rules.min_side},
            "The shorter side is long enough",
            f"{rules.min_side} pixels or more",
        ),
        each(
            "pixels",
            "Between",
            {"max_value": rules.max_pixels},
            "Images are not too large",
            f"{rules.max_pixels:,} pixels or less",
        ),
    ]


def _of_shares(rules: IntakeRules) -> list[_Expectation]:
    def at_most(column: str, share: float, sentence: str) -> _Expectation:
        limit, percent = {"max_value": share}, "{:.1%}".format
        return _Expectation("summary", column, _HIGHEST, limit, sentence, f"{share:.1%} or less", percent)

    return [
        _Expectation(
            "summary",
            "accepted",
            _HIGHEST,
            {"min_value": rules.min_files},
            "Enough files are accepted",
            f"{rules.min_files:,} or more",
        ),
        at_most("quarantined_share", rules.max_quarantined_share, "Few files are quarantined, duplicates aside"),
        at_most("class_share", rules.max_class_share, "No class crowds out the others"),
        at_most("leak_share", rules.max_leak_share, "Few images or patients are on two sides of the split"),
    ]


_HIGHEST: Final = "ExpectColumnMaxToBeBetween"


def _of_depths(table: pd.DataFrame) -> _Expectation:
    depths = png_depths(table[table["verdict"] == "accepted"])
    said = ", ".join(f"{count:,} of {bits} bits" for bits, count in depths.items()) or "there are none"
    return _Expectation(
        "summary",
        "png_depths",
        _HIGHEST,
        {"max_value": 1},
        "16-bit PNGs hold values of one depth",
        "all of one depth",
        lambda _: said,
        stops=False,
        broken="16-bit PNGs hold values of different depths, so a dark one may be taken for one of fewer bits (say how "
        "many in the column bits of labels.csv, or in XRAY_RULES__PNG_BITS)",
    )


_ALIKE: Final = {
    "pixels": ("Pixels look like the dataset's", "Pixels do not look like the dataset's"),
    "labels": ("The mix of classes and ages is the dataset's", "The mix of classes and ages is not the dataset's"),
}
"""What is expected of each drift channel, and what is so when that does not hold."""


def _of_drift(drift: Drift, rules: IntakeRules, acknowledged: Collection[str]) -> list[_Expectation]:
    stops = rules.drift == "stop"

    def says(channel: Channel) -> Callable[[float], str]:
        p = channel.text if channel.p is None else f"p = {channel.p:.4f}; {channel.text}"
        said = "; the alarm is acknowledged" if channel.alarm and channel.name in acknowledged else ""
        return lambda _: p + said

    return [
        _Expectation(
            "summary",
            f"drift_{channel.name}",
            "ExpectColumnMinToBeBetween",
            {"min_value": channel.level, "strict_min": True, "severity": "critical" if stops else "warning"},
            _ALIKE[channel.name][0],
            f"p above {channel.level:.4f}",
            says(channel),
            stops,
            _ALIKE[channel.name][1],
            channel.name,
        )
        for channel in drift.channels
    ]


def _observed(
    asked: list[_Expectation], batches: dict[str, pd.DataFrame], run_name: str, data_docs: Path | None
) -> list[Observation]:
    """Run the expectations, one validation a batch, and return their findings in the order in which they are given."""
    gx, context = _great_expectations(), _context()
    core, run = gx.expectations.core, gx.RunIdentifier(run_name=run_name)
    source = context.data_sources.add_pandas("intake")
    results: dict[int, Any] = {}
    for name, frame in batches.items():
        built = {
            number: getattr(core, expectation.kind)(column=expectation.column, **expectation.arguments)
            for number, expectation in enumerate(asked)
            if expectation.batch == name
        }
        asset = source.add_dataframe_asset(name)
        suite = context.suites.add(gx.ExpectationSuite(name=name, expectations=list(built.values())))
        data = asset.add_batch_definition_whole_dataframe("all")
        validation = context.validation_definitions.add(gx.ValidationDefinition(name=name, data=data, suite=suite))
        validated = validation.run(batch_parameters={"dataframe": frame}, result_format=_COUNTS_ONLY, run_id=run)
        # Results come in an order of their own: what each is of, its configuration says.
        by_identity = {_identity(result.expectation_config): result for result in validated.results}
        results |= {number: by_identity[_identity(one.configuration)] for number, one in built.items()}
    if data_docs:
        context.add_data_docs_site("intake", _data_docs_site(data_docs))
        context.build_data_docs()
    return [_observation(expectation, results[number]) for number, expectation in enumerate(asked)]


_COUNTS_ONLY: Final = {"result_format": "BASIC", "partial_unexpected_count": 0}  # unexpected values may be paths


def _observation(asked: _Expectation, result: Any) -> Observation:
    seen = result.result.get("observed_value", result.result.get("unexpected_count"))
    observed = "it could not be computed" if seen is None else asked.says(seen)
    success = bool(result.success)
    return Observation(asked.sentence, observed, asked.threshold, success, asked.stops, asked.broken, asked.channel)


def _identity(configuration: Any) -> tuple[str, str]:
    return str(configuration.type), str(configuration.kwargs["column"])


def _data_docs_site(folder: Path) -> Any:
    return {
        "class_name": "SiteBuilder",
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
        "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder.absolute())},
        "show_how_to_buttons": False,
    }


def _great_expectations() -> Any:
    """Import Great Expectations: silent, and without analytics, whose switch is read at import."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    import great_expectations

    return great_expectations


def _context() -> Any:
    """Return a context that lives in memory."""
    gx = _great_expectations()
    base = gx.data_context.types.base
    config = base.DataContextConfig(
        store_backend_defaults=base.InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
        analytics_enabled=False,
        progress_bars=base.ProgressBarsConfig(globally=False),
    )
    return gx.get_context(mode="ephemeral", project_config=config)
