"""Which code a model was made with.

A version number says what the author meant to ship; the digest of the files says what ran. The trade-off: a changed
comment is another digest, because nothing here can tell it from a changed line.
"""

from __future__ import annotations

import functools
import hashlib
from importlib.resources import files
from importlib.resources.abc import Traversable

_SUFFIXES = (".py", ".toml")


@functools.cache
def code_digest() -> str:
    """Return the SHA-256 over name and content of this package's modules, recipes and policies, sorted by name."""
    found = hashlib.sha256()
    for name, content in sorted(_sources(files("xray_pipeline"), "")):
        found.update(f"{name}\0{len(content)}\0".encode())
        found.update(content)
    return found.hexdigest()


def _sources(folder: Traversable, prefix: str) -> list[tuple[str, bytes]]:
    found: list[tuple[str, bytes]] = []
    for entry in folder.iterdir():
        name = f"{prefix}{entry.name}"
        if entry.is_dir():
            found += _sources(entry, f"{name}/")
        elif name.endswith(_SUFFIXES):
            found.append((name, entry.read_bytes()))
    return found
