"""MLflow's registry: the versions and aliases of the one registered model.

MLflow offers no idempotency key and its aliases are last-writer-wins without a history, so it is never asked what was
decided: the ledger is (ledger.py), and the aliases follow it. Registering is exactly once by searching for the
candidate digest before and after: of two versions that carry it the lowest stays. An MLflow that was put back to an
older state gives numbers anew; one that the ledger has used is never taken.

The trade-off: detecting a change by hand can't be atomic without the registry's help. A process that is killed in the
milliseconds between another's entry and its own outdated alias can be taken for a hand; the record then says so.
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from xray_pipeline.base.errors import ModelRefused, RegistryError, RegistryUnavailable
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import open_store
from xray_pipeline.models import mlflow_client as tracking
from xray_pipeline.models.mlflow_client import Missing, MlflowClient
from xray_pipeline.registry import model_files, tidied
from xray_pipeline.registry.calls import ask
from xray_pipeline.registry.entries import Entry
from xray_pipeline.registry.ledger import Ledger
from xray_pipeline.registry.model_files import ModelVersion
from xray_pipeline.registry.registered_model import ALIASES, RegisteredModel, aliases_of
from xray_pipeline.registry.state import State, aliases_since, spoken
from xray_pipeline.registry.tidied import Tidied
from xray_pipeline.registry.version_tags import artifact_of

log = logging.getLogger(__name__)

PAUSE = 2.0
"""Seconds after which a change that looks made by hand is looked at again."""


class Registry:
    """The registered model `settings.model_name` at `settings.tracking_uri`, and the ledger that it follows."""

    def __init__(self, settings: Settings, ledger: Ledger | None = None) -> None:
        self.settings = settings
        self.name = settings.model_name
        self.cache = settings.cache / "models"
        self._store = open_store(settings.store, settings)
        self.ledger = ledger or Ledger(self._store, settings.idle_days)
        # Parts of MLflow ask for the process's own URI whatever a client was given.
        address = tracking.use(settings.tracking_uri)
        with tracking.calls("opening the registry", OSError):
            self._client = MlflowClient(address, address)
        self.model = RegisteredModel(settings, self._client, self.ledger)

    # Versions

    def add(self, candidate: str, model_uri: str, run_id: str, tags: Mapping[str, str] | None = None) -> int:
        """Make a logged model a version, exactly once per candidate digest; return its number.

        Safe to repeat and to run twice at once: a version of this logged model that carries the digest already is
        returned, and of two made at the same time the lowest stays. A number that the ledger has used is left to the
        model that it means there. Raises RegistryError, RegistryUnavailable.
        """
        if not re.fullmatch(r"[0-9a-f]{64}", candidate):
            raise RegistryError(f"{candidate!r} is not a candidate digest (64 hexadecimal digits)")
        self.model.make()
        state = self.ledger.state()
        if (known := state.version_of(candidate)) is not None:
            return known
        before = self._versions_of(candidate, model_uri)
        while not (free := set(there := self._versions_of(candidate, model_uri)) - state.used):
            made = ask(
                f"registering {model_uri}",
                self._client.create_model_version,
                self.name,
                source=model_uri,
                run_id=run_id,
                tags={**(tags or {}), "xray.candidate": candidate},
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
        self._delete(version for version in there if version in free - {lowest} or version not in {*free, *before})
        return lowest

    def _delete(self, versions: Iterable[int]) -> None:
        for version in versions:
            log.warning("version %d of %s is a duplicate, or has a used number; deleting it", version, self.name)
            with contextlib.suppress(Missing):  # the other process was faster
                ask("deleting a duplicate", self._client.delete_model_version, self.name, str(version))

    def _versions_of(self, candidate: str, model_uri: str) -> list[int]:
        """Return the versions of a logged model that carry a candidate digest."""
        query = f"name = '{self.name}' and tags.`xray.candidate` = '{candidate}'"
        carriers = ask("searching versions", self._client.search_model_versions, query)
        return sorted(int(version.version) for version in carriers if version.source == model_uri)

    def versions(self) -> dict[int, Mapping[str, str]]:
        """Return the tags of every version by number."""
        query = f"name = '{self.name}'"
        found = ask("listing versions", tracking.mlflow.search_model_versions, filter_string=query)
        return {int(version.version): version.tags for version in sorted(found, key=lambda one: int(one.version))}

    def drop_duplicates(self) -> None:
        """Delete versions of candidates that the ledger knows under another number.

        A process that was killed left them, also under the number of one that an older MLflow lost, or somebody pointed
        at one before it was registered. What is or was in charge stays, and so does all while a change by hand may be
        undone. Raises RegistryError, RegistryUnavailable.
        """
        state = self.ledger.state()
        if state.by_hand or not state.registered:
            return
        known = {entry.candidate: number for number, entry in state.registered.items()}
        carried = {number: tags.get("xray.candidate", "") for number, tags in self.versions().items()}
        double = {number for number, candidate in carried.items() if known.get(candidate, number) != number}
        others = self.missing({number: state.registered[number] for number in double & state.registered.keys()})
        stay = {*state.registered, state.champion, state.challenger, *state.previous} - others.keys()
        if double := double - stay:
            self._delete(sorted(double - self.aliased()))

    def attach(self, run_id: str, name: str, text: str) -> None:
        """Keep a text file with an MLflow run. Raises RegistryError, RegistryUnavailable."""
        ask(f"keeping {name}", self._client.log_text, run_id, text, name)

    def tag(self, version: int, tags: Mapping[str, str]) -> None:
        """Set tags on a version. Raises RegistryError, RegistryUnavailable."""
        for key, value in tags.items():
            ask(f"tagging version {version}", self._client.set_model_version_tag, self.name, str(version), key, value)

    def untag(self, version: int, tags: Iterable[str]) -> None:
        """Remove tags that a version has. Raises RegistryError, RegistryUnavailable."""
        for key in tags:
            what = f"removing tag {key} of version {version}"
            ask(what, self._client.delete_model_version_tag, self.name, str(version), key)

    def describe(self, version: int, text: str) -> None:
        """Set a version's description (Markdown). Raises RegistryError, RegistryUnavailable."""
        ask(f"describing version {version}", self._client.update_model_version, self.name, str(version), text)

    # Aliases

    def aliases(self) -> dict[str, int | None]:
        """Return the version of each alias as MLflow has it now, None where it has none."""
        model, _ = self.model.read()
        return aliases_of(model) if model else dict.fromkeys(ALIASES)

    def aliased(self) -> set[int]:
        """Return the versions that carry an alias in MLflow, ours or somebody's own. Raises as `aliases` does."""
        model, _ = self.model.read()
        return {int(version) for version in model.aliases.values()} if model else set()

    def champion(self) -> int | None:
        """Return the version in production by the ledger, None without one. Raises LedgerError."""
        return self.ledger.state().champion

    def manual_change(self, pause: float | None = None) -> dict[str, int | None] | None:
        """Return those aliases, as MLflow has them, that the ledger can't explain; None when it explains both.

        What a process that died between entry and alias left behind is explained: any state from the one followed last
        to the newest. A difference is looked at again after `pause` seconds: another process may be between two steps.
        """
        if (unexplained := self._unexplained()) is not None:
            time.sleep(PAUSE if pause is None else pause)
            unexplained = self._unexplained()
        return unexplained

    def _unexplained(self) -> dict[str, int | None] | None:
        model, _ = self.model.read()
        if model is None:
            return None
        present, explained = aliases_of(model), aliases_since(self.ledger.entries(), self.model.followed(model))
        known = [alias for alias in ALIASES if any(present[alias] == then[alias] for then in explained)]
        return {alias: present[alias] for alias in ALIASES if alias not in known} or None

    def lost(self) -> dict[int, str]:
        """Return the versions that MLflow never followed the ledger to and does not have, each with how so.

        Only an older state of MLflow that was put back explains them: a version is made before its entry.
        """
        model, state = self.model.read()
        followed = self.model.followed(model) if model is not None else 0
        aliased = [version for version in state.aliases.values() if version is not None]
        named = {version: state.registered.get(version) for version in (*state.registered, *aliased)}
        behind = followed < state.sequence
        return self.missing({v: e for v, e in named.items() if (e.sequence > followed if e else behind)})

    def missing(self, versions: Mapping[int, Entry | None]) -> dict[int, str]:
        """Return which of these versions, with the entry that registered each, MLflow does not have, each with how so.

        A version is known by its tags or, where somebody changed those, by its files.
        """
        there = self.versions() if versions else {}
        missing = {number: "is not in MLflow" for number in versions if number not in there}
        for number, entry in versions.items():
            if number in missing or entry is None or _same(entry, there[number]):
                continue
            try:
                self.audit(number)
            except ModelRefused:
                missing[number] = "is another model in MLflow"
            except RegistryUnavailable:
                raise
            except RegistryError as error:  # its files are missing: what loads it says so
                log.warning("version %d: %s", number, error)
        return missing

    def follow(self) -> State:
        """Make the aliases what the ledger says, and return that state.

        An alias is moved in one step, never removed first, so there is no moment without champion. If the ledger grew
        meanwhile, it is followed further. Raises RegistryError when MLflow lacks a version that the ledger knows, or
        has another model under its number.
        """
        while True:
            model, state = self.model.read()
            if model is None:
                return state
            present, behind = aliases_of(model), self.model.followed(model) < state.sequence
            moving = [v for alias, v in state.aliases.items() if v is not None and (behind or present[alias] != v)]
            missing = self.missing({version: state.registered.get(version) for version in moving})
            for alias, wanted in state.aliases.items():
                if wanted in missing:
                    raise RegistryError(
                        f"setting {alias} to version {wanted} of {self.name}: it {missing[wanted]}; restore MLflow's "
                        f"newest backup, or `xray rollback --to` a version that `xray verify` finds whole"
                    )
                self._move(alias, present[alias], wanted)
            self.model.has_followed(model, state)
            if self.ledger.state().head == state.head:
                return state

    def _move(self, alias: str, present: int | None, wanted: int | None) -> None:
        if present == wanted:
            return
        if wanted is None:
            ask(f"removing {alias}", self._client.delete_registered_model_alias, self.name, alias)
        else:
            what = f"setting {alias} to version {wanted}"
            ask(what, self._client.set_registered_model_alias, self.name, alias, str(wanted))
        log.info("%s: %s is now %s, was %s", self.name, alias, spoken(wanted), spoken(present))

    # Models

    def removed(self, version: int) -> Tidied | None:
        """Return the record of what `xray tidy` removed of a version, None while that is kept. Raises DatasetError."""
        entry = self.ledger.state().registered.get(version)
        return tidied.of_model(self._store, entry.candidate, entry.artifact) if entry else None

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
        model_id, model_name, alias, number = match.groups()
        what = f"asking for {text}"
        if model_id:
            model = ask(what, self._client.get_logged_model, model_id)
            return ModelVersion(text, None, "", artifact_of(model.tags), model.source_run_id or "", dict(model.tags))
        if alias:
            return self._version(ask(what, self._client.get_model_version_by_alias, model_name, alias))
        return self._version(ask(what, self._client.get_model_version, model_name, number))

    def _version(self, version: Any) -> ModelVersion:
        number, tags = int(version.version), dict(version.tags)
        entry = self.ledger.state().registered.get(number) if version.name == self.name else None
        return ModelVersion(
            f"models:/{version.name}/{number}",
            number,
            entry.candidate if entry else tags.get("xray.candidate", ""),
            entry.artifact if entry else artifact_of(tags),
            version.run_id or "",
            tags,
            version.source or "",
        )

    def download(self, target: str | int) -> Path:
        """Return a folder with the files of what `target` names (see `resolve`).

        Raises RegistryError where `xray tidy` removed them, and as `model_files.fetch` does.
        """
        return model_files.fetch(self.kept(self.resolve(target)), self.cache)

    def kept(self, model: ModelVersion) -> ModelVersion:
        """Return a resolved model. Raises RegistryError for a version whose files `xray tidy` removed."""
        if gone := tidied.of_model(self._store, model.candidate, model.artifact):
            raise RegistryError(f"{model.uri} can't be loaded: {gone.sentence()}")
        return model

    def audit(self, version: int) -> str:
        """Download and audit a version and keep nothing; return its artifact digest. Raises as `download` does.

        The digest is that of the ledger where it knows the version.
        """
        model = self.kept(self.resolve(version))
        with model_files.audited(model, self.cache):
            return model.artifact


def _same(entry: Entry, tags: Mapping[str, str]) -> bool:
    """Whether a version's tags are those of the entry that registered it, as far as that names digests."""
    pairs = (entry.candidate, tags.get("xray.candidate")), (entry.artifact, artifact_of(tags))
    return all(ours in ("", theirs) for ours, theirs in pairs)
