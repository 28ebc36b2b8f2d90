"""Held-out radiographs to look at: what the models disagree on, and what the candidate gets wrong.

Whoever has the models chooses and explains them; `packed` is for whoever writes the page later, without the models.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from xray_pipeline.evaluation.cases import Floats
from xray_pipeline.evaluation.predictions import Pixels, Read
from xray_pipeline.models.classifier import Classifier
from xray_pipeline.report import gradcam

Images = npt.NDArray[np.uint8]
Maps = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Example:
    """One held-out radiograph with what the models say of it.

    Probabilities in the order of the classes; `pixels` uint8 [S, S]; maps float32 [S, S] in 0..1, each for the class
    its model names, None where there is no model or no map.
    """

    digest: str
    label: str
    candidate: tuple[float, ...]
    candidate_says: str
    pixels: Images
    candidate_map: Maps | None = None
    champion: tuple[float, ...] | None = None
    champion_says: str = ""
    champion_map: Maps | None = None


def examples(
    models: Sequence[tuple[Classifier, Pixels]],
    rows: pd.DataFrame,
    tables: Sequence[Floats],
    read: Read,
    *,
    limit: int = 12,
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Choose and explain the radiographs to look at: (where the two models differ, the candidate's worst errors).

    `models` is the candidate and, if there is one, the champion; `tables` their probabilities [N, C], aligned with
    `rows` (columns digest, suffix, label). Both lists are sorted by how much is at stake: the difference in, or the
    lack of, probability for the true class.
    """
    classes = list(models[0][0].classes)
    truth = np.array([classes.index(label) for label in rows["label"]], dtype=np.int64)
    where = np.arange(len(rows))
    says = [np.array(model.label(table)) for (model, _), table in zip(models, tables, strict=True)]
    for_truth = [table[where, truth] for table in tables]
    wrong = where[says[0] != rows["label"].to_numpy()]
    errors = wrong[np.argsort(for_truth[0][wrong], kind="stable")][:limit]
    differ = differing(says, for_truth)[:limit]
    of_differ, of_errors = (
        explained(models, rows.iloc[chosen], [table[chosen] for table in tables], read) for chosen in (differ, errors)
    )
    return of_differ, of_errors


def differing(says: Sequence[npt.NDArray[Any]], for_truth: Sequence[Floats]) -> npt.NDArray[np.int64]:
    """Return the places of what the first and the last model name differently, those with most at stake first.

    `says` are the names that each gives [N], `for_truth` its probabilities for the true class [N].
    """
    differ = np.flatnonzero(says[0] != says[-1])
    gap = np.abs(for_truth[0] - for_truth[-1])[differ]
    return differ[np.argsort(-gap, kind="stable")]


def explained(
    models: Sequence[tuple[Classifier, Pixels]], rows: pd.DataFrame, tables: Sequence[Floats], read: Read
) -> tuple[Example, ...]:
    """Return each of `rows` with what the models say of it; all is as in `examples`."""
    if rows.empty:
        return ()
    says, pictures, heat = [], [], []
    for (model, pixels), table in zip(models, tables, strict=True):
        pixels.ensure(rows, read)
        says.append(model.label(table))
        pictures.append(pixels.get(list(rows["digest"])))
        targets = [model.classes.index(name) for name in says[-1]]
        heat.append(gradcam.maps(model.network, pictures[-1], targets))
    both = len(models) > 1
    return tuple(
        Example(
            digest=row.digest,
            label=row.label,
            candidate=tuple(tables[0][i].tolist()),
            candidate_says=says[0][i],
            pixels=pictures[0][i],
            candidate_map=None if heat[0] is None else heat[0][i],
            champion=tuple(tables[1][i].tolist()) if both else None,
            champion_says=says[1][i] if both else "",
            champion_map=heat[1][i] if both and heat[1] is not None else None,
        )
        for i, row in enumerate(rows.itertuples())
    )


def packed(lists: Sequence[Sequence[Example]], about: Sequence[str]) -> bytes:
    """Return examples as the bytes of one file; `about` says what they are of, and `unpacked` asks for it again."""
    arrays: dict[str, Any] = {}
    facts: list[list[dict[str, Any]]] = []
    for of, examples in enumerate(lists):
        facts.append([])
        for index, example in enumerate(examples):
            images = {name: value for name, value in vars(example).items() if isinstance(value, np.ndarray)}
            arrays |= {f"{of} {index} {name}": value for name, value in images.items()}
            facts[-1].append({name: value for name, value in vars(example).items() if name not in images})
    written = json.dumps({"about": list(about), "facts": facts}).encode()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, facts=np.frombuffer(written, np.uint8), **arrays)
    return hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue()


def unpacked(data: bytes, about: Sequence[str]) -> list[tuple[Example, ...]] | None:
    """Return the examples that `packed` was given; None for a damaged file, and for one of something else."""
    if hashlib.sha256(data[32:]).digest() != data[:32]:
        return None
    images: dict[str, dict[str, Any]] = defaultdict(dict)
    with np.load(io.BytesIO(data[32:]), allow_pickle=False) as file:
        written = json.loads(file["facts"].tobytes())
        if written["about"] != list(about):
            return None
        for key in file.files[1:]:
            place, _, name = key.rpartition(" ")
            images[place][name] = file[key]
    return [
        tuple(Example(**_tuples(facts), **images[f"{of} {index}"]) for index, facts in enumerate(examples))
        for of, examples in enumerate(written["facts"])
    ]


def _tuples(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()}
