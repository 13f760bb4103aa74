"""Reading rasters onto a tile's grid: what is checked before a pixel is trusted, and what if one cannot be read.

Rasters are opened here and by preproc.mirror.extract, local ones by GDAL directly, remote ones through the bytes that
preproc.reader.ranges fetches. Messages name the unsigned href, never a token.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import MaskFlags
from rasterio.errors import CRSError, RasterioError, RasterioIOError
from rasterio.windows import Window

from preproc.reader.placement import Placement, RasterGrid, SourceWindow, Target, UnusableError, place
from preproc.reader.ranges import MissingDataError, RangeClient, is_remote
from preproc.reader.sparse_file import RemoteFile
from preproc.reader.tiff_layout import MOST_BYTES, LayoutError
from preproc.reader.transport import TransientError, persist
from preproc.reader.whereabouts import Whereabouts, check_place

FETCHES = 3
"""Times that a remote file is fetched anew when what came cannot be decoded: wrong bytes on the way are rare."""
_LARGE = 16 << 20
"""Bytes of pixels from which on reads take turns: no real archive's tiles need as much, and memory stays bounded."""
_FARTHEST = 1e9
"""No coefficient of a georeference is larger, be it in metres or degrees."""
_DECIBELS = (-60.0, -1.0)
"""Where more than half of the values of a Sentinel-1 file in dB lie; linear power is hardly ever negative."""


T = TypeVar("T")
_Pixels = NDArray[Any]


@dataclass(frozen=True)
class BandKind:
    """What a raster must hold and how it is brought onto the grid."""

    name: str
    dtype: str
    bilinear: bool
    """Otherwise nearest."""


SCENE_CLASSES = BandKind("scene classification", "uint8", bilinear=False)
REFLECTANCE = BandKind("Sentinel-2 band", "uint16", bilinear=True)
BACKSCATTER = BandKind("Sentinel-1 band", "float32", bilinear=False)


@dataclass(frozen=True)
class Placed:
    """A raster's pixels on a target."""

    values_hw: NDArray[Any]
    """(height, width) in the file's dtype; 0 outside the raster (bilinear: and on its nodata)."""
    nodata: float | None
    """What the file declares."""
    gaps: bool = False
    """Whether 0 certainly means that there is no value: the file has a mask, or another nodata value, replaced by 0."""


class Reader:
    """Reads rasters onto targets; safe for threads (each read opens its own dataset)."""

    def __init__(self, client: RangeClient) -> None:
        self._client = client
        self._known: dict[Any, _Described] = {}
        self._turn = threading.Lock()

    def read(
        self, href: str, targets: Sequence[Target], kind: BandKind, said: Whereabouts | None = None
    ) -> list[Placed]:
        """Read the pixels of one raster that fall on some targets; each byte of the file is fetched once for all.

        Args:
            href: unsigned path or URL.
            targets: where to; windows of neighbouring tiles.
            kind: what the raster must be.
            said: where its item says that it lies.

        Returns:
            The pixels on each target; what the file masks or declares as nodata is 0.

        Raises:
            MissingDataError: if the file is missing or not what it should be, for good.
            UnreachableError: if its server does not deliver within the retry budget.
        """
        if not is_remote(href):
            try:
                return _read_local(local_name(href), _Wish(targets, kind, said), self._turn)
            except UnusableError as error:
                raise MissingDataError(f"{href}: {error}") from error
        return fetched(
            self._client,
            href,
            lambda remote: _read_remote(remote, self._known, _Wish(targets, kind, said), self._turn),
        )


def fetched(client: RangeClient, href: str, use: Callable[[RemoteFile], T]) -> T:
    """What a function makes of a remote file, which is fetched anew when it cannot make anything of what came.

    Raises:
        MissingDataError: if the file is missing or not what it should be, for good.
        UnreachableError: if its server does not deliver within the retry budget.
    """

    def attempt() -> T:
        try:
            with RemoteFile(client, href) as remote:
                return use(remote)
        except (UnusableError, LayoutError) as error:
            raise TransientError(str(error)) from error

    try:
        return persist(attempt, wait=lambda _: 0.0, attempts=FETCHES)
    except TransientError as error:
        raise MissingDataError(f"{href}: {error} (fetched {FETCHES} times)") from error


def local_name(href: str) -> str:
    """The path of a local href."""
    parts = urlsplit(href)
    if parts.scheme == "file":
        return unquote(parts.path)
    if "://" in href:
        raise UnusableError(f"smalti does not read {parts.scheme}: addresses: use http(s), s3, gs, az or a path")
    return href


@dataclass(frozen=True)
class _Wish:
    """What is wanted of a file."""

    targets: Sequence[Target]
    kind: BandKind
    said: Whereabouts | None


def _read_local(name: str, wish: _Wish, turn: threading.Lock) -> list[Placed]:
    if Path(name).exists() and not Path(name).is_file():
        raise UnusableError("is not a regular file")
    with opened(name) as dataset:
        described = _describe(dataset, wish.kind)
        block = _block_bytes(dataset.block_shapes[0], wish.kind)
        return _cut(described, wish, _Turn(turn, block), lambda window: _pixels(dataset, window))


def _window_bytes(window: SourceWindow, kind: BandKind) -> int:
    return window.height * window.width * np.dtype(kind.dtype).itemsize


def _block_bytes(shape: tuple[int, int], kind: BandKind) -> int:
    """Bytes of a decoded block (tile or strip) of a raster.

    Raises:
        UnusableError: if they are more than fit into the memory that reading may take.
    """
    height, width = shape
    size = height * width * np.dtype(kind.dtype).itemsize
    if size > MOST_BYTES:
        raise UnusableError(
            f"its blocks have {height} x {width} pixels, {size / 2**20:.0f} MiB at once, at most {MOST_BYTES >> 20} "
            "are read: write it anew as a cloud-optimised GeoTIFF"
        )
    return size


def _read_remote(
    remote: RemoteFile,
    known: dict[Any, _Described],
    wish: _Wish,
    turn: threading.Lock,
) -> list[Placed]:
    """Fetch the header, then the blocks.

    Args:
        remote: the file.
        known: what was found in files with the same tags, to be looked up and added to: a season's files of one band
            have one grid, and opening a file costs GDAL as much as decoding a block.
        wish: what is wanted of it.
        turn: held while much is decoded.
    """
    layout, kind = remote.layout(), wish.kind
    block = _block_bytes((layout.block_height, layout.block_width), kind)
    key = (kind.name, layout.mask is not None, layout.pixel_tags)
    described = known.get(key)
    if described is None:
        with opened(remote.path) as dataset:
            described = known[key] = _describe(dataset, kind)

    def fetch(window: SourceWindow) -> _Pixels:
        remote.ensure(layout.ranges(window))
        # Opened anew: what GDAL has buffered of the file may be older than the bytes that have just come.
        with opened(remote.path) as dataset:
            return _pixels(dataset, window)

    return _cut(described, wish, _Turn(turn, block), fetch)


@contextmanager
def opened(name: str) -> Iterator[Any]:
    """An open dataset; what GDAL cannot do with it is said without GDAL's name for it."""
    try:
        with open_raster(name) as dataset:
            yield dataset
    except RasterioError as error:
        text = " ".join(str(error).split()).replace(name, "").strip(" :")
        if "No such file" in text:
            raise UnusableError("no such file") from error
        raise UnusableError(f"not a readable GeoTIFF, damaged or cut short ({text})") from error


@dataclass(frozen=True)
class _Described:
    """What a file's header says."""

    grid: RasterGrid
    nodata: float | None
    gaps: bool
    """See Placed."""


def _describe(dataset: Any, kind: BandKind) -> _Described:
    nodata = dataset.nodata
    gaps = has_mask(dataset) or (nodata is not None and not np.isnan(nodata) and nodata != 0)
    return _Described(grid_of(dataset, kind), nodata, gaps)


def has_mask(dataset: Any) -> bool:
    """Whether a mask inside the file says which pixels have a value."""
    return MaskFlags.per_dataset in dataset.mask_flag_enums[0]


@dataclass(frozen=True)
class _Turn:
    """Who may decode much: one thread at a time."""

    lock: threading.Lock
    block_bytes: int
    """Of the file's blocks."""

    def of(self, window_bytes: int) -> AbstractContextManager[Any]:
        """To be held while a window is decoded and placed."""
        return self.lock if max(window_bytes, self.block_bytes) > _LARGE else nullcontext()


def _cut(described: _Described, wish: _Wish, turn: _Turn, read: Callable[[SourceWindow], _Pixels]) -> list[Placed]:
    """The pixels of each target; `read` is called once, for the smallest window that holds all of them.

    If that one is too large, it is called for each target: whether a file can be read must not depend on what else is.
    """
    if wish.said is not None:
        check_place(described.grid, wish.said)
    targets, kind = wish.targets, wish.kind
    placements = [place(described.grid, target, bilinear=kind.bilinear) for target in targets]
    whole = _union([placement.window for placement in placements])
    if whole is None:
        return [Placed(np.zeros((t.height, t.width), kind.dtype), described.nodata, described.gaps) for t in targets]
    if _window_bytes(whole, kind) > MOST_BYTES:
        if len(targets) > 1:
            return [
                placed for target in targets for placed in _cut(described, replace(wish, targets=[target]), turn, read)
            ]
        a, b, _, d, e, _ = described.grid.transform
        raise UnusableError(
            f"its pixels are {np.hypot(a, d):.3g} x {np.hypot(b, e):.3g} units of its CRS: one tile would need "
            f"{whole.height} x {whole.width} of them, {_window_bytes(whole, kind) / 2**20:.0f} MiB at once, at most "
            f"{MOST_BYTES >> 20} are read: resample it to 10 m"
        )
    with turn.of(_window_bytes(whole, kind)):
        pixels = read(whole)
        if kind is BACKSCATTER:
            _check_power(pixels)
        return [
            Placed(_on_target(placement, pixels, whole, target, kind), described.nodata, described.gaps)
            for placement, target in zip(placements, targets, strict=True)
        ]


def _check_power(values_yx: _Pixels) -> None:
    """Refuse decibels, all of which would count as missing."""
    there = values_yx[np.isfinite(values_yx) & (values_yx != 0)]
    low, high = _DECIBELS
    if there.size and np.count_nonzero((there > low) & (there < high)) * 2 > there.size:
        raise UnusableError(
            f"holds decibels (the median is {np.median(there):.1f}), a Sentinel-1 band has linear power: convert it, "
            "10 ** (dB / 10)"
        )


def open_raster(name: str) -> Any:
    """Open a local GeoTIFF; nothing of it is shared with other readers.

    Raises:
        RasterioError: if it cannot be read.
    """
    try:
        return rasterio.open(name, driver="GTiff", sharing=False)
    except UnicodeError as error:
        raise RasterioIOError(f"a text in its header is damaged: {error}") from error


def _pixels(dataset: Any, window: SourceWindow) -> _Pixels:
    """The pixels of a window, 0 where the file says that it has no value."""
    place = Window(window.column, window.row, window.width, window.height)
    pixels: _Pixels = dataset.read(1, window=place)
    nodata = dataset.nodata
    if nodata is not None and nodata != 0:  # compared as pixels are stored; NaN equals nothing, and is no value anyway
        with np.errstate(over="ignore"):
            pixels[pixels == np.float64(nodata).astype("f4" if pixels.dtype.kind == "f" else "f8")] = 0
    if has_mask(dataset):
        pixels[dataset.read_masks(1, window=place) == 0] = 0
    return pixels


def _union(windows: Sequence[SourceWindow | None]) -> SourceWindow | None:
    """Smallest window that holds all."""
    there = [window for window in windows if window is not None]
    if not there:
        return None
    row, column = min(w.row for w in there), min(w.column for w in there)
    bottom, right = max(w.row + w.height for w in there), max(w.column + w.width for w in there)
    return SourceWindow(row, column, bottom - row, right - column)


def _on_target(
    placement: Placement, pixels: NDArray[Any], whole: SourceWindow, target: Target, kind: BandKind
) -> NDArray[Any]:
    window = placement.window
    if window is None:
        return np.zeros((target.height, target.width), kind.dtype)
    row, column = window.row - whole.row, window.column - whole.column
    part = pixels[row : row + window.height, column : column + window.width]
    return placement.bilinear(part) if kind.bilinear else placement.nearest(part)


def grid_of(dataset: Any, kind: BandKind) -> RasterGrid:
    """The grid of an open dataset, once it is what `kind` says."""
    if dataset.count != 1:
        raise UnusableError(f"has {dataset.count} bands, a {kind.name} has one: not the file that is meant")
    if dataset.dtypes[0] != kind.dtype:
        raise UnusableError(f"has {dataset.dtypes[0]} pixels, a {kind.name} has {kind.dtype}")
    if dataset.crs is None:
        raise UnusableError("has no coordinate reference system: its pixels cannot be placed")
    try:
        crs = _crs_text(dataset.crs.wkt)
    except CRSError as error:
        raise UnusableError(f"its coordinate reference system is not understood ({error})") from error
    _block_bytes(dataset.block_shapes[0], kind)
    a, b, c, d, e, f = tuple(dataset.transform)[:6]
    if not all(abs(value) <= _FARTHEST for value in (a, b, c, d, e, f)):  # infinite and NaN are not either
        raise UnusableError(f"its georeference ({a:g}, {b:g}, {c:g}, {d:g}, {e:g}, {f:g}) is no place on Earth")
    if a * e - b * d == 0 or (a, b, c, d, e, f) == (1.0, 0.0, 0.0, 0.0, 1.0, 0.0):
        raise UnusableError("has no georeference: its pixels cannot be placed")
    return RasterGrid(crs, (a, b, c, d, e, f), dataset.height, dataset.width)


@functools.lru_cache(maxsize=256)
def _crs_text(wkt: str) -> str:
    """A CRS as EPSG code where it has one, otherwise its WKT."""
    epsg = rasterio.crs.CRS.from_wkt(wkt).to_epsg()
    return wkt if epsg is None else f"EPSG:{epsg}"
