"""Intake tables as Parquet, and the count of their rows by outcome."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from xray_pipeline.base.errors import DatasetError

FORMAT = 1
_DIFFERENT = frozenset(("file", "version", "source_digest", "digest", "patient", "statistics", "phash", "thumbnail"))
"""Columns of which hardly two rows are equal: a dictionary would only add to them."""


def to_parquet(table: pd.DataFrame, facts: dict[str, str]) -> bytes:
    """Return an intake table as Parquet, format version and `facts` in its metadata; equal tables give equal bytes."""
    arrow = pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata(
        {"xray.format": str(FORMAT), **{f"xray.{name}": value for name, value in facts.items()}}
    )
    out = io.BytesIO()
    words = [name for name in arrow.column_names if name not in _DIFFERENT]
    pq.write_table(arrow, out, compression="zstd", use_dictionary=words, write_statistics=False)
    return out.getvalue()


def from_parquet(data: bytes, what: str) -> pd.DataFrame:
    """Read what `to_parquet` wrote. Raises DatasetError, naming `what`, for other bytes or another format version."""
    table: pd.DataFrame = arrow_of(data, what).to_pandas(use_threads=False)
    if "withdraws" in table and "named_by" not in table:  # an intake table from before label tables
        table["named_by"] = ""
    return table


def arrow_of(data: bytes, what: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read what `to_parquet` wrote, all columns or some, as Arrow. Raises as `from_parquet`."""
    try:
        version = facts_of(data).get("format", "none")
        if version == str(FORMAT):
            return _read(data, columns)
    except (pa.ArrowInvalid, OSError) as error:
        raise DatasetError(f"{what} is not readable Parquet: {error}") from error
    raise DatasetError(f"{what} has format {version}; this version reads {FORMAT}")


def facts_of(data: bytes) -> dict[str, str]:
    """Return the facts that `to_parquet` kept in the metadata, and "format". Raises pyarrow.ArrowInvalid for other
    bytes."""
    kept: dict[bytes, bytes] = pq.read_metadata(pa.BufferReader(data)).metadata or {}
    return {name.decode().removeprefix("xray."): value.decode() for name, value in kept.items() if name[:5] == b"xray."}


def read_parquet(data: bytes) -> pd.DataFrame:
    """Read any Parquet on this thread alone. Raises pyarrow.ArrowInvalid or OSError for other bytes."""
    table: pd.DataFrame = _read(data).to_pandas(use_threads=False)
    return table


def _read(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """Read on this thread alone: `read_table` and `to_pandas` leave Python objects to threads that outlive the call,
    and a process that ends before they do aborts (https://github.com/apache/arrow/issues/34314)."""
    return pq.ParquetFile(pa.BufferReader(data), pre_buffer=False).read(columns=columns, use_threads=False)


def accounting(table: pd.DataFrame) -> dict[str, int]:
    """Count the rows of an intake table by outcome: "accepted" and each quarantine reason."""
    counts = table["reason"].value_counts()
    return {str(reason) or "accepted": int(counts[reason]) for reason in sorted(counts.index)}
