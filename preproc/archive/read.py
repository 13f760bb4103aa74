"""Reading rasters onto a tile's grid: what is checked before a pixel is trusted, and what if one cannot be read.

Rasters are opened here and nowhere else. Hrefs are signed at open; retries are in one place, around open and read
together; what cannot succeed is not tried again. Messages name the unsigned href, never a token.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import CRSError, RasterioError
from rasterio.windows import Window
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from infer.contract import EXIT_FAILED, EXIT_TRY_AGAIN, SmaltiError
from preproc.archive.placement import RasterGrid, SourceWindow, Target, place

ATTEMPTS = 5
"""Times that a read is tried as a whole, after GDAL's own retries of single requests."""


class MissingDataError(SmaltiError):
    """A file that should be there is missing or unreadable for good; `[archive] on_missing` decides what follows."""

    exit_code = EXIT_FAILED


class UnreachableError(SmaltiError):
    """The server did not answer well enough this time; the same command may succeed later."""

    exit_code = EXIT_TRY_AGAIN


class _TransientError(Exception):
    """Worth another attempt."""


class _ExpiredError(_TransientError):
    """Worth another attempt with a new token."""


class Signs(Protocol):
    """What makes hrefs of a protected archive readable; must be safe for threads."""

    def sign(self, href: str) -> str:
        """The href with a valid token (or as it is, where none is needed)."""

    def renew(self, href: str) -> str:
        """The href with a token that was issued just now."""


class Unsigned:
    """Signs nothing: public and local archives."""

    def sign(self, href: str) -> str:
        """The href as it is."""
        return href

    def renew(self, href: str) -> str:
        """The href as it is."""
        return href


@dataclass(frozen=True)
class BandKind:
    """What a raster must hold and how it is brought onto the grid."""

    name: str
    dtype: str
    bilinear: bool


SCENE_CLASSES = BandKind("scene classification", "uint8", bilinear=False)
REFLECTANCE = BandKind("Sentinel-2 band", "uint16", bilinear=True)
BACKSCATTER = BandKind("Sentinel-1 band", "float32", bilinear=False)


@dataclass(frozen=True)
class Placed:
    """A raster's pixels on a target."""

    values_hw: NDArray[Any]
    """(height, width) in the file's dtype; 0 outside the raster (and where bilinear finds nodata only)."""
    nodata: float | None
    """What the file declares."""


def gdal_name(href: str) -> str:
    """How GDAL opens an href: paths and file: as they are, http(s) by /vsicurl/, s3 by /vsis3/."""
    scheme = urlsplit(href).scheme.lower()
    if scheme in ("http", "https"):
        return f"/vsicurl/{href}"
    if scheme == "s3":
        return f"/vsis3/{href[5:]}"
    if scheme == "file":
        return unquote(urlsplit(href).path)
    return href


def is_remote(href: str) -> bool:
    """Whether an href leads over the network."""
    return urlsplit(href).scheme.lower() in ("http", "https", "s3", "gs", "az", "abfs")


def without_token(text: str) -> str:
    """A message in which URLs have lost their query: tokens are never shown."""
    return re.sub(r"\?[^\s'\"]+", "", text).replace("/vsicurl/", "")


@functools.lru_cache(maxsize=256)
def _crs_text(wkt: str) -> str:
    """A CRS as EPSG code where it has one, otherwise its WKT."""
    epsg = rasterio.crs.CRS.from_wkt(wkt).to_epsg()
    return wkt if epsg is None else f"EPSG:{epsg}"


def _grid(dataset: Any, href: str, kind: BandKind) -> RasterGrid:
    """The grid of an open dataset, once it is what `kind` says."""
    if dataset.count != 1:
        raise MissingDataError(f"{href}: {dataset.count} bands, a {kind.name} has one: not the file that is meant")
    if dataset.dtypes[0] != kind.dtype:
        raise MissingDataError(f"{href}: {dataset.dtypes[0]} pixels, a {kind.name} has {kind.dtype}")
    if dataset.crs is None:
        raise MissingDataError(f"{href}: the file has no coordinate reference system: its pixels cannot be placed")
    try:
        crs = _crs_text(dataset.crs.wkt)
    except CRSError as error:
        raise MissingDataError(f"{href}: its coordinate reference system is not understood ({error})") from error
    a, b, c, d, e, f = tuple(dataset.transform)[:6]
    if a * e - b * d == 0 or (a, b, c, d, e, f) == (1.0, 0.0, 0.0, 0.0, 1.0, 0.0):
        raise MissingDataError(f"{href}: the file has no georeference: its pixels cannot be placed")
    return RasterGrid(crs, (a, b, c, d, e, f), dataset.height, dataset.width)


def _read_window(dataset: Any, window: SourceWindow) -> NDArray[Any]:
    pixels: NDArray[Any] = dataset.read(1, window=Window(window.column, window.row, window.width, window.height))
    return pixels


class Reader:
    """Reads rasters onto targets; safe for threads (each read opens its own dataset)."""

    def __init__(self, signer: Signs | None = None, *, wait: Callable[[RetryCallState], float] | None = None) -> None:
        self._signer = signer or Unsigned()
        self._wait = wait or wait_random_exponential(multiplier=1, max=60)

    def read(self, href: str, target: Target, kind: BandKind) -> Placed:
        """Read the pixels of one raster that fall on a target.

        Args:
            href: unsigned path or URL.
            target: where to.
            kind: what it must be.

        Raises:
            MissingDataError: if the file is missing or not what it should be, for good.
            UnreachableError: if the server did not deliver within the retry budget.
        """
        if not is_remote(href):
            return self._read_local(href, target, kind)
        renewed = False
        retrying = Retrying(
            retry=retry_if_exception_type(_TransientError),
            stop=stop_after_attempt(ATTEMPTS),
            wait=self._wait,
            reraise=True,
        )
        try:
            for attempt in retrying:
                with attempt:
                    signed = self._signer.renew(href) if renewed else self._signer.sign(href)
                    try:
                        return _read_once(gdal_name(signed), href, target, kind)
                    except _ExpiredError as error:
                        if renewed:
                            reason = "the server refuses it even with a new token (403)"
                            raise MissingDataError(f"{href}: {reason}") from error
                        renewed = True
                        raise
        except _TransientError as error:
            raise UnreachableError(f"{href}: {error} (tried {ATTEMPTS} times): try again later") from error
        raise AssertionError("a retry loop ends by return or raise")

    @staticmethod
    def _read_local(href: str, target: Target, kind: BandKind) -> Placed:
        try:
            return _read_once(gdal_name(href), href, target, kind)
        except _TransientError as error:
            raise MissingDataError(f"{href}: cannot be read: {error}") from error


def _read_once(name: str, href: str, target: Target, kind: BandKind) -> Placed:
    try:
        with rasterio.open(name, driver="GTiff", sharing=False) as dataset:
            placement = place(_grid(dataset, href, kind), target, bilinear=kind.bilinear)
            if placement.window is None:
                return Placed(np.zeros((target.height, target.width), kind.dtype), dataset.nodata)
            pixels = _read_window(dataset, placement.window)
            nodata = dataset.nodata
    except RasterioError as error:
        raise _classified(str(error), href) from error
    values = placement.bilinear(pixels) if kind.bilinear else placement.nearest(pixels)
    return Placed(values, nodata)


def _classified(message: str, href: str) -> Exception:
    """What a failed open or read means."""
    text = without_token(message)
    if not is_remote(href):
        if "No such file" in text:
            return MissingDataError(f"{href}: no such file")
        return MissingDataError(f"{href}: not a readable GeoTIFF ({text}): it is damaged or cut short")
    status = re.search(r"HTTP (?:response code|error code) ?: ?(\d{3})", text)
    code = int(status[1]) if status else 0
    if code == 403:
        return _ExpiredError(text)
    if code in (400, 401, 404, 409, 410):
        return MissingDataError(f"{href}: the server answers {code}")
    if "not recognized as a supported" in text or "not recognized as being in a supported" in text:
        return MissingDataError(f"{href}: not a GeoTIFF, or not there")
    return _TransientError(text)
