"""Where a candidate comes from, and what it has otherwise than the champion.

Both are read from what training wrote down when it ran, never from the machine that writes the report: that one may
have other packages and other code. The trade-off: a candidate without such a record has gaps in its lineage, which say
so.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from xray_pipeline.base import records
from xray_pipeline.base.code import code_digest
from xray_pipeline.base.errors import Damaged, EvaluationError, ObjectNotFound, TrainingError
from xray_pipeline.base.storage import Store
from xray_pipeline.training.candidate import Candidate, candidate_digest, find_candidate
from xray_pipeline.training.recipe import Recipe
from xray_pipeline.training.start import Start, recorded

_JUDGES = ("numpy", "scipy", "scikit-learn", "pandas", "pillow", "pydicom", "torch", "mlflow")
NOT_RECORDED = "not recorded"

JUDGES = ("base", "images", "dataset", "models", "evaluation", "gate")
"""The rooms whose code decides what is said of a candidate."""

_PARTS = {"backbone": "backbone", "weights": "starting weights"}
_PARTS |= dict.fromkeys(("side", "crop", "mean", "std"), "image preparation")
_PARTS |= dict.fromkeys(("threshold", "sensitivity", "anchor"), "threshold rule")


def environments(store: Store, candidate: str) -> list[dict[str, Any]]:
    """Return where a candidate was trained: several when training went on elsewhere, none when nothing is recorded.

    Raises DatasetError.
    """
    try:
        return records.read(store, f"candidates/{candidate}/environment.json", list[dict[str, Any]])
    except ObjectNotFound:
        return []


def recipe_of(store: Store, candidate: str) -> Recipe:
    """Return the recipe of a candidate.

    Raises EvaluationError when it is gone, written by another version or not the one that candidate.json names, and as
    `find_candidate` does.
    """
    try:
        recipe = Recipe.model_validate_json(store.read(f"candidates/{candidate}/recipe.json"))
    except (ObjectNotFound, ValueError) as error:
        raise EvaluationError(
            f"candidate {candidate[:12]} has no recipe this version can read: put recipe.json back, or train again"
        ) from error
    if recipe.digest() != (named := find_candidate(store, candidate).recipe):
        raise EvaluationError(
            f"candidates/{candidate}/recipe.json has digest {recipe.digest()[:12]}, candidate.json names {named[:12]}; "
            f"restore it from a backup"
        )
    return recipe


def facts(store: Store, candidate: Candidate) -> dict[str, str]:
    """Return what a candidate was made from, names to values: digests, seed, code, machine, package versions.

    Raises EvaluationError as `recipe_of` does, StorageError.
    """
    recipe = recipe_of(store, candidate.digest)
    runs = environments(store, candidate.digest)
    try:
        start = f"version {began.version}" if (began := _start(store, candidate, recipe, runs)) else ""
    except (TrainingError, Damaged):
        start = NOT_RECORDED
    runs = runs or [{}]

    def said(values: Iterable[object]) -> str:
        return ", then ".join(dict.fromkeys(map(str, values)))

    def recorded(name: str) -> str:
        return said(run.get(name, NOT_RECORDED) for run in runs)

    names = dict.fromkeys(name for run in runs for name in run.get("versions", {}))
    return {
        "candidate (what went in)": candidate.digest,
        "MLflow run": candidate.run_id,
        "recipe": candidate.recipe,
        "pretrained weights (SHA-256 of the tensors)": recorded("weights"),
        **({"training started from": start} if start else {}),
        "training code (SHA-256 of the package)": recorded("code"),
        "code that evaluated": code_digest(*JUDGES),
        "seed of training": str(recipe.seed),
        "trained on": " ".join((recorded("device"), f"({recorded('cpu')}, {recorded('threads')} threads)")),
        **{
            f"version of {name}": said(run.get("versions", {}).get(name, NOT_RECORDED) for run in runs)
            for name in names
        },
        "packages that evaluated": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _JUDGES),
    }


def changed(store: Store, candidate: Candidate, champion: str) -> tuple[str, ...] | None:
    """Return what the candidate has otherwise than the champion (a candidate's digest), as `rules.PARTS` names it.

    None when it can't be told, because the champion's training, or what either started from, is not on record. Raises
    EvaluationError, StorageError.
    """
    now_recipe, ours = recipe_of(store, candidate.digest), environments(store, candidate.digest)
    try:
        before, was, theirs = find_candidate(store, champion), recipe_of(store, champion), environments(store, champion)
        starts = _start(store, candidate, now_recipe, ours), _start(store, before, was, theirs)
    except (TrainingError, EvaluationError, Damaged):
        return None
    if not ours or not theirs:
        return None
    found = {_PARTS.get(name, "recipe") for name in _differing(now_recipe, was)}
    if before.snapshot != candidate.snapshot:
        found.add("training data")
    now, then = ours[-1], theirs[-1]
    if now.get("weights") != then.get("weights") or starts[0] != starts[1]:
        found.add("starting weights")
    if any(now.get(name) != then.get(name) for name in ("code", "versions", "engine")):
        found.add("software")
    return tuple(sorted(found))


def started_from(store: Store, candidate: str) -> int | None:
    """Return the version whose weights a candidate's training started from, None for the pretrained network's.

    Raises EvaluationError as `recipe_of` does, TrainingError, StorageError.
    """
    found = find_candidate(store, candidate)
    start = _start(store, found, recipe_of(store, candidate), environments(store, candidate))
    return start.version if start else None


def _differing(ours: Recipe, theirs: Recipe) -> list[str]:
    left, right = (recipe.model_dump(exclude={"name"}) for recipe in (ours, theirs))
    return [name for name in left if left[name] != right[name]]


def before_start(candidate: Candidate, recipe: Recipe, runs: Sequence[Mapping[str, Any]]) -> str:
    """Return the digest under which training wrote down which champion it started from.

    "" when it started from the pretrained network; `runs` are its `environments`. Raises TrainingError without them.
    """
    if not recipe.warm_start:
        return ""
    if not runs:
        raise TrainingError(
            f"what candidate {candidate.digest[:12]} started from is not known: environment.json, which says where it "
            f"was trained, is missing; restore it from a backup"
        )
    before = candidate_digest(candidate.snapshot, recipe, runs[0]["weights"], runs[0]["versions"])
    return "" if before == candidate.digest else before


def _start(store: Store, candidate: Candidate, recipe: Recipe, runs: Sequence[Mapping[str, Any]]) -> Start | None:
    before = before_start(candidate, recipe, runs)
    return recorded(store, before) if before else None
