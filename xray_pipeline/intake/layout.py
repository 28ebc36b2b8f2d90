"""What a delivery says of its files: the class, side and patient that folders or labels.csv give each of them.

    <CLASS>/*    {train,val,test}/<CLASS>/*    anything with labels.csv: file,label[,patient_id][,split][,bits]

A class that is unknown stops the whole delivery, because it means that the delivery is not what we think it is; a file
that nothing is said of only has itself to blame. Folder names and cells may hold a patient's name: a message repeats
one only when it is close to what was expected, or is the one folder that the whole delivery lies in.
"""

from __future__ import annotations

import csv
import difflib
import functools
import io
import itertools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from xray_pipeline.base.errors import AccessDenied, DeliveryError
from xray_pipeline.base.storage import Entry, Store
from xray_pipeline.images.radiograph import ENDINGS
from xray_pipeline.intake.matching import folded as _folded
from xray_pipeline.intake.matching import match

SUCCESS, LABELS = "_SUCCESS", "labels.csv"
BOOKKEEPING: Final = (SUCCESS, LABELS)
LITTER: Final = "system-file"
"""The reason of what is no file of the delivery."""
_MOST_BYTES: Final = 32_000_000  # of labels.csv: up to two million lines, of about 200 bytes each in memory


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


_IMAGES: Final = rf"(?:{'|'.join(map(re.escape, ENDINGS))})"
_LITTER = re.compile(
    # Folders: hidden ones, and those that operating systems, network disks and unpackers make.
    r"(?:^|/)(?:\.(?!\.?/)[^/]+|__MACOSX|__pycache__|\$RECYCLE\.BIN|RECYCLER|System Volume Information|lost\+found|"
    r"Network Trash Folder|Temporary Items|@eaDir|@Recycle|@tmp|#recycle|#snapshot|~snapshot)/"
    # Files: what is hidden and not named as an image, lock files, and backups that are not one of an image.
    rf"|(?:^|/)(?:\._[^/]*|\.(?!\.?$|[^/]*{_IMAGES}$)[^/]*|(?:eh)?thumbs\.db|desktop\.ini|Icon\r|"
    rf"~\$[^/]*|~[^/]*\.tmp|#[^/]*#|Backup of [^/]*|[^/]*\.(?:xlk|wbk|asd)|"
    rf"(?![^/]*{_IMAGES}(?:~|\.\w+)$)[^/]*(?:~|\.(?:bak|old|orig|swp)))$",
    re.I,
)
_DOCUMENT = re.compile(
    r"(?:DICOMDIR|LOCKFILE|(?:READ[ _-]?ME|LICEN[CS]E|COPYING|NOTICE|CITATION|AUTHORS|CHANGE(?:LOG|S)|VERSION|"
    r"(?:MD5|SHA\d*)SUMS?|CHECKSUMS?)(?:[ _-][^/.]*)?(?:\.(?:txt|md|rst|html?|pdf|rtf|docx?|odt|cff|bib))?)",
    re.I,
)


def is_litter(key: str) -> bool:
    """Whether a file is no file of the delivery: operating systems and programs leave it, or it is beside the classes
    and describes the delivery."""
    folder, _, name = key.rpartition("/")
    return _LITTER.search(key) is not None or (
        (not folder or side_named(folder) is not None) and _DOCUMENT.fullmatch(name) is not None
    )


_ESCAPED = re.compile(r"[\x00-\x1f\x7f\\\udc80-\udcff]")


def escape(key: str) -> str:
    """Return a key as it stands in the table: undecodable bytes, control characters and backslashes as \\xNN."""
    return _ESCAPED.sub(lambda odd: f"\\x{ord(odd[0]) & 0xFF:02x}", key)


def unescape(file: str) -> str:
    """Undo `escape`."""
    raw = re.sub(rb"\\x([0-9a-f]{2})", lambda hexed: bytes.fromhex(hexed[1].decode()), file.encode())
    return raw.decode("utf-8", "surrogateescape")


def places(
    store: Store, entries: Sequence[Entry], classes: Sequence[str], where: str
) -> tuple[dict[str, Place], list[str], list[str]]:
    """Return what a delivery says of each file by key, the sorted names of files it names but does not hold, and what
    is odd about labels.csv, in sentences.

    `entries` lists all of the delivery in `store`; `where` names it in messages. Raises DeliveryError, StorageError.
    """
    labels = next((entry for entry in entries if entry.key == LABELS), None)
    out = {entry.key: place for entry in entries if (place := _out(entry))}
    files = [entry.key for entry in entries if entry.key not in BOOKKEEPING and entry.key not in out]
    if labels is None:
        return (_by_folder(files, entries, classes, where) if files else {}) | out, [], []
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
    known = {entry.key for entry in entries}
    listed, said = _by_list(data, known, classes, where)
    said += _patients_written_twice(listed.values())
    alone = bool(listed) and known.isdisjoint(listed)
    renamed, taken = match(
        [name for name in listed if name not in known], [file for file in files if file not in listed], alone, where
    )
    if alone and not renamed and files:
        raise DeliveryError(
            f"none of the {len(listed):,} names in {LABELS} of {where} is one of its {len(files):,} files; write each "
            f"path as it is inside the delivery, with / and without the folders of another machine"
        )
    for name, file in renamed.items():
        listed[file] = listed.pop(name)
    absent = Place(reason="not-listed", detail=f"not in {LABELS}")
    of_files = {file: _against_folder(file, listed.get(file, absent), classes) for file in files}
    return of_files | out, sorted(name for name in listed if name not in known), said + taken


def _out(entry: Entry) -> Place | None:
    """Return the place of what is no file to be judged, whatever folder or labels.csv say; None for a file."""
    if is_litter(entry.key):
        return Place(reason=LITTER, detail="litter, no file of the delivery")
    if entry.kind == "closed":
        what = "folder can't be listed" if entry.key.endswith("/") else "file can't be looked at"
        return Place(reason="unreadable", detail=f"the {what}: no permission, or its path is too long")
    if not {"", ".", ".."}.isdisjoint(entry.key.split("/")):
        return Place(reason="unreadable", detail="its name is no safe path")
    return None


def _by_folder(files: list[str], entries: Sequence[Entry], classes: Sequence[str], where: str) -> dict[str, Place]:
    places: dict[str, Place] = {}
    unknown: set[tuple[str, ...]] = set()
    for file in files:
        folders = file.split("/")[:-1]
        given = side_named(folders[0]) if folders and folders[0] not in classes else None
        if given is not None:
            folders = folders[1:]
        if not folders:
            places[file] = Place(given=given or "", reason="no-class", detail="the file lies in no class folder")
        elif (label := class_named(folders[0], classes)) is None:
            unknown.add((*folders, *file.split("/")[-1:]) if file.endswith(f"/{LABELS}") else tuple(folders))
        else:
            places[file] = Place(label, given or "")
    if unknown:
        beside = any(place.label for place in places.values())
        raise DeliveryError(_unknown_folders(sorted(unknown), classes, where, beside))
    kinds = [entry.kind for entry in entries]
    if not any(place.label for place in places.values()) and "closed" not in kinds:
        links = kinds.count("symlink")
        linked = f"; {links} symbolic links in it are never followed, deliver real folders" if links else ""
        raise DeliveryError(
            f"{where} has neither a folder for a class ({', '.join(classes)}) nor {LABELS}; "
            f"lay it out as CLASS/*, {{train,val,test}}/CLASS/* or a flat folder with {LABELS}{linked}"
        )
    return places


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


def _unknown_folders(paths: Sequence[tuple[str, ...]], classes: Sequence[str], where: str, beside: bool) -> str:
    """Say what is wrong with folders that are no class, `beside` those of classes or alone: misspelt, too deep, or
    unlike all that is expected."""
    names = sorted({path[0] for path in paths})
    starts = {path[:at] for path in paths for at, name in enumerate(path) if at and _is_expected(name, classes)}
    wraps = {start for start in starts if not any(start[:at] in starts for at in range(1, len(start)))}
    holding = {start[0] for start in wraps}
    sides = {name: side for name in holding if (side := _nearest(name, _SIDES, 0.75))}
    if sides or not wraps or any(_nearest(name, classes) for name in names):
        return _unknown_class(names, classes, f"folder of {where}", sides)
    if beside or len(wraps) > 1:
        return (
            f"class folders of {where} lie too deep, in {len(wraps)} other folders; deliver each as a delivery of its "
            f"own, or move what it holds up"
        )
    (wrap,) = wraps
    levels = "one folder" if len(wrap) == 1 else f"{len(wrap)} folders"
    return (
        f"the class folders or {LABELS} of {where} lie {levels} too deep, in {escape('/'.join(wrap))!r}; deliver that "
        f"folder itself, or move what it holds up"
    )


def _is_expected(name: str, classes: Sequence[str]) -> bool:
    return name == LABELS or side_named(name) is not None or class_named(name, classes) is not None


def _nearest(name: str, wanted: Iterable[str], least: float = 0.6) -> str:
    """Return the wanted name that a name is most like, "" when it is like none."""
    folded = {_folded(one): one for one in wanted}
    return "".join(folded[near] for near in difflib.get_close_matches(_folded(name), list(folded), 1, least))


def _unknown_class(names: list[str], classes: Sequence[str], what: str, sides: Mapping[str, str] = {}) -> str:
    """Say what is wrong; a name that is like no class, or side, is kept back, as it may be a patient's."""
    known = f"the classes are {', '.join(classes)}"
    near = {name: meant for name in names if (meant := sides.get(name) or _nearest(name, classes))}
    said = [f"{escape(name)!r}; did you mean {meant}?" for name, meant in near.items()]
    if said:
        return f"a {what} is named {' And one '.join(said[:5])} ({known})"
    return f"a {what} is named like no class ({len(names)} of them); {known}; rename it, or set XRAY_CLASSES"


def _by_list(
    data: bytes, files: Collection[str], classes: Sequence[str], where: str
) -> tuple[dict[str, Place], list[str]]:
    """Return the place of each file that labels.csv names, and what is to be said of it. Raises DeliveryError."""
    listed: dict[str, Place] = {}
    made = functools.lru_cache(4096)(Place)  # one for many lines: of one patient, or with no patient at all
    turned = 0
    for line, cells in _csv_lines(data, where):
        at_line = f"line {line} of {LABELS} in {where}"
        file, given = cells["file"], cells.get("split", "").strip()
        if file not in files:  # whatever it is
            turned += "\\" in file
            file = file.strip().replace("\\", "/").removeprefix("./")
        label = class_named(cells["label"].strip(), classes)
        if not file:
            raise DeliveryError(f"{at_line} names no file")
        if label is None:
            raise DeliveryError(_unknown_class([cells["label"].strip()], classes, f"label in {at_line}"))
        if given and side_named(given) is None:
            raise DeliveryError(f"{at_line} has a split that is none of train, val, test")
        if not (bits := _BITS.fullmatch(cells.get("bits", "").strip())):
            raise DeliveryError(f"{at_line} has bits that are none of 8 to 16; leave unknown ones empty")
        place = made(label, side_named(given) or "", cells.get("patient_id", "").strip(), int(bits[1] or 0))
        earlier = listed.get(file, place)
        if earlier[:4] != place[:4] or earlier.reason:
            conflict = earlier.label != label or earlier.reason == "label-conflict"
            differ = "label-conflict" if conflict else "listed-twice"
            place = place._replace(reason=differ, detail=f"listed more than once and differently, last in line {line}")
        listed[file] = place
    return listed, [f"{turned:,} names in {LABELS} have backslashes, read as slashes."] if turned else []


def _patients_written_twice(places: Iterable[Place]) -> list[str]:
    """Say whether a column of patients writes one number in several ways; which, is never said."""
    first: dict[str, str] = {}
    several = set()
    for place in places:
        written = place.patient_id
        if written and first.setdefault(key := _number(written), written) != written:
            several.add(key)
    return [
        f"The column patient_id of {LABELS} writes {len(several):,} patients in more than one way (decimals, leading "
        f"zeros, upper and lower case), and each way counts as another patient, who may be on another side of the "
        f"split; ids are never changed here: write each in one way."
    ] * bool(several)


def _number(written: str) -> str:
    """Return an id as spreadsheets may have changed it: without leading zeros and a whole number's decimals."""
    return re.sub(r"(?<![\d.,])0+(?=\d)", "", re.sub(r"^(\d+)[.,]0*$", r"\1", _folded(written)))


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
    stream = io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", newline="")
    skipped, reader = 0, csv.reader(())
    try:
        header = stream.readline()
        if named := re.fullmatch(r"sep=([,;\t])\r?\n", header, re.I):  # Excel's own first line
            header, skipped = stream.readline(), 1
        separator = named[1] if named else max(",;\t", key=header.count)
        reader = csv.reader(itertools.chain([header], stream), delimiter=separator)
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
    except UnicodeDecodeError as error:
        line = reader.line_num + skipped
        raise DeliveryError(f"{LABELS} of {where} is not UTF-8 after line {line}; save it as UTF-8") from error
    except csv.Error as error:
        line = reader.line_num + skipped
        raise DeliveryError(f"line {line} of {LABELS} in {where} is not CSV: {error}") from error
