"""Published embeddings as geotessera lays them out: its Zarr v3 stores, and its older npy tiles of 0.1 degree."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

import numpy as np
import rasterio
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.errors import RasterioError

from infer.contract import (
    EXIT_TRY_AGAIN,
    PIXEL_SIZE,
    FormatError,
    PlannedTile,
    SmaltiError,
    parse_json,
    sha256_file,
    sha256_json,
)
from infer.contract.embedding import OBSERVED
from infer.contract.regular import open_npy, read_regular
from preproc.exchange.placement import SOUTH, Frame, Patch
from preproc.exchange.zarr_store import bounded, check_array, is_icechunk, open_group, store_errors
from preproc.reader.buckets import first_line
from preproc.region.grid import tile_footprint

METADATA = "tessera_metadata.json"
NPY_FOLDER = "global_0.1_degree_representation"
MASK_FOLDER = "global_0.1_degree_tiff_all"
_MOST = 4096
"""Numbers a pixel that are believed."""
_FARTHEST = 1e8
"""Metres that a corner's coordinates may have."""
_MOST_YEARS = 1000
"""Of a store."""
_MOST_SIDE = 4096
"""Pixels along the side of an npy tile."""
_LONGEST = 200
"""Characters of what a source calls itself, which go into every output."""


@dataclass(frozen=True)
class Dataset:
    """What a source says of its embeddings; those of different datasets do not mix."""

    version: str
    """Of the model: "1.1"."""
    variant: str
    """Which run of it; empty where the source does not say."""
    dim: int
    fingerprint: str
    """Of what the source says of itself."""
    model: str | None = None
    """Registered name of the encoder, where the source states it: smalti's own stores do."""
    trained: bool = True
    """False where the source says that its encoder never was: its embeddings mean nothing."""
    checkpoint: str | None = None
    """SHA-256 of its file, likewise."""
    counts: bool = False
    """It says how often each pixel was seen."""
    window: tuple[str, str] | None = None
    """First and last day, likewise; of the others it is a calendar year."""

    def __str__(self) -> str:
        if self.model is not None:
            return f"{self.model} by smalti"
        return f"TESSERA {self.version} {self.variant}".rstrip()


class Published(Protocol):
    """A source of embeddings for one year."""

    dataset: Dataset

    def patches(self, tile: PlannedTile) -> list[Patch]:
        """What may have pixels of a tile, in order of preference."""


def open_published(source: str, year: int) -> Published:
    """Open a Zarr store (folder or address) or a folder of npy tiles.

    Raises:
        SmaltiError: if it is neither, or does not have the year.
    """
    folder = Path(source)
    if "://" not in source:
        if (folder / NPY_FOLDER).is_dir() or (folder / METADATA).is_file():
            return NpyTiles(folder, year)
        if not (folder / "zarr.json").is_file() and not is_icechunk(source):
            raise SmaltiError(
                f"{source}: neither a Zarr v3 store (zarr.json) nor geotessera's npy tiles ({NPY_FOLDER}/): name one"
            )
    return ZarrStore(source, year)


class ZarrStore:
    """A store with a group a UTM zone."""

    def __init__(self, source: str, year: int) -> None:
        self._source = source.rstrip("/")
        self._root, snapshot = open_group(source)
        attributes = dict(self._root.attrs)
        dim, kind = attributes.get("geoemb:dimensions"), attributes.get("geoemb:data_type")
        model = attributes.get("geoemb:model")
        if not isinstance(model, str) or type(dim) is not int or not 0 < dim <= _MOST or kind != "int8":
            raise SmaltiError(f"{source}: its geoemb: attributes do not say int8 embeddings of a model: name another")
        told: dict[str, Any] = {key: attributes.get(f"smalti:{key}") for key in ("model", "checkpoint", "window")}
        own = told["model"] if isinstance(told["model"], dict) else {}
        ours = isinstance(own.get("name"), str) and isinstance(told["checkpoint"], str)
        said = [model, dim, attributes.get("geoemb:build_version"), told["checkpoint"], told["window"]]
        self.dataset = Dataset(
            version=model.rstrip("/").rsplit("/", 1)[-1].removeprefix("v")[:_LONGEST],
            variant="",
            dim=dim,
            fingerprint=sha256_json(said if snapshot is None else [*said, snapshot]),
            model=str(own["name"]) if ours else None,
            trained=not ours or own.get("trained") is True,
            checkpoint=told["checkpoint"] if ours else None,
            window=_window(told["window"]),
        )
        self._year = year
        self._zones: dict[int, Patch | None] = {}
        if ours:
            counts = any(f"{name}/observations" in self._root for name in self._root.group_keys())
            self.dataset = replace(self.dataset, counts=counts)

    def patches(self, tile: PlannedTile) -> list[Patch]:
        """The tile's own zone first, then its neighbours, in whose group a tile on the seam may be."""
        own = tile.epsg % 100
        zones = (own, (own - 2) % 60 + 1, own % 60 + 1)
        return [patch for patch in map(self._zone, zones) if patch is not None]

    def _zone(self, zone: int) -> Patch | None:
        if zone not in self._zones:
            name = f"utm{zone:02d}"
            self._zones[zone] = self._open_zone(name, zone) if name in self._root else None
        return self._zones[zone]

    def _open_zone(self, name: str, zone: int) -> Patch:
        where = f"{self._source}/{name}"
        try:
            with bounded():
                group: Any = self._root[name]
                codes, scales, counted = group["embeddings"], group["scales"], group.get("observations")
                time = group["time"]
            if not 0 < time.size <= _MOST_YEARS:
                raise ValueError(f"{time.size} years")
            years = [int(year) for year in np.asarray(time[:]).tolist()]
            a, b, west, d, e, north = (float(value) for value in group.attrs["spatial:transform"][:6])
        except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
            raise SmaltiError(f"{where}: not a zone of geotessera's layout ({error!r}): name another store") from error
        if (a, b, d, e) != (PIXEL_SIZE, 0.0, 0.0, -PIXEL_SIZE):
            raise SmaltiError(f"{where}: its pixels are {a} x {e} metres, those of runs {PIXEL_SIZE}: name another")
        if not max(abs(west), abs(north)) < _FARTHEST:
            raise SmaltiError(f"{where}: its corner {west}, {north} lies beyond the Earth: name another store")
        arrays = [one for one in (codes, scales, counted) if one is not None]
        if any(not hasattr(one, "dtype") or one.ndim < 3 for one in arrays):
            raise SmaltiError(
                f"{where}: embeddings and scales are no arrays of geotessera's layout: name another store"
            )
        height, width = (int(side) for side in scales.shape[-2:])
        fits = codes.shape[1:] == (self.dataset.dim, height, width) and scales.ndim == 3
        fits = fits and min(codes.shape[0], scales.shape[0]) >= len(years)
        if codes.dtype != np.int8 or scales.dtype != np.float32 or not fits:
            raise SmaltiError(
                f"{where}: codes {codes.dtype} {codes.shape} and scales {scales.dtype} {scales.shape} do not fit "
                f"{len(years)} years of {self.dataset.dim} numbers: name another store"
            )
        for one in arrays:
            with _named(where):
                check_array(one)
        if self._year not in years:
            raise SmaltiError(
                f"{where}: has {', '.join(map(str, years))}, not {self._year}: change [region] start, end"
            )
        index = years.index(self._year)

        def read(rows: slice, columns: slice) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
            with _named(where):
                found = np.asarray(scales[index, rows, columns])
                if not np.isfinite(found).any():  # then the codes are not asked for
                    return np.zeros((*found.shape, self.dataset.dim), np.int8), found
                return np.moveaxis(np.asarray(codes[index, :, rows, columns]), 0, -1), found

        known = (
            counted is not None
            and list(counted.attrs.get("smalti:layers", []))[:2] == ["clear_s2", "s1"]
            and counted.dtype == np.uint8
            and counted.shape[0] >= len(years)
            and (counted.ndim, *counted.shape[2:]) == (4, height, width)
            and counted.shape[1] >= len(OBSERVED)
        )

        def observed(rows: slice, columns: slice) -> NDArray[np.uint8]:
            with _named(where):
                return np.moveaxis(np.asarray(counted[index, : len(OBSERVED), rows, columns]), 0, -1)

        return Patch(name, zone, west, north, (height, width), read, observed if known else None)


@contextmanager
def _named(where: str) -> Iterator[None]:
    """What goes wrong with a zone of a store becomes one line that names it."""
    try:
        yield
    except SmaltiError as error:
        raise SmaltiError(f"{where}: {error}", exit_code=error.exit_code) from error
    except store_errors() as error:
        raise SmaltiError(
            f"{where}: cannot be read ({first_line(error)}): run the same command again", exit_code=EXIT_TRY_AGAIN
        ) from error


def _window(stated: Any) -> tuple[str, str] | None:
    return (str(stated[0]), str(stated[1])) if isinstance(stated, list) and len(stated) == 2 else None


class NpyTiles:
    """geotessera's tiles: codes and scales a tile of 0.1 degree, where they are told by their name."""

    def __init__(self, folder: Path, year: int) -> None:
        self._folder = folder
        path = folder / METADATA
        try:
            stated = parse_json(read_regular(path))
            version, variant = (str(stated[f"dataset_{key}"])[:_LONGEST] for key in ("version", "variant"))
        except (OSError, ValueError, TypeError, KeyError, FormatError) as error:
            what = '{"dataset_version": "1.1", "dataset_variant": "..."}'
            raise SmaltiError(f"{path}: does not say which dataset this is ({error!r}): write {what} there") from error
        self._years = folder / NPY_FOLDER / str(year)
        if not self._years.is_dir():
            raise SmaltiError(f"{self._years}: no such folder: it does not have {year}; change [region] start and end")
        version = version.removeprefix("v") + (".0" if "." not in version else "")
        own = {key: stated.get(f"smalti_{key}") for key in ("model", "checkpoint", "window")}
        ours = isinstance(own["model"], str)
        self.dataset = Dataset(
            version,
            variant,
            128,
            sha256_json([version, variant, *own.values()] if ours else [version, variant]),
            model=own["model"] if ours else None,
            trained=stated.get("smalti_trained") is not False,
            checkpoint=own["checkpoint"] if ours and isinstance(own["checkpoint"], str) else None,
            window=_window(own["window"]) if ours else None,
        )

    def patches(self, tile: PlannedTile) -> list[Patch]:
        """Its tiles that may touch this one, the nearest first."""
        found = []
        for cell in cells_of(tile):
            if (self._years / cell.name / f"{cell.name}.npy").is_file():
                found.append(self._patch(cell))
        zone, south = tile.epsg % 100, SOUTH if tile.epsg > 32700 else 0
        middle_x, middle_y = tile.west + tile.size * 5, tile.north - tile.size * 5 - south

        def distance(patch: Patch) -> tuple[bool, float]:
            height, width = patch.shape_hw
            x, y = patch.west + width * 5, patch.north - height * 5
            return patch.zone != zone, math.hypot(x - middle_x, y - middle_y)

        return sorted(found, key=distance)

    def _patch(self, cell: Cell) -> Patch:
        name = cell.name
        remedy = "fetch this tile with geotessera again"
        stem = self._years / name / name
        codes = open_npy(stem.with_name(f"{name}.npy"), remedy)
        scales = open_npy(stem.with_name(f"{name}_scales.npy"), remedy)
        if codes.dtype != np.int8 or codes.ndim != 3 or codes.shape[2] != self.dataset.dim:
            raise SmaltiError(f"{stem}.npy: {codes.dtype} {codes.shape}, expected int8 (H, W, 128): {remedy}")
        if max(codes.shape[:2]) > _MOST_SIDE:
            raise SmaltiError(f"{stem}.npy: {codes.shape}, a tile of 0.1 degree has some 1100 pixels a side: {remedy}")
        if scales.dtype != np.float32 or scales.shape != codes.shape[:2]:
            raise SmaltiError(f"{stem}_scales.npy: {scales.dtype} {scales.shape} does not fit the codes: {remedy}")
        land = self._land(name, (int(scales.shape[0]), int(scales.shape[1])))

        def read(rows: slice, columns: slice) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
            found = np.array(scales[rows, columns])
            if land is not None:
                found[~land[rows, columns]] = np.nan
            return np.asarray(codes[rows, columns]), found

        frame = cell.frame  # without its size: a tile may be a pixel larger or smaller
        return Patch(name, cell.zone, frame.west, frame.north, (int(scales.shape[0]), int(scales.shape[1])), read)

    def _land(self, name: str, shape_hw: tuple[int, int]) -> NDArray[np.bool_] | None:
        path = self._folder / MASK_FOLDER / f"{name}.tiff"
        if not path.is_file():
            return None
        try:
            with rasterio.open(path) as source:
                if (source.height, source.width) != shape_hw:
                    raise SmaltiError(f"{path}: {source.height} x {source.width} pixels, its tile has {shape_hw}")
                mask: NDArray[np.bool_] = source.read(1) != 0
        except RasterioError as error:
            raise SmaltiError(f"{path}: cannot be read ({error}): fetch it again") from error
        return mask


@dataclass(frozen=True, order=True)
class Cell:
    """A cell of geotessera's grid of 0.1 degree, by its place in it."""

    column: int
    """Western edge in tenths of a degree."""
    row: int
    """Southern edge."""

    @property
    def longitude(self) -> float:
        """Of its centre."""
        return round(self.column / 10 + 0.05, 2)

    @property
    def latitude(self) -> float:
        """Of its centre."""
        return round(self.row / 10 + 0.05, 2)

    @property
    def name(self) -> str:
        """As its files are called."""
        return f"grid_{self.longitude:.2f}_{self.latitude:.2f}"

    @property
    def zone(self) -> int:
        """The UTM zone of its centre's longitude; Norway's exceptions do not count."""
        return int((self.longitude + 180) // 6) % 60 + 1

    @cached_property
    def frame(self) -> Frame:
        """Its pixels, in the northern CRS of its zone: they lie on multiples of 10 m.

        geotessera computes on them although the transform that travels with its files states the unsnapped corner
        (its issue 429).
        """
        move = Transformer.from_crs(4326, 32600 + self.zone, always_xy=True)
        west, east = self.longitude - 0.05, self.longitude + 0.05
        south, north = self.latitude - 0.05, self.latitude + 0.05
        x, y = move.transform([west, east, west, east], [north, north, south, south])
        left, top = min(x[0], x[2]), max(y[0], y[1])
        height, width = round((top - min(y[2], y[3])) / PIXEL_SIZE), round((max(x[1], x[3]) - left) / PIXEL_SIZE)
        snapped = math.floor(left / PIXEL_SIZE) * PIXEL_SIZE, math.ceil(top / PIXEL_SIZE) * PIXEL_SIZE
        return Frame(32600 + self.zone, *snapped, (height, width))


def cells_of(tile: PlannedTile) -> list[Cell]:
    """The cells that a tile touches."""
    found = set()
    for part in tile_footprint(tile, margin=PIXEL_SIZE).geoms:
        west, south, east, north = part.bounds
        for column in range(math.floor(west * 10), math.floor(east * 10) + 1):
            found |= {Cell(column, row) for row in range(math.floor(south * 10), math.floor(north * 10) + 1)}
    return sorted(found)


def identity(published: Published, source: str, year: int) -> str:
    """Fingerprint of what is taken from where."""
    root = Path(source) / "zarr.json"
    stated = sha256_file(root) if "://" not in source and root.is_file() else shown(source)
    return sha256_json([str(published.dataset), published.dataset.fingerprint, stated, year])


def shown(source: str) -> str:
    """An address without keys, a folder by its name: outputs do not name the machine that made them."""
    if "://" not in source:
        return source.rstrip("/").rpartition("/")[2]
    parts = urlsplit(source)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
