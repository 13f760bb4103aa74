"""TESSERA tiles on disk: seven arrays, a region mask and a manifest; the strict reader and what it checks.

The layout is that of the reference implementation (ucam-eo/tessera), so that its tiles can be read without a manifest
and smalti's tiles by it. See docs/format.md.
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from infer.contract.atomic import sha256_file, write_npy
from infer.contract.errors import FormatError, writing
from infer.contract.manifest import Inputs, State, state_and_digest, verify_files, write_manifest
from infer.contract.plan import PlannedTile
from infer.contract.provenance import TileGrid, Window
from infer.contract.record import Record
from infer.contract.regular import open_npy

BANDS = ("B04", "B02", "B03", "B08", "B8A", "B05", "B06", "B07", "B11", "B12")
"""Order of the last axis of bands.npy: red, blue, green, nir, nir08, rededge1-3, swir16, swir22."""
SAR_BANDS = ("VV", "VH")
"""Order of the last axis of sar_*.npy."""
MASK_POLARITY = "1 = clear, 0 = not clear or outside the region"
TILE_MANIFEST = "tile.json"
ROI_FILE = "roi.tiff"
QUALITY_FILE = "quality.json"
"""How well the tile is observed; see docs/format.md."""
PIXELS_FILE = "pixels.npy"
"""Of a tile that holds only some pixels of another one: (H * W, 2) int32, the row and column of each there."""
RELEASED_FILE = "released.json"
"""Says that the arrays of this tile were let go once they were embedded: what stays of it is a record."""


@dataclass(frozen=True)
class ArraySpec:
    """What one array of a tile must be."""

    file: str
    dtype: np.dtype[Any]
    axes: str
    """One letter an axis: t (S2 dates), a/d (S1 dates, ascending/descending), h, w, and b (10 bands) or p (VV, VH)."""


TILE_ARRAYS = {
    "bands_thwb": ArraySpec("bands.npy", np.dtype("<u2"), "thwb"),
    "masks_thw": ArraySpec("masks.npy", np.dtype("u1"), "thw"),
    "doys_t": ArraySpec("doys.npy", np.dtype("<u2"), "t"),
    "sar_asc_thwp": ArraySpec("sar_ascending.npy", np.dtype("<i2"), "ahwp"),
    "sar_asc_doys_t": ArraySpec("sar_ascending_doy.npy", np.dtype("<i2"), "a"),
    "sar_desc_thwp": ArraySpec("sar_descending.npy", np.dtype("<i2"), "dhwp"),
    "sar_desc_doys_t": ArraySpec("sar_descending_doy.npy", np.dtype("<i2"), "d"),
}
"""Field of `Tile` -> file, dtype and axes."""

_REMEDY = "fetch this tile again (delete its folder first if it is not smalti's)"


@dataclass(frozen=True)
class DroppedDate:
    """A date that was looked at and left out."""

    date: dt.date
    reason: str
    items: tuple[str, ...]
    """Ids of its scenes."""
    clear_share: float | None = None
    """Of the region's pixels, where too few were clear."""


@dataclass(frozen=True)
class FailedFile:
    """A file that could not be read for good, so that its date was left out."""

    date: dt.date
    item: str
    asset: str
    reason: str


@dataclass(frozen=True)
class LeftOutItem:
    """An item that is of no use."""

    item: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class TileSeason(Record):
    """Of tile.json the season and its dates: the whole of it is long, and of a country's tiles no more is read."""

    kind = "tile"
    stage = "fetch"

    window: Window | None = None
    """The season."""
    dates: Mapping[str, tuple[dt.date, ...]] | None = None
    """Stack (s2, s1_ascending, s1_descending) -> days, ascending."""

    @classmethod
    def of_folder(cls, folder: Path) -> Self:
        """tile.json of a tile's folder; its files are not looked at.

        Raises:
            FormatError: if it is missing or not what it should be.
        """
        return cls.read_at(folder / TILE_MANIFEST, _REMEDY)

    @classmethod
    def stated(cls, folder: Path) -> Self:
        """The same; of a tile that has none, one that states nothing."""
        return cls.of_folder(folder) if (folder / TILE_MANIFEST).is_file() else cls()


@dataclass(frozen=True, kw_only=True)
class TileManifest(TileSeason):
    """tile.json. A tile of others' has none, and states nothing."""

    band_order: tuple[str, ...] = ()
    mask_polarity: str = ""
    sar_band_order: tuple[str, ...] | None = None
    grid: TileGrid | None = None
    source: str | None = None
    """[archive] source."""
    data_source: str | None = None
    """The archive that all scenes belong to (mpc, aws), or "other"."""
    offset_policy: Mapping[str, tuple[str, ...]] | None = None
    """What was done about the offset of Sentinel-2's baseline 04.00 -> ids of the items."""
    offset_basis: Mapping[str, tuple[str, ...]] | None = None
    """What that rests on -> ids of the items."""
    items: Mapping[str, Mapping[str, tuple[str, ...]]] | None = None
    """Stack -> day -> ids of the scenes that give pixels, in order."""
    dropped: Mapping[str, tuple[DroppedDate, ...]] | None = None
    """Stack -> dates, ascending."""
    failed: Mapping[str, tuple[FailedFile, ...]] | None = None
    """Stack -> files."""
    left_out: tuple[LeftOutItem, ...] | None = None
    min_clear: float | None = None
    """[tiles] min_clear."""
    on_missing: str | None = None
    """[archive] on_missing."""
    region_pixels: int | None = None
    """Pixels inside the region."""
    classes: Mapping[str, str] | None = None
    """Of a simulated tile: code -> name of what grows there."""


@dataclass(frozen=True)
class Tile:
    """One tile's arrays (memory-mapped, read-only) and its manifest.

    T, A and D are numbers of dates and may be 0; H and W are pixels of 10 m.
    """

    name: str
    bands_thwb: NDArray[np.uint16]
    """(T, H, W, 10) Sentinel-2 L2A digital numbers (reflectance x 10000), offset removed, in the order of BANDS."""
    masks_thw: NDArray[np.uint8]
    """(T, H, W) 1 = clear."""
    doys_t: NDArray[np.uint16]
    """(T,) day of year, 1..366."""
    sar_asc_thwp: NDArray[np.int16]
    """(A, H, W, 2) VV, VH as scaled dB, (0, 0) = missing."""
    sar_asc_doys_t: NDArray[np.int16]
    """(A,) day of year."""
    sar_desc_thwp: NDArray[np.int16]
    """(D, H, W, 2)."""
    sar_desc_doys_t: NDArray[np.int16]
    """(D,) day of year."""
    manifest: TileManifest = field(default_factory=TileManifest)
    """tile.json; of a tile that has none, one that states nothing."""
    pixels_p2: NDArray[np.int32] | None = None
    """(H * W, 2) row and column that each pixel has in the tile that it was taken from; None in a tile of its own."""

    @property
    def shape_hw(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return int(self.masks_thw.shape[1]), int(self.masks_thw.shape[2])

    def positions(self, pixels_p: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and columns of some pixels (counted row by row) in the grid that the manifest states.

        What depends on a pixel's place has to ask here, so that pixels taken from a tile give what they gave there.
        """
        if self.pixels_p2 is None:
            width = self.shape_hw[1]
            return pixels_p // width, pixels_p % width
        chosen = self.pixels_p2[pixels_p].astype(np.int64)
        return chosen[:, 0], chosen[:, 1]


def _load(path: Path, spec: ArraySpec) -> NDArray[Any]:
    if not path.exists():
        hint = " (a missing mask is never read as zeros)" if spec.file == "masks.npy" else ""
        raise FormatError(f"{path}: missing{hint}: {_REMEDY}")
    array = open_npy(path, _REMEDY)
    if array.dtype != spec.dtype:
        raise FormatError(f"{path}: dtype {array.dtype}, expected {spec.dtype}: {_REMEDY}")
    if array.ndim != len(spec.axes):
        raise FormatError(f"{path}: {array.ndim} axes {array.shape}, expected {len(spec.axes)}: {_REMEDY}")
    return array


def _check_axes(folder: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    sizes = {"b": (len(BANDS), "the ten bands"), "p": (len(SAR_BANDS), "VV and VH")}
    for name, spec in TILE_ARRAYS.items():
        for axis, size in zip(spec.axes, arrays[name].shape, strict=True):
            known, origin = sizes.setdefault(axis, (int(size), spec.file))
            if size != known:
                raise FormatError(
                    f"{folder / spec.file}: axis {axis!r} has {size} entries, {origin} has {known}: {_REMEDY}"
                )
    if sizes["h"][0] == 0 or sizes["w"][0] == 0:
        raise FormatError(f"{folder}: the tile has no pixels: {_REMEDY}")


def _check_values(folder: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    masks = arrays["masks_thw"]
    if masks.size and int(masks.max()) > 1:
        raise FormatError(f"{folder / 'masks.npy'}: holds {int(masks.max())}, a mask is 0 or 1: {_REMEDY}")
    for name, spec in TILE_ARRAYS.items():
        doys = arrays[name]
        if len(spec.axes) == 1 and doys.size and not (int(doys.min()) >= 1 and int(doys.max()) <= 366):
            raise FormatError(f"{folder / spec.file}: day of year outside 1..366: {_REMEDY}")


def _check_manifest(folder: Path, manifest: TileManifest) -> None:
    path = folder / TILE_MANIFEST
    if manifest.band_order != BANDS:
        raise FormatError(
            f"{path}: band order {str(list(manifest.band_order))[:100]}, expected {list(BANDS)}: {_REMEDY}"
        )
    if manifest.mask_polarity != MASK_POLARITY:
        raise FormatError(f"{path}: mask polarity {manifest.mask_polarity[:80]!r}: {_REMEDY}")
    missing = [spec.file for spec in TILE_ARRAYS.values() if spec.file not in manifest.files]
    if missing:
        raise FormatError(f"{path}: does not list {', '.join(missing)}: {_REMEDY}")


def _check_planned(folder: Path, manifest: TileManifest, planned: PlannedTile) -> None:
    """A folder that was renamed or copied to another tile's place would put its pixels where they are not."""
    grid = manifest.inputs.get("grid")
    expected = [planned.epsg, planned.west, planned.north, planned.size]
    if grid is not None and grid != expected:
        raise FormatError(
            f"{folder / TILE_MANIFEST}: made for the grid {str(grid)[:80]}, but the plan has {planned.name} at "
            f"{expected} (EPSG, west, north, pixels): another tile's folder under this name: {_REMEDY}"
        )


def read_tile(folder: Path, *, need_manifest: bool, checksums: bool = True, planned: PlannedTile | None = None) -> Tile:
    """Open a tile and check everything that can be checked before it is trusted.

    Args:
        folder: the tile's folder; its name is the tile's name.
        need_manifest: refuse a tile without tile.json (smalti's own). Without it the manifest is used when there.
        checksums: verify the manifest's checksums (reads every byte once).
        planned: the tile that it has to be; None takes any.

    Raises:
        FormatError: one line that names the file and what is wrong with it.
    """
    if not folder.is_dir():
        raise FormatError(f"{folder}: no such tile folder: run `smalti fetch`")
    path = folder / TILE_MANIFEST
    manifest = TileManifest()
    if need_manifest or path.exists():
        manifest = TileManifest.of_folder(folder)
        _check_manifest(folder, manifest)
        if planned is not None:
            _check_planned(folder, manifest, planned)
        if is_released(folder):
            raise FormatError(
                f"{folder}: its arrays were released once they were embedded: `smalti fetch --force` reads them again"
            )
        verify_files(path, manifest.files, checksums=checksums, remedy=_REMEDY)
    arrays = {name: _load(folder / spec.file, spec) for name, spec in TILE_ARRAYS.items()}
    _check_axes(folder, arrays)
    _check_values(folder, arrays)
    pixels = None if PIXELS_FILE not in manifest.files else _load_pixels(folder, arrays)
    return Tile(name=folder.name, manifest=manifest, pixels_p2=pixels, **arrays)


def _load_pixels(folder: Path, arrays: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    pixels = open_npy(folder / PIXELS_FILE, _REMEDY)
    _, height, width = arrays["masks_thw"].shape
    if pixels.dtype != np.dtype("<i4") or pixels.shape != (height * width, 2) or int(pixels.min()) < 0:
        raise FormatError(
            f"{folder / PIXELS_FILE}: {pixels.dtype} {pixels.shape} is no row and column of {height * width} pixels: "
            f"{_REMEDY}"
        )
    return pixels


def write_pixels_of(tile: Tile, folder: Path, pixels_n2: NDArray[np.int32], inputs: Inputs) -> None:
    """Write some pixels of a tile as a tile of one row, with all their observations: they embed as they do there.

    Args:
        tile: where from.
        folder: a new folder, which should be put in its place as a whole.
        pixels_n2: (N, 2) rows and columns, at least one.
        inputs: fingerprint of what it is made from.
    """
    files = []
    for name, spec in TILE_ARRAYS.items():
        array = getattr(tile, name)
        if "h" in spec.axes:
            array = np.ascontiguousarray(array[:, pixels_n2[:, 0], pixels_n2[:, 1]][:, None])
        files.append(folder / spec.file)
        write_npy(files[-1], array)
    files.append(folder / PIXELS_FILE)
    write_npy(files[-1], pixels_n2.astype("<i4"))
    tile.manifest.write(folder / TILE_MANIFEST, inputs=inputs, files=files)


def is_tile_folder(folder: Path) -> bool:
    """Whether a folder looks like a tile (has bands.npy or a manifest); it may still be broken."""
    return (folder / TILE_MANIFEST).exists() or (folder / TILE_ARRAYS["bands_thwb"].file).exists()


def is_released(folder: Path | str) -> bool:
    """Whether a tile's arrays were let go, or are being let go."""
    return os.path.isfile(f"{folder}/{RELEASED_FILE}")  # noqa: PTH113  # asked of every tile of a country


def release_tile(folder: Path) -> int:
    """Let a tile's arrays go, whose embedding was read back; manifest, quality and region mask stay.

    The record of it is written first: what a kill leaves is a released tile with some arrays, and the next call
    removes them.

    Returns:
        Bytes that were freed.

    Raises:
        SmaltiError: if the file system refuses.
    """
    if not is_released(folder):
        inputs = {"tile": sha256_file(folder / TILE_MANIFEST)}
        write_manifest(folder / RELEASED_FILE, "released", inputs=inputs, files=[])
    return _remove_arrays(folder)


def _remove_arrays(folder: Path) -> int:
    freed = 0
    for path in array_paths(folder):
        with writing(path), suppress(FileNotFoundError):
            size = path.stat().st_size
            path.unlink()
            freed += size
    return freed


_ARRAY_FILES = frozenset(spec.file for spec in TILE_ARRAYS.values())


def array_paths(folder: Path) -> list[Path]:
    """Where a tile's arrays are, or were."""
    return [folder / spec.file for spec in TILE_ARRAYS.values()]


def take_back(folder: Path) -> None:
    """A released tile is needed again: without the record it is a tile whose arrays are missing, and is fetched."""
    with writing(folder):
        (folder / RELEASED_FILE).unlink(missing_ok=True)


def tile_state(manifest: Path, inputs: Inputs, *, released: bool = False, embedded: str = "") -> tuple[State, str]:
    """Where a tile stands, or the record that stays of a released one.

    Args:
        manifest: its tile.json, which says more of a season's dates than this needs.
        inputs: what it should have been made from.
        released: its arrays may be gone.
        embedded: SHA-256 of the tile.json that its embedding was made from: the engine has read all of that.

    Returns:
        Its state, and the SHA-256 of its manifest.
    """
    without = _ARRAY_FILES if released else ()
    return state_and_digest(manifest, TileSeason.kind, inputs, without=without, trusted=embedded)
