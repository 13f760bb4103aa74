"""The embeddings of a run at points and in windows, whatever they are read from: the mosaic's store, or the tiles.

The store is read where it has the engine's numbers: of embeddings kept as int8, as long as a tile's embedding is the
one that its sheet was made of. It is also all there is of tiles whose embeddings are not on this machine. Everything
else comes from the tiles: before `smalti stitch`, after an embedding has changed, and of embeddings kept as float32,
which the store has as codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import Transformer

from infer.contract import (
    PIXEL_SIZE,
    Embedding,
    FormatError,
    Plan,
    PlannedTile,
    Run,
    SmaltiError,
    verify_files,
)
from infer.contract.embedding import dequantise
from infer.contract.rasters import MosaicManifest, MosaicSheet
from preproc.mosaic.sheet import SheetFiles
from preproc.raster.provenance import Embeddings
from preproc.raster.strips import open_embedding
from preproc.raster.zones import FALSE_NORTHING, Sheet, ZoneGrid, sheets_of, zone_grids

if TYPE_CHECKING:
    import zarr

Source = Literal["store first", "tiles first", "tiles"]
_OPENED = 64
"""Tiles that are kept open: who asks for one place after the other comes back to them."""
_POINTS = 4096
"""That are read of the store at a time: zarr takes an index of four whole numbers for each number of each of them."""


class EmbeddingReader:
    """Reads pixels and windows of a run. What is there is looked at once: make a reader for each question."""

    def __init__(self, run: Run, plan: Plan, *, gaps: bool, source: Source = "store first") -> None:
        """A reader.

        Args:
            run: the run directory.
            plan: of it.
            gaps: tiles of which nothing is there are nodata ([stitch] missing = "nodata"); otherwise an error.
            source: "tiles first" leaves the store to tiles that are not there, for many single pixels, which are far
                quicker to read of tiles; "tiles" are read by whoever says that he was made of them.
        """
        self.run, self._source = run, source
        self.grids = zone_grids(plan.tiles)
        self._gaps = gaps
        self._embeddings = Embeddings.of_run(run, plan, gaps=True)
        self._stores: dict[int, _ZoneStore | None] = {}
        self._open = lru_cache(_OPENED)(self._read_tile)

    @cached_property
    def dim(self) -> int:
        """Numbers a pixel; 0 where there is neither an embedding nor a mosaic."""
        if self._mosaic is not None and not self.run.embeddings.is_dir():  # a country's tiles need not be asked in turn
            return self._mosaic.dim
        try:
            return self._embeddings.provenance([]).dim
        except SmaltiError:
            return 0 if self._mosaic is None else self._mosaic.dim

    def at(self, place_n2: NDArray[np.float64], epsg: int) -> NDArray[np.float32]:
        """The embeddings of the pixels that places lie in.

        Args:
            place_n2: (N, 2) longitude and latitude, or x and y.
            epsg: their coordinate system.

        Returns:
            (N, C) NaN where there is no tile or nothing was seen. Where zones overlap, of the one that has something;
            of places in a zone's metres of that zone first.

        Raises:
            SmaltiError: if a tile's embedding is missing, unless gaps are allowed, or what is read is damaged.
        """
        found_nc = np.full((len(place_n2), self.dim), np.nan, dtype=np.float32)
        for grid in sorted(self.grids, key=lambda grid: not same_zone(epsg, grid)):
            open_n = np.flatnonzero(np.isnan(found_nc).all(axis=1))
            x, y = moved(epsg, grid, *place_n2[open_n].T)
            row, column = np.floor((grid.north - y) / PIXEL_SIZE), np.floor((x - grid.west) / PIXEL_SIZE)
            inside = (row >= 0) & (row < grid.height) & (column >= 0) & (column < grid.width)
            pixel_n2 = np.column_stack([row[inside], column[inside]]).astype(np.int64)
            found_nc[open_n[inside]] = self.pixels(grid, pixel_n2)
        return found_nc

    def pixels(self, grid: ZoneGrid, pixel_n2: NDArray[np.int64]) -> NDArray[np.float32]:
        """(N, C) embeddings of rows and columns (N, 2) of a zone's grid; see `at`."""
        values_nc = np.full((len(pixel_n2), self.dim), np.nan, dtype=np.float32)
        corner_t2, size = grid.places(), grid.tiles[0].size
        tree = shapely.STRtree(shapely.box(*(corner_t2[:, ::-1]).T, *(corner_t2[:, ::-1] + size).T))
        point_m, tile_m = tree.query(shapely.points(pixel_n2[:, ::-1] + 0.5))  # several tiles where hemispheres meet
        store, stored_n = self._store(grid), np.zeros(len(pixel_n2), dtype=bool)
        if store is not None:
            stored_n[point_m] = True
            for index in np.unique(tile_m).tolist():
                here = point_m[tile_m == index]
                cells, which = np.unique(pixel_n2[here] // store.side, axis=0, return_inverse=True)
                current = [self._current(store, (row, column), [grid.tiles[index]]) for row, column in cells.tolist()]
                stored_n[here] &= np.array(current, dtype=bool)[which.reshape(-1)]
            values_nc[stored_n] = store.pixels(pixel_n2[stored_n])
        for index in np.unique(tile_m[~stored_n[point_m]]).tolist():
            here = point_m[tile_m == index]
            here = here[~stored_n[here] & np.isnan(values_nc[here]).all(axis=1)]
            embedding = self._open(grid.tiles[index]) if len(here) else None
            if embedding is not None:
                values_nc[here] = embedding.points(*(pixel_n2[here] - corner_t2[index]).T, gaps=False)
        return values_nc

    def window(self, grid: ZoneGrid, top: int, left: int, height: int, width: int) -> NDArray[np.float32]:
        """The embeddings of a window, which may leave the grid.

        Args:
            grid: of the zone.
            top: first row.
            left: first column.
            height: rows.
            width: columns.

        Returns:
            (h, w, C) NaN = nodata.

        Raises:
            SmaltiError: if a tile's embedding is missing, unless gaps are allowed, or what is read is damaged.
        """
        values_hwc = np.full((height, width, self.dim), np.nan, dtype=np.float32)
        part = grid.part(top, left, height, width)
        store = self._store(grid)
        if store is not None and len(part.tiles):
            rows = slice(max(0, top), min(grid.height, top + height))
            columns = slice(max(0, left), min(grid.width, left + width))
            if all(self._current(store, cell, part.tiles) for cell in _cells(rows, columns, store.side)):
                place = slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)
                values_hwc[place] = store.window(rows, columns)
                return values_hwc
        for tile in part.tiles:
            where, embedding = part.overlap(tile), self._open(tile)
            if where is not None and embedding is not None:
                read_hwc = embedding.window(where.rows, where.columns)
                rows, columns = (slice(a, a + n) for a, n in zip((where.top, where.left), read_hwc.shape, strict=False))
                place_hwc = values_hwc[rows, columns]
                np.copyto(place_hwc, read_hwc, where=np.isnan(place_hwc).all(axis=2, keepdims=True))
        return values_hwc

    def _read_tile(self, tile: PlannedTile) -> Embedding | None:
        """A tile's embedding; None where it lacks one and may."""
        if self._gaps and self._embeddings.lacks(tile):
            return None
        return open_embedding(self.run, tile, dim=self.dim, checksums=False)

    @cached_property
    def _mosaic(self) -> MosaicManifest | None:
        """The mosaic, if one is there and whole."""
        try:
            return MosaicManifest.read(self.run).verify(self.run, checksums=False)
        except FormatError:
            return None

    def _store(self, grid: ZoneGrid) -> _ZoneStore | None:
        """A zone's group of the store, if it has what the plan says now."""
        if grid.epsg not in self._stores:
            self._stores[grid.epsg] = None
            made = None if self._source == "tiles" else self._mosaic
            zone = None if made is None else made.zones.get(grid.label)
            if made is None or zone is None or made.store is None or zone.group is None:
                return None
            if (zone.epsg, tuple(zone.bounds), made.dim) == (grid.epsg, grid.bounds, self.dim):
                self._stores[grid.epsg] = _ZoneStore.opened(self.run, made, grid, zone.group)
        return self._stores[grid.epsg]

    def _current(self, store: _ZoneStore, cell: tuple[int, int], tiles: Sequence[PlannedTile]) -> bool:
        """Whether what the store has of some tiles in one of its sheets are their embeddings of now."""
        sheet = store.sheet(*cell)
        return sheet is not None and all(self._same(store, sheet, tile) for tile in tiles)

    def _same(self, store: _ZoneStore, sheet: MosaicSheet, tile: PlannedTile) -> bool:
        made_of = sheet.embeddings.get(tile.name)
        if made_of is None:  # it was missing, or the sheet is of a version that did not say, or elsewhere
            return tile.name not in sheet.tiles
        if self._embeddings.lacks(tile):
            return True
        return self._source == "store first" and store.exact and self._embeddings.digest(tile) == made_of


def same_zone(epsg: int, grid: ZoneGrid) -> bool:
    """Whether a CRS is that of a grid's UTM zone, of either hemisphere."""
    return epsg // 100 in (326, 327) and epsg % 100 == grid.epsg % 100


def moved(
    epsg: int, grid: ZoneGrid, x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coordinates in the CRS of a zone's grid; of the same zone exactly those, whatever the hemisphere."""
    if same_zone(epsg, grid):
        return x, y + FALSE_NORTHING * (grid.epsg // 100 - epsg // 100)
    found_x, found_y = Transformer.from_crs(epsg, grid.epsg, always_xy=True).transform(x, y)
    return np.asarray(found_x), np.asarray(found_y)


def _cells(rows: slice, columns: slice, side: int) -> list[tuple[int, int]]:
    """Rows and columns of the sheets that a window touches."""
    down, across = (range(part.start // side, (part.stop - 1) // side + 1) for part in (rows, columns))
    return list(product(down, across))


@dataclass
class _ZoneStore:
    """One zone's arrays, and the manifests of the sheets that they are made of."""

    run: Run
    codes: zarr.Array[Any]
    """(1, C, y, x)."""
    scales: zarr.Array[Any]
    """(1, y, x)."""
    side: int
    """Of a sheet in pixels."""
    exact: bool
    """Whether its numbers are those of the embeddings, and not rounded."""
    sheets: dict[tuple[int, int], Sheet]
    seen: dict[tuple[int, int], MosaicSheet | None] = field(default_factory=dict)

    @classmethod
    def opened(cls, run: Run, made: MosaicManifest, grid: ZoneGrid, group: str) -> _ZoneStore | None:
        """The arrays of a zone; None if they cannot be opened."""
        import zarr  # here: a run without a store needs nothing of it

        try:
            root: Any = zarr.open_group(run.mosaic / str(made.store), mode="r", use_consolidated=True)
            codes, scales = root[f"{group}/embeddings"], root[f"{group}/scales"]
            side = int(codes.shards[-1])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        sheets = {(sheet.row, sheet.column): sheet for sheet in sheets_of(grid, side)}
        return cls(run, codes, scales, side, made.embeddings_as == "int8", sheets)

    def sheet(self, row: int, column: int) -> MosaicSheet | None:
        """The manifest of a sheet that has the tiles of the plan, and whose files are there."""
        if (row, column) not in self.seen:
            self.seen[row, column] = self._read_sheet(self.sheets.get((row, column)))
        return self.seen[row, column]

    def _read_sheet(self, planned: Sheet | None) -> MosaicSheet | None:
        if planned is None:
            return None
        path = SheetFiles(self.run.mosaic, planned.name).manifest
        try:
            made = MosaicSheet.read_file(path, self.run)
            verify_files(path, made.files, checksums=False, remedy="")
        except FormatError:
            return None
        return made if made.tiles == tuple(tile.name for tile in planned.grid.tiles) else None

    def pixels(self, pixel_n2: NDArray[np.int64]) -> NDArray[np.float32]:
        """(N, C) values of rows and columns (N, 2)."""
        values_nc = np.empty((len(pixel_n2), self.codes.shape[1]), dtype=np.float32)
        chunk_n2 = pixel_n2 // self.codes.chunks[-1]
        sheet_n2 = pixel_n2 // self.side
        order = np.lexsort((*chunk_n2.T[::-1], *sheet_n2.T[::-1]))
        for start in range(0, len(order), _POINTS):
            some = order[start : start + _POINTS]
            row, column = pixel_n2[some].T
            codes_nc = self._read(self.codes, row[:, None], np.arange(values_nc.shape[1]), column[:, None])
            values_nc[some] = dequantise(codes_nc, _believed(self._read(self.scales, row, None, column)))
        return values_nc

    def window(self, rows: slice, columns: slice) -> NDArray[np.float32]:
        """(h, w, C) values."""
        codes_hwc = np.moveaxis(self._read(self.codes, rows, slice(None), columns), 0, 2)
        return dequantise(codes_hwc, _believed(self._read(self.scales, rows, None, columns)))

    def _read(self, array: zarr.Array[Any], rows: Any, bands: Any, columns: Any) -> NDArray[Any]:
        place = (0, rows, columns) if bands is None else (0, bands, rows, columns)
        try:
            if isinstance(rows, slice):
                return np.asarray(array[place])
            return np.asarray(array.vindex[np.broadcast_arrays(*map(np.asarray, place))])
        except (OSError, ValueError, RuntimeError) as error:
            said = " ".join(str(error).split())
            raise SmaltiError(
                f"{self.run.mosaic}: the store cannot be read ({said}): run `smalti stitch {self.run.quoted} --check`"
            ) from error


def _believed(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scales, NaN where there is no embedding."""
    return np.where(np.isfinite(scales), scales, np.float32(np.nan))
