"""The pictures of the page *Review*: radiographs of the dataset and quarantined files, with their window stretched."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Annotated

from fastapi import HTTPException, Query, Response

from xray_pipeline.airflow_ui.shelf import Digest, Key, Row, Shelf
from xray_pipeline.base.errors import DatasetError, RadiographError, StorageError, StorageUnavailable
from xray_pipeline.base.settings import Settings

if TYPE_CHECKING:
    from xray_pipeline.images.raster import Pixels

LARGE = 2048
"""Longest side of a picture, in pixels."""


def of_radiograph(
    digest: Digest,
    of: Annotated[str, Query(pattern="^(|candidate|champion)$")] = "",
    side: Annotated[int, Query(ge=64, le=LARGE)] = LARGE,
) -> Response:
    """Give a radiograph that the dataset holds, with the map of one model where `of` names it."""
    from xray_pipeline.images import radiograph

    try:
        about = Shelf(Settings())
        radiographs = about.overview.radiographs
        if digest not in radiographs.index:  # withdrawn, or never there
            raise HTTPException(404, "there is no such radiograph")
        explained = about.explained(digest) if of else None
        opinion = getattr(explained, of) if explained else None
        if of and not (opinion and opinion.map):
            raise HTTPException(404, "there is no such map")
        data = about.dataset.read(digest, radiographs.at[digest, "suffix"])
        return _png(radiograph.decode(data), side, base64.b64decode(opinion.map) if opinion else b"")
    except DatasetError as error:
        raise HTTPException(404, "the radiograph is damaged; `xray verify` says more") from error
    except StorageUnavailable as error:
        raise HTTPException(503, "the store did not answer") from error


def of_file(key: Key, row: Row) -> Response:
    """Give a quarantined file as a picture, as far as the intake could read it."""
    from xray_pipeline.night import review

    try:
        about = Shelf(Settings())
        if key not in about.kept_out:  # what a user names is no path
            raise HTTPException(404, "there is no such delivery")
        return _png(review.file_pixels(about.dataset, key, row))
    except (DatasetError, RadiographError, StorageError) as error:
        raise HTTPException(404, "the file can't be shown: it is gone, or can't be read from here") from error


def _png(pixels: Pixels, side: int = LARGE, heat: bytes = b"") -> Response:
    from xray_pipeline.images import picture as pictures

    return Response(pictures.png(pixels, side, heat), media_type="image/png")
