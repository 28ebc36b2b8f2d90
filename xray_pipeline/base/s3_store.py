"""An S3 bucket and prefix as a store."""

from __future__ import annotations

import contextlib
import io
import re
import time
from collections.abc import Iterator, Sequence
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from tenacity import retry, retry_if_exception, stop_after_attempt, wait_exponential

from xray_pipeline.base.errors import AccessDenied, ConfigError, ObjectNotFound, StorageUnavailable
from xray_pipeline.base.storage import Entry, Store, checked_key

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")  # no host, port, user or ARN can pass for a bucket


class S3Store(Store):
    """An S3 bucket and prefix, through boto3 with its bounded retries and back-off."""

    def __init__(self, uri: str, endpoint: str = "") -> None:
        parts = urlsplit(uri)
        if not _BUCKET.fullmatch(parts.netloc) or parts.query or parts.fragment:
            raise ConfigError(f"{uri!r} names no bucket; write s3://bucket/prefix")
        self.uri = uri.rstrip("/")
        self.endpoint = endpoint
        self.bucket = parts.netloc
        self.prefix = parts.path.strip("/") + "/" if parts.path.strip("/") else ""
        self._client = _client(endpoint)
        # S3 answers 409 while another conditional write to the key is under way.
        patient = retry(
            retry=retry_if_exception(lambda error: isinstance(error, ClientError) and _status(error) == 409),
            stop=stop_after_attempt(6),
            wait=wait_exponential(0.1, max=3),
            reraise=True,
        )
        self._put_new = patient(self._client.put_object)

    def read(self, key: str) -> bytes:
        with self._errors(key):
            data: bytes = self._client.get_object(Bucket=self.bucket, Key=self._name(key))["Body"].read()
            return data

    def write(self, key: str, data: bytes) -> None:
        with self._errors(key):
            # upload_fileobj goes in parts when large; an unfinished upload is never visible.
            self._client.upload_fileobj(io.BytesIO(data), self.bucket, self._name(key))

    def write_if_absent(self, key: str, data: bytes) -> bool:
        with self._errors(key):
            try:
                self._put_new(Bucket=self.bucket, Key=self._name(key), Body=data, IfNoneMatch="*")
            except ClientError as error:
                if _status(error) != 412:
                    raise
                return self.read(key) == data
        return True

    def exists(self, key: str) -> bool:
        try:
            with self._errors(key):
                self._client.head_object(Bucket=self.bucket, Key=self._name(key))
        except ObjectNotFound:
            return False
        return True

    def delete(self, key: str) -> None:
        with self._errors(key):
            self._client.delete_object(Bucket=self.bucket, Key=self._name(key))

    def list(self, prefix: str = "", *, closed: bool = False) -> Iterator[Entry]:
        under = self.prefix + (f"{checked_key(prefix)}/" if prefix else "")
        with self._errors(prefix or "."):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=under):
                for item in page.get("Contents", []):
                    key = item["Key"][len(self.prefix) :]
                    if not key.endswith("/"):  # a console's "folder" is an empty object
                        yield Entry(key, item["Size"], item["ETag"], item["LastModified"].timestamp())

    def folders(self) -> Sequence[str]:
        names: list[str] = []
        with self._errors("."):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self.prefix, Delimiter="/"
            )
            for page in pages:
                names += [item["Prefix"][len(self.prefix) : -1] for item in page.get("CommonPrefixes", [])]
        return sorted(names)

    def clock(self) -> float:
        with self._errors("."):
            said = self._client.head_bucket(Bucket=self.bucket)["ResponseMetadata"]["HTTPHeaders"].get("date")
        return parsedate_to_datetime(said).timestamp() if said else time.time()

    def child(self, prefix: str) -> Store:
        return S3Store(f"s3://{self.bucket}/{self.prefix}{checked_key(prefix)}", self.endpoint)

    def _name(self, key: str) -> str:
        return self.prefix + checked_key(key)

    @contextlib.contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        place = f"{key!r} in {self.uri}"
        try:
            yield
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code in ("NoSuchKey", "404", "NotFound"):
                raise ObjectNotFound(f"no {place}") from error
            # Not every 403: a wrong or expired key is no matter of one object.
            kind = AccessDenied if code == "AccessDenied" else StorageUnavailable
            raise kind(f"{place}: S3 answered {code or _status(error)}") from error
        except (BotoCoreError, Boto3Error) as error:
            raise StorageUnavailable(f"{place}: {error}") from None  # what it says is said, but for passwords


def _status(error: Any) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _client(endpoint: str) -> Any:
    config = Config(
        retries={"mode": "standard", "max_attempts": 5},
        connect_timeout=5,
        read_timeout=60,
        max_pool_connections=32,
        s3={"addressing_style": "path"} if endpoint else {},
    )
    try:
        return boto3.session.Session().client("s3", endpoint_url=endpoint or None, config=config)
    except (BotoCoreError, ValueError) as error:  # no such profile, no endpoint
        raise ConfigError(f"S3 can't be used: {error}; see XRAY_S3_ENDPOINT and the AWS_ variables") from None
