"""Which side of the split a patient is on, and the key of the patient hash."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import tempfile
from pathlib import Path

from xray_pipeline.base.errors import DatasetError
from xray_pipeline.base.settings import Settings, SplitMode

log = logging.getLogger(__name__)


SIDES = ("train", "validation", "held-out")


def side_of(patient: str, given: str, mode: SplitMode, validation: float, held_out: float) -> str:
    """Return the side of the split a patient's radiographs are on: "train", "validation" or "held-out".

    `patient` is the keyed hash (hexadecimal), whose first 52 bits are the uniform draw; so the side depends on nothing
    but the patient and never changes as data grows. In mode "patient" only a given "held-out" overrides it; in mode
    "given" the delivery decides and a row without a given side has none ("").
    """
    if mode == "given":
        return given
    if given == "held-out":
        return given
    draw = int(patient[:13], 16) / 16**13
    if draw < held_out:
        return "held-out"
    return "validation" if draw < held_out + validation else "train"


def patient_hash(key: bytes, text: str) -> str:
    """Return the keyed hash (32 hexadecimal digits) that is all that is kept of a patient.

    `text` is "patient:" and the id that a delivery gives, or "file:" and the digest of the file where none is known.
    """
    return hmac.new(key, text.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()[:32]


def id_in_name(pattern: str, file: str) -> str:
    """Return the patient's id that a file's name holds, "" for none; `pattern` is `IntakeRules.patient_pattern`."""
    compiled = re.compile(pattern)
    match = compiled.search(file.rpartition("/")[2])
    return (match[1] if compiled.groups else match[0]) if match else ""


_SHORTEST_KEY = 32  # characters, of the 64 that are made


def _make_key(path: Path) -> None:
    """Make the key file whole or not at all; of processes that do so at once one wins, and none replaces another's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=".patient.key-", dir=path.parent)  # mode 0600
    try:
        with open(handle, "w") as file:
            file.write(secrets.token_hex(32))
            file.flush()
            os.fsync(handle)
        os.link(temporary, path)
    except FileExistsError:
        log.debug("another process made the patient key %s", path)
    else:
        log.info("made a new key for patient hashes: %s (keep a copy: the split depends on it)", path)
    finally:
        os.unlink(temporary)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the name must survive a power cut before a dataset depends on it
    finally:
        os.close(folder)


def _read_key(path: Path) -> bytes:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_mode & 0o077:
            raise DatasetError(f"others may read the patient key; run: chmod 600 {path}")
        key = file.read().strip(b"\0 \t\r\n")  # some file systems fill with zeros what a power cut took
    if len(key) < _SHORTEST_KEY:
        raise DatasetError(
            f"the patient key {path} has {len(key)} characters, {_SHORTEST_KEY} or more are needed; put your copy of "
            f"it back, or delete it if nothing was ever ingested with it: a new one is made then"
        )
    return key


def key_of(settings: Settings) -> bytes:
    """Return the key of the patient hash, from the settings, else from `<home>/patient.key`, made where it is missing.

    It is never made for a store on S3: several machines may share it, and each would make its own. Raises DatasetError.
    """
    if key := settings.patient_key.get_secret_value().encode():
        return key
    path = settings.home / "patient.key"
    if settings.store.startswith("s3://") and not path.exists():
        raise DatasetError(
            f"the store is {settings.store} and there is no patient key; set XRAY_PATIENT_KEY to the same random value "
            f"on every machine that works with it, for example from `openssl rand -hex 32`"
        )
    try:
        if not path.exists():
            _make_key(path)
        return _read_key(path)
    except OSError as error:
        raise DatasetError(
            f"the patient key {path} can't be used: {error.strerror or error}; make {path.parent} a folder that can be "
            f"written to, or set XRAY_PATIENT_KEY"
        ) from error
