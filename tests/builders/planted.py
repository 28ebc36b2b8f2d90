"""Deliveries whose patients have names that can be found again, and a search for such names in files and databases."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import samples
from PIL import Image, PngImagePlugin

PATIENT = re.compile(
    rb"PLANTED|Planted[_^ ]?(Grace|Ada)|(?<!\d)(19770707|19820303|1977-07-07|1982-03-03)(?!\d)|073717\.42",
    re.IGNORECASE,
)
"""Names, identifiers, dates, times and paths of the planted patients, in any of the ways they may be written."""

_TAGS = {
    "PatientName": "PLANTED^Grace",
    "PatientBirthDate": "19770707",
    "StudyDate": "19820303",
    "StudyTime": "073717.42",
    "AccessionNumber": "PLANTEDACCESSION",
    "InstitutionName": "PLANTED hospital",
    "ReferringPhysicianName": "PLANTED^Doctor",
    "OperatorsName": "PLANTED^Operator",
    "StudyDescription": "PLANTED study",
    "PatientComments": "PLANTED comment",
    "ViewPosition": "PLANTED^Grace",
    "Manufacturer": "PLANTED maker",
    "ManufacturerModelName": "PLANTED^Grace",
    "PatientSex": "F",
    "PatientAge": "045Y",
}


def fit(folder: Path) -> Path:
    """Lay a delivery that is fit: DICOM, JPEG and PNG with planted metadata and paths, a few of them to quarantine."""
    for number in range(24):
        label = ("NORMAL", "PNEUMONIA")[number % 2]
        place = folder / label / "Planted_Grace 1977-07-07"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"Planted_Ada-{number}.dat").write_bytes(_image(number))
    bad = folder / "NORMAL" / "Planted_Ada"
    bad.mkdir()
    (bad / "planted_lateral.dcm").write_bytes(
        samples.dicom(seed=900, PatientID="PLANTED9", **_TAGS | {"ViewPosition": "LL"})
    )
    (bad / "planted_notes.txt").write_bytes(b"PLANTED^Grace, born 1977-07-07")
    (bad / "planted_cut.jpg").write_bytes(samples.jpeg(seed=901)[:-300])
    (bad / "planted_broken.dcm").write_bytes(samples.dicom(seed=902, PatientID="PLANTED8", **_TAGS)[:-999])
    return folder


def rejected(folder: Path) -> Path:
    """Lay a delivery that can't be judged: its folders are named after patients, not classes."""
    place = folder / "PLANTED^Grace"
    place.mkdir(parents=True)
    (place / "planted.dcm").write_bytes(samples.dicom(seed=903, PatientID="PLANTED7", **_TAGS))
    return folder


def unreadable(folder: Path) -> Path:
    """Lay a delivery whose labels.csv says of patients what can't be understood."""
    folder.mkdir(parents=True)
    (folder / "planted.jpg").write_bytes(samples.jpeg(seed=904))
    (folder / "labels.csv").write_text("file,label,patient_id\nplanted.jpg,PLANTED^Grace,PLANTEDCSV6\n")
    return folder


def _image(number: int) -> bytes:
    if number % 3 == 0:
        return samples.dicom(seed=number + 800, PatientID=f"PLANTEDID{number}", **_TAGS)
    if number % 3 == 1:
        exif = Image.Exif()
        exif[0x010E] = "PLANTED^Grace 1977-07-07"  # ImageDescription
        return samples.jpeg(seed=number + 800, exif=exif.tobytes(), comment=b"PLANTED comment")
    text = PngImagePlugin.PngInfo()
    text.add_text("Patient", "PLANTED^Grace")
    return samples.png(seed=number + 800, pnginfo=text)


def readable(name: str, data: bytes) -> bytes:
    """Return what is to be searched: the bytes, and for Parquet the values too."""
    if name.endswith(".parquet") or data[:4] == b"PAR1":
        table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
        return data + b"\n" + b"\n".join(_cells(table)) + repr(table.schema.metadata).encode()
    return data


def _cells(table: pa.Table) -> Iterator[bytes]:
    for column in table.itercolumns():
        yield from (str(value).encode(errors="replace") for value in column.to_pylist())


def files(folder: Path, without: Iterable[str] = ()) -> Iterator[tuple[str, bytes]]:
    """Yield path and content of every regular file below a folder, and each path itself; not below `without`."""
    left_out = tuple(without)
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if name.startswith(left_out) or path.is_symlink() or not path.is_file():
            continue
        yield name, name.encode(errors="replace") + b"\n" + readable(name, path.read_bytes())


def database(uri: str) -> Iterator[tuple[str, bytes]]:
    """Yield name and rows of every table of a PostgreSQL database, binary columns both as text and in hexadecimal."""
    import psycopg
    from psycopg import sql

    with psycopg.connect(uri) as connection:
        tables = connection.execute(
            "SELECT table_schema, table_name FROM information_schema.tables "
            "WHERE table_type = 'BASE TABLE' AND table_schema NOT IN ('pg_catalog', 'information_schema')"
        ).fetchall()
        for schema, table in tables:
            query = sql.SQL("SELECT t.*, t::text FROM {} t").format(sql.Identifier(schema, table))
            for row in connection.execute(query):
                yield f"table {table}", b"\n".join(v if isinstance(v, bytes) else str(v).encode() for v in row)


def places(pattern: re.Pattern[bytes], contents: Iterable[tuple[str, bytes]]) -> list[str]:
    """Return where a pattern is found, each with what surrounds it."""
    hits = []
    for name, content in contents:
        if hit := pattern.search(content):
            around = content[max(0, hit.start() - 80) : hit.end() + 40]
            hits.append(f"{name}: {around!r}")
    return hits
