"""How a table of labels is read: where it lies, what names a file in it, and which of its values mean which class.

A mapping is TOML. `XRAY_LABELS` names one of `mappings/` or a file; a delivery may bring its own, `labels.toml`, which
is believed no more than the delivery: it may name only tables in it, and no regular expression. labels.csv needs none:
`LABELS_CSV` is its mapping.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from xray_pipeline.base.errors import ConfigError, DeliveryError
from xray_pipeline.base.records import digest_of
from xray_pipeline.base.settings import Regex
from xray_pipeline.base.shipped import read_toml
from xray_pipeline.base.text import did_you_mean, shortened
from xray_pipeline.intake.matching import folded

LABELS, LABELS_TOML = "labels.csv", "labels.toml"
TABLES: Final = (".csv", ".tsv", ".parquet", ".xlsx", ".xls", ".ods")
"""How files that may be label tables are named; the last three are refused with a hint."""
Key = Literal["path", "name", "sop-uid", "series-uid", "study-uid", "accession", "patient-and-date"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class KeyColumns(_Part):
    """The columns that say which file a row is of.

    With `pattern`, a regular expression on a file's path, its groups are what the columns say; `date_format` is as in
    `strptime`, "" for 2026-11-30, 20261130 and 30.11.2026.
    """

    by: Key = "path"
    columns: tuple[str, ...] = Field(min_length=1)
    pattern: Regex = ""
    date_format: str = ""


class LabelColumns(_Part):
    """The columns that say the class, and how.

    `form`: "value" is one column with one value; "list" is one with several, separated by `separator`; "flags" are
    columns that hold 1 (yes), 0 or nothing (no), -1 (uncertain). `classes` names the values, or for flags the columns,
    of each class, none of a class that is its own value; `left_out` are values, or for flags columns, that leave a row
    out. `others` says what becomes of a row that says something else. `several` rows of one file `agree`, or their
    `majority` counts.
    """

    form: Literal["value", "list", "flags"] = "value"
    column: str = ""
    separator: str = Field("|", min_length=1, max_length=1)
    classes: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    others: Literal["stop", "left out"] = "stop"
    several: Literal["agree", "majority"] = "agree"

    @model_validator(mode="after")
    def _says_where(self) -> LabelColumns:
        if self.form == "flags" and (self.column or not self.classes):
            raise ValueError("flags are the columns that classes names; there is no column")
        if self.form != "flags" and not self.column:
            raise ValueError("column is missing")
        means: dict[str, str] = {}
        for what, values in (*self.classes.items(), ("left_out", self.left_out)):
            if twice := [value for value in values if means.setdefault(folded(value), what) != what]:
                raise ValueError(f"{twice[0]!r} means both {means[folded(twice[0])]} and {what}; leave one")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read for it."""
        if self.form != "flags":
            return (self.column,)
        return tuple(dict.fromkeys([*(name for names in self.classes.values() for name in names), *self.left_out]))


class Column(_Part):
    """A column that may say more; of `pattern`, a regular expression on its cells, the first group counts."""

    column: str
    pattern: Regex = ""

    @field_validator("pattern")
    @classmethod
    def _has_a_group(cls, pattern: str) -> str:
        if pattern and not re.compile(pattern).groups:
            raise ValueError("has no group (...): the part that counts")
        return pattern


class View(_Part):
    """The column of the view; rows of other views than those of `keep` are left out."""

    column: str
    keep: tuple[str, ...] = Field(min_length=1)


class Join(_Part):
    """A further table, whose `columns` are added to a row where `on` says the same in both."""

    table: str
    on: tuple[str, ...] = Field(min_length=1)
    columns: tuple[str, ...] = Field(min_length=1)


class LabelMapping(_Part):
    """How a table of labels is read.

    `table` names one or several alike: a path in the delivery, `../name` beside it, or a whole path or s3:// URI. With
    `strict`, as for labels.csv, each row must have a class, and each file that it names must be there.
    """

    name: str
    table: tuple[str, ...] = Field(min_length=1)
    encoding: Literal["utf-8", "utf-16", "latin-1"] = "utf-8"
    key: KeyColumns
    label: LabelColumns
    patient: Column | None = None
    split: Column | None = None
    bits: Column | None = None
    view: View | None = None
    join: tuple[Join, ...] = ()
    strict: bool = False

    @field_validator("table", mode="before")
    @classmethod
    def _one_or_several(cls, table: object) -> object:
        return (table,) if isinstance(table, str) else table

    @model_validator(mode="after")
    def _in_one_place(self) -> LabelMapping:
        if len({outside(place) for place in self.tables}) > 1:
            raise ValueError("table and join must all be in the delivery, or all outside it")
        if self.key.by == "patient-and-date" and len(self.key.columns) != 2:
            raise ValueError("patient-and-date takes two columns: PatientID and StudyDate")
        if not self.key.pattern and self.key.by != "patient-and-date" and len(self.key.columns) != 1:
            raise ValueError(f"a key by {self.key.by} takes one column")
        if self.key.pattern and (self.key.by != "path" or re.compile(self.key.pattern).groups != len(self.key.columns)):
            raise ValueError("a pattern is of a key by path, with a group (...) for each column")
        return self

    @property
    def tables(self) -> tuple[str, ...]:
        """The places of all tables."""
        return (*self.table, *(join.table for join in self.join))

    @property
    def outside(self) -> bool:
        """Whether the tables lie outside the delivery."""
        return outside(self.table[0])

    @property
    def optional(self) -> tuple[str, ...]:
        """The columns that say more, each "" where the mapping names none: patient, split, bits, view."""
        parts = (self.patient, self.split, self.bits, self.view)
        return tuple(part.column if part else "" for part in parts)

    def digest(self) -> str:
        """Return the SHA-256 of all that it says."""
        return digest_of(self.model_dump_json().encode())


def outside(place: str) -> bool:
    """Whether a table lies outside the delivery."""
    return place.startswith(("/", "~", "../")) or "://" in place


LABELS_CSV: Final = LabelMapping(
    name=LABELS,
    table=(LABELS,),
    key=KeyColumns(columns=("file",)),
    label=LabelColumns(column="label"),
    patient=Column(column="patient_id"),
    split=Column(column="split"),
    bits=Column(column="bits"),
    strict=True,
)
"""file,label[,patient_id][,split][,bits]"""


_FOLDERS: Final = {"layout": "folders"}
"""What the mapping of a dataset says that has no table, but a folder for each class."""
_LONGEST: Final = 100_000  # bytes of a delivery's mapping


def named(name_or_path: str, classes: Sequence[str]) -> LabelMapping | None:
    """Return the mapping of that name, or of the TOML file at that path; None for one that says: by folders.

    Raises ConfigError, which says what is wrong, also for a class that is none of `classes`.
    """
    _, content = read_toml("intake", "mappings", "label mapping", name_or_path)
    if content == _FOLDERS:
        return None
    try:
        return _checked(_on_preset(content), name_or_path, classes)
    except ValueError as error:
        raise ConfigError(f"XRAY_LABELS {name_or_path!r}: {error}") from error


def of_delivery(text: bytes, classes: Sequence[str], where: str) -> LabelMapping:
    """Return the mapping that a delivery brings. Raises DeliveryError, which says what is wrong."""
    if len(text) > _LONGEST:
        raise DeliveryError(f"{LABELS_TOML} of {where} has {len(text):,} bytes, {_LONGEST:,} are allowed")
    try:
        content = tomllib.loads(text.decode())
        if pattern := _pattern_in(content):
            raise ValueError(f"{pattern}.pattern is a regular expression; only XRAY_LABELS may name one")
        mapping = _checked(_on_preset(content), LABELS_TOML, classes)
    except (ValueError, ConfigError) as error:
        raise DeliveryError(f"{LABELS_TOML} of {where}: {error}") from error
    if any(outside(place) or ".." in place.split("/") for place in mapping.tables):
        raise DeliveryError(f"{LABELS_TOML} of {where} names a table outside it; only XRAY_LABELS may")
    return mapping


def _on_preset(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a mapping says, laid over the preset that it names."""
    said = dict(content)
    if not (preset := said.pop("preset", "")):
        return said
    if not isinstance(preset, str) or preset.endswith(".toml"):
        raise ValueError(f"preset {preset!r} is no name of a preset")
    base = read_toml("intake", "mappings", "label mapping", preset)[1]
    for name, value in said.items():
        both = isinstance(value, dict) and isinstance(base.get(name), dict)
        base[name] = {**base[name], **value} if both else value
    return base


def _checked(content: Mapping[str, Any], name: str, classes: Sequence[str]) -> LabelMapping:
    if unknown := {"strict", "name"} & content.keys():
        raise ValueError(f"{min(unknown)} is no value of a label mapping")
    try:
        mapping = LabelMapping.model_validate({**content, "name": name})
    except ValidationError as error:
        raise ValueError(_said_of(error)) from error
    if strange := [label for label in mapping.label.classes if label not in classes]:
        near = did_you_mean(strange[0], classes)
        raise ValueError(f"label.classes names {strange[0]!r}, and the classes are {', '.join(classes)}{near}")
    return mapping


_QUOTED = re.compile("'([^']+)'")
_PARTS: Final[dict[str, type[_Part]]] = {"key": KeyColumns, "label": LabelColumns, "view": View, "join": Join}


def _said_of(error: ValidationError) -> str:
    """Say what is wrong with a mapping: a mistyped name first, as what it stands for then seems to be missing."""
    found = error.errors(include_url=False)
    first = next((one for one in found if one["type"] == "extra_forbidden"), found[0])
    key, last = ".".join(str(part) for part in first["loc"]), str(first["loc"][-1] if first["loc"] else "")
    if first["type"] == "extra_forbidden":
        part: type[_Part] = _PARTS.get(str(first["loc"][0]), Column) if len(first["loc"]) > 1 else LabelMapping
        return f"{key} is no value of a label mapping{did_you_mean(last, list(part.model_fields))}"
    if first["type"] == "literal_error":
        known, said = first["ctx"]["expected"], str(first["input"])
        return f"{key} {shortened(said, 40)!r} is none of {known}{did_you_mean(said, _QUOTED.findall(known))}"
    if first["type"] == "tuple_type":
        return f'{key} must be a list: ["..."]'
    return f"{key}: {first['msg'].removeprefix('Value error, ')}" if key else first["msg"]


def _pattern_in(content: Mapping[str, Any]) -> str:
    """Return the part of a mapping that holds a pattern, "" for none."""
    parts = (name for name, part in content.items() if isinstance(part, dict) and part.get("pattern"))
    return next(parts, "")
