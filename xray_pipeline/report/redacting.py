"""Reports without some of their radiographs: the cards that show them go, with all that models say of each."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Set
from zipfile import BadZipFile

import numpy as np

from xray_pipeline.base.errors import ObjectNotFound
from xray_pipeline.base.storage import Store
from xray_pipeline.dataset.erasing import Trace

SHOWN = 12
"""Digits of a radiograph's digest on a page."""
_CARD = re.compile(rf"<!--radiograph ([0-9a-f]{{{SHOWN}}})-->.*?<!--/radiograph-->\n?", re.S)


def redacted(page: str, digests: Set[str]) -> str:
    """Return a report's page without the cards of some radiographs (digests)."""
    short = {digest[:SHOWN] for digest in digests}
    return _CARD.sub(lambda card: "" if card[1] in short else card[0], page)


def traces(store: Store, digests: Set[str]) -> Iterator[Trace]:
    """Yield the pages that show some radiographs (digests), with the rest of each to keep, and the examples drawn for
    them; these are drawn anew when they are asked for. Raises StorageUnavailable."""
    for entry in store.list("reports"):
        try:
            if entry.key.endswith(".html"):
                page = store.read(entry.key).decode(errors="replace")
                if (kept := redacted(page, digests)) != page:
                    yield Trace(entry.key, {entry.key: kept.encode()})
            elif entry.key.endswith(".npz") and _shows(store.read(entry.key), digests):
                yield Trace(entry.key)
        except ObjectNotFound:
            continue


def _shows(examples: bytes, digests: Set[str]) -> bool:
    """Whether a file that `examples.packed` made shows one of some radiographs, or can't be read."""
    try:
        with np.load(io.BytesIO(examples[32:]), allow_pickle=False) as file:
            facts = file["facts"].tobytes().decode()
    except (OSError, ValueError, KeyError, BadZipFile):
        return True
    return not digests.isdisjoint(re.findall("[0-9a-f]{64}", facts))
