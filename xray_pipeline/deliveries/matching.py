"""The names in labels.csv and the files of a delivery, where they are not written alike.

labels.csv is often written on another machine than the one that the files come from: its names are in another case,
have another extension, or start with the folders of a disk (`D:\\cxr\\a1.jpeg`, `/data/cxr/a1.jpeg`). A name that is no
file as it stands is read less and less strictly until it is one, while every name fits one file, and every file one
name. What was read so is said. Where that is not clear the delivery is refused: a wrong guess would be a wrong label.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from xray_pipeline.errors import DeliveryError

_EXTENSION = re.compile(r"(\.(jpe?g|jpe|jfif|png|dcm|dicom|ima|tiff?|bmp))+$", re.I)
_OF_A_DISK = re.compile(r"[\w+.-]+:|/|~|\.\./", re.A)  # a drive, an address, a root: never a path inside a delivery

_Spelled = Callable[[str], str]


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def folded(text: str) -> str:
    """Return a text as it is compared when case and Unicode form don't matter."""
    return _normal(_normal(text).casefold())


def _stem(name: str) -> str:
    return _EXTENSION.sub("", _normal(name))


def _loosest(name: str) -> str:
    return folded(_stem(name))


_READINGS: Final[tuple[tuple[str, _Spelled, bool], ...]] = tuple(  # what is left aside, the spelling, only a path's end
    (" and ".join(filter(None, ("leading folders" * by_end, aside))), spelled, by_end)
    for by_end in (False, True)
    for aside, spelled in (
        ("", _normal),
        ("upper and lower case", folded),
        ("extensions", _stem),
        ("upper and lower case and extensions", _loosest),
    )
)


def match(names: Iterable[str], files: Sequence[str], alone: bool, where: str) -> tuple[dict[str, str], list[str]]:
    """Return the file that a name is taken for, of the names that fit one, and sentences that say so.

    `names` are of labels.csv and no files as they stand, `files` are those of the delivery that it does not name. The
    leading folders of a name are left aside where they are of a disk; of every name when `alone`: none is a file.
    `where` names the delivery. Raises DeliveryError where several files or names fit.
    """
    known = {_loosest(file.rpartition("/")[2]) for file in files}
    near = [name for name in names if _loosest(name.rpartition("/")[2]) in known] if known else []
    found: dict[str, str] = {}
    said = []
    for aside, spelled, by_end in _READINGS:
        taken = set(found.values())
        left = [file for file in files if file not in taken]
        asked = [n for n in near if n not in found and (alone or not by_end or _OF_A_DISK.match(n))]
        fits = _fits(asked, left, spelled, by_end)
        claims = Counter(file for some in fits.values() for file in some)
        if unclear := sum(len(some) > 1 or claims[some[0]] > 1 for some in fits.values()):
            raise DeliveryError(
                f"labels.csv of {where} names files otherwise than they are named in the delivery, and with "
                f"{aside or 'Unicode forms'} left aside {unclear:,} of its names fit several files, or one file with "
                f"other names; write each path as it is inside the delivery: folders with /, the case, the extension"
            )
        found |= {name: some[0] for name, some in fits.items()}
        if fits and aside:
            said.append(
                f"labels.csv names {len(fits):,} files otherwise than they are named in the delivery: each fits one "
                f"with {aside} left aside, and is taken for it."
            )
        alone = alone and (by_end or not found)
    return found, said


def _fits(names: Sequence[str], files: Sequence[str], spelled: _Spelled, by_end: bool) -> dict[str, list[str]]:
    """Return the files that each name fits, of the names that fit any.

    With `by_end` a name fits a file that its path ends with, the longest; else, without the folders that all names
    share, one whose path ends with it.
    """
    whole: dict[str, list[str]] = {}
    ends: dict[str, list[str]] = {}
    for file in files:
        path = _path(spelled(file))
        whole.setdefault("/".join(path), []).append(file)
        for start in range(len(path) if by_end else 0):
            ends.setdefault("/".join(path[start:]), []).append(file)
    paths = {name: _path(spelled(name)) for name in names}
    folders = [path[:-1] for path in paths.values()] if by_end else []
    ends_of = zip(min(folders, default=[]), max(folders, default=[]), strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], ends_of))
    found = {}
    for name, path in paths.items():
        tails = ("/".join(path[start:]) for start in range(len(path) if by_end else 1))
        some = next((whole[tail] for tail in tails if tail in whole), ends.get("/".join(path[shared:])))
        if some:
            found[name] = some
    return found


def _path(name: str) -> list[str]:
    return [part for part in name.split("/") if part not in ("", ".")]
