"""Which code did something: a version number says what the author meant to ship, the digest of the files what ran.

The trade-off: a changed comment is another digest, because nothing here can tell it from a changed line; so it is taken
over those rooms alone that decide.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_SUFFIXES = (".py", ".toml")


@functools.cache
def code_digest(*rooms: str) -> str:
    """Return the SHA-256 over name and content, sorted by name, of the modules, recipes and policies of some rooms.

    A single module may stand in a room's place.
    """
    digest = hashlib.sha256()
    paths = [path for room in rooms for path in (_PACKAGE / room, *(_PACKAGE / room).rglob("*"))]
    for path in sorted(path for path in paths if path.suffix in _SUFFIXES):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(_PACKAGE).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()
