"""Looks at what is stored after every step, and says when what must always hold does not.

It reads the bucket and MLflow's rows as they lie there, with code of its own. Only what a step changed is looked at;
`whole` looks at everything, at the end.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
from memory_mlflow import MemoryMlflow
from memory_s3 import Object
from plain_dataset import Kept, Row
from plain_ledger import Decided
from scheduler import Scheduler, Violation
from stand_ins import artifact_digest
from universe import Radiograph

from xray_pipeline.registry.version_tags import artifact_of

if TYPE_CHECKING:
    from xray_pipeline.base.settings import Settings

Deliveries = dict[str, tuple[tuple[Radiograph, str], ...]]
LEDGER, COMMITS = "store/ledger/", "store/dataset/commits/"
MANIFESTS, DRAFTS = "store/dataset/manifests/", "store/dataset/drafts/"
TIDIED, ERASED = "store/tidied/", "store/erased/"
TURNS = "store/prospective/turns/"
SNAPSHOTS, RADIOGRAPHS = "store/dataset/snapshots/", "store/dataset/radiographs/"
PICTURES = "store/dataset/pictures/"
TRUTH = ("decided", "commits", "commit_digests", "kept", "manifests", "newest", "versions")
Copy = tuple[dict[str, Object], dict[str, Any]]
WRITTEN_ONCE = (LEDGER, COMMITS, MANIFESTS, RADIOGRAPHS, TIDIED, TURNS, "store/evidence/", "incoming/")


class Auditor:
    """What was seen so far, and what is to be looked at."""

    def __init__(self, objects: dict[str, Object]) -> None:
        self.objects = objects
        self.decided = Decided()
        self.commits: list[dict[str, Any]] = []
        self.commit_digests: list[str] = []
        self.kept = Kept()
        self.manifests: dict[str, list[dict[str, Any]]] = {}
        self.newest: dict[str, list[dict[str, Any]]] = {}
        """The rows of each manifest, as it was committed and as the last erasure left it."""
        self.versions: dict[str, list[str]] = {}
        """The SHA-256 of each manifest, as it was committed and as each erasure rewrote it."""
        self.in_store: list[tuple[str, Object | None, Object | None]] = []
        self.in_mlflow: list[tuple[str, Any, Any]] = []
        self.moved_by_hand: set[str] = set()
        self._began: dict[str, tuple[int, float]] = {}
        self._rotten: dict[str, float] = {}
        self._noted: dict[str, int] = {}
        self.behind, self.strays = 0.0, False
        """Since when the store is older than MLflow knows, 0 when it isn't; whether something was decided since."""
        self._put_back_at = 0
        self.older_mlflow = 0.0
        """When an older MLflow was put back last."""
        self._lookers = {
            TIDIED: self._leaves,
            LEDGER: self._entry,
            COMMITS: self._commit,
            MANIFESTS: self._manifest,
            SNAPSHOTS: self._snapshot,
            RADIOGRAPHS: self._radiograph,
            ERASED: self._nothing_left,
        }

    def begin(self, mlflow: MemoryMlflow, scheduler: Scheduler, settings: Settings, deliveries: Deliveries) -> None:
        self.mlflow, self.scheduler, self.settings, self.deliveries = mlflow, scheduler, settings, deliveries

    # Told

    def store_changed(self, key: str, before: Object | None, after: Object | None) -> None:
        self._rotten.pop(key, None)  # the package puts some files back by itself
        self.in_store.append((key, before, after))

    def mlflow_changed(self, what: str, before: Any, after: Any) -> None:
        self.in_mlflow.append((what, before, after))

    def begins(self, process: str) -> None:
        """A process begins its work: what it names from here on it has read since."""
        self._began[process] = len(self.commits), self.scheduler.clock

    def by_hand(self, alias: str) -> None:
        """A hand is about to move an alias."""
        self.moved_by_hand.add(alias)

    def rots(self, key: str, data: bytes) -> None:
        """A file is changed by no call: whoever begins from here on must not rest on it."""
        self.objects[key] = Object(data, self.objects[key].at)
        self._rotten[key] = self.scheduler.clock

    def restored(self, key: str, data: bytes) -> None:
        """A file is put back as it was."""
        if self._rotten.pop(key, None) is not None:
            self.objects[key] = Object(data, self.objects[key].at)

    # Put back from a backup

    def made(self) -> int:
        """Return how many entries and commits there are."""
        return len(self.decided.entries) + len(self.commits)

    def copied(self) -> Copy | None:
        """Return a copy of the store, and of what is known of it; None while something in it is damaged."""
        if self._rotten:
            return None
        truth = copy.deepcopy({name: getattr(self, name) for name in TRUTH})
        return {key: found for key, found in self.objects.items() if key.startswith("store/")}, truth

    def put_back(self, store: dict[str, Object]) -> None:
        """An older copy takes the place of the store: whoever begins from here on must not write, until `go_on`."""
        self.replace(store)
        self.behind, self.strays, self._put_back_at = self.scheduler.clock, False, self.scheduler.steps

    def go_on(self, newest: Copy, older: Copy | None) -> None:
        """The newest copy is put back beside what was written since, or (`older`) what it has over that is given up."""
        if older is None:
            chained = (LEDGER, COMMITS, MANIFESTS, DRAFTS, ERASED)
            new = {key: one for key, one in self.objects.items() if one.at >= self.behind and key.startswith("store/")}
            self.replace({key: one for key, one in new.items() if not key.startswith(chained)} | newest[0])
        else:
            vars(self).update(copy.deepcopy(older[1]))
        self.behind = 0.0

    def replace(self, store: dict[str, Object]) -> None:
        for key in [key for key in self.objects if key.startswith("store/")]:
            del self.objects[key]
        self.objects.update(store)
        self._rotten.clear()

    # Looked at

    def look(self) -> None:
        """Look at what the last step changed."""
        if self.in_store:
            changes, self.in_store = self.in_store, []
            for key, before, after in changes:
                self._store(key, before, after)
        if self.in_mlflow:
            told, self.in_mlflow = self.in_mlflow, []
            for what, was, now in told:
                self._in_mlflow(what, was, now)

    def fail(self, text: str) -> None:
        who = self.scheduler.running
        raise Violation(f"{text} (step {self.scheduler.steps}, {who.name if who else 'nobody'})")

    def hold(self, condition: bool, text: str) -> None:
        if not condition:
            self.fail(text)

    def _store(self, key: str, before: Object | None, after: Object | None) -> None:
        if self.behind:
            self.hold(self._in_flight(self.behind), f"I3: {key} is written though MLflow knows that the store is older")
            self.strays |= key.startswith((LEDGER, COMMITS))
            return
        if before is not None and (after is None or after.data != before.data):
            self._replaced(key, after)
        if after is None or (before is not None and before.data == after.data):
            return
        kind = next((kind for kind in self._lookers if key.startswith(kind)), "")
        if key.endswith(("/used", "/leaving")):
            self._noted[key] = self.scheduler.steps
        elif kind:
            self._lookers[kind](key, after.data)

    def _in_flight(self, since: float) -> bool:
        """Whether whoever runs began before something was put back."""
        process = self.scheduler.running
        return process is not None and self._began[process.name][1] <= since

    def _radiograph(self, key: str, data: bytes) -> None:
        process, named = self.scheduler.running, key.rpartition("/")[2].partition(".")[0]
        self.hold(hashlib.sha256(data).hexdigest() == named, f"I4: {key} is not what its name says")
        before = self.commits[: self._began[process.name][0] if process else 0]
        self.hold(named not in _erased_by(before), f"I9: {key} is stored by who began after it was erased")

    def _leaves(self, key: str, _: bytes) -> None:
        """Whether nobody took a candidate up after it was looked at and before it was said that it leaves."""
        candidate = key.split("/")[2]
        process, folder = self.scheduler.running, f"store/candidates/{candidate}"
        used, leaving = (self._noted.get(f"{folder}/{name}", 0) for name in ("used", "leaving"))
        looked = process.listed["store/candidates/"] if process else 0
        self.hold(not looked < used < leaving, f"I1: candidate {candidate[:8]} is taken away from who works on it")

    def _replaced(self, key: str, after: Object | None) -> None:
        manifest, _, digest = key.rpartition("/")[2].removesuffix(".parquet").partition(".")
        versions = self.versions.get(manifest, [])
        if key.startswith(RADIOGRAPHS) and after is None:
            held = [row for row in self.kept.rows if row.one.digest == manifest and not row.reason]
            self.hold(all(map(self.kept.erased, held)), f"I4: {key} is deleted, which a delivery brought")
        elif key.startswith(MANIFESTS) and after is None:
            self.hold(not versions or key != self._file(manifest), f"I4: {key} is deleted, which no erasure replaced")
        else:
            self.hold(not key.startswith(WRITTEN_ONCE), f"{key} was changed or deleted; it is written once")
        if key.startswith(DRAFTS) and digest in versions[-1:]:
            there = self._file(manifest) in self.objects
            self.hold(there, f"I4: {key} is gone before the manifest of its commit is there")

    def _file(self, manifest: str, version: int = -1) -> str:
        """Return where a manifest lies: beside the old one, where an erasure rewrote it."""
        first, digest = self.versions[manifest][0], self.versions[manifest][version]
        return f"{MANIFESTS}{manifest}{'' if digest == first else f'.{digest}'}.parquet"

    def _rests_on(self, *kinds: str) -> None:
        """Whether who writes this began before what he must have read for it was damaged."""
        process = self.scheduler.running
        replaced = {self._file(one, at) for one, all_of in self.versions.items() for at in range(len(all_of) - 1)}
        for key, since in self._rotten.items():
            good = not key.startswith(kinds) or key in replaced
            good = good or process is None or self._began[process.name][1] <= since
            self.hold(good, f"I3: what is written rests on {key}, which is damaged")

    # The ledger

    def _entry(self, key: str, data: bytes) -> None:
        self._rests_on(LEDGER)
        decided = self.decided
        number = int(key[len(LEDGER) :].removesuffix(".json"))
        if number == 0:
            decided.beginning = hashlib.sha256(data).hexdigest()
            return
        self.hold(number == len(decided.entries) + 1, f"I3: ledger entry {number} leaves a gap")
        for wrong in decided.wrong(data):
            self.fail(f"{wrong}: entry {number}")
        entry = decided.entries[-1]
        if entry["kind"] in ("registered", "refused"):
            self._rests_on(f"store/candidates/{entry['candidate']}/")
        if entry["kind"] in ("registered", "promoted", "rolled-back"):
            self._loads(entry["version"])
        if entry["request"].startswith("put forward "):
            self._had_a_turn(entry["version"], number)
        if entry["kind"] == "manual-change" and "action" not in entry["decision"]:
            moved = {
                alias for alias, v in entry["decision"]["before"].items() if entry["decision"]["found"][alias] != v
            }
            good = bool(self.moved_by_hand) and moved <= self.moved_by_hand
            self.hold(good, f"I3: entry {number} takes a process of ours for a hand")

    def _had_a_turn(self, version: int, number: int) -> None:
        """Whether the newest turn in shadow is this version's, against the champion, and a delivery came since."""
        key = max((key for key in self.objects if key.startswith(TURNS)), default="")
        self.hold(bool(key), f"I6: entry {number} puts version {version} forward, which had no turn")
        turn = json.loads(self.objects[key].data)["content"]
        meant = tuple(self.decided.candidates.get(one or 0, "") for one in (version, self.decided.champion))
        since = [one for one in self.commits if "manifest" in one and one["number"] > turn["after"]]
        good = (turn["candidate"], turn["against"]) == meant and bool(since)
        self.hold(good, f"I6: entry {number} puts version {version} forward, whose turn it is not")

    def _loads(self, version: int) -> None:
        """Whether a version's files are those that were registered."""
        if self._in_flight(self.older_mlflow):
            return
        model = self.mlflow.models[self.settings.model_name]
        row = model.versions.get(version)
        self.hold(row is not None and not row.deleted, f"I1: version {version} is not in MLflow")
        assert row is not None
        logged = self.mlflow.logged[row.source.removeprefix("models:/")]
        recorded = self.decided.artifacts.get(version, artifact_of(row.tags))  # a hand may crown any
        whole = not logged.deleted and logged.files and artifact_digest(logged.files) == recorded
        self.hold(bool(whole), f"I1: the files of version {version} are gone or are not those that were registered")

    # The dataset

    def _commit(self, key: str, data: bytes) -> None:
        self._rests_on(COMMITS, MANIFESTS)
        commit = json.loads(data)
        number = int(key[len(COMMITS) :].removesuffix(".json"))
        self.hold(number == len(self.commits) + 1 == commit["number"], f"I4: commit {number} leaves a gap")
        identity = hashlib.sha256(self.objects["store/dataset/dataset.json"].data).hexdigest()
        before = self.commit_digests[-1] if self.commit_digests else identity
        self.hold(commit["previous"] == before, f"I4: commit {number} does not follow the one before it")
        if manifest := commit.get("manifest"):
            known = [c for c in self.commits if c.get("manifest") == manifest]
            self.hold(not known, f"I5: delivery {manifest} is committed twice")
            draft = self.objects.get(f"{DRAFTS}{manifest}.{commit['digest']}.parquet")
            self.hold(draft is not None, f"I4: commit {number} names a draft that is not there")
            assert draft is not None
            self._table(manifest, draft.data)
            self.versions[manifest] = [commit["digest"]]
        else:
            self._amendment(number, commit["amendment"])
        self.commits.append(commit)
        self.commit_digests.append(hashlib.sha256(data).hexdigest())

    def _table(self, manifest: str, data: bytes) -> None:
        """Compare a delivery's rows with what the plain rules make of its files."""
        rows, files = _rows_of(data), self._files(manifest)
        plain = self.kept.judged(manifest, [files[name] for name in sorted(files)])
        self._shows(manifest, rows, plain)
        for row, wanted in zip(rows, plain, strict=True):
            what = (
                f"{row['file']} of {manifest} is {row['reason'] or 'accepted'}, by the rules {wanted.reason or 'that'}"
            )
            self.hold(row["reason"] == wanted.reason, f"I7: {what}")
            self.hold((row["verdict"] == "accepted") != bool(row["reason"]), f"I4: {what}")
            stored = f"{RADIOGRAPHS}{row['digest'][:2]}/{row['digest']}.png"
            self.hold(bool(row["reason"]) or stored in self.objects, f"I4: {stored} is not there")
            picture = f"{PICTURES}{row['digest'][:2]}/{row['digest']}.png"
            self.hold(not row["phash"] or {stored, picture} & self.objects.keys(), f"I4: {picture} is not there")
        self.kept.rows += plain
        self.manifests[manifest] = self.newest[manifest] = rows

    def _files(self, manifest: str) -> dict[str, tuple[Radiograph, str]]:
        return {f"{label}/{place}.png": (one, label) for place, (one, label) in enumerate(self.deliveries[manifest])}

    def _shows(self, manifest: str, rows: list[dict[str, Any]], plain: list[Row]) -> None:
        """Whether a manifest names all files and patients but the erased ones, and of these nothing."""
        for row, wanted, name in zip(rows, plain, sorted(self._files(manifest)), strict=True):
            if self.kept.erased(wanted):
                told = [row[column] for column in ("patient", "label", "phash", "thumbnail") if row[column]]
                self.hold(row["file"].startswith("erased:") and not told, f"I9: {manifest} tells of {name}, erased")
            else:
                whole = (row["file"], row["patient"]) == (name, wanted.one.patient)
                self.hold(whole, f"I4: manifest {manifest} does not name {name} and its patient")

    def _amendment(self, number: int, amendment: dict[str, Any]) -> None:
        """Whether an amendment found all that the dataset holds of the chests that it is about, and hides all of it."""
        changes = amendment["changes"]
        for change in changes:
            found = set(change.get("radiographs", ()))
            named = {"radiograph": "digest", "patient": "patient"}.get(change["subject"])
            if change["action"] == "undo":
                undone = self.kept.amendments[int(change["name"])]
                self.hold(not any(one.get("erase") for one in undone), f"I9: amendment {number} undoes an erasure")
                again = any(change in earlier for earlier in self.kept.amendments.values())
                self.hold(not again, f"I5: amendment {number} undoes what is undone")
            if named:
                held = self.kept.known() if change.get("erase") else self.kept.held()
                about = {row.one.chest for row in held if getattr(row.one, named) == change["name"]}
                missed = {row.one.digest for row in held if row.one.chest in about} - found
                self.hold(not missed, f"I9: amendment {number} leaves out {len(missed)} radiographs that it is about")
        self.kept.amendments[number] = changes
        for manifest, digest in amendment.get("manifests", {}).items():
            self.newest[manifest] = _rows_of(self.objects[f"{DRAFTS}{manifest}.{digest}.parquet"].data)
            self.versions[manifest].append(digest)
        for manifest, rows in self.newest.items() if any(change.get("erase") for change in changes) else ():
            self._shows(manifest, rows, [row for row in self.kept.rows if row.delivery == manifest])

    def _nothing_left(self, *_: Any) -> None:
        """Whether nothing in the store tells of what was erased."""
        gone = _erased_by(self.commits)
        for key, found in self.objects.items():
            name = key.rpartition("/")[2]
            told = key.startswith((RADIOGRAPHS, PICTURES)) and name.partition(".")[0] in gone
            if key.startswith(MANIFESTS):
                told = key != self._file(name.partition(".")[0])
            elif key.startswith(DRAFTS):
                told = any(row["digest"] in gone and row["patient"] for row in _rows_of(found.data))
            elif key.startswith(("store/candidates/", "store/reports/")):
                told = any(digest[:12].encode() in found.data for digest in gone)
            self.hold(not told, f"I9: {key} tells of what was erased")

    def _manifest(self, key: str, data: bytes) -> None:
        manifest, digest = key[len(MANIFESTS) :].partition(".")[0], hashlib.sha256(data).hexdigest()
        named = [self._file(manifest, at) for at, one in enumerate(self.versions.get(manifest, [])) if one == digest]
        self.hold(named == [key], f"I4: {key} is not what its commit names")

    def _snapshot(self, key: str, data: bytes) -> None:
        named = key[len(SNAPSHOTS) :].removesuffix(".json")
        self.hold(hashlib.sha256(data).hexdigest() == named, f"I4: {key} is not what its name says")
        said = json.loads(data)
        out, labels = set(said.get("withdrawn", ())), said.get("labels", {})
        sides: dict[int, set[str]] = {}
        patients: dict[str, str] = {}
        of = {one.digest: one for files in self.deliveries.values() for one, _ in files}
        for manifest in said["manifests"]:
            for row in self.manifests[manifest]:
                if row["verdict"] == "accepted" and row["digest"] not in out:
                    one = of[row["digest"]]
                    sides.setdefault(one.chest, set()).add(row["side"])
                    known = patients.setdefault(row["patient"], row["side"])
                    self.hold(known == row["side"], f"I7: snapshot {named[:8]} has a patient on two sides")
                    self.hold(one.side == row["side"], f"I7: snapshot {named[:8]} has a patient on another side")
        self.hold(all(len(on) == 1 for on in sides.values()), f"I7: snapshot {named[:8]} has copies across the split")
        self._withdrawn(named, set(said["manifests"]), out, labels)

    def _withdrawn(self, named: str, manifests: set[str], out: set[str], labels: dict[str, str]) -> None:
        """Whether what amendments withdrew when the snapshot was made is not in it."""
        process = self.scheduler.running
        since = self._began[process.name][0] if process else 0
        for count in range(since, len(self.commits) + 1):
            if self._gone_after(count) & self._accepted(manifests) <= out:
                return
        self.fail(f"I9: snapshot {named[:8]} holds what was withdrawn before it was made")

    def _accepted(self, manifests: set[str]) -> set[str]:
        rows = (row for manifest in manifests for row in self.manifests[manifest])
        return {row["digest"] for row in rows if row["verdict"] == "accepted"}

    def _gone_after(self, count: int) -> set[str]:
        """Return the radiographs that amendments among the first commits withdraw and none of them undoes."""
        made = {c["number"]: c["amendment"]["changes"] for c in self.commits[:count] if "amendment" in c}
        undone = {int(ch["name"]) for changes in made.values() for ch in changes if ch["action"] == "undo"}
        stands = [change for number, changes in made.items() if number not in undone for change in changes]
        gone = {d for change in stands if change["action"] == "withdraw" for d in change.get("radiographs", ())}
        patients = {ch["name"] for ch in stands if (ch["action"], ch["subject"]) == ("withdraw", "patient")}
        return gone | {row["digest"] for rows in self.manifests.values() for row in rows if row["patient"] in patients}

    # MLflow

    def _in_mlflow(self, what: str, was: Any, now: Any) -> None:
        kind, _, name = what.partition(" ")
        if kind == "alias":
            self._alias(name, was, now)
        elif kind in ("files", "logged"):
            self._taken(name)
        elif kind == "version" and now is None:
            meant = self.decided.candidates.get(int(name))  # an older MLflow gives numbers anew
            self.hold(was.tags["xray.candidate"] != meant, f"I2: version {name}, which was registered, is deleted")
        elif what in ("model tag xray.followed", "model tag xray.committed"):
            digests = self.decided.digests if what.endswith("followed") else self.commit_digests
            mark = json.loads(now)
            true = 0 < mark["sequence"] <= len(digests) and digests[mark["sequence"] - 1] == mark["head"]
            process = self.scheduler.running
            if self.behind and process and process.listed.get(COMMITS, 0) > self._put_back_at:
                true &= was is None or json.loads(was)["sequence"] <= mark["sequence"]  # else nobody notices any more
            self.hold(true, f"I3: MLflow remembers {now}, which is not so")

    def _alias(self, alias: str, was: int | None, now: int | None) -> None:
        process = self.scheduler.running
        if process is not None and process.name == "hand":
            return
        place = ("champion", "challenger").index(alias)
        said = [aliases[place] for aliases in self.decided.aliases]
        self.hold(now in said, f"I3: alias {alias} is version {now}, which the ledger never said")
        gone = now is None and alias == "champion" and self.decided.champion is not None
        self.hold(not gone, "I1: the champion's alias was removed")

    def _taken(self, model_id: str) -> None:
        """Whether files of a logged model may go: nothing uses it, or it is on record that it was tidied."""
        uri, logged = f"models:/{model_id}", self.mlflow.logged[model_id]
        candidate = logged.tags.get("xray.candidate", "")
        model = self.mlflow.models.get(self.settings.model_name)
        for row in model.versions.values() if model else ():
            if row.source == uri and row.number in self.decided.candidates:
                kept = {self.decided.champion, self.decided.challenger, *self.decided.crowned} - {None}
                self.hold(
                    row.number not in kept, f"I1: the files of version {row.number} are taken, which is in charge"
                )
        trained = self.objects.get(f"store/candidates/{candidate}/candidate.json")
        if trained is not None and json.loads(trained.data)["content"]["model_uri"] == uri:
            told = any(key.startswith(f"store/tidied/{candidate}/") for key in self.objects)
            self.hold(
                told or self.behind > 0, f"I4: files of candidate {candidate[:8]} are taken before it is on record"
            )

    # At the end

    def whole(self) -> None:
        """Look at everything, once nobody works any more."""
        self.look()
        model = self.mlflow.models.get(self.settings.model_name)
        aliases = model.aliases if model else {}
        decided = self.decided
        there = aliases.get("champion"), aliases.get("challenger")
        wanted = decided.champion, decided.challenger
        self.hold(there == wanted, f"I3: MLflow's aliases are {there}, the ledger's {wanted}")
        if decided.champion is not None:
            self._loads(decided.champion)
        carriers: dict[str, list[int]] = {}
        for row in model.versions.values() if model else ():
            by_hand = row.number in decided.crowned and row.number not in decided.candidates  # it stays
            if not row.deleted and not by_hand:
                carriers.setdefault(row.tags["xray.candidate"], []).append(row.number)
        double = {candidate: rows for candidate, rows in carriers.items() if len(rows) > 1}
        self.hold(not double, f"I2: candidates with several versions: {double}")
        self.hold(
            {c.get("manifest") for c in self.commits} - {None} == set(self.deliveries),
            "I4: not every delivery is committed",
        )
        for manifest in self.versions:
            self.hold(self._file(manifest) in self.objects, f"I4: manifest {manifest} is missing")
        self._nothing_left()


def _rows_of(data: bytes) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(data), use_threads=False).to_pylist()
    return rows


def _erased_by(commits: list[dict[str, Any]]) -> set[str]:
    """Return the radiographs that amendments among these commits erased."""
    changes = [change for commit in commits if "amendment" in commit for change in commit["amendment"]["changes"]]
    return {digest for change in changes if change.get("erase") for digest in change.get("radiographs", ())}
