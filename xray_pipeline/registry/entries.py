"""One entry of the ledger: what it says, and the bytes of its file.

An entry holds the SHA-256 of the file before it; its own digest is that of its file.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import msgspec

from xray_pipeline.base import records
from xray_pipeline.base.errors import LedgerError

FORMAT = 1
Kind = Literal[
    "registered",
    "refused",
    "approved",
    "rejected",
    "not-answered",
    "reopened",
    "promoted",
    "rolled-back",
    "manual-change",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
PUT_FORWARD = "put forward"
"""The requests that let a version wait again, for new patients have shown that it is better, begin so."""


class Move(msgspec.Struct, frozen=True):
    """What an entry is to say, before it has its place in the ledger.

    `who` is a person or the pipeline; `version` the registry's number; `candidate` and `artifact` are digests (of what
    was trained, and of every file of its logged model), which say what the number means; `champion_before` is the
    version in production when it was decided, None when there was none; `decision` the policy's verdict or, of a
    manual change, the aliases before and after; `request` names what asked for it, so that asking again adds nothing.
    """

    kind: Kind
    who: str
    why: str
    version: int | None = None
    candidate: str = ""
    champion_before: int | None = None
    decision: Mapping[str, Any] = msgspec.field(default_factory=dict)
    snapshot: str = ""
    artifact: str = ""
    request: str = ""


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"decision_json": "decision"}):
    """A move in its place: the fields of its file, those of `Move` among them, and the digest of the file.

    `at` is what the clock said, ISO 8601 in UTC; the order is that of `sequence`; `previous` and `digest` are SHA-256
    of the files before and of this one.
    """

    format: Literal[1]
    sequence: int
    kind: Kind
    at: str
    who: str
    why: str
    version: int | None
    candidate: str
    champion_before: int | None
    decision_json: msgspec.Raw
    snapshot: str
    artifact: str
    request: str
    previous: str
    digest: str = ""

    def __post_init__(self) -> None:
        records.aware(self.at)

    @property
    def decision(self) -> dict[str, Any]:
        """The decision, read anew each time: a ledger is replayed far more often than one of its decisions is."""
        return dict(msgspec.json.decode(self.decision_json))

    def summary(self) -> str:
        """Say in one line what was decided, by whom and when."""
        what = f"version {self.version}" if self.version is not None else f"candidate {self.candidate[:12]}"
        return f"entry {self.sequence}: {self.kind} {what} by {self.who} at {self.at} ({self.why})"

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as JSON-able values."""
        values = msgspec.structs.asdict(self) | {"decision": self.decision}
        del values["decision_json"], values["format"]
        return values


_READER = msgspec.json.Decoder(Entry)


def file_of(move: Move, sequence: int, previous: str, at: str) -> bytes:
    """Return the file of a move that takes place `sequence`, after the file with digest `previous`, at the time `at`.

    NaN and infinities in the decision become text: JSON has none, and a refusal may be about them.
    """
    place = {"format": FORMAT, "sequence": sequence, "previous": previous, "at": at}
    return records.canonical({**msgspec.structs.asdict(move), **place, "decision": _finite(move.decision)})


def read(data: bytes, sequence: int, previous: str) -> Entry:
    """Read the file in place `sequence`. Raises LedgerError for anything but an entry that follows `previous`."""
    try:
        data.decode()  # what is left raw is not looked at otherwise
        entry = _READER.decode(data)
    except ValueError as error:
        check_format(data, sequence)
        raise LedgerError(
            f"entry {sequence} does not have the fields of format {FORMAT} ({error}); restore it from a backup"
        ) from error
    if entry.sequence != sequence or entry.previous != previous:
        raise LedgerError(
            f"the chain breaks at entry {sequence}: it follows {entry.previous[:12]}, the entry before it is "
            f"{previous[:12]}; one of the two was changed: restore the ledger from a backup"
        )
    return msgspec.structs.replace(entry, digest=hashlib.sha256(data).hexdigest())


def check_format(data: bytes, sequence: int) -> None:
    """Raise LedgerError for a file that is damaged or has another format than this version reads."""
    try:
        written = msgspec.json.decode(data)["format"]
    except (ValueError, KeyError, TypeError) as error:  # msgspec leaves UnicodeDecodeError as it is
        raise LedgerError(f"entry {sequence} is damaged ({error}); restore it from a backup") from error
    if written != FORMAT:
        raise LedgerError(f"entry {sequence} has format {written!r}; this version reads {FORMAT}")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
