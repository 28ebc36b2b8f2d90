"""The rows of a label table, as text: CSV in any usual form, or Parquet.

Nothing in a table is believed or evaluated. What can't be read as it was said to be stops the delivery, with the line
and without the cell, which may name a patient.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from xray_pipeline.base.errors import DeliveryError
from xray_pipeline.base.text import did_you_mean

MOST_ROWS: Final = 2_000_000
_MOST_CELLS: Final = 2_000_000_000  # bytes that the columns of a Parquet file that are read may grow to
_ARCHIVES: Final = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"\x28\xb5\x2f\xfd", b"Rar!")  # gzip to rar
_FORMULA = re.compile(r'="([^"]*)"')


class Columns(NamedTuple):
    """The columns of a table that are read: those that it must have, and those that it may."""

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()


def rows(data: bytes, columns: Columns, encoding: str, name: str, where: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield (line, cells) of a table: those of the required columns, then of the optional ones, "" where it has none.

    `name` and `where` are for messages. Raises DeliveryError.
    """
    if data[:4] in (b"PK\3\4", b"\xd0\xcf\x11\xe0") or name.lower().endswith((".xlsx", ".xls", ".ods")):
        raise DeliveryError(f"{name} of {where} is a spreadsheet or a zip; save it as CSV (UTF-8), and name that file")
    if data.startswith(_ARCHIVES):
        raise DeliveryError(f"{name} of {where} is compressed; unpack it, archives are never unpacked here")
    found = (
        _of_parquet(data, columns, name, where)
        if data[:4] == b"PAR1"
        else _of_csv(data, columns, encoding, name, where)
    )
    for number, row in enumerate(found, 1):
        if number > MOST_ROWS:
            raise DeliveryError(f"{name} of {where} has over {MOST_ROWS:,} rows; split it")
        yield row


def plain(cell: str) -> str:
    """Return a cell without blanks around it, and without the formula ="..." by which spreadsheets keep zeros."""
    cell = cell.strip()
    return formula[1].strip() if cell.startswith("=") and (formula := _FORMULA.fullmatch(cell)) else cell


def _places(head: Sequence[str], columns: Columns, name: str, where: str) -> list[int]:
    """Return at which place of a head each column is, -1 where an optional one is not."""
    there = [cell.strip().casefold() for cell in head]
    wanted = [[column.casefold() for column in some] for some in columns]
    absent = [column for column, folded in zip(columns.required, wanted[0], strict=True) if there.count(folded) != 1]
    near = (
        did_you_mean(absent[0], [cell for cell in head if cell.strip().casefold() not in wanted[0]]) if absent else ""
    )
    if absent or any(there.count(folded) > 1 for folded in wanted[1]):
        may = f" and may have {','.join(columns.optional)}" if columns.optional else ""
        lacks = f"; not there, or more than once: {', '.join(absent)}{near}" if absent else ""
        raise DeliveryError(
            f"{name} of {where} must start with the columns {','.join(columns.required)}{may}, each once{lacks}"
        )
    return [there.index(folded) if folded in there else -1 for some in wanted for folded in some]


def _of_csv(
    data: bytes, columns: Columns, encoding: str, name: str, where: str
) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield (line number, cells) of a CSV, separated by commas, semicolons or tabs."""
    encoding = _encoding(data, encoding, name, where)
    stream = io.TextIOWrapper(io.BytesIO(data), encoding, newline="")
    skipped, reader = 0, csv.reader(())
    try:
        header = stream.readline()
        if named := re.fullmatch(r"sep=([,;\t])\r?\n", header, re.I):  # Excel's own first line
            header, skipped = stream.readline(), 1
        separator = named[1] if named else max(",;\t", key=header.count)
        reader = csv.reader(itertools.chain([header], stream), delimiter=separator, strict=True)
        head = next(reader, [])
        places = _places(head, columns, name, where)
        for cells in reader:
            if not any(map(str.strip, cells)):  # spreadsheets leave such lines at the end
                continue
            while len(cells) > len(head) and not cells[-1].strip():
                cells.pop()
            line = reader.line_num + skipped
            if len(cells) != len(head):
                raise DeliveryError(
                    f"line {line} of {name} in {where} has {len(cells)} columns, not {len(head)}; quote a cell "
                    f"that holds the separator or a line end"
                )
            if cells == head:
                raise DeliveryError(f"line {line} of {name} in {where} repeats the head; remove that line")
            yield line, tuple(cells[at] if at >= 0 else "" for at in places)
    except UnicodeError as error:
        line, said = _line_of_wrong_byte(data, encoding), encoding.removesuffix("-sig").upper()
        raise DeliveryError(
            f"line {line} of {name} in {where} is not {said}; save it as UTF-8, or say its encoding in the mapping "
            f'(encoding = "latin-1")'
        ) from error
    except csv.Error as error:
        line = reader.line_num + skipped
        raise DeliveryError(
            f"line {line} of {name} in {where} is not CSV: {error}; each quote must be closed, one inside a cell "
            f"doubled, and a cell of over {csv.field_size_limit():,} characters left out"
        ) from error


def _encoding(data: bytes, encoding: str, name: str, where: str) -> str:
    """Return what a CSV that is said to be of this encoding is decoded by. Raises DeliveryError for a NUL, or none."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    at = data.find(b"\0")
    if encoding == "utf-16":
        if data and at < 0:
            raise DeliveryError(f"{name} of {where} is not UTF-16, as its mapping says; leave encoding out of that")
        return "utf-16-be" if at == 0 else "utf-16-le"  # without a mark of the order programs on Windows write the last
    if at >= 0:
        line = data.count(b"\n", 0, at) + 1
        raise DeliveryError(
            f"line {line} of {name} in {where} holds a NUL: it is damaged, or UTF-16; save it as UTF-8, or say its "
            f'encoding in the mapping (encoding = "utf-16")'
        )
    return "utf-8-sig" if encoding == "utf-8" else encoding


def _line_of_wrong_byte(data: bytes, encoding: str) -> int:
    """Return the line of the first byte that is none of the encoding: a CSV is read in blocks, the reader is behind."""
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        text = data[: error.start].decode(encoding, "ignore")
    return text.count("\n") + 1


def _of_parquet(data: bytes, columns: Columns, name: str, where: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield (row number, cells) of a Parquet file; whole numbers and dates are written as people do."""
    try:
        file = pq.ParquetFile(pa.BufferReader(data), pre_buffer=False)
        head = file.schema_arrow.names
        places = _places(head, columns, name, where)
        wanted = [head[at] for at in places if at >= 0]
        if nested := [column for column in wanted if pa.types.is_nested(file.schema_arrow.field(column).type)]:
            raise DeliveryError(
                f"{name} of {where} holds lists or records in {', '.join(nested)}; write one value a cell"
            )
        sizes = file.metadata
        grown = sum(sizes.row_group(part).total_byte_size for part in range(sizes.num_row_groups))
        if sizes.num_rows > MOST_ROWS or grown > _MOST_CELLS:
            raise DeliveryError(f"{name} of {where} has {sizes.num_rows:,} rows of {grown:,} bytes; split it")
        number = 0
        for batch in file.iter_batches(10_000, columns=list(dict.fromkeys(wanted)), use_threads=False):
            read = {column: list(map(_written, batch.column(column).to_pylist())) for column in batch.schema.names}
            blank = [""] * batch.num_rows
            for cells in zip(*(read[head[at]] if at >= 0 else blank for at in places), strict=True):
                number += 1
                if any("\0" in cell for cell in cells):
                    raise DeliveryError(f"row {number} of {name} in {where} holds a NUL: it is damaged; write it anew")
                yield number, cells
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise DeliveryError(f"{name} of {where} is not Parquet that can be read ({type(error).__name__})") from error


def _written(value: object) -> str:
    """Return a value as people write it: nothing for none, a whole number without decimals."""
    if value is None or value != value:
        return ""
    if isinstance(value, bytes):
        return value.decode()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
