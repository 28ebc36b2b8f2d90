"""What a store gives back is checked before it is used: bytes by the digest that names them, small files by a seal.

What another record names by its SHA-256 is read with `exactly`. A small JSON file that no record names is kept in an
envelope with the SHA-256 of its content (`write`, `read`), so that a changed bit or field is noticed. A seal is no
signature: it tells damage and slips, not somebody who makes it anew; what must not be changed at all is named by digest
in a chain.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Self, TypeVar

import msgspec

from xray_pipeline.base.errors import Damaged, DatasetError, EvaluationError
from xray_pipeline.base.storage import DirectoryStore, Store

T = TypeVar("T")

FORMAT = 1  # of the envelope


def digest_of(data: bytes) -> str:
    """Return the SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def moment(seconds: float | None = None) -> str:
    """Return a time (Unix seconds, by default now) as records tell it: ISO 8601 in UTC, whole seconds."""
    then = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return then.isoformat(timespec="seconds")


def aware(at: str) -> datetime:
    """Return a time that a record tells. Raises ValueError for what is none, or has no time zone."""
    if (found := datetime.fromisoformat(at)).tzinfo is None:
        raise ValueError(f"{at!r} has no time zone")
    return found


def canonical(content: object) -> bytes:
    """Return JSON of which equal contents give equal bytes."""
    return json.dumps(content, sort_keys=True, indent=1).encode()


def exactly(store: Store, key: str, digest: str, named_by: str) -> bytes:
    """Read an object whose SHA-256 `named_by` says. Raises Damaged for other bytes, and as `Store.read` does."""
    return checked(store.read(key), digest, f"{key} in {store.uri}", named_by)


def checked(data: bytes, digest: str, what: str, named_by: str) -> bytes:
    """Return bytes whose SHA-256 `named_by` says. Raises Damaged, naming `what`, for others."""
    if (actual := digest_of(data)) != digest:
        raise Damaged(f"{what} has digest {actual[:12]}, {named_by} names {digest[:12]}; restore it from a backup")
    return data


def parsed(data: bytes, kind: type[T], version: int, what: str) -> T:
    """Read a JSON object that tells its format as a struct that forbids unknown fields.

    Raises DatasetError for another format than `version`, Damaged for anything but such an object; both name `what`.
    """
    content = _object(data, version, what)
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        raise Damaged(f"{what} is damaged ({error}); restore it from a backup") from error


def write(store: Store, key: str, content: object, *, if_absent: bool = False) -> bool:
    """Keep JSON-able values under a seal; as `Store.write_if_absent` when asked to. Raises StorageUnavailable."""
    data = sealed(content)
    if if_absent:
        return store.write_if_absent(key, data)
    store.write(key, data)
    return True


def sealed(content: object) -> bytes:
    """Return JSON-able values under a seal, as `write` keeps them."""
    content = json.loads(canonical(content))
    return canonical({"format": FORMAT, "content": content, "sha256": digest_of(canonical(content))})


def read(store: Store, key: str, kind: type[T]) -> T:
    """Read what `write` kept as a dataclass, or as what JSON has. Raises as `opened` and `Store.read` do."""
    return opened(store.read(key), kind, f"{key} in {store.uri}")


def opened(data: bytes, kind: type[T], what: str) -> T:
    """Open a sealed file. Raises DatasetError for another format, Damaged where the seal is broken."""
    try:
        return msgspec.convert(unsealed(data, what), kind)
    except msgspec.ValidationError as error:
        raise Damaged(f"{what} does not have the fields of format {FORMAT} ({error}); restore it") from error


def unsealed(data: bytes, what: str) -> Any:
    """Return what a sealed file holds, whatever it is. Raises as `opened` does."""
    envelope = _object(data, FORMAT, what)
    content = envelope.get("content")
    if envelope.keys() != {"format", "content", "sha256"} or digest_of(canonical(content)) != envelope["sha256"]:
        raise Damaged(f"{what} is damaged: its content is not what its sha256 says; restore it from a backup")
    return content


def read_all(store: Store, keys: Sequence[str]) -> list[bytes]:
    """Read many small objects, at once where each costs a round trip. Raises as `Store.read` does."""
    if isinstance(store, DirectoryStore) or len(keys) < 10:
        return [store.read(key) for key in keys]
    with ThreadPoolExecutor(32) as pool:
        return list(pool.map(store.read, keys))


def _object(data: bytes, version: int, what: str) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{what} is damaged: it is not JSON ({error}); restore it from a backup") from error
    if not isinstance(content, dict):
        raise Damaged(f"{what} is damaged: it is no JSON object; restore it from a backup")
    if content.get("format") != version:
        raise DatasetError(f"{what} has format {content.get('format', 'none')!r}; this version reads {version}")
    return content


class Plain:
    """A frozen dataclass that survives JSON: a small outcome that passes between tasks, or a part of a record."""

    def to_dict(self) -> dict[str, Any]:
        """Return this as JSON-able values."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`. Raises EvaluationError for anything else."""
        try:
            return msgspec.convert(values, cls)
        except msgspec.ValidationError as error:
            raise EvaluationError(f"this is no {cls.__name__.lower()} written by this version: {error}") from error
