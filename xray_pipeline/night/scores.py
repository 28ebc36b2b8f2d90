"""Figures of registered versions on the newest held-out radiographs, as they were measured last.

What a version scored on the day it was registered is of other radiographs than what another scored on its own day;
`night/versions` scores both on the same ones and keeps the figures under what the numbers mean:

    scores/<SHA-256 of the versions' digests, in order>.json

Reading them scores nothing and imports no network, so a page may.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from xray_pipeline.base import records
from xray_pipeline.base.errors import DatasetError, ObjectNotFound
from xray_pipeline.base.storage import Store
from xray_pipeline.evaluation.metrics import Comparison, Evaluation
from xray_pipeline.registry.state import State

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scores:
    """One version, or two beside each other, on the held-out radiographs of the newest snapshot of their moment.

    `evaluations` are those of `versions`, in their order: radiographs and patients, snapshot, threshold, and each
    metric with its interval. `comparison` is the first version against the second, None of one alone; a difference is
    first minus second. `scored` is when, ISO 8601 in UTC; `models` is what the numbers mean (`State.models`); `inputs`
    the digest of all that the figures follow from.
    """

    versions: tuple[int, ...]
    models: Mapping[str, list[str]]
    scored: str
    inputs: str
    evaluations: tuple[Evaluation, ...]
    comparison: Comparison | None


def last_scores(store: Store, state: State, versions: Sequence[int]) -> Scores | None:
    """Return the figures that were measured last of exactly these versions; None without any that can be read.

    They are of the snapshot they name, which may not be the newest. Raises StorageUnavailable.
    """
    models = state.models(*versions)
    if len(models) != len(set(versions)):
        return None
    try:
        scores = records.read(store, _key(models, versions), Scores)
    except ObjectNotFound:
        return None
    except DatasetError as error:
        log.warning("the scores of versions %s are measured anew: %s", list(versions), error)
        return None
    return scores if scores.models == models else None


def keep(store: Store, scores: Scores) -> None:
    """Keep figures in place of what was measured of these versions before. Raises StorageUnavailable."""
    records.write(store, _key(scores.models, scores.versions), asdict(scores))


def in_charge(state: State) -> list[int]:
    """Return the versions that hold an alias, the challenger first: a difference is then challenger minus champion."""
    return [version for version in (state.challenger, state.champion) if version is not None]


def _key(models: Mapping[str, Sequence[str]], versions: Sequence[int]) -> str:
    named = [models[str(version)] for version in versions]
    return f"scores/{records.digest_of(records.canonical(named))}.json"
