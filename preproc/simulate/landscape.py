"""The ground: roads, a river, woods, villages and parcels as polygons in metres of the home zone.

Blocks between roads are Voronoi cells; each is cut again and again across its longer side, as fields are in reality,
until the pieces have the size that was drawn for them. What no polygon covers is a field margin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely import affinity
from shapely.geometry import LineString, MultiPoint, Polygon, box

from preproc.simulate.crops import CROPS, crop_index
from preproc.simulate.noise import fractal, seed_of
from preproc.simulate.options import SimulationOptions
from preproc.simulate.phenology import Fields, draw_fields

_GEOMETRY, _KINDS, _PARAMETERS, _SOIL = 1, 2, 3, 4
_HEDGE = 3.5
"""Half the width of what separates two parcels, metres."""
_ROUNDING = 0.01
"""Coordinates are kept to the centimetre."""


@dataclass(frozen=True)
class Landscape:
    """Polygons, what is on them, and their parameters; the last entry stands for everything between them."""

    polygons: tuple[Any, ...]
    """Shapely polygons, P of them, in metres of the home zone; where they overlap the later one lies on top."""
    kind: NDArray[np.int16]
    """(P + 1,) positions in `crops.CROPS`."""
    fields: Fields
    """Parameters of shape (P + 1,)."""

    @property
    def nothing(self) -> int:
        """Position of the entry for what no polygon covers."""
        return len(self.polygons)

    def locate(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.intp]:
        """Which polygon covers each point; `nothing` where none does. Any shape, metres of the home zone."""
        found = np.full(x.size, -1, np.intp)
        tree = shapely.STRtree(list(self.polygons))
        points, hits = tree.query(shapely.points(x.ravel(), y.ravel()), predicate="intersects")
        np.maximum.at(found, points, hits)
        found[found < 0] = self.nothing
        return found.reshape(x.shape)

    @property
    def farmed(self) -> list[int]:
        """Positions of the declared parcels."""
        return [place for place in range(self.nothing) if CROPS[self.kind[place]].farmed]


def build(options: SimulationOptions, bounds: tuple[float, float, float, float]) -> Landscape:
    """Draw the landscape over the bounds (west, south, east, north in metres of the home zone)."""
    rng = np.random.default_rng(seed_of(options.seed, _GEOMETRY))
    domain = box(*bounds)
    blocks, orientation = _blocks(domain, rng, options)
    river = _river(bounds, rng)
    woods, villages = _reserved(blocks, rng)
    background: list[tuple[Any, str]] = []
    pieces: list[Any] = []
    for number, block in enumerate(blocks):
        land = block.buffer(-6).difference(river.buffer(_HEDGE + 8))
        if land.is_empty:
            continue
        if number in woods:
            background.append((land.buffer(-4).buffer(4), woods[number]))
        elif number in villages:
            background.extend(_village(land, orientation[number], rng))
        else:
            pieces.extend(_parcels(land, orientation[number], rng, options.parcel_ha))
    pieces = [piece for piece in pieces if piece.area > 1500]
    names = _assign(pieces, river, options)
    roads = shapely.union_all([block.exterior for block in blocks]).buffer(4.5)
    layers = [(piece, name) for piece, name in zip(pieces, names, strict=True)]
    layers += [(part, name) for shape, name in background for part in _polygons(shape)]
    layers += [(part, "water") for part in _polygons(river.intersection(domain))]
    layers += [(part, "road") for part in _polygons(roads.intersection(domain))]
    shapes = tuple(shapely.set_precision(shape, _ROUNDING) for shape, _ in layers)
    kind = np.array([crop_index(name) for _, name in layers] + [crop_index("margin")], np.int16)
    return Landscape(shapes, kind, _parameters(shapes, kind, options))


def _polygons(shape: Any) -> list[Any]:
    """The polygons of a geometry, without slivers."""
    return [part for part in shapely.get_parts(shape) if part.geom_type == "Polygon" and part.area > 60]


def _blocks(domain: Any, rng: np.random.Generator, options: SimulationOptions) -> tuple[list[Any], list[float]]:
    """Voronoi cells of about 14 parcels each over the domain, and the direction of the fields in each (radians)."""
    west, south, east, north = domain.bounds
    side = math.sqrt(14 * options.parcel_ha * 1e4 * 1.15)
    columns, rows = (max(2, math.ceil(span / side) + 2) for span in (east - west, north - south))
    seeds = [
        (
            west + (column - 0.5 + 0.5 * (row % 2) + rng.uniform(-0.33, 0.33)) * side,
            south + (row - 0.5 + rng.uniform(-0.33, 0.33)) * side,
        )
        for row in range(rows)
        for column in range(columns)
    ]
    cells = shapely.get_parts(shapely.voronoi_polygons(MultiPoint(seeds), extend_to=domain))
    cells = sorted(cells, key=lambda cell: (round(cell.centroid.y), round(cell.centroid.x)))
    inside = [cell.intersection(domain) for cell in cells]
    blocks = [cell for cell in inside if cell.geom_type == "Polygon" and cell.area > 2000]
    general = rng.uniform(0, math.pi)
    return blocks, [general + rng.normal(0, 0.45) for _ in blocks]


def _river(bounds: tuple[float, float, float, float], rng: np.random.Generator) -> Any:
    """A meandering strip of water, 24 m wide, from side to side, with a pond beside it."""
    west, south, east, north = bounds
    span, height = east - west, north - south
    along = np.linspace(-0.05, 1.05, 160)
    level = south + height * rng.uniform(0.22, 0.38)
    slope = height * rng.uniform(-0.12, 0.12)
    y = level + slope * along
    for waves in (1.3, 3.1, 6.7):
        y = y + height * 0.045 / waves * 2 * np.sin(2 * np.pi * (waves * along + rng.random()))
    course = LineString(np.column_stack([west + span * along, y])).buffer(12)
    place = 0.25 + 0.5 * rng.random()
    x0 = west + span * place
    y0 = float(np.interp(place, along, y)) + 95
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    radius = 55 + 12 * np.sin(2 * angle + rng.random() * 6) + 7 * np.sin(3 * angle)
    pond = Polygon(np.column_stack([x0 + 1.4 * radius * np.cos(angle), y0 + 0.8 * radius * np.sin(angle)]))
    return shapely.union_all([course, pond])


def _reserved(blocks: list[Any], rng: np.random.Generator) -> tuple[dict[int, str], set[int]]:
    """Which blocks are wood (and of which kind) and which are villages: about an eighth and a twelfth."""
    order = [int(number) for number in rng.permutation(len(blocks))]
    wooded = max(1, round(len(blocks) / 8))
    built = max(1, round(len(blocks) / 12))
    kinds = ("deciduous forest", "coniferous forest")
    woods = {number: kinds[place % 2 if place else 0] for place, number in enumerate(order[:wooded])}
    return woods, set(order[wooded : wooded + built])


def _village(land: Any, direction: float, rng: np.random.Generator) -> list[tuple[Any, str]]:
    """Houses with gardens around a core, the rest of the block in meadows and trees."""
    plots = _cut(land, direction, 1200.0, rng)
    middle = land.centroid
    reach = math.sqrt(land.area) * 0.62
    result: list[tuple[Any, str]] = []
    for plot in plots:
        chance = math.exp(-((plot.centroid.distance(middle) / reach) ** 2) * 1.6)
        name = "built-up" if rng.random() < chance else ("deciduous forest" if rng.random() < 0.25 else "margin")
        result.append((plot.buffer(-2.0), name))
    return result


def _parcels(land: Any, direction: float, rng: np.random.Generator, median_ha: float) -> list[Any]:
    """Cut a block into parcels whose sizes follow a log-normal distribution between 0.4 and 12 ha."""
    size = float(np.clip(median_ha * math.exp(rng.normal(0, 0.45)), 0.5, 11)) * 1e4
    pieces: list[Any] = []
    for piece in _cut(land, direction, size * 1.35, rng):
        shrunk = piece.buffer(-_HEDGE, join_style="mitre")
        pieces.extend(part for part in shapely.get_parts(shrunk) if part.geom_type == "Polygon")
    return pieces


def _cut(land: Any, direction: float, limit: float, rng: np.random.Generator) -> list[Any]:
    """Cut polygons across their longer side, along or across `direction`, until each is smaller than `limit` (m2)."""
    todo = _polygons(land)
    done: list[Any] = []
    while todo:
        piece = todo.pop()
        if piece.area < limit * rng.uniform(0.75, 1.25):
            done.append(piece)
            continue
        turned = affinity.rotate(piece, -direction, origin=(0, 0), use_radians=True)
        west, south, east, north = turned.bounds
        share = rng.uniform(0.38, 0.62)
        tilt = rng.normal(0, 0.03)
        if (east - west) > 0.75 * (north - south):
            at, lean = west + share * (east - west), tilt * (north - south)
            edge = [(at - lean, south - 9), (at + lean, north + 9), (west - 9e3, north + 9), (west - 9e3, south - 9)]
        else:
            at, lean = south + share * (north - south), tilt * (east - west)
            edge = [(west - 9, at - lean), (east + 9, at + lean), (east + 9, south - 9e3), (west - 9, south - 9e3)]
        first = Polygon(edge)
        halves = [turned.intersection(first), turned.difference(first)]
        todo.extend(
            affinity.rotate(part, direction, origin=(0, 0), use_radians=True)
            for half in halves
            for part in _polygons(half)
        )
    return done


def _assign(pieces: list[Any], river: Any, options: SimulationOptions) -> list[str]:
    """Give every parcel a kind: shares by quota, so that rare crops exist; meadows preferably along the river."""
    rng = np.random.default_rng(seed_of(options.seed, _KINDS))
    shares = np.array([share for _, share in options.crops])
    exact = shares / shares.sum() * len(pieces)
    quota = np.floor(exact).astype(int)
    for place in np.argsort(quota - exact, kind="stable")[: len(pieces) - int(quota.sum())]:
        quota[place] += 1
    names = [name for (name, _), count in zip(options.crops, quota, strict=True) for _ in range(count)]
    shuffled = [names[place] for place in rng.permutation(len(names))]
    wet = [name for name in shuffled if name == "grassland"]
    others = [name for name in shuffled if name != "grassland"]
    rank = [piece.distance(river) * rng.uniform(0.05, 1.9) for piece in pieces]
    meadows = {int(place) for place in np.argsort(rank, kind="stable")[: len(wet)]}
    return [wet.pop() if place in meadows else others.pop() for place in range(len(pieces))]


def _parameters(shapes: tuple[Any, ...], kind: NDArray[np.int16], options: SimulationOptions) -> Fields:
    """Parameters of the parcels; neighbours share their soil's brightness."""
    fields = draw_fields(kind, np.random.default_rng(seed_of(options.seed, _PARAMETERS)))
    x = np.array([shape.centroid.x for shape in shapes] + [0.0])
    y = np.array([shape.centroid.y for shape in shapes] + [0.0])
    trend = 1 + 0.06 * fractal(x, y, 900.0, seed_of(options.seed, _SOIL), octaves=2)
    return fields.scaled(np.ones(kind.shape, np.float32), trend.astype(np.float32))
