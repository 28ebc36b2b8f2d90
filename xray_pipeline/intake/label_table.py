"""What tables of labels say, by what they name a file by: its path or name, or a keyed hash of what DICOM calls it.

Each row says a class, that the file is left out, or nothing yet. Rows of one file must agree, or most of them where the
mapping says so.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from xray_pipeline.base.errors import DeliveryError
from xray_pipeline.intake.label_cells import Columns, plain, rows
from xray_pipeline.intake.label_mapping import LabelColumns, LabelMapping
from xray_pipeline.intake.layout import Place, class_named, side_named, unknown_class
from xray_pipeline.intake.matching import folded

LEFT_OUT: Final = "left-out"
"""The reason of a file that the table has, and of which its mapping says that it is left out."""
_CONFLICT, _TWICE = "label-conflict", "listed-twice"
BETWEEN: Final = "\x1f"
"""What stands between the values of a key of several columns."""


@dataclass
class LabelTable:
    """The places that tables give to files, by key; `digest` is the SHA-256 of the tables, which have these names.

    `keys` are the keys as they are written, of a table that is matched by content; `notes` say what is odd.
    """

    mapping: LabelMapping
    digest: str
    tables: tuple[str, ...]
    places: dict[str, Place] = field(default_factory=dict)
    rows: int = 0
    keys: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read(
    mapping: LabelMapping,
    tables: Mapping[str, bytes],
    classes: Sequence[str],
    where: str,
    files: Collection[str],
    hashed: Callable[[Sequence[str]], str],
) -> LabelTable:
    """Return what `tables`, by their places in the mapping, say.

    `files` are the paths in the delivery: a name that is one is taken as it stands. `hashed` makes the key of a row
    that is matched by content. `where` names the delivery. Raises DeliveryError.
    """
    digest = hashlib.sha256("".join(hashlib.sha256(data).hexdigest() for data in tables.values()).encode()).hexdigest()
    names = tuple(place.rpartition("/")[2] for place in mapping.tables if place in tables)
    reader = _TableReader(LabelTable(mapping, digest, names), classes, where, files, hashed)
    joined = [_joined(join.on, join.columns, tables[join.table], mapping, join.table, where) for join in mapping.join]
    for place in mapping.table:
        if place in tables:
            reader.read(place.rpartition("/")[2], tables[place], joined)
    table = reader.done()
    if absent := [place.rpartition("/")[2] for place in mapping.tables if place not in tables]:
        table.notes.append(f"Of the tables that {mapping.name} names, {' and '.join(absent)} is not there.")
    return table


def _joined(
    on: Sequence[str], columns: Sequence[str], data: bytes, mapping: LabelMapping, place: str, where: str
) -> dict[tuple[str, ...], tuple[str, ...]]:
    """Return the cells of a further table's columns by what it says of the columns `on`."""
    wanted, name = Columns((*on, *columns)), place.rpartition("/")[2]
    found: dict[tuple[str, ...], tuple[str, ...]] = {}
    for line, cells in rows(data, wanted, mapping.encoding, name, where):
        key = tuple(map(plain, cells[: len(on)]))
        if found.setdefault(key, cells[len(on) :]) != cells[len(on) :]:
            raise DeliveryError(f"line {line} of {name} in {where} contradicts an earlier line of the same key")
    return found


class _TableReader:
    """Reads tables row by row into one `LabelTable`."""

    def __init__(
        self,
        table: LabelTable,
        classes: Sequence[str],
        where: str,
        files: Collection[str],
        hashed: Callable[[Sequence[str]], str],
    ) -> None:
        self._table, self._mapping, self._classes = table, table.mapping, classes
        self._where, self._files, self._hashed = where, files, hashed
        self._outcome = functools.lru_cache(65_536)(_Outcomes(table.mapping.label, classes))
        self._made = functools.lru_cache(4096)(Place)  # one for many lines: of one patient, or with no patient at all
        self._votes: dict[str, list[str]] = {}
        self._odd: Counter[str] = Counter()
        patient, view = table.mapping.patient, table.mapping.view
        self._patient = re.compile(patient.pattern) if patient and patient.pattern else None
        self._views = {folded(name) for name in view.keep} if view else set()

    def read(self, name: str, data: bytes, joined: Sequence[Mapping[tuple[str, ...], tuple[str, ...]]]) -> None:
        """Read one table; `joined` has the rows of each further one."""
        mapping = self._mapping
        more = tuple(column for column in mapping.optional if column)
        all_of = (*mapping.key.columns, *mapping.label.columns, *(() if mapping.strict else more))
        added = [column for join in mapping.join for column in join.columns]
        on = [column for join in mapping.join for column in join.on]
        columns = Columns(
            tuple(c for c in dict.fromkeys((*all_of, *on)) if c not in added), more if mapping.strict else ()
        )
        order = [*columns.required, *columns.optional, *added]
        at_key, at_label = ([order.index(c) for c in some] for some in (mapping.key.columns, mapping.label.columns))
        at_more = [order.index(column) if column else -1 for column in mapping.optional]
        at_on = [[order.index(column) for column in join.on] for join in mapping.join]
        for line, cells in rows(data, columns, mapping.encoding, name, self._where):
            self._table.rows += 1
            for places, by in zip(at_on, joined, strict=True):
                further = by.get(tuple(plain(cells[at]) for at in places))
                if further is None:
                    self._odd["have no row in a further table"] += 1
                    break
                cells += further
            else:
                key = self._key([cells[at] for at in at_key], f"line {line} of {name} in {self._where}")
                if key:
                    self._take(
                        key,
                        tuple(cells[at] for at in at_label),
                        [cells[at] if at >= 0 else "" for at in at_more],
                        line,
                        name,
                    )

    def _key(self, cells: Sequence[str], at_line: str) -> str:
        """Return what a row names its file by, "" when nothing that counts."""
        by = self._mapping.key
        if by.by == "path" and not by.pattern and cells[0] in self._files:  # whatever it is
            return cells[0]
        values = [plain(cell) for cell in cells]
        if not all(values):
            if self._mapping.strict:
                raise DeliveryError(f"{at_line} names no file")
            self._odd["name no file"] += 1
            return ""
        if any(value.startswith("=") for value in values) and not self._mapping.strict:
            self._odd["have a formula where they name a file"] += 1
            return ""
        if any(_SHORTENED.fullmatch(value) for value in values):
            self._odd["have a number that a spreadsheet shortened (1.2E+10) where they name a file"] += 1
        if by.by in ("path", "name"):
            self._odd["have backslashes, read as slashes"] += any("\\" in value for value in values)
            values = [value.replace("\\", "/").removeprefix("./") for value in values]
            return BETWEEN.join(values) if by.by == "path" else values[0].rpartition("/")[2]
        if by.by == "patient-and-date":
            values[1] = day(values[1], by.date_format)
        self._table.keys.append(BETWEEN.join(values))
        return self._hashed(values)

    def _take(self, key: str, said: tuple[str, ...], more: Sequence[str], line: int, name: str) -> None:
        """Note what one row says of its file."""
        at_line = f"line {line} of {name} in {self._where}"
        label = self._outcome(said)
        if label == _UNKNOWN or (self._mapping.strict and not label):
            wrong = unknown_class([plain(said[0])], self._classes, f"label in {at_line}")
            raise DeliveryError(wrong if self._mapping.strict else f"{wrong}; {_SAY_IT}")
        if label == _NO_FLAG:
            raise DeliveryError(
                f"{at_line} has something other than 1, 0, -1 or nothing as a flag; correct it, or map the column as a "
                f"value"
            )
        if not label:
            self._odd["say no class yet"] += 1
            return
        place = self._place(label, more, at_line)
        earlier = self._table.places.get(key)
        if self._mapping.label.several == "majority":
            self._votes.setdefault(key, []).append(label)
        elif earlier and (_said(earlier) != _said(place) or earlier.reason in (_CONFLICT, _TWICE)):
            conflict = earlier.label != place.label or earlier.reason == _CONFLICT
            differ = _CONFLICT if conflict else _TWICE
            last = f"listed more than once and differently, last in line {line} of {name}"
            place = place._replace(reason=differ, detail=last)
        self._table.places[key] = place

    def _place(self, label: str, more: Sequence[str], at_line: str) -> Place:
        patient, split, bits, view = (cell.strip() for cell in more)
        if self._patient:
            found = self._patient.search(patient)
            patient = (found[1] or "") if found else ""
        given = side_named(split) if split else ""
        if given is None:
            raise DeliveryError(f"{at_line} has a split that is none of train, val, test")
        if not (depth := _BITS.fullmatch(bits)):
            raise DeliveryError(f"{at_line} has bits that are none of 8 to 16; leave unknown ones empty")
        if self._views and folded(view) not in self._views:
            return self._made("", given, patient, int(depth[1] or 0), LEFT_OUT, "the table says another view", "")
        if label in (LEFT_OUT, _CONFLICT):
            why = {LEFT_OUT: "the table says a value that is left out", _CONFLICT: "the table says two classes"}
            return self._made("", given, patient, int(depth[1] or 0), label, why[label], view)
        return self._made(label, given, patient, int(depth[1] or 0), "", "", view)

    def done(self) -> LabelTable:
        """Return the table, when all is read."""
        table = self._table
        for key, votes in self._votes.items():
            table.places[key] = _by_majority(table.places[key], votes)
        name = self._mapping.table[0].rpartition("/")[2]
        backslashes = self._odd.pop("have backslashes, read as slashes", 0)
        if backslashes:
            table.notes.append(f"{backslashes:,} names in {name} have backslashes, read as slashes.")
        table.notes += [f"{count:,} rows of {name} {what}." for what, count in self._odd.items() if count]
        if column := self._mapping.optional[0]:
            table.notes += _patients_written_twice(table.places.values(), column, name)
        return table


_SAY_IT: Final = "or say in the mapping what the value means: label.classes, label.left_out, label.others"
_SHORTENED = re.compile(r"\d[.,]\d+E\+\d+", re.I)
_UNKNOWN, _NO_FLAG = "\x00unknown", "\x00flag"


class _Outcomes:
    """Says what the label cells of a row mean: a class, LEFT_OUT, _CONFLICT, "" for nothing yet, _UNKNOWN, _NO_FLAG."""

    def __init__(self, label: LabelColumns, classes: Sequence[str]) -> None:
        self._label, self._classes = label, classes
        self._class_of = {folded(value): name for name, values in label.classes.items() for value in values}
        self._out = {folded(value) for value in label.left_out}
        self._other = LEFT_OUT if label.others == "left out" else _UNKNOWN

    def __call__(self, cells: tuple[str, ...]) -> str:
        return self._of_flags(cells) if self._label.form == "flags" else self._of_values(plain(cells[0]))

    def _of_values(self, cell: str) -> str:
        if not cell:
            return ""
        values = [cell]
        if self._label.form == "list":
            values = [value.strip(" '\"") for value in cell.strip("[]").split(self._label.separator)]
        if any(folded(value) in self._out for value in values):
            return LEFT_OUT
        if self._class_of:
            found = {name for value in values if (name := self._class_of.get(folded(value)))}
        else:
            found = {name for value in values if (name := class_named(value, self._classes))}
        return _CONFLICT if len(found) > 1 else next(iter(found), self._other)

    def _of_flags(self, cells: tuple[str, ...]) -> str:
        said = {}
        for column, cell in zip(self._label.columns, cells, strict=True):
            flag = _FLAGS.get(cell.strip().casefold())
            if flag is None:
                return _NO_FLAG
            said[folded(column)] = flag
        found = {name for column, name in self._class_of.items() if said[column] == 1}
        if any(flag < 0 for flag in said.values()) or any(said[column] == 1 for column in self._out):
            return LEFT_OUT
        return _CONFLICT if len(found) > 1 else next(iter(found), LEFT_OUT)


_FLAGS: Final = {
    **dict.fromkeys(("1", "1.0", "true", "yes"), 1),
    **dict.fromkeys(("", "0", "0.0", "false", "no", "nan"), 0),
    **dict.fromkeys(("-1", "-1.0"), -1),
}
_BITS = re.compile(r"(?:([89]|1[0-6])(?:\.0*)?)?")  # a column with gaps comes as 12.0


def _said(place: Place) -> tuple[object, ...]:
    return place.label, place.given, place.patient_id, place.bits, place.view, place.reason == LEFT_OUT


def _by_majority(place: Place, votes: Sequence[str]) -> Place:
    """Return the place of a file that several rows are of: what over half of them say."""
    ((first, count),) = Counter(votes).most_common(1)
    if place.reason == LEFT_OUT and place.detail.endswith("view"):
        return place
    if 2 * count <= len(votes):
        return place._replace(label="", reason=_CONFLICT, detail="no class has most of its rows")
    if first in (LEFT_OUT, _CONFLICT):
        return place._replace(label="", reason=LEFT_OUT, detail="most of its rows say what is left out")
    return place._replace(label=first, reason="", detail="")


def day(text: str, date_format: str = "") -> str:
    """Return a date as DICOM writes it (20261130), or the text where it is no date of these forms."""
    head = text[:10]
    for form in (date_format,) if date_format else ("%Y-%m-%d", "%Y%m%d", "%d.%m.%Y"):
        try:
            return datetime.strptime(text if date_format else head, form).strftime("%Y%m%d")
        except ValueError:
            continue
    return text


def _patients_written_twice(places: Iterable[Place], column: str, name: str) -> Iterator[str]:
    """Say whether a column of patients writes one number in several ways; which, is never said."""
    first: dict[str, str] = {}
    several = set()
    for place in places:
        written = place.patient_id
        if written and first.setdefault(key := _number(written), written) != written:
            several.add(key)
    if several:
        yield (
            f"The column {column} of {name} writes {len(several):,} patients in more than one way (decimals, leading "
            f"zeros, upper and lower case), and each way counts as another patient, who may be on another side of the "
            f"split; ids are never changed here: write each in one way."
        )


def _number(written: str) -> str:
    """Return an id as spreadsheets may have changed it: without leading zeros and a whole number's decimals."""
    return re.sub(r"(?<![\d.,])0+(?=\d)", "", re.sub(r"^(\d+)[.,]0*$", r"\1", folded(written)))
