"""What a run knows of a place: a picture of the embeddings around it, and the season's NDVI, VV and VH of its pixel."""

from __future__ import annotations

import base64
from calendar import isleap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import Transformer

from infer.contract import (
    PIXEL_SIZE,
    FormatError,
    Plan,
    PlannedTile,
    PlannedTiles,
    Run,
    SmaltiError,
    Tile,
    embedding_manifest,
    read_tile,
)
from infer.contract.glance import lacks_embedding
from preproc.mosaic.pca import Components, principal_components
from preproc.mosaic.reader import EmbeddingReader, same_zone
from preproc.raster.preview import png_bytes
from preproc.run.progress import Bar, progress, say

AROUND = 16
"""Pixels of the picture on each side of the place: 330 m in all."""
_SIDE = 2 * AROUND + 1
_DECIDE = 256
"""Pictures whose pixels decide on the colours of all."""
_Pixel = tuple[PlannedTile, int, int] | None
"""Tile, row and column; None outside all tiles."""
_Member = tuple[int, int, int]
"""A place of a tile: which, row and column."""


@dataclass(frozen=True)
class Look:
    """What can be shown of a place; empty where it is not here."""

    picture: str
    """data: URI of a PNG of 2 AROUND + 1 pixels a side, the place in its middle."""
    ndvi: list[list[float]]
    """[day since the window began, NDVI] of each clear date."""
    radar: list[list[float]]
    """[day, VV, VH] in dB."""


NOTHING = Look("", [], [])


def look(run: Run, plan: Plan, place_n2: NDArray[np.float64]) -> list[Look]:
    """What the run's tiles tell of places.

    Args:
        run: with embeddings, and the tiles' arrays where they are still there.
        plan: of the run.
        place_n2: (N, 2) longitude and latitude.

    Returns:
        (N,) in their order. A tile that is not there or damaged leaves its places without; the latter is said.
    """
    by_tile: dict[PlannedTile, list[_Member]] = {}
    for at, found in enumerate(pixels_of(plan.tiles, place_n2)):
        if found is not None:
            by_tile.setdefault(found[0], []).append((at, *found[1:]))
    reader = EmbeddingReader(run, plan, gaps=True, source="tiles first")
    looks = [NOTHING] * len(place_n2)
    with progress("look", 2 * len(by_tile), "tiles") as bar:
        colours = _colours(reader, by_tile, len(place_n2), bar)
        for tile, members in by_tile.items():
            pictures = {}
            if colours is not None:
                for at, values in _windows(reader, tile, members):
                    pictures[at] = _uri(png_bytes(colours.colours(values)))
            if embedding_manifest(run.embeddings, tile.name).exists() and lacks_embedding(run.embeddings, tile.name):
                path = embedding_manifest(run.embeddings, tile.name)
                say(f"Warning: {path}: damaged, or its files are: places in it have no picture: run `smalti infer`")
            arrays = series(run, tile)
            for at, row, column in members:
                curves = ([], []) if arrays is None else _curves(arrays, row, column, plan.window[0])
                looks[at] = Look(pictures.get(at, ""), *curves)
            bar.advance(note=tile.name)
    return looks


def _colours(
    reader: EmbeddingReader, by_tile: Mapping[PlannedTile, Sequence[_Member]], places: int, bar: Bar
) -> Components | None:
    """How to colour all pictures alike, from some of them; None where there are no embeddings."""
    decide = {int(at) for at in np.linspace(0, places - 1, min(_DECIDE, places))}
    found = [np.empty((0, reader.dim), dtype=np.float32)]
    for tile, members in by_tile.items():
        windows = _windows(reader, tile, [member for member in members if member[0] in decide])
        found += [values[~np.isnan(values[..., 0])] for _, values in windows]
        bar.advance(note=tile.name)
    values_nc = np.concatenate(found)
    return principal_components(values_nc) if len(values_nc) else None


def _windows(
    reader: EmbeddingReader, tile: PlannedTile, members: Sequence[_Member]
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """The embeddings around each place of a tile, from its neighbours as well; places without any are left out."""
    grid = next(grid for grid in reader.grids if same_zone(tile.epsg, grid))
    top, left = grid.place(tile)
    for at, row, column in members:
        values = reader.window(grid, top + row - AROUND, left + column - AROUND, _SIDE, _SIDE)
        if not np.isnan(values).all():
            yield at, values


def pixels_of(tiles: Sequence[PlannedTile], place_n2: NDArray[np.float64]) -> list[_Pixel]:
    """Tile, row and column of each place, or None outside all tiles.

    Where tiles of two zones overlap it is the tile of the place's own zone: the other one has no embedding there.
    """
    found: list[_Pixel] = [None] * len(place_n2)
    table, longitude_n, latitude_n = PlannedTiles.of(tiles), place_n2[:, 0], place_n2[:, 1]
    own_n = np.where(latitude_n >= 0, 32600, 32700) + np.minimum(np.floor((longitude_n + 180) / 6) + 1, 60)
    for epsg in np.unique(table.column("epsg")).tolist():
        here = table.chosen(table.column("epsg") == epsg)
        west_t, north_t, extent = here.column("west"), here.column("north"), here.size * PIXEL_SIZE
        x_n, y_n = Transformer.from_crs(4326, epsg, always_xy=True).transform(longitude_n, latitude_n)
        known = np.flatnonzero(np.isfinite(x_n) & np.isfinite(y_n))
        tree = shapely.STRtree(shapely.box(west_t, north_t - extent, west_t + extent, north_t))
        point, tile = tree.query(shapely.points(x_n[known], y_n[known]))
        at = known[point]
        column = np.floor((x_n[at] - west_t[tile]) / PIXEL_SIZE)
        row = np.floor((north_t[tile] - y_n[at]) / PIXEL_SIZE)
        inside = (column >= 0) & (column < here.size) & (row >= 0) & (row < here.size)
        for index in np.flatnonzero(inside):
            place = int(at[index])
            if found[place] is None or own_n[place] == epsg:
                found[place] = here[int(tile[index])], int(row[index]), int(column[index])
    return found


def series(run: Run, tile: PlannedTile) -> Tile | None:
    """A tile with its arrays, if they are there and whole; of damaged ones it is told."""
    folder = run.tiles / tile.name
    if not folder.is_dir():
        return None
    try:
        return read_tile(folder, need_manifest=True, checksums=False, planned=tile)
    except FormatError as error:
        say(f"Warning: {error}: places in it have no curves")
        return None


@dataclass(frozen=True)
class Curves:
    """Series of some pixels (H, W); T clear looks of Sentinel-2, U of Sentinel-1 in both orbits, in order of days."""

    days_t: NDArray[np.int64]
    """(T,) since the window began."""
    ndvi_thw: NDArray[np.float64]
    """(T, H, W), NaN where it was not clear."""
    radar_days_u: NDArray[np.int64]
    """(U,) since the window began."""
    db_uhwp: NDArray[np.float64]
    """(U, H, W, 2) VV and VH in dB, NaN where there was none."""


def read_curves(tile: Tile, rows: slice, columns: slice, start: date) -> Curves:
    """NDVI and radar of pixels of a tile.

    Args:
        tile: with its arrays.
        rows: of the pixels.
        columns: of the pixels.
        start: of the window, which is a year long at most.
    """
    first, year = start.timetuple().tm_yday, 365 + isleap(start.year)
    red = tile.bands_thwb[:, rows, columns, 0].astype(float)
    near = tile.bands_thwb[:, rows, columns, 3].astype(float)
    clear = (tile.masks_thw[:, rows, columns] == 1) & (red + near > 0)
    ndvi = np.where(clear, (near - red) / np.where(clear, near + red, 1), np.nan)
    days = (tile.doys_t.astype(int) - first) % year
    order = np.argsort(days, kind="stable")
    passes = (tile.sar_asc_thwp, tile.sar_desc_thwp)
    raw = np.concatenate([values[:, rows, columns].astype(float) for values in passes])
    seen = (raw != 0).all(axis=-1, keepdims=True)
    # the files hold (20 log10 x + 50) * 200 of a power x, whose dB are 10 log10 x
    decibels = np.where(seen, (raw / 200 - 50) / 2, np.nan)
    radar = (np.concatenate([tile.sar_asc_doys_t, tile.sar_desc_doys_t]).astype(int) - first) % year
    after = np.argsort(radar, kind="stable")
    return Curves(days[order], ndvi[order], radar[after], decibels[after])


def _curves(tile: Tile, row: int, column: int, start: date) -> tuple[list[list[float]], list[list[float]]]:
    """NDVI and radar of a pixel by days since the window began."""
    found = read_curves(tile, slice(row, row + 1), slice(column, column + 1), start)
    ndvi_t, db_up = found.ndvi_thw[:, 0, 0], found.db_uhwp[:, 0, 0]
    ndvi = [[int(found.days_t[t]), round(float(ndvi_t[t]), 3)] for t in np.flatnonzero(~np.isnan(ndvi_t))]
    seen = np.flatnonzero(~np.isnan(db_up[:, 0]))
    radar = [[int(found.radar_days_u[u]), *np.round(db_up[u], 2).tolist()] for u in seen]
    return sorted(ndvi), sorted(radar)


def curves_at(run: Run, plan: Plan, place_2: NDArray[np.float64]) -> tuple[list[list[float]], list[list[float]]]:
    """NDVI and radar of the pixel at a longitude and latitude, as in `Look`.

    Raises:
        SmaltiError: if no tile has it, or the tile's time series is not here.
    """
    (pixel,) = pixels_of(plan.tiles, place_2[None])
    if pixel is None:
        raise SmaltiError("outside the run's tiles")
    tile, row, column = pixel
    arrays = series(run, tile)
    if arrays is None:
        raise SmaltiError("its time series is not here: it was imported, released or not fetched")
    return _curves(arrays, row, column, plan.window[0])


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def as_json(one: Look) -> dict[str, Any]:
    """As the labelling page takes it."""
    return {"picture": one.picture, "ndvi": one.ndvi, "radar": one.radar}
