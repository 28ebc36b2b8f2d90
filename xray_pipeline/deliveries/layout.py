"""What a delivery says of its files: the class, side and patient that folders or labels.csv give each of them.

    <CLASS>/*    {train,val,test}/<CLASS>/*    anything with labels.csv: file,label[,patient_id][,split][,bits]

A class that is unknown stops the whole delivery, because it means that the delivery is not what we think it is; a file
that nothing is said of only has itself to blame. Folder names and cells may hold a patient's name: a message repeats
one only when it is close to what was expected.
"""

from __future__ import annotations

import csv
import difflib
import io
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from xray_pipeline.errors import AccessDenied, DeliveryError
from xray_pipeline.storage import Entry, Store

SUCCESS, LABELS = "_SUCCESS", "labels.csv"
BOOKKEEPING: Final = (SUCCESS, LABELS)
_MOST_BYTES: Final = 32_000_000  # of labels.csv: several hundred thousand lines, five times as much in memory


class Place(NamedTuple):
    """What folder or labels.csv say of a file; a reason when they say that it is out.

    `bits` is the depth of the values in a 16-bit PNG, 0 where nothing says it.
    """

    label: str = ""
    given: str = ""
    patient_id: str = ""
    bits: int = 0
    reason: str = ""
    detail: str = ""


_SYSTEM = re.compile(
    r"(^|/)(\.DS_Store|\._[^/]*|Thumbs\.db|desktop\.ini|\.git(keep|ignore))$|(^|/)(__MACOSX|@eaDir)/", re.I
)


def is_litter(key: str) -> bool:
    """Whether an operating system left that file; it is no file of the delivery."""
    return _SYSTEM.search(key) is not None


_ESCAPED = re.compile(r"[\x00-\x1f\x7f\\\udc80-\udcff]")


def escape(key: str) -> str:
    """Return a key as it stands in the table: undecodable bytes, control characters and backslashes as \\xNN."""
    return _ESCAPED.sub(lambda found: f"\\x{ord(found[0]) & 0xFF:02x}", key)


def unescape(file: str) -> str:
    """Undo `escape`."""
    raw = re.sub(rb"\\x([0-9a-f]{2})", lambda found: bytes.fromhex(found[1].decode()), file.encode())
    return raw.decode("utf-8", "surrogateescape")


def places(
    store: Store, entries: Sequence[Entry], classes: Sequence[str], where: str
) -> tuple[dict[str, Place], list[str]]:
    """Return what a delivery says of each file by key, and the sorted names of files it names but does not hold.

    `entries` lists all of the delivery in `store`; `where` names it in messages. Raises DeliveryError, StorageError.
    """
    labels = next((entry for entry in entries if entry.key == LABELS), None)
    files = [entry.key for entry in entries if entry.key not in BOOKKEEPING]
    if labels is None:
        links = sum(entry.kind == "symlink" for entry in entries)
        return _by_folder(files, classes, where, links), []
    if labels.kind != "file":
        raise DeliveryError(f"{LABELS} of {where} is not a regular file; links are never followed")
    if labels.size > _MOST_BYTES:
        raise DeliveryError(
            f"{LABELS} of {where} has {labels.size:,} bytes, {_MOST_BYTES:,} are allowed; split the delivery"
        )
    try:
        data = store.read(LABELS)
    except AccessDenied as error:
        raise DeliveryError(f"no permission to read {LABELS} of {where}") from error
    listed = _as_on_disk(_by_list(data, classes, where), files)
    absent = Place(reason="not-listed", detail=f"not in {LABELS}")
    found = {file: _against_folder(file, listed.get(file, absent), classes) for file in files}
    found |= {file: _litter() for file in files if is_litter(file)}
    return found, sorted(set(listed) - set(files))


def _as_on_disk(listed: dict[str, Place], files: Sequence[str]) -> dict[str, Place]:
    """Rename what is listed in another Unicode form than its file has (a Mac's NFD), where no doubt is possible."""
    absent = set(listed) - set(files)
    if not absent:
        return listed
    unlisted: dict[str, list[str]] = {}
    for file in set(files) - set(listed):
        unlisted.setdefault(unicodedata.normalize("NFC", file), []).append(file)
    asked = Counter(unicodedata.normalize("NFC", name) for name in absent)
    renamed = {}
    for name, place in listed.items():
        form = unicodedata.normalize("NFC", name)
        candidates = unlisted.get(form, [])
        sure = name in absent and len(candidates) == 1 and asked[form] == 1
        renamed[candidates[0] if sure else name] = place
    return renamed


def _litter() -> Place:
    return Place(reason="system-file", detail="litter of an operating system")


def _by_folder(files: list[str], classes: Sequence[str], where: str, links: int) -> dict[str, Place]:
    found: dict[str, Place] = {}
    unknown: set[str] = set()
    for file in files:
        folders = file.split("/")[:-1]
        given = side_named(folders[0]) if folders and folders[0] not in classes else None
        if given is not None:
            folders = folders[1:]
        if is_litter(file):
            found[file] = _litter()
        elif not folders:
            found[file] = Place(given=given or "", reason="no-class", detail="the file lies in no class folder")
        elif (label := class_named(folders[0], classes)) is None:
            unknown.add(folders[0])
        else:
            found[file] = Place(label, given or "")
    if unknown:
        raise DeliveryError(_unknown_class(sorted(unknown), classes, f"folder of {where}"))
    if not any(place.label for place in found.values()):
        linked = f"; {links} symbolic links in it are never followed, deliver real folders" if links else ""
        raise DeliveryError(
            f"{where} has neither a folder for a class ({', '.join(classes)}) nor {LABELS}; "
            f"lay it out as CLASS/*, {{train,val,test}}/CLASS/* or a flat folder with {LABELS}{linked}"
        )
    return found


_SPLITS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "held-out": ("test", "testing", "held-out", "held_out", "heldout", "holdout", "hold-out"),
}
_SIDES = {spelling: side for side, spellings in _SPLITS.items() for spelling in spellings}


def side_named(text: str) -> str | None:
    """Return the side of the split that a folder or cell names, None when it names none."""
    return _SIDES.get(text.strip().casefold())


def class_named(text: str, classes: Sequence[str]) -> str | None:
    """Return the class of that name: exactly, else whatever the case; None when there is none."""
    if text in classes:
        return text
    return next((name for name in classes if _folded(name) == _folded(text)), None)


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def _unknown_class(names: list[str], classes: Sequence[str], what: str) -> str:
    """Say what is wrong; a name that is like no class is kept back, as it may be a patient's."""
    known = f"the classes are {', '.join(classes)}"
    for name in names:
        folded = {_folded(known): known for known in classes}
        nearest = difflib.get_close_matches(_folded(name), list(folded), 1, 0.6)
        if nearest:
            return f"a {what} is named {escape(name)!r}; did you mean {folded[nearest[0]]}? ({known})"
    return f"a {what} is named like no class ({len(names)} of them); {known}; rename it, or set XRAY_CLASSES"


def _by_list(data: bytes, classes: Sequence[str], where: str) -> dict[str, Place]:
    """Return the place of each file that labels.csv names. Raises DeliveryError."""
    listed: dict[str, Place] = {}
    for line, cells in _csv_lines(data, where):
        at_line = f"line {line} of {LABELS} in {where}"
        file, given = cells["file"].strip().replace("\\", "/").removeprefix("./"), cells.get("split", "").strip()
        label = class_named(cells["label"].strip(), classes)
        if not file:
            raise DeliveryError(f"{at_line} names no file")
        if label is None:
            raise DeliveryError(_unknown_class([cells["label"].strip()], classes, f"label in {at_line}"))
        if given and side_named(given) is None:
            raise DeliveryError(f"{at_line} has a split that is none of train, val, test")
        if not (bits := _BITS.fullmatch(cells.get("bits", "").strip())):
            raise DeliveryError(f"{at_line} has bits that are none of 8 to 16; leave unknown ones empty")
        place = Place(label, side_named(given) or "", cells.get("patient_id", "").strip(), int(bits[1] or 0))
        earlier = listed.get(file, place)
        if earlier[:4] != place[:4] or earlier.reason:
            conflict = earlier.label != label or earlier.reason == "label-conflict"
            differ = "label-conflict" if conflict else "listed-twice"
            place = place._replace(reason=differ, detail=f"listed more than once and differently, last in line {line}")
        listed[file] = place
    return listed


def _against_folder(file: str, place: Place, classes: Sequence[str]) -> Place:
    """Return what labels.csv says of a file, out when a class folder that it lies in says otherwise."""
    folders = {class_named(folder, classes) for folder in file.split("/")[:-1]} - {None}
    if place.reason or not folders or place.label in folders:
        return place
    return place._replace(reason="label-conflict", detail=f"{LABELS} and the class folder it lies in differ")


_REQUIRED, _OPTIONAL = ("file", "label"), ("patient_id", "split", "bits")
_BITS = re.compile(r"(?:([89]|1[0-6])(?:\.0*)?)?")  # a column with gaps comes as 12.0


def _csv_lines(data: bytes, where: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, cells by column) of labels.csv, separated by commas, semicolons or tabs."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DeliveryError(f"{LABELS} of {where} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    stream = io.StringIO(text, newline="")
    skipped = 0
    if named := re.match(r"sep=([,;\t])\r?\n", text, re.I):  # Excel's own first line
        stream.seek(named.end())
        skipped = 1
    header = text[stream.tell() :].split("\n", 1)[0]
    separator = named[1] if named else max(",;\t", key=header.count)
    reader = csv.reader(stream, delimiter=separator)
    try:
        columns = [cell.strip().casefold() for cell in next(reader, [])]
        absent = [name for name in _REQUIRED if columns.count(name) != 1]
        if absent or any(columns.count(name) > 1 for name in _OPTIONAL):
            raise DeliveryError(
                f"{LABELS} of {where} must start with the columns file,label and may have {','.join(_OPTIONAL)}, "
                "each once"
            )
        for cells in reader:
            if not any(map(str.strip, cells)):  # spreadsheets leave such lines at the end
                continue
            while len(cells) > len(columns) and not cells[-1].strip():
                cells.pop()
            line = reader.line_num + skipped
            if len(cells) != len(columns):
                raise DeliveryError(f"line {line} of {LABELS} in {where} has {len(cells)} columns, not {len(columns)}")
            yield line, dict(zip(columns, cells, strict=True))
    except csv.Error as error:
        line = reader.line_num + skipped
        raise DeliveryError(f"line {line} of {LABELS} in {where} is not CSV: {error}") from error
