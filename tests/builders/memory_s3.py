"""An S3 bucket in memory, as the client of boto3 that `S3Store` talks to: the store's own code stays as it is.

Before each call it asks whose turn it is, and is told how this call fails, if it does:

    refused    503 after all repeats: nothing was done (of an upload in parts nothing was ever visible)
    again      done, but the answer was lost; botocore asked again, and of that the answer came
    lost       done, but no answer ever came
    conflict   409: another conditional write to the key is under way
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import formatdate
from typing import Any, BinaryIO

from botocore.exceptions import ClientError, ReadTimeoutError


@dataclass(frozen=True)
class Object:
    """What a key holds, and when it was written (Unix seconds)."""

    data: bytes
    at: float


Turn = Callable[[str, str], str]
"""Called before each effect with what is done and with what ("put", key); returns the fault, "" for none."""
Changed = Callable[[str, "Object | None", "Object | None"], None]
"""Told of each change: the key, what was there and what is."""


class MemoryS3:
    """The calls of boto3's client that `S3Store` makes, on one dict of objects; every bucket is that dict."""

    def __init__(self, objects: dict[str, Object], turn: Turn, now: Callable[[], float], changed: Changed) -> None:
        self.objects, self._turn, self._now, self._changed = objects, turn, now, changed

    def put_object(self, *, Bucket: str, Key: str, Body: bytes, IfNoneMatch: str = "") -> dict[str, Any]:
        fault = self._turn("put new" if IfNoneMatch else "put", Key)
        if fault == "conflict" and IfNoneMatch:
            raise _error(409, "ConditionalRequestConflict")
        _refuse(fault)
        if IfNoneMatch and Key in self.objects:
            raise _error(412, "PreconditionFailed")
        self._set(Key, Object(Body, self._now()))
        if fault == "again" and IfNoneMatch:
            raise _error(412, "PreconditionFailed")
        return _lose(fault, {})

    def upload_fileobj(self, file: BinaryIO, bucket: str, key: str) -> None:
        self.put_object(Bucket=bucket, Key=key, Body=file.read())

    def get_object(self, *, Bucket: str, Key: str) -> dict[str, Any]:
        _refuse(self._turn("get", Key))
        if Key not in self.objects:
            raise _error(404, "NoSuchKey")
        return {"Body": io.BytesIO(self.objects[Key].data)}

    def head_object(self, *, Bucket: str, Key: str) -> dict[str, Any]:
        _refuse(self._turn("head", Key))
        if Key not in self.objects:
            raise _error(404, "404")
        return {}

    def delete_object(self, *, Bucket: str, Key: str) -> dict[str, Any]:
        fault = self._turn("delete", Key)
        _refuse(fault)
        self._set(Key, None)
        return _lose(fault, {})

    def head_bucket(self, *, Bucket: str) -> dict[str, Any]:
        _refuse(self._turn("clock", Bucket))
        return {"ResponseMetadata": {"HTTPHeaders": {"date": formatdate(self._now(), usegmt=True)}}}

    def get_paginator(self, _: str) -> MemoryS3:
        return self

    def paginate(self, *, Bucket: str, Prefix: str, Delimiter: str = "") -> Iterator[dict[str, Any]]:
        _refuse(self._turn("list", Prefix))
        keys = sorted(key for key in self.objects if key.startswith(Prefix))
        if not Delimiter:
            yield {"Contents": [self._listed(key) for key in keys]}
            return
        folders = {key[: key.index(Delimiter, len(Prefix)) + 1] for key in keys if Delimiter in key[len(Prefix) :]}
        yield {"CommonPrefixes": [{"Prefix": folder} for folder in sorted(folders)]}

    def _listed(self, key: str) -> dict[str, Any]:
        found = self.objects[key]
        tag = hashlib.md5(found.data, usedforsecurity=False).hexdigest()
        return {
            "Key": key,
            "Size": len(found.data),
            "ETag": f'"{tag}"',
            "LastModified": datetime.fromtimestamp(int(found.at), UTC),
        }

    def _set(self, key: str, content: Object | None) -> None:
        before = self.objects.get(key)
        if content is not None:
            self.objects[key] = content
        elif before is not None:
            del self.objects[key]
        self._changed(key, before, content)


def _refuse(fault: str) -> None:
    if fault == "refused":
        raise _error(503, "SlowDown")


def _lose(fault: str, answer: dict[str, Any]) -> dict[str, Any]:
    if fault == "lost":
        raise ReadTimeoutError(endpoint_url="memory")
    return answer


def _error(status: int, code: str) -> ClientError:
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "a call")
