"""Predictions, kept in the store under the model that made them, so that nothing is scored twice."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator, Sequence, Set
from typing import Any, Protocol

import numpy.typing as npt
import pandas as pd
from pyarrow import ArrowInvalid

from xray_pipeline.base.errors import Damaged, EvaluationError, ObjectNotFound
from xray_pipeline.base.progress import Progress
from xray_pipeline.base.records import digest_of, exactly
from xray_pipeline.base.storage import Store
from xray_pipeline.dataset.erasing import Trace
from xray_pipeline.dataset.parquet import read_parquet
from xray_pipeline.evaluation.cases import Floats, check_probabilities

log = logging.getLogger(__name__)

Read = Callable[[str, str], bytes]

PREFIXES = ("predictions", "stress")
"""Where tables of one row a radiograph lie, each named by the SHA-256 of its bytes."""

_SCORE_BLOCK = 512  # radiographs scored between two commits of predictions


class Scorer(Protocol):
    """What `score` needs of a model; `models.classifier.Classifier` is one."""

    @property
    def digest(self) -> str: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    def probabilities(self, pixels: npt.NDArray[Any]) -> Floats: ...


class Pixels(Protocol):
    """Where `score` finds decoded radiographs, or features of them; `pixels.PixelCache` is one."""

    def ensure(self, rows: pd.DataFrame, read: Read) -> object: ...
    def get(self, digests: Sequence[str]) -> npt.NDArray[Any]: ...


def score(
    classifier: Scorer,
    rows: pd.DataFrame,
    pixels: Pixels,
    read: Read,
    store: Store,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Return one row per radiograph of `rows` (columns digest, suffix), in order: digest and p_<class> per class.

    Predictions are kept under predictions/<model digest>/, each part a Parquet file named by the SHA-256 of its bytes;
    only radiographs in no part are decoded (through `read`) and scored. A part whose bytes are not what its name says
    is dropped and its radiographs are scored again. Raises EvaluationError when the model gives anything but
    probabilities; DatasetError, StorageUnavailable.
    """

    def compute(block: pd.DataFrame) -> Floats:
        pixels.ensure(block, read)
        return classifier.probabilities(pixels.get(list(block["digest"])))

    return predictions(f"predictions/{classifier.digest}", classifier.classes, rows, compute, store, progress)


def predictions(
    folder: str,
    classes: Sequence[str],
    rows: pd.DataFrame,
    compute: Callable[[pd.DataFrame], Floats],
    store: Store,
    progress: Progress | None = None,
    what: str = "scoring",
) -> pd.DataFrame:
    """Return the predictions kept in `folder` of the store for `rows`, with `compute` called for rows that have none.

    As `score`, for any function from a block of rows to probabilities [len(block), C] that the folder's name names.
    """
    columns = _columns(classes)
    tables = [_whole_parts(folder, columns, store)]
    missing = rows[~rows["digest"].isin(tables[0].index)].drop_duplicates("digest")
    if len(missing):
        log.info("%s %d of %d radiographs; the rest is kept from earlier", what, len(missing), len(rows))
    for start in range(0, len(missing), _SCORE_BLOCK):
        block = missing.iloc[start : start + _SCORE_BLOCK]
        probabilities = compute(block)
        check_probabilities(probabilities, len(block), len(classes))
        table = pd.DataFrame(probabilities, columns=columns, index=pd.Index(block["digest"], name="digest"))
        data = _as_parquet(table.reset_index())
        store.write_if_absent(f"{folder}/{digest_of(data)}.parquet", data)
        tables.append(table)
        if progress:
            progress(start + len(block), len(missing), what)
    return pd.concat(tables).loc[list(rows["digest"])].reset_index()


def recorded(model: str, classes: Sequence[str], rows: pd.DataFrame, store: Store) -> Floats | None:
    """Return what `score` recorded of a model, by its digest: [N, C] for `rows`; None where it lacks one of them."""
    table = _whole_parts(f"predictions/{model}", _columns(classes), store)
    return table.loc[list(rows["digest"])].to_numpy() if rows["digest"].isin(table.index).all() else None


def traces(store: Store, digests: Set[str]) -> Iterator[Trace]:
    """Yield the tables that have a row of some radiographs (digests), each with the rest of it to keep.

    One that can't be read goes: its radiographs are scored again. Raises StorageUnavailable.
    """
    for key in (entry.key for prefix in PREFIXES for entry in store.list(prefix)):
        try:
            table = read_parquet(store.read(key))
            kept = table[~table["digest"].isin(digests)]
        except ObjectNotFound:
            continue
        except (ArrowInvalid, OSError, KeyError):
            yield Trace(key)
            continue
        if len(kept) < len(table):
            data = _as_parquet(kept)
            folder = key.rpartition("/")[0]
            yield Trace(key, {f"{folder}/{digest_of(data)}.parquet": data} if len(kept) else {})


def _as_parquet(table: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    return buffer.getvalue()


def _columns(classes: Sequence[str]) -> list[str]:
    return [f"p_{name}" for name in classes]


def _whole_parts(folder: str, columns: Sequence[str], store: Store) -> pd.DataFrame:
    """Read every whole part; drop the others. Two runs may have scored the same radiograph: the first part counts."""
    parts = [pd.DataFrame({c: pd.Series(dtype=float) for c in columns}, index=pd.Index([], dtype=str, name="digest"))]
    for key in sorted(entry.key for entry in store.list(folder)):
        try:
            data = exactly(store, key, key.rpartition("/")[2].removesuffix(".parquet"), "its name")
            part = read_parquet(data).set_index("digest")[list(columns)]
            check_probabilities(part.to_numpy(), len(part), len(columns))
        except (Damaged, EvaluationError, ArrowInvalid, OSError, KeyError) as error:
            log.warning("%s is broken; its radiographs are scored again: %s", key, error)
            store.delete(key)
        else:
            parts.append(part)
    table = pd.concat(parts)
    return table[~table.index.duplicated()]
