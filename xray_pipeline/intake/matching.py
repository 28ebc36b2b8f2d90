"""The names in a table of labels and the files of a delivery, where they are not written alike.

A table is often written on another machine than the one that the files come from: its names are in another case,
have another extension, or start with the folders of a disk (`D:\\cxr\\a1.jpeg`, `/data/cxr/a1.jpeg`). A name that is no
file as it stands is read less and less strictly until it is one, while every name fits one file, and every file one
name. What was read so is said. Where that is not clear the delivery is refused: a wrong guess would be a wrong label.
"""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from xray_pipeline.base.errors import DeliveryError
from xray_pipeline.images.radiograph import ENDINGS

_EXTENSION = re.compile(rf"({'|'.join(map(re.escape, (*ENDINGS, '.ima', '.tif', '.tiff', '.bmp')))})+$", re.I)
_OF_A_DISK = re.compile(r"[\w+.-]+:|/|~|\.\./", re.A)  # a drive, an address, a root: never a path inside a delivery

_Spelled = Callable[[str], str]


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def folded(text: str) -> str:
    """Return a text as it is compared when case and Unicode form don't matter."""
    return _normal(_normal(text).casefold())


def stem(name: str) -> str:
    """Return a name without what says its format."""
    return _EXTENSION.sub("", _normal(name))


def _loosest(name: str) -> str:
    return folded(stem(name))


_FOLDERS: Final = "leading folders"
_READINGS: Final[tuple[tuple[str, _Spelled, bool], ...]] = tuple(  # what is left aside, the spelling, only a path's end
    (" and ".join(filter(None, (_FOLDERS * by_end, aside))), spelled, by_end)
    for by_end in (False, True)
    for aside, spelled in (
        ("", _normal),
        ("upper and lower case", folded),
        ("extensions", stem),
        ("upper and lower case and extensions", _loosest),
    )
)


def match(
    names: Sequence[str], files: Sequence[str], alone: bool, table: str, where: str
) -> tuple[dict[str, str], list[str]]:
    """Return the file that a name is taken for, of the names that fit one, and sentences that say so.

    `names` are of a table and no files as they stand, `files` are those of the delivery that it does not name. The
    leading folders of a name are left aside where they are of a disk; of every name when `alone`: none is a file.
    `table` and `where` name table and delivery. Raises DeliveryError where several files or names fit.
    """
    file_of: dict[str, str] = {}
    said = []
    for aside, spelled, by_end in _READINGS:
        if not aside or aside == _FOLDERS:  # the first of its kind: what the last would not find none of them does
            alone = alone and not file_of
            near = _near(names, files, by_end)
        taken = set(file_of.values())
        left = [file for file in files if file not in taken] if near else []
        asked = [n for n in near if n not in file_of and (alone or not by_end or _OF_A_DISK.match(n))]
        fits, unclear = _fits(asked, left, spelled, by_end) if left else ({}, 0)
        if unclear:
            raise DeliveryError(
                f"{table} of {where} names files otherwise than they are named in the delivery, and with "
                f"{aside or 'Unicode forms'} left aside {unclear:,} of its names fit several files, or one file with "
                f"other names; write each path as it is inside the delivery: folders with /, the case, the extension"
            )
        file_of |= fits
        if fits and aside:
            said.append(
                f"{table} names {len(fits):,} files otherwise than they are named in the delivery: each fits one "
                f"with {aside} left aside, and is taken for it."
            )
    return file_of, said


def _near(names: Sequence[str], files: Sequence[str], by_end: bool) -> list[str]:
    """Return the names that some reading may take for a file."""

    def key(name: str) -> str:
        path = _path(_loosest(name))
        return path[-1] if by_end and path else "/".join(path)

    known = set(map(key, files))
    return [name for name in names if key(name) in known] if known else []


def _fits(names: Sequence[str], files: Sequence[str], spelled: _Spelled, by_end: bool) -> tuple[dict[str, str], int]:
    """Return the file that each name fits, of the names that fit any, and of how many names that is not clear.

    With `by_end` a name fits a file that its path ends with, the longest; else, without the folders that all names
    share, one whose path ends with it.
    """
    folders = (_path(spelled(name))[:-1] for name in names if by_end)
    shared = len(functools.reduce(_common, folders)) if by_end and names else 0
    lengths = {len(_path(spelled(name))) - shared for name in names if by_end}
    paths = [(file, _path(spelled(file))) for file in files]
    whole = _index(("/".join(path), file) for file, path in paths)
    ends = _index(("/".join(path[-some:]), file) for file, path in paths for some in lengths if 0 < some <= len(path))
    file_of: dict[str, str] = {}
    for name in names:
        path = _path(spelled(name))
        tails = ("/".join(path[start:]) for start in range(len(path) if by_end else 1))
        fit = next((whole[tail] for tail in tails if tail in whole), ends.get("/".join(path[shared:])))
        if fit is not None:
            file_of[name] = fit
    claims = Counter(file_of.values())
    return file_of, sum(not file or claims[file] > 1 for file in file_of.values())


def _common(one: list[str], two: list[str]) -> list[str]:
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, two, strict=False))
    return [same for same, _ in pairs]


def _index(keys: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the file of each key, "" where there are several."""
    file_of: dict[str, str] = {}
    for key, file in keys:
        file_of[key] = file if file_of.get(key, file) == file else ""
    return file_of


def _path(name: str) -> list[str]:
    return [part for part in name.split("/") if part not in ("", ".")]


def _without_zeros(text: str) -> str:
    return re.sub(r"(?<!\d)0+(?=\d)", "", text)


_LOOSE: Final[tuple[tuple[str, _Spelled], ...]] = (
    ("upper and lower case", folded),
    ("the extension", stem),
    ("leading zeros", _without_zeros),
    ("a prefix of letters", lambda text: re.sub(r"^[^\d]+(?=\d)", "", text)),
    ("blanks and punctuation", lambda text: re.sub(r"[\W_]+", "", text)),
    ("all of these", lambda text: _without_zeros(re.sub(r"^[^\d]+(?=\d)", "", re.sub(r"[\W_]+", "", _loosest(text))))),
)


def mismatches(asked: Sequence[str], known: Iterable[str]) -> list[str]:
    """Say of how many keys `asked` that are none of the `known` ones one is found with what left aside.

    Each is counted once, under the first that finds it. What a key is, is never said.
    """
    there = set(known) if asked else set()
    left, said = [one for one in asked if one and one not in there], []
    for aside, spelled in _LOOSE:
        loose = {spelled(one) for one in there} - {""} if left else set()
        found = [one for one in left if spelled(one) in loose]
        if found:
            said.append(f"{len(found):,} with {aside} left aside")
            left = [one for one in left if spelled(one) not in loose]
    return said
