"""MLflow's registry: versions, aliases and artifacts of the one registered model. No other module talks to it.

MLflow offers no idempotency key and its aliases are last-writer-wins without a history, so it is never asked what was
decided: the ledger is (ledger.py), and the aliases follow it. Registering is exactly once by searching for the
candidate digest before and after: of two versions that carry it the lowest stays. An MLflow that was put back to an
older state gives numbers anew; one that the ledger has used is never taken. The registered model remembers which ledger
it belongs to and the newest entry it followed, its mark; so an empty or other store is noticed, a crash between entry
and alias is told from a change made by hand, and a ledger that lost its last entries is noticed too.

The trade-off: detecting a change by hand can't be atomic without the registry's help. A process that is killed in the
milliseconds between another's entry and its own outdated alias can be taken for a hand; the record then says so.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from xray_pipeline.base.errors import ModelRefused, RegistryError, RegistryUnavailable
from xray_pipeline.base.scratch import scratch
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import open_store
from xray_pipeline.base.text import without_passwords
from xray_pipeline.dataset.commits import Commits
from xray_pipeline.models import mlflow_client as tracking
from xray_pipeline.models.bundle import artifact_digest, audit, inventory
from xray_pipeline.models.classifier import Classifier
from xray_pipeline.models.mlflow_client import FAILURES, Missing, MlflowClient, MlflowException, mlflow
from xray_pipeline.registry.ledger import Entry, Ledger, State, aliases_since

log = logging.getLogger(__name__)

T = TypeVar("T")

ALIASES = ("champion", "challenger")
LEDGER_TAG, FOLLOWED_TAG, COMMITTED_TAG = "xray.ledger", "xray.followed", "xray.committed"
CACHED_MODELS = 20
PAUSE = 2.0
"""Seconds after which a change that looks made by hand is looked at again."""


@dataclass(frozen=True)
class ModelVersion:
    """A model that can be downloaded: where it is and what it must be.

    `version` is None for a logged model or folder that is asked for directly; `artifact` is the digest over all its
    files (from the ledger where that knows the version, else from MLflow's tags), "" when none is recorded; `source`
    is the logged model of a version.
    """

    uri: str
    version: int | None = None
    candidate: str = ""
    artifact: str = ""
    run_id: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    source: str = ""


class Mark(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a tag of the registered model remembers: the newest entry or commit that was seen, and its digest."""

    sequence: int
    head: str


@dataclass(frozen=True)
class ManualChange:
    """Aliases moved in MLflow by hand: what the ledger expected and what was found, alias to version or None."""

    expected: Mapping[str, int | None]
    found: Mapping[str, int | None]

    def sentence(self) -> str:
        """Say what was changed."""
        moves = [
            f"{alias} from {_name(self.expected[alias])} to {_name(self.found[alias])}"
            for alias in ALIASES
            if self.expected[alias] != self.found[alias]
        ]
        return f"moved by hand in MLflow: {', '.join(moves)}"


class Registry:
    """The registered model `settings.model_name` at `settings.tracking_uri`, and the ledger that it follows."""

    def __init__(self, settings: Settings, ledger: Ledger | None = None) -> None:
        self.settings = settings
        self.name = settings.model_name
        self.ledger = ledger or Ledger(open_store(settings.store, settings), settings.idle_days)
        self._commits = Commits(open_store(settings.store, settings).child("dataset"))
        # Parts of MLflow ask for the process's own URI whatever a client was given.
        address = tracking.use(settings.tracking_uri)
        with tracking.calls("opening the registry", OSError):
            self._client = MlflowClient(address, address)

    # Versions

    def version_of(self, candidate: str) -> int | None:
        """Return the version that carries a candidate digest, the lowest if several do, None if none does."""
        found = self._versions_of(candidate)
        return found[0] if found else None

    def add(
        self, candidate: str, model_uri: str, run_id: str, tags: Mapping[str, str] | None = None, description: str = ""
    ) -> int:
        """Make a logged model a version, exactly once per candidate digest; return its number.

        Safe to repeat and to run twice at once: a version of this logged model that carries the digest already is
        returned, and of two made at the same time the lowest stays. A number that the ledger has used is left to the
        model that it means there. Raises RegistryError, RegistryUnavailable.
        """
        self._claim()
        state = self.ledger.state()
        if (known := state.version_of(candidate)) is not None:
            return known
        before = self._versions_of(candidate, model_uri)
        while not (free := set(found := self._versions_of(candidate, model_uri)) - state.used):
            made = self._call(
                f"registering {model_uri}",
                self._client.create_model_version,
                self.name,
                source=model_uri,
                run_id=run_id,
                tags={**(tags or {}), "xray.candidate": candidate},
                description=description,
                model_id=model_uri.removeprefix("models:/"),
                await_creation_for=0,
            )
            if int(made.version) in state.used:
                log.warning(
                    "MLflow gave version %s of %s a number that the ledger has used: it is older than the ledger; "
                    "taking the next number",
                    made.version,
                    self.name,
                )
        # Duplicates, and the used numbers that this call was given: nobody was handed one of them.
        lowest = min(free)
        self._delete(version for version in found if version in free - {lowest} or version not in {*free, *before})
        return lowest

    def _delete(self, versions: Iterable[int]) -> None:
        for version in versions:
            log.warning("version %d of %s is a duplicate, or has a used number; deleting it", version, self.name)
            with contextlib.suppress(Missing):  # the other process was faster
                self._call("deleting a duplicate", self._client.delete_model_version, self.name, str(version))

    def _versions_of(self, candidate: str, model_uri: str = "") -> list[int]:
        """Return the versions that carry a candidate digest and, unless it is "", are of this logged model."""
        if not re.fullmatch(r"[0-9a-f]{64}", candidate):
            raise RegistryError(f"{candidate!r} is not a candidate digest (64 hexadecimal digits)")
        query = f"name = '{self.name}' and tags.`xray.candidate` = '{candidate}'"
        found = self._call("searching versions", self._client.search_model_versions, query)
        return sorted(int(version.version) for version in found if version.source == model_uri or not model_uri)

    def versions(self) -> dict[int, Mapping[str, str]]:
        """Return the tags of every version by number."""
        found: dict[int, Mapping[str, str]] = {}
        token = None
        while True:
            page = self._call(
                "listing versions", self._client.search_model_versions, f"name = '{self.name}'", page_token=token
            )
            found.update({int(version.version): dict(version.tags) for version in page})
            token = page.token
            if not token:
                return dict(sorted(found.items()))

    def attach(self, run_id: str, name: str, text: str) -> None:
        """Keep a text file with an MLflow run. Raises RegistryError, RegistryUnavailable."""
        self._call(f"keeping {name}", self._client.log_text, run_id, text, name)

    def tag(self, version: int, tags: Mapping[str, str]) -> None:
        """Set tags on a version. Raises RegistryError, RegistryUnavailable."""
        for key, value in tags.items():
            what = f"tagging version {version}"
            self._call(what, self._client.set_model_version_tag, self.name, str(version), key, value)

    def describe(self, version: int, change: Callable[[str], str]) -> None:
        """Set a version's description to what `change` makes of the present one. Raises RegistryError."""
        what = f"describing version {version}"
        present = self._call(what, self._client.get_model_version, self.name, str(version)).description or ""
        if (wanted := change(present)) != present:
            self._call(what, self._client.update_model_version, self.name, str(version), wanted)

    # Aliases

    def aliases(self) -> dict[str, int | None]:
        """Return the version of each alias as MLflow has it now, None where it has none."""
        model = self._model(self.ledger.state())
        return _aliases(model) if model else dict.fromkeys(ALIASES)

    def manual_change(self, pause: float | None = None) -> ManualChange | None:
        """Return how the aliases differ from all that the ledger can explain; None when they don't.

        What a process that died between entry and alias left behind is explained: any state from the one followed last
        to the newest. A difference is looked at again after `pause` seconds: another process may be between two steps.
        """
        change = self._difference()
        if change is not None:
            time.sleep(PAUSE if pause is None else pause)
            change = self._difference()
        return change

    def _difference(self) -> ManualChange | None:
        # MLflow first: the ledger is always at least as new as the aliases, so what is read later explains them.
        model = self._get()
        state = self.ledger.state()
        self._check_identity(model, state)
        if model is None:
            return None
        found = _aliases(model)
        explained = aliases_since(self.ledger.entries(), self._followed(model))
        if all(any(found[alias] == then[alias] for then in explained) for alias in ALIASES):
            return None
        return ManualChange({alias: state.aliases.get(alias) for alias in ALIASES}, found)

    def lost(self) -> dict[int, str]:
        """Return the versions that MLflow never followed the ledger to and does not have, each with how so.

        Only an older state of MLflow that was put back explains them: a version is made before its entry.
        """
        state = self.ledger.state()
        model = self._model(state)
        followed = self._followed(model) if model is not None else 0
        named = {version: state.registered.get(version) for version in (*state.registered, *state.aliases.values())}
        behind = followed < state.sequence
        return self.missing({v: e for v, e in named.items() if (e.sequence > followed if e else behind)})

    def missing(self, versions: Mapping[int, Entry | None]) -> dict[int, str]:
        """Return which of these versions, with the entry that registered each, MLflow does not have, each with how so.

        A version is known by its tags or, where somebody changed those, by its files.
        """
        found = self.versions() if versions else {}
        said = {number: "is not in MLflow" for number in versions if number not in found}
        for number, entry in versions.items():
            if number in said or entry is None or _same(entry, found[number]):
                continue
            try:
                self.prove(number)
            except ModelRefused:
                said[number] = "is another model in MLflow"
            except RegistryUnavailable:
                raise
            except RegistryError as error:  # its files are missing: what loads it says so
                log.warning("version %d: %s", number, error)
        return said

    def follow(self) -> State:
        """Make the aliases what the ledger says, and return that state.

        An alias is moved in one step, never removed first, so there is no moment without champion. If the ledger grew
        meanwhile, it is followed further. Raises RegistryError when MLflow lacks a version that the ledger knows, or
        has another model under its number.
        """
        while True:
            model = self._get()  # before the ledger, or aliases of a newer entry than the one read are moved back
            state = self.ledger.state()
            self._check_identity(model, state)
            if model is None:
                return state
            found, behind = _aliases(model), self._followed(model) < state.sequence
            moving = [version for alias, version in state.aliases.items() if behind or found[alias] != version]
            missing = self.missing({version: state.registered.get(version) for version in moving})
            for alias in ALIASES:
                wanted = state.aliases.get(alias)
                if wanted in missing:
                    raise RegistryError(
                        f"setting {alias} to version {wanted} of {self.name}: it {missing[wanted]}; restore MLflow's "
                        f"newest backup, or `xray rollback --to` a version that `xray verify` finds whole"
                    )
                self._move(alias, found[alias], wanted)
            self._advance(model, state)
            self._vouch(model)
            if self.ledger.state().head == state.head:
                return state

    def _move(self, alias: str, found: int | None, wanted: int | None) -> None:
        if found == wanted:
            return
        if wanted is None:
            self._call(f"removing {alias}", self._client.delete_registered_model_alias, self.name, alias)
        else:
            what = f"setting {alias} to version {wanted}"
            self._call(what, self._client.set_registered_model_alias, self.name, alias, str(wanted))
        log.info("%s: %s is now %s, was %s", self.name, alias, _name(wanted), _name(found))

    # The mark: the newest entry that this registry followed, which the ledger must have

    def _advance(self, model: Any, state: State) -> None:
        """Set the mark to the newest entry; nothing else writes it."""
        if state.sequence:
            self._remember(model, FOLLOWED_TAG, Mark(state.sequence, state.head))

    def _remember(self, model: Any, tag: str, mark: Mark) -> None:
        if mark != _mark(model, tag):
            value = msgspec.json.encode(mark).decode()
            self._call("tagging", self._client.set_registered_model_tag, self.name, tag, value)

    def _followed(self, model: Any) -> int:
        """Return how far the ledger was followed; nothing else checks the mark.

        Raises RegistryError for a ledger that lost entries, unless one of its entries says that they are given up.
        """
        mark, entries = _mark(model, FOLLOWED_TAG), self.ledger.entries()
        sequence, head = mark.sequence, mark.head
        if sequence == 0 or (sequence <= len(entries) and entries[sequence - 1].digest == head):
            return sequence
        for entry in reversed(entries):
            if entry.kind == "manual-change" and entry.decision.get("lost") == msgspec.structs.asdict(mark):
                return entry.sequence
        raise RegistryError(
            f"model {self.name!r} followed the ledger to entry {sequence} ({head[:12]}), which is not in "
            f"{self.ledger.store.uri} (it has {len(entries)}); restore the newest copy of the ledger or, if there is "
            f"none, `xray adopt --lost`"
        )

    def ahead(self) -> tuple[dict[str, Any], dict[str, int | None]] | None:
        """Return mark and aliases when ledger or dataset lost what the registry knows; None when they have it all.

        Raises RegistryError for another ledger's model, RegistryUnavailable.
        """
        model = self._get()
        self._check_owner(model, self.ledger.state())
        try:
            if model is not None:
                self._followed(model)
                self._check_committed(model)
        except RegistryError:
            return msgspec.structs.asdict(_mark(model, FOLLOWED_TAG)), _aliases(model)
        return None

    # Which registry this is

    def _claim(self) -> None:
        """Make the registered model, tagged with its ledger in the same call, unless it is there."""
        if self._model(self.ledger.state()) is not None:
            return
        tags = {LEDGER_TAG: self.ledger.identity()}
        try:
            self._client.create_registered_model(
                self.name, tags, "Chest X-ray classifiers; see the tags of each version."
            )
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise tracking.named(error, "making the registered model") from None
            self._model(self.ledger.state())

    def _get(self) -> Any:
        try:
            return self._call("asking for the registered model", self._client.get_registered_model, self.name)
        except Missing:
            return None

    def _model(self, state: State) -> Any:
        """Return MLflow's registered model, None when there is none yet. Raises RegistryError for another store's."""
        model = self._get()
        self._check_identity(model, state)
        return model

    def _check_identity(self, model: Any, state: State) -> None:
        self._check_owner(model, state)
        if model is not None:
            self._followed(model)
            self._check_committed(model)

    def _check_owner(self, model: Any, state: State) -> None:
        where = f"MLflow at {without_passwords(self.settings.tracking_uri)}"
        if model is None:
            if state.registered:
                raise RegistryError(
                    f"{where} holds no model {self.name!r}, but the ledger knows {len(state.registered)} versions of "
                    f"it; is XRAY_TRACKING_URI right? Nothing is done until it is"
                )
            return
        belongs = model.tags.get(LEDGER_TAG)
        if belongs is None and not state.registered and not self.versions():
            self._call("tagging", self._client.set_registered_model_tag, self.name, LEDGER_TAG, self.ledger.identity())
        elif belongs is None or belongs != self.ledger.identity(make=False):
            owner = f"belongs to ledger {belongs[:12]}" if belongs else "was made by somebody else"
            ours = self.ledger.identity(make=False)[:12]
            there = f"the ledger in {self.ledger.store.uri} is {ours}; "
            if not ours:
                there = f"there is no ledger in {self.ledger.store.uri}: is the store not mounted? Mount it, "
            raise RegistryError(
                f"model {self.name!r} in {where} {owner}, {there}"
                f"set XRAY_STORE or XRAY_TRACKING_URI right, or choose another XRAY_MODEL_NAME; nothing was written"
            )

    def _check_committed(self, model: Any) -> None:
        """Notice a dataset that lost its last commits, or whose newest one was changed."""
        mark, commits = _mark(model, COMMITTED_TAG), self._commits
        if mark.sequence and commits.digest(mark.sequence) != mark.head:
            raise RegistryError(
                f"model {self.name!r} knows commit {mark.sequence} ({mark.head[:12]}) of the dataset, which is not in "
                f"{commits.store.uri} (it has {len(commits.read())}); restore the newest copy of the dataset "
                f"or, if there is none, `xray adopt --lost`"
            )

    def vouch(self) -> None:
        """Remember the newest commit of the dataset, in place of what is remembered; without a model nothing is.

        Raises RegistryError, DatasetError.
        """
        if (model := self._get()) is not None:
            self._vouch(model)

    def _vouch(self, model: Any) -> None:
        number = len(self._commits.read())
        self._remember(model, COMMITTED_TAG, Mark(number, self._commits.digest(number)))

    # Artifacts

    def resolve(self, target: str | int) -> ModelVersion:
        """Find a model: a version number, models:/NAME/VERSION, models:/NAME@ALIAS, models:/m-ID or a folder.

        Raises RegistryError when there is none, RegistryUnavailable.
        """
        text = f"models:/{self.name}/{target}" if isinstance(target, int) else target
        if not text.startswith("models:/"):
            return ModelVersion(text)
        match = re.fullmatch(r"models:/(?:(m-[0-9a-f]{32})|([^/@]+)(?:@([^/@]+)|/([1-9]\d*)))", text)
        if not match:
            raise RegistryError(
                f"{text!r} names no model; write models:/NAME/VERSION, models:/NAME@ALIAS or models:/m-ID"
            )
        model_id, name, alias, number = match.groups()
        if model_id:
            model = self._call(f"asking for {text}", self._client.get_logged_model, model_id)
            artifact = model.tags.get("xray.artifact", "")
            return ModelVersion(text, None, "", artifact, model.source_run_id or "", dict(model.tags))
        if alias:
            version = self._call(f"asking for {text}", self._client.get_model_version_by_alias, name, alias)
        else:
            version = self._call(f"asking for {text}", self._client.get_model_version, name, number)
        return self._version(name, version)

    def _version(self, name: str, version: Any) -> ModelVersion:
        number, tags = int(version.version), dict(version.tags)
        artifact = tags.get("xray.artifact", "")
        entry = self.ledger.state().registered.get(number) if name == self.name else None
        uri = f"models:/{name}/{number}"
        return ModelVersion(
            uri,
            number,
            entry.candidate if entry else tags.get("xray.candidate", ""),
            entry.artifact if entry else artifact,
            version.run_id or "",
            tags,
            version.source or "",
        )

    def download(self, target: str | int) -> Path:
        """Return a folder with the model's files, audited and equal to what was recorded at logging.

        `target` as for `resolve`; folders are audited where they are, others downloaded each time and kept in the cache
        by digest. Raises RegistryError when files are missing, ModelRefused when they are not to be loaded,
        RegistryUnavailable.
        """
        return self._fetch(self.resolve(target))

    def load(self, target: str | int) -> Classifier:
        """Download, audit and load a model with our own code, onto the CPU. Raises as `download` does."""
        return Classifier.load(self.download(target))

    def champion(self) -> int | None:
        """Return the version in production by the ledger, None without one. Raises LedgerError."""
        return self.ledger.state().champion

    def load_exactly(self, model: ModelVersion, digest: str) -> Classifier:
        """Download, audit and load a resolved model whose classifier must have this model digest."""
        return Classifier.load(self._fetch(model), digest)

    def _fetch(self, model: ModelVersion) -> Path:
        if not model.uri.startswith("models:/"):
            folder = Path(model.uri)
            if (folder / "MLmodel").exists():
                audit(folder)
            return folder
        kept = self.settings.cache / "models" / model.artifact
        with self._audited(model) as folder, _alone(kept.parent):
            _keep(folder, kept)
            _prune(kept.parent)
        return kept

    def prove(self, version: int) -> str:
        """Download, audit and load a version and keep nothing; return its artifact digest. Raises as `download` does.

        The digest is that of the ledger where it knows the version.
        """
        model = self.resolve(version)
        with self._audited(model) as folder:
            Classifier.load(folder)
        return model.artifact

    @contextlib.contextmanager
    def _audited(self, model: ModelVersion) -> Iterator[Path]:
        """Yield a folder, for a while, with a model's files.

        Always asked for anew: a good copy in the cache must not hide that production's own files are gone or changed.
        """
        if not model.artifact:
            raise ModelRefused(f"{model.uri} has no record of its files (tag xray.artifact): it was not logged here")
        with scratch("loading-", self.settings.cache / "models") as temporary:
            folder = temporary / "model"
            folder.mkdir()
            self._download(model, folder)
            self._audit(model, folder)
            yield folder

    def _download(self, model: ModelVersion, folder: Path) -> None:
        what = f"downloading {model.uri}"
        try:
            self._call(what, mlflow.artifacts.download_artifacts, model.uri, dst_path=str(folder))
        except OSError as error:
            raise RegistryError(
                f"the files of {model.uri} are missing: {error.strerror or error}; restore them"
            ) from error
        if not any(folder.iterdir()):
            raise RegistryError(f"files of {model.uri} are missing; restore them from a backup")

    def _audit(self, model: ModelVersion, folder: Path) -> None:
        try:
            audit(folder, model.artifact)
        except ModelRefused as error:
            raise ModelRefused(f"{model.uri}: {error}{self._changed_files(model, folder)}") from error

    def _changed_files(self, model: ModelVersion, folder: Path) -> str:
        """Name the files that differ from the inventory taken at logging, as far as that is to be trusted."""
        try:
            recorded = msgspec.json.decode(model.tags.get("xray.files", "{}"), type=dict[str, str])
        except ValueError:
            return ""
        if artifact_digest(recorded) != model.artifact:
            return ""
        try:
            found = inventory(folder)
        except ModelRefused:
            return ""
        changed = sorted(place for place in recorded.keys() | found.keys() if recorded.get(place) != found.get(place))
        return f" (changed since it was logged: {', '.join(changed[:5])})" if changed else ""

    def _call(self, what: str, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call MLflow; wait and repeat a few times when it is busy. Raises RegistryError, RegistryUnavailable."""
        try:
            for attempt in Retrying(
                retry=retry_if_exception(_busy),
                stop=stop_after_attempt(6),
                wait=wait_random_exponential(0.2, max=3),
                reraise=True,
            ):
                with attempt:
                    return function(*args, **kwargs)
        except FAILURES as error:
            raise tracking.named(error, what) from None
        raise AssertionError("unreachable: Retrying returns or raises")


def _busy(error: BaseException) -> bool:
    """Whether MLflow's database asks to be tried again; connections are retried by MLflow's own HTTP client.

    MLflow sets a tag or an alias by looking, then inserting: of two that do so at once, one hits the other's key.
    """
    if not isinstance(error, MlflowException):
        return False
    clash = error.error_code == "BAD_REQUEST" and re.search("unique|duplicate", str(error), re.IGNORECASE)
    return bool(clash) or error.error_code in ("TEMPORARILY_UNAVAILABLE", "RESOURCE_CONFLICT")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time change what the cache holds: a copy that was returned must not be taken away again."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _keep(folder: Path, kept: Path) -> None:
    """Move an audited model to its place in the cache, unless an equal one is there."""
    try:
        audit(kept, kept.name)
    except (ModelRefused, OSError):  # not there, or damaged
        shutil.rmtree(kept, ignore_errors=True)
        folder.rename(kept)
    os.utime(kept)


def _prune(folder: Path) -> None:
    """Delete cached models but the ones used last; never one used within the hour, which a process may be reading."""
    kept = sorted(folder.glob("[0-9a-f]*"), key=lambda path: path.stat().st_mtime, reverse=True)
    old = [path for path in kept[CACHED_MODELS:] if path.stat().st_mtime < time.time() - 3600]
    for path in old:
        shutil.rmtree(path, ignore_errors=True)


def _same(entry: Entry, tags: Mapping[str, str]) -> bool:
    """Whether a version's tags are those of the entry that registered it, as far as that names digests."""
    names = {"xray.candidate": entry.candidate, "xray.artifact": entry.artifact}
    return all(tags.get(name) == digest for name, digest in names.items() if digest)


def _aliases(model: Any) -> dict[str, int | None]:
    return {alias: int(model.aliases[alias]) if alias in model.aliases else None for alias in ALIASES}


def _mark(model: Any, tag: str) -> Mark:
    if (text := model.tags.get(tag)) is None:
        return Mark(0, "")
    try:
        return msgspec.json.decode(text, type=Mark)
    except ValueError as error:
        raise RegistryError(
            f"tag {tag} of the registered model {model.name!r} is {text[:80]!r}, damaged or changed by hand; if no "
            f"copy of the store is newer than this one, delete the tag in MLflow: it is written anew"
        ) from error


def _name(version: int | None) -> str:
    return "none" if version is None else f"version {version}"
