"""What is known on the ground: declared parcels, points, the truth map with its legend, and the region."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.features import rasterize, shapes
from shapely.geometry import mapping, shape

from infer.contract import write_json, writing
from preproc.region.geopackage import geopackage
from preproc.simulate.crops import CROPS
from preproc.simulate.grid import write_cog
from preproc.simulate.noise import seed_of
from preproc.simulate.world import World

POINTS_EPSG = 3035
"""CRS of the points: another one than that of the parcels, of the pixels and of the region."""
_POINTS = 51
_PER_PARCEL = 3
_UNDECLARED = ("coniferous forest", "deciduous forest", "water", "built-up")
_CELL = 7
"""Side in pixels of the cells that divide undeclared land into sites."""
_SITES = 12
"""About so many sites of a kind."""


def degrees(geometry: Any, epsg: int) -> Any:
    """A geometry in EPSG:4326, longitude first, kept to about a centimetre."""
    project = Transformer.from_crs(epsg, 4326, always_xy=True).transform
    moved = shapely.transform(geometry, lambda points: np.column_stack(project(points[:, 0], points[:, 1])))
    return shapely.set_precision(moved, 1e-7)


def declared(world: World) -> list[int]:
    """Positions of the parcels of which at least half lies in the region."""
    shapes = world.landscape.polygons
    return [
        place
        for place in world.landscape.farmed
        if shapes[place].intersection(world.region).area >= 0.5 * shapes[place].area
    ]


def write_labels(folder: Path, world: World) -> list[Path]:
    """Write region.geojson, parcels.geojson, landcover.geojson, points.gpkg, truth.tif, parcels.tif and legend.json.

    Args:
        folder: an existing (temporary) folder.
        world: the truth.

    Returns:
        The files.
    """
    parcels = declared(world)
    write_json(
        folder / "region.geojson", _features([({"name": "simulated region"}, degrees(world.region, world.epsg))])
    )
    polygons = [(_attributes(world, place), degrees(world.landscape.polygons[place], world.epsg)) for place in parcels]
    write_json(folder / "parcels.geojson", _features(polygons))
    write_json(folder / "landcover.geojson", _features(polygons + _sites(world)))
    write_json(folder / "legend.json", legend())
    _write_points(folder / "points.gpkg", world, parcels)
    colours = {crop.code: crop.colour for crop in CROPS}
    write_cog(folder / "truth.tif", world.codes(world.home), world.home, nodata=0, colours=colours, average=False)
    place = world.surface(world.home).place
    wanted = np.zeros(world.landscape.nothing + 1, np.uint32)
    wanted[parcels] = np.array(parcels) + 1
    write_cog(folder / "parcels.tif", wanted[place], world.home, nodata=0, average=False)
    names = ("region.geojson", "parcels.geojson", "landcover.geojson", "points.gpkg", "truth.tif", "parcels.tif")
    return [folder / name for name in (*names, "legend.json")]


def legend() -> list[dict[str, Any]]:
    """Code, name, colour and whether it is farmed, for every kind of land."""
    return [
        {
            "code": crop.code,
            "crop": crop.name,
            "colour": "#{:02x}{:02x}{:02x}".format(*crop.colour),
            "farmed": crop.farmed,
        }
        for crop in CROPS
    ]


def _attributes(world: World, place: int) -> dict[str, Any]:
    crop = CROPS[world.landscape.kind[place]]
    return {"parcel": place + 1, "crop": crop.name, "code": crop.code}


def _sites(world: World) -> list[tuple[dict[str, Any], Any]]:
    """Land that nobody declares (woods, water, houses), as somebody would outline it on an orthophoto.

    One site is what lies in a cell of the landscape, without the ragged edges; group numbers go on after the parcels'.
    """
    grid = world.home
    codes = world.codes(grid)
    inside = rasterize([world.region], codes.shape, transform=Affine(*grid.transform()), dtype="uint8") > 0
    rows, columns = np.indices(codes.shape)
    cell = 1 + rows // _CELL * (codes.shape[1] // _CELL + 1) + columns // _CELL
    sites: list[tuple[dict[str, Any], Any]] = []
    number = len(world.landscape.polygons)
    for crop in CROPS:
        if crop.name not in _UNDECLARED:
            continue
        whole = _opened((codes == crop.code) & inside)
        found = shapes(np.where(whole, cell, 0).astype(np.int32), mask=whole, transform=Affine(*grid.transform()))
        outlines: dict[int, list[Any]] = {}
        for outline, value in found:
            outlines.setdefault(int(value), []).append(shape(outline))
        for _, parts in sorted(outlines.items())[:: max(1, len(outlines) // _SITES)]:
            number += 1
            attributes = {"parcel": number, "crop": crop.name, "code": crop.code}
            sites.append((attributes, degrees(shapely.union_all(parts), grid.epsg)))
    return sites


def _opened(mask_hw: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """What a square of 3 x 3 pixels covers when it is moved about inside the mask."""
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(mask_hw, 1), (3, 3))
    kept = np.pad(windows.all(axis=(-1, -2)), 1)
    return np.asarray(np.lib.stride_tricks.sliding_window_view(kept, (3, 3)).any(axis=(-1, -2)))


def _features(rows: list[tuple[dict[str, Any], Any]]) -> dict[str, Any]:
    return {
        "type": "FeatureCollection",
        "features": [
            {"type": "Feature", "properties": properties, "geometry": mapping(geometry)}
            for properties, geometry in rows
        ],
    }


def _write_points(path: Path, world: World, parcels: list[int]) -> None:
    """Points inside the parcels, at least 10 m from their borders, as a surveyor would take them."""
    rng = np.random.default_rng(seed_of(world.options.seed, _POINTS))
    x: list[float] = []
    y: list[float] = []
    rows: list[dict[str, Any]] = []
    for place in parcels:
        inner = world.landscape.polygons[place].intersection(world.region).buffer(-10)
        west, south, east, north = inner.bounds if not inner.is_empty else (0.0, 0.0, 0.0, 0.0)
        draws = rng.uniform((west, south), (east, north), (60, 2))
        hits = draws[shapely.contains_xy(inner, draws[:, 0], draws[:, 1])][:_PER_PARCEL]
        for point in hits:
            x.append(float(point[0]))
            y.append(float(point[1]))
            rows.append(_attributes(world, place))
    east_x, north_y = Transformer.from_crs(world.epsg, POINTS_EPSG, always_xy=True).transform(x, y)
    columns = {name: [row[name] for row in rows] for name in ("parcel", "crop", "code")}
    places = shapely.points(np.round(east_x, 2), np.round(north_y, 2))
    content = geopackage("points", places, columns, kind="Point", epsg=POINTS_EPSG)
    with writing(path):
        path.write_bytes(content)
