"""MLflow's registered model: whose it is, and how far it has followed the ledger and the dataset.

Its tags remember which ledger it belongs to, and two marks: the newest entry it followed and the newest commit of the
dataset it knew. So an empty or other store is noticed, a crash between entry and alias is told from a change made by
hand, and a ledger or dataset that lost its end is noticed too.
"""

from __future__ import annotations

from typing import Any

import msgspec
from mlflow.entities.model_registry import RegisteredModel as MlflowModel

from xray_pipeline.base.errors import RegistryError
from xray_pipeline.base.settings import Settings
from xray_pipeline.base.storage import open_store
from xray_pipeline.base.text import without_passwords
from xray_pipeline.dataset.commits import Commits
from xray_pipeline.models import mlflow_client as tracking
from xray_pipeline.models.mlflow_client import Missing, MlflowClient, MlflowException
from xray_pipeline.registry.calls import ask
from xray_pipeline.registry.ledger import Ledger
from xray_pipeline.registry.state import State

ALIASES = ("champion", "challenger")
LEDGER_TAG, FOLLOWED_TAG, COMMITTED_TAG = "xray.ledger", "xray.followed", "xray.committed"


class Mark(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a tag of the registered model remembers: the newest entry or commit that was seen, and its digest."""

    sequence: int
    head: str


class RegisteredModel:
    """The registered model `settings.model_name`, beside the ledger and the dataset that it follows."""

    def __init__(self, settings: Settings, client: MlflowClient, ledger: Ledger) -> None:
        self.settings, self.client, self.ledger = settings, client, ledger
        self.name = settings.model_name
        self.commits = Commits(open_store(settings.store, settings).child("dataset"))

    def read(self) -> tuple[MlflowModel | None, State]:
        """Return the model as MLflow has it, None when there is none yet, and the ledger's state.

        MLflow is asked first: the ledger is always at least as new as the aliases, so what is read later explains them.
        Raises RegistryError for another ledger's model and for a ledger or dataset that lost what the model knows,
        RegistryUnavailable.
        """
        model, state = self._get(), self.ledger.state()
        self._check_owner(model, state)
        if model is not None:
            self.followed(model)
            self._check_committed(model)
        return model, state

    def make(self) -> None:
        """Make the model, tagged with its ledger in the same call, unless it is there."""
        if self.read()[0] is not None:
            return
        tags = {LEDGER_TAG: self.ledger.identity()}
        try:
            self.client.create_registered_model(
                self.name, tags, "Chest X-ray classifiers; see the tags of each version."
            )
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise tracking.named(error, "making the registered model") from None
            self.read()

    def followed(self, model: MlflowModel) -> int:
        """Return the newest entry that the model followed.

        Raises RegistryError for a ledger that lost entries, unless one of its entries says that they are given up.
        """
        mark, entries = _mark(model, FOLLOWED_TAG), self.ledger.entries()
        if mark.sequence == 0 or (mark.sequence <= len(entries) and entries[mark.sequence - 1].digest == mark.head):
            return mark.sequence
        for entry in reversed(entries):
            if entry.kind == "manual-change" and entry.decision.get("lost") == msgspec.structs.asdict(mark):
                return entry.sequence
        raise RegistryError(
            f"model {self.name!r} followed the ledger to entry {mark.sequence} ({mark.head[:12]}), which is not in "
            f"{self.ledger.store.uri} (it has {len(entries)}); restore the newest copy of the ledger or, if there is "
            f"none, `xray adopt --lost`"
        )

    def has_followed(self, model: MlflowModel, state: State) -> None:
        """Remember the state's newest entry as followed, and the dataset's newest commit."""
        if state.sequence:
            self._remember(model, FOLLOWED_TAG, Mark(state.sequence, state.head))
        self._remember_commit(model)

    def vouch(self, lost: bool = False) -> None:
        """Remember the newest commit of the dataset, with `lost` also in place of one that the dataset has lost.

        Without a model nothing is remembered. Raises RegistryError, DatasetError.
        """
        if (model := self._get()) is not None:
            if not lost:  # a dataset that was put back must not be taken for the newest
                self._check_committed(model)
            self._remember_commit(model)

    def ahead(self) -> tuple[dict[str, Any], dict[str, int | None]] | None:
        """Return mark and aliases when ledger or dataset lost what the model knows; None when they have it all.

        Raises RegistryError for another ledger's model, RegistryUnavailable.
        """
        model = self._get()
        self._check_owner(model, self.ledger.state())
        if model is None:
            return None
        try:
            self.followed(model)
            self._check_committed(model)
        except RegistryError:
            return msgspec.structs.asdict(_mark(model, FOLLOWED_TAG)), aliases_of(model)
        return None

    def _get(self) -> MlflowModel | None:
        try:
            return ask("asking for the registered model", self.client.get_registered_model, self.name)
        except Missing:
            return None

    def _remember(self, model: MlflowModel, tag: str, mark: Mark) -> None:
        if mark != _mark(model, tag):
            ask("tagging", self.client.set_registered_model_tag, self.name, tag, msgspec.json.encode(mark).decode())

    def _remember_commit(self, model: MlflowModel) -> None:
        number = len(self.commits.read())
        self._remember(model, COMMITTED_TAG, Mark(number, self.commits.digest(number)))

    def _check_committed(self, model: MlflowModel) -> None:
        """Notice a dataset that lost its last commits, or whose newest one was changed."""
        mark, commits = _mark(model, COMMITTED_TAG), self.commits
        if mark.sequence and commits.digest(mark.sequence) != mark.head:
            raise RegistryError(
                f"model {self.name!r} knows commit {mark.sequence} ({mark.head[:12]}) of the dataset, which is not in "
                f"{commits.store.uri} (it has {len(commits.read())}); restore the newest copy of the dataset "
                f"or, if there is none, `xray adopt --lost`"
            )

    def _check_owner(self, model: MlflowModel | None, state: State) -> None:
        where = f"MLflow at {without_passwords(self.settings.tracking_uri)}"
        if model is None:
            if state.registered:
                raise RegistryError(
                    f"{where} holds no model {self.name!r}, but the ledger knows {len(state.registered)} versions of "
                    f"it; is XRAY_TRACKING_URI right? Nothing is done until it is"
                )
            return
        owner, ours = model.tags.get(LEDGER_TAG), self.ledger.identity(make=False)
        if owner is None and not state.registered and not self._has_versions():
            ask("tagging", self.client.set_registered_model_tag, self.name, LEDGER_TAG, self.ledger.identity())
        elif owner is None or owner != ours:
            theirs = f"belongs to ledger {owner[:12]}" if owner else "was made by somebody else"
            there = f"the ledger in {self.ledger.store.uri} is {ours[:12]}; "
            if not ours:
                there = f"there is no ledger in {self.ledger.store.uri}: is the store not mounted? Mount it, "
            raise RegistryError(
                f"model {self.name!r} in {where} {theirs}, {there}"
                f"set XRAY_STORE or XRAY_TRACKING_URI right, or choose another XRAY_MODEL_NAME; nothing was written"
            )

    def _has_versions(self) -> bool:
        return bool(ask("listing versions", self.client.search_model_versions, f"name = '{self.name}'", max_results=1))


def aliases_of(model: MlflowModel) -> dict[str, int | None]:
    """Return the version of each of our aliases, None where MLflow has none."""
    return {alias: int(model.aliases[alias]) if alias in model.aliases else None for alias in ALIASES}


def _mark(model: MlflowModel, tag: str) -> Mark:
    if (text := model.tags.get(tag)) is None:
        return Mark(0, "")
    try:
        return msgspec.json.decode(text, type=Mark)
    except ValueError as error:
        raise RegistryError(
            f"tag {tag} of the registered model {model.name!r} is {text[:80]!r}, damaged or changed by hand; if no "
            f"copy of the store is newer than this one, delete the tag in MLflow: it is written anew"
        ) from error
