"""Old candidates go, but for their records: pictures, checkpoints, logged models, predictions and reports.

Whole stay the champion, the challenger, what was ever champion or has an alias in MLflow, the newest `keep_candidates`
and what was worked on within `keep_days`. A registered version that is none of these can't be promoted any more. Of all
others stay ledger, evidence, recipe, environment and run. One candidate goes in this order, so that a process that is
killed anywhere is finished by the next, and no night that takes it up meanwhile loses what it needs:

1. its folder says that it leaves; if somebody took it up since it was looked at, it stays (training/in_use)
2. the record of the removal is written (registry/tidied): from here on it is gone for everybody
3. its files in MLflow go, then its logged models; run and version say so
4. its files in the store go, last of all the note of step 1
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xray_pipeline.base import records
from xray_pipeline.base.errors import Damaged, ObjectNotFound, TrainingError, XrayError
from xray_pipeline.base.progress import Progress
from xray_pipeline.models.mlflow_client import Missing
from xray_pipeline.night import identity, shadow
from xray_pipeline.registry import tidied
from xray_pipeline.registry.tidied import Tidied
from xray_pipeline.training import in_use, mlflow_files, mlflow_run
from xray_pipeline.training.candidate import Candidate, find_candidate
from xray_pipeline.training.mlflow_files import registered_elsewhere

if TYPE_CHECKING:
    from xray_pipeline.base.storage import Entry, Store
    from xray_pipeline.night.run import Run
    from xray_pipeline.registry.mlflow_registry import Registry

log = logging.getLogger(__name__)

DAY = 86_400.0
BY_MODEL = ("predictions", "stress")
MLFLOW = "MLflow"


@dataclass(frozen=True)
class Leaving:
    """A candidate that may go: what it is in the store, and its files there by kind.

    `trained` is None where training never ended; `run_id` is "" where none began; `seen` is for `in_use.take_away`.
    """

    candidate: str
    trained: Candidate | None
    run_id: str
    seen: str
    files: Mapping[str, tuple[Entry, ...]]


@dataclass(frozen=True)
class Tidying:
    """What was removed, or would be: one removal per candidate; and how many candidates stay whole."""

    removals: tuple[Tidied, ...]
    kept: int

    def bytes(self) -> dict[str, int]:
        """Return the bytes by kind."""
        kinds = {kind for removal in self.removals for kind in removal.bytes}
        return {kind: sum(removal.bytes.get(kind, 0) for removal in self.removals) for kind in sorted(kinds)}


@dataclass(frozen=True)
class _Plan:
    """What goes; what stays whole; removals that an earlier tidying began (by candidate); what it only meant to begin.

    The last of these was taken up since.
    """

    leaving: tuple[Leaving, ...]
    kept: frozenset[str]
    begun: Mapping[str, Tidied]
    unsettled: frozenset[str]


def look(run: Run, progress: Progress | None = None, now: float | None = None) -> Tidying:
    """Return what tidying would remove; changes nothing. Raises as `tidy` does."""
    identity.compare(run, mend=False)
    registry = run.registry()
    plan = _plan(run, registry, now)
    removals = []
    for done, one in enumerate(plan.leaving, 1):
        removals.append(plan.begun.get(one.candidate) or _removal(run, registry, one))
        if progress:
            progress(done, len(plan.leaving), "looking at candidates")
    return Tidying(tuple(removals), len(plan.kept))


def tidy(run: Run, progress: Progress | None = None, now: float | None = None) -> Tidying:
    """Remove old candidates; return what was. `now` is the moment in Unix seconds, the store's own if None.

    May be repeated and killed anywhere. Where one candidate can't be removed, the others are, and its error is raised
    at the end. Raises RegistryError and DatasetError where store, ledger and MLflow are not each other's, LedgerError,
    RegistryUnavailable, StorageError.
    """
    identity.compare(run)
    registry = run.registry()
    plan = _plan(run, registry, now)
    for candidate in sorted(plan.unsettled):
        settle(run, registry, candidate)
    removals: list[Tidied] = []
    errors: list[XrayError] = []
    for done, one in enumerate(plan.leaving, 1):
        try:
            removals += _tidied(run, registry, one, plan.begun.get(one.candidate))
        except XrayError as error:
            log.warning("candidate %s can't be tidied: %s", one.candidate[:12], error)
            errors.append(error)
        if progress:
            progress(done, len(plan.leaving), "removing candidates")
    if errors:
        raise errors[0]
    return Tidying(tuple(removals), len(plan.kept) + len(plan.leaving) - len(removals))


def _tidied(run: Run, registry: Registry, one: Leaving, begun: Tidied | None) -> list[Tidied]:
    """Remove one candidate, as an earlier tidying began where it did; return what was: nothing where it stays."""
    if begun is None and not _goes(run, registry, one):
        return []
    try:
        removal = begun or _begun(run.store(), one.candidate) or _removal(run, registry, one)
    except XrayError:
        in_use.stays(run.store(), one.candidate)
        raise
    tidied.keep(run.store(), removal)
    _remove(run, registry, removal, one)
    size = sum(removal.bytes.values())
    log.info("candidate %s is tidied: %d files, %.1f MB", one.candidate[:12], removal.files, size / 1e6)
    return [removal]


def _plan(run: Run, registry: Registry, now: float | None) -> _Plan:
    store = run.store()
    folders = {name: _by_folder(store, name) for name in ("candidates", "reports", "evidence", *BY_MODEL)}
    there = folders["candidates"]
    kept = _in_charge(run, registry) | _recent(run, folders, store.clock() if now is None else now)
    interrupted = {candidate for candidate, entries in there.items() if _named(entries, in_use.LEAVING)}
    begun = {candidate: removal for candidate in interrupted if (removal := _begun(store, candidate))}
    kept = (kept & there.keys()) - begun.keys()
    needed = {found.model_digest for candidate in sorted(kept) if (found := _trained(store, candidate))}
    looked = [_leaving(store, candidate, folders, needed) for candidate in sorted(there.keys() - kept)]
    name = run.settings.model_name
    leaving = [one for one in looked if one and not (one.run_id and registered_elsewhere(one.run_id, name))]
    return _Plan(tuple(leaving), frozenset(kept), begun, frozenset(interrupted & kept))


def _by_folder(store: Store, prefix: str) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = {}
    for entry in store.list(prefix):
        found.setdefault(entry.key.split("/")[1], []).append(entry)
    return found


def _in_charge(run: Run, registry: Registry) -> set[str]:
    """Return the candidates of what is, waits to be or ever was champion, is in shadow, or has any alias in MLflow."""
    state, entries = registry.ledger.state(), registry.ledger.entries()
    versions = {*filter(None, (state.champion, state.challenger)), *state.previous, *registry.aliased()}
    crowned = ("promoted", "rolled-back", "manual-change")  # by hand too, whatever came of it
    named = {entry.candidate for entry in entries if entry.kind in crowned}
    named |= {turn.candidate for turn in shadow.turns(run.store())[-1:]}
    named |= {entry.candidate for version, entry in state.registered.items() if version in versions}
    if unknown := versions - state.registered.keys():
        tags = registry.versions()
        named |= {tags[version].get("xray.candidate", "") for version in unknown & tags.keys()}
    return named


def _recent(run: Run, folders: Mapping[str, Mapping[str, list[Entry]]], now: float) -> set[str]:
    """Return the newest candidates, and those that were worked on lately: by a night, or when a person was asked."""
    settings, used, trained = run.settings, dict[str, float](), dict[str, float]()
    for name in ("candidates", "reports", "evidence"):
        for candidate, entries in folders[name].items():
            at = (entry.modified for entry in entries if not entry.key.endswith(f"/{in_use.LEAVING}"))
            used[candidate] = max(used.get(candidate, 0.0), *at, 0.0)
    for candidate, entries in folders["candidates"].items():
        for entry in _named(entries, "candidate.json"):
            trained[candidate] = entry.modified
    since = now - max(settings.keep_days * DAY, settings.approval_hours * 3600)
    newest = sorted(trained, key=trained.__getitem__)[-settings.keep_candidates :]
    return {*newest, *(candidate for candidate, at in used.items() if at > since)}


def _named(entries: Iterable[Entry], name: str) -> list[Entry]:
    return [entry for entry in entries if entry.key.split("/")[2:] == [name]]


def _trained(store: Store, candidate: str) -> Candidate | None:
    try:
        return find_candidate(store, candidate)
    except (TrainingError, Damaged):  # of a damaged one `xray verify` tells
        return None


def _leaving(
    store: Store, candidate: str, folders: Mapping[str, Mapping[str, list[Entry]]], needed: set[str]
) -> Leaving | None:
    """Return what goes of a candidate, None where nothing is left that could: a tidied one is not even read."""
    entries = folders["candidates"][candidate]
    files = {
        "checkpoints": [entry for entry in entries if "/checkpoints/" in entry.key],
        "pictures": [entry for entry in entries if entry.key.endswith(".png")],
        "reports": folders["reports"].get(candidate, []),
    }
    if not any(files.values()) and not _named(entries, in_use.LEAVING):
        return None
    trained = _trained(store, candidate)
    if trained is None and _named(entries, "candidate.json"):
        log.warning("candidate %s stays: its candidate.json is damaged; see `xray verify`", candidate[:12])
        return None
    if trained and trained.model_digest not in needed:
        files |= {name: folders[name].get(trained.model_digest, []) for name in BY_MODEL}
    seen = "".join(entry.version for entry in _named(entries, in_use.USED))
    found = {kind: tuple(those) for kind, those in files.items() if those}
    return Leaving(candidate, trained, trained.run_id if trained else _run(store, candidate), seen, found)


def _run(store: Store, candidate: str) -> str:
    try:
        return mlflow_run.recorded_run(store.child(f"candidates/{candidate}"))
    except (ObjectNotFound, Damaged):
        return ""


def _goes(run: Run, registry: Registry, one: Leaving) -> bool:
    """Take a candidate away from whoever might begin to work on it; return whether nobody does, nor has since."""
    if not in_use.take_away(run.store(), one.candidate, one.seen):
        log.info("candidate %s stays: somebody works on it", one.candidate[:12])
        return False
    if one.candidate in _in_charge(run, registry):  # by now
        in_use.stays(run.store(), one.candidate)
        return False
    return True


def _removal(run: Run, registry: Registry, one: Leaving) -> Tidied:
    """Return the record of a removal, with what is there now."""
    models = mlflow_files.logged(one.run_id) if one.run_id else []
    count, size = mlflow_files.size(one.run_id, models) if one.run_id else (0, 0)
    bytes_ = {kind: sum(entry.size for entry in entries) for kind, entries in one.files.items()}
    uri = one.trained.model_uri if one.trained else ""
    artifact = next((m.tags.get("xray.artifact", "") for m in models if f"models:/{m.model_id}" == uri), "")
    registered = registry.ledger.state().registered.items()
    return Tidied(
        candidate=one.candidate,
        artifact=artifact,
        model=uri,
        run_id=one.run_id,
        version=next((v for v, e in registered if (e.candidate, e.artifact) == (one.candidate, artifact)), None),
        who=run.who,
        at=records.moment(),
        files=count + sum(map(len, one.files.values())),
        bytes={**bytes_, MLFLOW: size},
    )


def _begun(store: Store, candidate: str) -> Tidied | None:
    """Return the record of the removal of a candidate as it is; None where it was only meant, or trained anew since."""
    trained = _trained(store, candidate)
    made = tidied.of_candidate(store, candidate) if trained else []
    return next((removal for removal in made if trained and removal.model == trained.model_uri), None)


def _remove(run: Run, registry: Registry, removal: Tidied, one: Leaving) -> None:
    store = run.store()
    _remove_from_mlflow(registry, removal)
    for entry in itertools.chain.from_iterable(one.files.values()):
        store.delete(entry.key)
    in_use.gone(store, one.candidate)


def _remove_from_mlflow(registry: Registry, removal: Tidied) -> None:
    said = f"files removed on {removal.at[:10]} by {removal.who}"
    if removal.run_id:
        mlflow_files.remove(removal.run_id, mlflow_files.logged(removal.run_id), said)
    if removal.version is not None:
        with contextlib.suppress(Missing):  # somebody deleted it
            registry.tag(removal.version, {mlflow_files.TAG: said})


def settle(run: Run, registry: Registry, candidate: str) -> None:
    """End what a killed tidying began with a candidate that was taken up since, and so was trained anew or stays.

    Raises RegistryUnavailable, DatasetError, StorageUnavailable.
    """
    store = run.store()
    trained = _trained(store, candidate)
    for removal in tidied.of_candidate(store, candidate):
        if removal.model and (trained is None or removal.run_id != trained.run_id):
            _remove_from_mlflow(registry, removal)
    in_use.stays(store, candidate)
