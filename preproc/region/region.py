"""The region of interest: a vector file or a bounding box, as polygons in longitude and latitude.

Edges are straight in longitude and latitude (RFC 7946), whatever file they come from: edges of a file in another CRS
are densified before they are reprojected, and again when `region_in` takes them to a UTM zone.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray
from pyproj.exceptions import ProjError
from shapely.geometry import MultiPolygon, Polygon
from shapely.geometry.base import BaseGeometry

from infer.contract import Plan, Run, SmaltiError, sha256_json
from preproc.region.military_grid import mgrs_bounds, mgrs_cell, no_such_square
from preproc.region.vector import fingerprint, read_vector
from preproc.run.config import RegionSettings
from preproc.run.progress import say

WGS84 = pyproj.CRS.from_epsg(4326)
UTM_SOUTH, UTM_NORTH = -80.0, 84.0
"""Latitudes between which UTM is defined."""
ROUNDING = 1e-9
"""Degrees (a tenth of a millimetre) to which vertices are rounded; slits narrower than this vanish."""
TURNS = 540.0
"""Degrees of longitude, east or west, beyond which a region is not one on Earth."""
EDGE_DEGREES = 0.02
"""Longest edge that is reprojected as it is; on a parallel at 50 degrees the chord is then off by less than 0.1 m."""
EDGES_PER_EXTENT = 500
"""Edges of a file in another CRS are cut to the file's extent divided by this."""


@dataclass(frozen=True, eq=False)
class Region:
    """Where: polygons (holes kept, parts merged) in longitude and latitude, cut at the antimeridian."""

    geometry: MultiPolygon
    """WGS 84, degrees, longitudes in -180..180."""
    fingerprint: str
    """SHA-256 of the vertices, rounded to a tenth of a millimetre."""
    name: str
    """File name without its ending, or "bbox"."""
    read_from: str | None = None
    """See `infer.contract.plan.PlannedRegion`."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Region) and other.fingerprint == self.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """West, south, east, north in degrees; -180..180 when it crosses the antimeridian."""
        west, south, east, north = self.geometry.bounds
        return float(west), float(south), float(east), float(north)


def make_region(geometry: BaseGeometry, name: str, *, source: str) -> Region:
    """A region of polygons in longitude and latitude.

    Args:
        geometry: (multi)polygon in degrees; longitudes may run on past 180 or jump from 180 to -180.
        name: what to call it.
        source: what error messages name.

    Raises:
        SmaltiError: if nothing of it has an area, or it leaves the latitudes of UTM.
    """
    bounds = geometry.bounds
    if bounds and not (bounds[0] >= -TURNS and bounds[2] <= TURNS):  # also true for what is no number
        raise SmaltiError(f"{source}: longitudes from {bounds[0]:g} to {bounds[2]:g} go around the Earth: draw it once")
    try:
        parts = [part for polygon in polygons_of(geometry) for part in split_antimeridian(polygon)]
        merged = MultiPolygon(polygons_of(shapely.union_all(parts, grid_size=ROUNDING)))
    except shapely.errors.GEOSException as error:
        reason = " ".join(str(error).split())
        raise SmaltiError(f"{source}: its polygons cannot be merged ({reason}): repair them") from error
    if merged.is_empty or merged.area == 0:
        raise SmaltiError(f"{source}: the region has no area: draw it as a polygon")
    _, south, _, north = merged.bounds
    if south < UTM_SOUTH or north > UTM_NORTH:
        raise SmaltiError(
            f"{source}: the region reaches from latitude {south:g} to {north:g}; UTM and so smalti cover "
            f"{UTM_SOUTH:g} to {UTM_NORTH:g}: clip it"
        )
    merged = merged.normalize()
    canonical = shapely.transform(merged, lambda xy: np.round(xy, 9) + 0.0)  # + 0.0: no negative zeros
    fingerprint = hashlib.sha256(shapely.to_wkb(canonical, byte_order=1, output_dimension=2)).hexdigest()
    return Region(merged, fingerprint, name)


def load_region(settings: RegionSettings) -> Region:
    """Read the region that run.toml names.

    Args:
        settings: section [region]: a vector file (GeoJSON, GeoPackage, shapefile ...), a list of MGRS squares, or a
            bbox; a bbox whose west is greater than its east crosses the antimeridian.

    Raises:
        SmaltiError: one line that names the file and what is wrong: unreadable, no CRS, no features, points or lines,
            an invalid polygon, outside the latitudes of UTM.
    """
    if settings.mgrs is not None:
        squares = [mgrs_square(name) for name in settings.mgrs]
        return make_region(shapely.union_all(squares), "mgrs", source="run.toml: [region] mgrs")
    if settings.geometry is None:
        assert settings.bbox is not None  # the settings are validated: one of the three is there
        west, south, east, north = settings.bbox
        box = shapely.box(west, south, east if east > west else east + 360, north)
        # Short edges: one of more than 180 degrees would be taken for one that goes the other way around the Earth.
        return make_region(shapely.segmentize(box, 90), "bbox", source="run.toml: bbox")
    path, read_from = settings.geometry, _read_from(settings)  # before it is read: what changes then is read again
    vector = read_vector(path, key="[region] geometry", layer=settings.layer)
    polygons = _check(path, vector.geometries_n)
    if not vector.crs.equals(WGS84, ignore_axis_order=True):
        polygons = _to_wgs84(path, polygons, vector.crs)
    outline = MultiPolygon(polygons) if len(polygons) > 1 else polygons[0]
    return replace(make_region(outline, path.stem, source=str(path)), read_from=read_from)


def outline_fingerprint(run: Run, settings: RegionSettings) -> str:
    """`load_region(settings).fingerprint`: of a file that has not changed since the plan it is what that says.

    To read a file takes a second and pandas, and a coast of a million vertices more: a task with nothing to do, or
    `status`, need nothing of it but this.

    Raises:
        SmaltiError: as `load_region`.
    """
    read_from = _read_from(settings)
    if read_from is not None:
        try:
            planned = Plan.read(run).region
        except SmaltiError:
            planned = None  # the region is read, and whoever needs the plan says what is wrong with it
        if planned is not None and planned.read_from == read_from:
            return planned.fingerprint
    return load_region(settings).fingerprint


def _read_from(settings: RegionSettings) -> str | None:
    if settings.geometry is None:
        return None
    try:
        return sha256_json([fingerprint(settings.geometry, section="region"), settings.layer])
    except SmaltiError:
        return None  # whoever reads it says what is wrong


def mgrs_square(name: str) -> BaseGeometry:
    """A square of 100 km of the military grid, in degrees.

    Raises:
        SmaltiError: if there is no such square.
    """
    epsg, west, south, east, north = mgrs_bounds(name)
    backward = pyproj.Transformer.from_crs(epsg, WGS84, always_xy=True)
    dense = shapely.segmentize(shapely.box(west, south, east, north), 1000)
    square = shapely.transform(dense, lambda xy: np.column_stack(backward.transform(xy[:, 0], xy[:, 1])))
    parts = MultiPolygon(split_antimeridian(square))
    if not parts.intersects(shapely.box(*mgrs_cell(name))):
        raise no_such_square(name)
    return parts


def region_in(region: Region, epsg: int) -> BaseGeometry:
    """The region in another CRS, edges densified before they are reprojected.

    Args:
        region: in degrees.
        epsg: target, for example a UTM zone. Parts far outside its domain come out distorted: clip first.
    """
    return reproject(region.geometry, epsg)


def reproject(geometry: BaseGeometry, epsg: int) -> BaseGeometry:
    """A geometry in degrees to `epsg`, edges cut to EDGE_DEGREES first."""
    forward = to_crs(epsg)
    dense = shapely.segmentize(geometry, EDGE_DEGREES)
    return shapely.transform(dense, lambda xy: np.column_stack(forward.transform(xy[:, 0], xy[:, 1])))


@lru_cache(maxsize=256)
def to_crs(epsg: int) -> pyproj.Transformer:
    """Degrees (longitude, latitude) to `epsg` (x, y)."""
    return pyproj.Transformer.from_crs(WGS84, epsg, always_xy=True)


def polygons_of(geometry: BaseGeometry) -> list[Polygon]:
    """The polygons with an area of any geometry; what has none is left out."""
    if isinstance(geometry, Polygon):
        return [] if geometry.is_empty or geometry.area == 0 else [geometry]
    return [polygon for part in getattr(geometry, "geoms", ()) for polygon in polygons_of(part)]


def split_antimeridian(polygon: Polygon) -> list[Polygon]:
    """Cut a polygon at longitude 180 and bring all parts to -180..180.

    An edge that jumps by more than 180 degrees is taken as one that crosses the antimeridian the short way.
    """
    outer = _unwrap(np.asarray(polygon.exterior.coords)[:, :2])
    holes = [_unwrap(np.asarray(ring.coords)[:, :2]) for ring in polygon.interiors]
    middle = (outer[:, 0].min() + outer[:, 0].max()) / 2
    holes = [hole - [360 * np.round(((hole[:, 0].min() + hole[:, 0].max()) / 2 - middle) / 360), 0] for hole in holes]
    whole = Polygon(outer, holes)
    west, _, east, _ = whole.bounds
    if not (west >= -TURNS and east <= TURNS):
        return []  # nowhere on Earth; a cut for every turn would not end
    if west >= -180 and east <= 180:
        return [whole]
    if not whole.is_valid:
        whole = shapely.make_valid(whole)
    parts = []
    for turn in range(int(np.floor((west + 180) / 360)), int(np.ceil((east + 180) / 360))):
        window = shapely.box(360 * turn - 180, -90, 360 * turn + 180, 90)
        for part in polygons_of(shapely.intersection(whole, window)):
            parts.append(shapely.transform(part, lambda xy, turn=turn: xy - [360 * turn, 0]))
    return parts


def _unwrap(ring_xy: NDArray[np.float64]) -> NDArray[np.float64]:
    steps = np.diff(ring_xy[:, 0])
    jumps = np.where(np.abs(steps) > 180, -360 * np.sign(steps), 0.0)
    if not jumps.any():
        return ring_xy
    shifted = ring_xy.copy()
    shifted[1:, 0] += np.cumsum(jumps)
    return shifted


def _check(path: Path, geometries: NDArray[Any]) -> list[Polygon]:
    """The polygons of all features, each valid."""
    if len(geometries) == 0:
        raise SmaltiError(f"{path}: holds no feature: draw the region in it as a polygon")
    polygons: list[Polygon] = []
    empty = 0
    for number, geometry in enumerate(geometries, start=1):
        if geometry is None or geometry.is_empty:
            empty += 1
            continue
        for part in _parts(geometry):
            if not isinstance(part, Polygon):
                holds = "is" if part is geometry else "holds"
                raise SmaltiError(f"{path}: feature {number} {holds} a {part.geom_type}: a region is made of polygons")
            if not part.is_valid:
                reason = shapely.is_valid_reason(part)
                raise SmaltiError(
                    f"{path}: feature {number} is not a valid polygon ({reason}): repair it, for example "
                    "with `ogr2ogr -makevalid` or QGIS's `Fix geometries`"
                )
            polygons.extend(polygons_of(part))
    if not polygons:
        raise SmaltiError(f"{path}: all its features are empty: draw the region in it as a polygon")
    if empty:
        say(f"Warning: {path}: {empty} of {len(geometries)} features have no readable geometry: the region is without")
    return polygons


def _parts(geometry: BaseGeometry) -> list[BaseGeometry]:
    """A geometry taken apart, collections in collections as well."""
    if geometry.geom_type in ("MultiPolygon", "GeometryCollection"):
        return [part for child in shapely.get_parts(geometry) for part in _parts(child)]
    return [geometry]


def _to_wgs84(path: Path, polygons: list[Polygon], crs: pyproj.CRS) -> list[Polygon]:
    west, south, east, north = shapely.total_bounds(polygons)
    step = max(east - west, north - south) / EDGES_PER_EXTENT
    try:
        backward = pyproj.Transformer.from_crs(crs, WGS84, always_xy=True)

        def move(xy: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.column_stack(backward.transform(xy[:, 0], xy[:, 1], errcheck=True))

        moved = [shapely.transform(shapely.segmentize(polygon, step), move) for polygon in polygons]
    except (ProjError, shapely.errors.GEOSException) as error:
        reason = " ".join(str(error).split())
        raise SmaltiError(f"{path}: does not lie where its CRS ({crs.name}) is defined: {reason}") from error
    if not np.isfinite(shapely.total_bounds(moved)).all():
        raise SmaltiError(f"{path}: does not lie where its CRS ({crs.name}) is defined: give it its true CRS")
    return moved
