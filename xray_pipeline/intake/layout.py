"""The layout of a delivery: what its folders say of its files, and which files are none.

    <CLASS>/*    {train,val,test}/<CLASS>/*    anything with a table of labels, of which `placing` makes places

A class that is unknown stops the whole delivery, because it means that the delivery is not what we think it is; a file
that nothing is said of only has itself to blame. Folder names and cells may hold a patient's name: a message repeats
one only when it is close to what was expected, or is the one folder that the whole delivery lies in.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from xray_pipeline.base.errors import DeliveryError
from xray_pipeline.base.storage import Entry
from xray_pipeline.images.radiograph import ENDINGS
from xray_pipeline.intake.label_mapping import LABELS, LABELS_TOML, TABLES
from xray_pipeline.intake.matching import folded as _folded

SUCCESS: Final = "_SUCCESS"
BOOKKEEPING: Final = (SUCCESS, LABELS, LABELS_TOML)
LITTER: Final = "system-file"
"""The reason of what is no file of the delivery."""


class Place(NamedTuple):
    """What folder or label table say of a file; a reason when they say that it is out.

    `bits` is the depth of the values in a 16-bit PNG, 0 where nothing says it; `view` is a table's word for it;
    `named_by` is as in `Row`.
    """

    label: str = ""
    given: str = ""
    patient_id: str = ""
    bits: int = 0
    reason: str = ""
    detail: str = ""
    view: str = ""
    named_by: str = ""


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


def bookkeeping(entries: Iterable[Entry], mapped: bool) -> set[str]:
    """Return the keys of what a delivery holds beside its files: marker, mapping and tables of labels.

    Any table may be one where XRAY_LABELS (`mapped`) or the delivery itself brings a mapping.
    """
    keys = [entry.key for entry in entries]
    tables = mapped or LABELS_TOML in keys
    return {key for key in keys if key in BOOKKEEPING or (tables and key.lower().endswith(TABLES))}


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


def out(entry: Entry) -> Place | None:
    """Return the place of what is no file to be judged, whatever folder or labels.csv say; None for a file."""
    if is_litter(entry.key):
        return Place(reason=LITTER, detail="litter, no file of the delivery")
    if entry.kind == "closed":
        what = "folder can't be listed" if entry.key.endswith("/") else "file can't be looked at"
        return Place(reason="unreadable", detail=f"the {what}: no permission, or its path is too long")
    if not {"", ".", ".."}.isdisjoint(entry.key.split("/")):
        return Place(reason="unreadable", detail="its name is no safe path")
    return None


def by_folder(files: list[str], entries: Sequence[Entry], classes: Sequence[str], where: str) -> dict[str, Place]:
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
    "validation": ("val", "valid", "validate", "validation", "dev"),
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
        return unknown_class(names, classes, f"folder of {where}", sides)
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


def unknown_class(names: list[str], classes: Sequence[str], what: str, sides: Mapping[str, str] = {}) -> str:
    """Say what is wrong; a name that is like no class, or side, is kept back, as it may be a patient's."""
    known = f"the classes are {', '.join(classes)}"
    near = {name: meant for name in names if (meant := sides.get(name) or _nearest(name, classes))}
    said = [f"{escape(name)!r}; did you mean {meant}?" for name, meant in near.items()]
    if said:
        return f"a {what} is named {' And one '.join(said[:5])} ({known})"
    return f"a {what} is named like no class ({len(names)} of them); {known}; rename it, or set XRAY_CLASSES"


def against_folder(file: str, place: Place, classes: Sequence[str], table: str) -> Place:
    """Return what a table says of a file, out when a class folder that it lies in says otherwise."""
    folders = {class_named(folder, classes) for folder in file.split("/")[:-1]} - {None}
    if place.reason or not folders or place.label in folders:
        return place
    return place._replace(reason="label-conflict", detail=f"{table} and the class folder it lies in differ")
