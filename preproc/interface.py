"""A run in Python: `open_run` gives its plan, tiles, embeddings, mosaic and map as numpy, the mosaic as xarray."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import rasterio
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.coords import disjoint_bounds
from rasterio.transform import Affine
from rasterio.windows import Window, from_bounds

from infer.contract import (
    PIXEL_SIZE,
    Embedding,
    Plan,
    PlannedTile,
    Run,
    SmaltiError,
    Tile,
    child,
    read_embedding,
    read_tile,
)
from infer.contract.rasters import MapManifest, MosaicManifest, MosaicZone
from preproc.mosaic.reader import EmbeddingReader, moved, same_zone
from preproc.raster.zones import ZoneGrid
from preproc.run.config import Config, load_config

if TYPE_CHECKING:
    import xarray

_T = TypeVar("_T")
WGS84 = 4326
Box = tuple[float, float, float, float]
"""West, south, east, north."""
Points = Sequence[tuple[float, float]] | NDArray[Any]


@dataclass(frozen=True)
class Raster:
    """Numbers on the ground."""

    values: NDArray[Any]
    """(h, w) or (h, w, C), row 0 in the north."""
    epsg: int
    transform: Affine
    """Pixel (column, row) -> metres."""


@dataclass(frozen=True)
class OpenRun:
    """A run directory that is read and never written. Made by `open_run`."""

    run: Run

    @cached_property
    def config(self) -> Config:
        """The settings of run.toml."""
        return load_config(self.run)

    @cached_property
    def plan(self) -> Plan:
        """plan.json: window, scenes, estimate, warnings ... (docs/format.md)."""
        return Plan.read(self.run)

    @cached_property
    def tiles(self) -> tuple[PlannedTile, ...]:
        """The planned tiles: name, zone, place and size."""
        return tuple(self.plan.tiles)

    def tile(self, name: str) -> Tile:
        """The time series of a tile, memory-mapped: bands (T, H, W, 10), masks, days of year, Sentinel-1.

        Raises:
            FormatError: if it is not there or not whole.
        """
        return read_tile(self.run.tiles / self._planned(name).name, need_manifest=True, checksums=False)

    def embedding(self, name: str) -> Embedding:
        """The embedding of a tile, memory-mapped; `.window(rows, columns)` gives float32 (h, w, C).

        Raises:
            FormatError: if it is not there or not whole.
        """
        return read_embedding(self.run.embeddings, self._planned(name).name, checksums=False)

    def embeddings_at(self, points: Points, epsg: int = WGS84) -> NDArray[np.float32]:
        """The embeddings at points: of the pixel that each lies in, from the mosaic's store or from the tiles.

        Args:
            points: (N, 2) longitude and latitude, or x and y of `epsg`.
            epsg: coordinate system of the points.

        Returns:
            (N, C) float32; NaN outside the region's tiles and where nothing was observed.

        Raises:
            SmaltiError: if a tile under a point has no embedding, unless [stitch] missing = "nodata".
        """
        at = np.asarray(points, dtype=np.float64).reshape(-1, 2)
        return self._reader.at(at, epsg)

    def embeddings_in(self, bbox: Box, epsg: int = WGS84) -> Raster:
        """The embeddings of a window, from the mosaic's store or joined from its tiles.

        Args:
            bbox: west, south, east, north.
            epsg: coordinate system of the window; degrees by default. Of a UTM zone of the run: exactly these metres.

        Returns:
            (h, w, C) float32 in the zone in which most of the window's tiles lie; NaN = nodata. Rows south of the
            equator lie below 0 where the run has tiles of the zone on both sides.

        Raises:
            SmaltiError: if no tile lies in it, or one has no embedding, unless [stitch] missing = "nodata".
        """
        reader = self._reader
        own = [grid for grid in reader.grids if same_zone(epsg, grid)]
        found = []
        for grid in own or reader.grids:
            window = _window(grid, bbox, epsg)
            found.append((len(grid.part(*window).tiles), grid, window))
        most, grid, window = max(found, key=lambda one: one[0])
        if not most:
            raise SmaltiError(f"{self.run.root}: no tile lies in {list(bbox)} (EPSG:{epsg})")
        return Raster(reader.window(grid, *window), grid.epsg, grid.part(*window).transform)

    @property
    def _reader(self) -> EmbeddingReader:
        gaps = self.run.config.exists() and self.config.stitch.missing == "nodata"
        return EmbeddingReader(self.run, self.plan, gaps=gaps)

    def mosaic(self, zone: str | None = None, chunk: int = 512) -> xarray.DataArray:
        """The mosaic as a lazy xarray (band, y, x), see `open_mosaic`."""
        return open_mosaic(self.run.root, zone, chunk)

    @cached_property
    def classes(self) -> dict[int, str]:
        """Code -> name of the map's classes."""
        return {entry.code: entry.name for entry in MapManifest.read(self.run).classes}

    def map(
        self,
        zone: str | None = None,
        bbox: Box | None = None,
        *,
        confidence: bool = False,
    ) -> Raster:
        """The class map, or the confidence in percent.

        Args:
            zone: UTM zone such as "31N"; may be left out where there is only one.
            bbox: west, south, east, north in degrees; None reads all of it.
            confidence: the second layer instead of the first.

        Returns:
            (h, w) uint8 codes, 0 = nodata (`classes` names them); or percent. Of a box all pixels that it touches.

        Raises:
            SmaltiError: if there is no map, it has several zones and none is named, or the box lies outside of it.
        """
        rasters = _zone(self.run.map, MapManifest.read(self.run).verify(self.run, checksums=False).zones, zone)
        with rasterio.open(child(self.run.map, rasters.confidence if confidence else rasters.classes)) as raster:
            window = Window(0, 0, raster.width, raster.height)
            if bbox is not None:
                box = Transformer.from_crs(WGS84, raster.crs, always_xy=True).transform_bounds(*bbox)
                if not disjoint_bounds(box, raster.bounds):
                    (top, bottom), (left, right) = from_bounds(*box, transform=raster.transform).toranges()
                    rows = max(0, math.floor(top)), min(raster.height, math.ceil(bottom))
                    window = Window.from_slices(rows, (max(0, math.floor(left)), min(raster.width, math.ceil(right))))
                else:
                    raise SmaltiError(
                        f"{raster.name}: does not reach {list(bbox)}: west, south, east, north in degrees"
                    )
            return Raster(raster.read(1, window=window), raster.crs.to_epsg(), raster.window_transform(window))

    def _planned(self, name: str) -> PlannedTile:
        for tile in self.tiles:
            if tile.name == name:
                return tile
        raise SmaltiError(f"{self.run.root}: no tile {name!r} in the plan: it has {len(self.tiles)}, see `.tiles`")


def open_run(run: str | Path) -> OpenRun:
    """Open a run directory for reading.

    Raises:
        SmaltiError: if there is no such directory.
    """
    root = Path(run).absolute()
    if not root.is_dir():
        raise SmaltiError(f"{root}: no such run directory")
    return OpenRun(Run(root))


def open_mosaic(run: str | Path, zone: str | None = None, chunk: int = 512) -> xarray.DataArray:
    """The mosaic of a run, read when computed: its Zarr store, or GeoTIFFs where there is none.

    Needs the extra: pip install 'smalti[interactive]'.

    Args:
        run: the run directory.
        zone: UTM zone such as "31N"; may be left out where there is only one.
        chunk: edge of a chunk in pixels; a multiple of the chunks of the file (32 or 128) reads each of them once.

    Returns:
        float32 (band, y, x) with 128 bands (or those kept), NaN = nodata, and its CRS under `.rio.crs`; the coordinate
        `band_name` has their names. Codes come multiplied by their scales, lazily too. Rows south of the equator lie
        below 0 in the store, whose CRS is the northern one.

    Raises:
        SmaltiError: if there is no mosaic, or it has several zones and none is named.
    """
    try:
        import rioxarray  # noqa: F401  # gives arrays their `.rio`
    except ImportError as error:
        raise SmaltiError(f"{error}: `pip install 'smalti[interactive]'`") from error
    directory = Run(Path(run))
    mosaic = MosaicManifest.read(directory).verify(directory, checksums=False)
    rasters = _zone(directory.mosaic, mosaic.zones, zone)
    if mosaic.store is not None and rasters.group is not None:
        values = _from_store(child(directory.mosaic, mosaic.store), rasters.group, chunk)
    else:
        values = _from_rasters(directory.mosaic, rasters, chunk)
    return values.rename("embeddings")


def _from_store(store: Path, group: str, chunk: int) -> xarray.DataArray:
    import xarray

    chunks = {"time": 1, "band": -1, "y": chunk, "x": chunk}
    dataset = xarray.open_zarr(store, group=group, consolidated=True, chunks=chunks).isel(time=0, drop=True)
    scales = dataset["scales"].where(np.isfinite(dataset["scales"]))
    codes: xarray.DataArray = dataset["embeddings"]
    names = [f"e{index:03d}" for index in codes["band"].values]
    codes = codes.assign_coords(band=np.arange(1, len(names) + 1), band_name=("band", names))
    values: xarray.DataArray = (codes.astype("float32") * scales).transpose("band", "y", "x")
    values.attrs = {}
    return values.rio.write_crs(dataset.attrs["proj:code"])


def _from_rasters(folder: Path, rasters: MosaicZone, chunk: int) -> xarray.DataArray:
    import rioxarray

    assert rasters.raster is not None, "a mosaic without a store has GeoTIFFs"
    chunks = {"band": -1, "y": chunk, "x": chunk}
    values: xarray.DataArray = rioxarray.open_rasterio(child(folder, rasters.raster), chunks=chunks, masked=False)
    # as an attribute, the names of all bands would be in the way of writing some of them
    names = values.attrs.pop("long_name", None)
    if isinstance(names, tuple):
        values = values.assign_coords(band_name=("band", list(names)))
    if rasters.scales is not None:
        scales: xarray.DataArray = rioxarray.open_rasterio(child(folder, rasters.scales), chunks=chunks, masked=False)
        values = (values.astype("float32") * scales.isel(band=0, drop=True)).rio.write_crs(values.rio.crs)
    return values


def _zone(folder: Path, zones: Mapping[str, _T], zone: str | None) -> _T:
    """The rasters of one zone of a mosaic or map."""
    if zone is None and len(zones) == 1:
        return next(iter(zones.values()))
    if zone is None:
        raise SmaltiError(f"{folder}: the {folder.name} has zones {', '.join(zones)}: name one")
    if zone not in zones:
        raise SmaltiError(f"{folder}: no zone {zone} in the {folder.name}: it has {', '.join(zones)}")
    return zones[zone]


def _window(grid: ZoneGrid, bbox: Box, epsg: int) -> tuple[int, int, int, int]:
    """First row and column, height and width of the pixels of a grid that a box touches."""
    if same_zone(epsg, grid):
        (west, east), (south, north) = moved(epsg, grid, np.array(bbox[::2]), np.array(bbox[1::2]))
    else:
        west, south, east, north = Transformer.from_crs(epsg, grid.epsg, always_xy=True).transform_bounds(*bbox)
    if not np.isfinite([west, south, east, north]).all():
        return 0, 0, 0, 0  # on the other side of the earth
    top, left = (int(np.floor(v / PIXEL_SIZE)) for v in (grid.north - north, west - grid.west))
    bottom, right = (int(np.ceil(v / PIXEL_SIZE)) for v in (grid.north - south, east - grid.west))
    return top, left, bottom - top, right - left
