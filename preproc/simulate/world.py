"""The simulated world: everything that is true at any place and date, computed from the options alone.

The archive writes what this module says, and tests ask it what the truth is. Nothing here reads or writes files.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from shapely import affinity
from shapely.geometry import Polygon

from infer.contract import BANDS
from preproc.simulate import clouds
from preproc.simulate.crops import CROPS
from preproc.simulate.grid import Grid, mgrs_square, neighbour_epsg, reproject, snapped, utm_epsg
from preproc.simulate.landscape import Landscape, build
from preproc.simulate.noise import fractal, seed_of, white
from preproc.simulate.options import SimulationOptions
from preproc.simulate.phenology import Canopy, Fields
from preproc.simulate.schedule import S1Pass, S2Pass
from preproc.simulate.sensors import backscatter, delivered, grow, reflectance, speckle
from preproc.simulate.weather import Weather, weather

Floats = NDArray[np.float32]
Zone = Literal["home", "neighbour"]

TEN_METRES = ("B02", "B03", "B04", "B08")
TWENTY_METRES = ("B05", "B06", "B07", "B8A", "B11", "B12")
_VIGOUR, _SOIL, _NOISE, _SPECKLE = 41, 42, 43, 44


@dataclass(frozen=True)
class Surface:
    """What does not change from date to date on one grid."""

    x: NDArray[np.float64]
    """Eastings of 10 m centres in metres of the home zone, (H, W)."""
    y: NDArray[np.float64]
    """Northings."""
    place: NDArray[np.intp]
    """Position of the parcel in the landscape, (H, W)."""
    vigour: Floats
    """Texture inside parcels: factor on leaf area, (H, W)."""
    soil: Floats
    """Factor on the soil's brightness."""
    inside: NDArray[np.bool_]
    """Whether the centre lies in the archive's area."""


@dataclass(frozen=True)
class Granule:
    """One granule of a pass: where it is and which part of it was seen."""

    grid: Grid
    tile: str
    """MGRS name."""
    part: Literal["whole", "north", "south"] = "whole"
    """Which datastrip, when the granule is split between two."""


class World:
    """Truth for one set of options."""

    def __init__(self, options: SimulationOptions) -> None:
        self.options = options
        longitude, latitude = options.place
        self.epsg = utm_epsg(longitude, latitude)
        east, north = reproject(np.array([longitude]), np.array([latitude]), 4326, self.epsg)
        half = options.extent_km * 500
        centre = round(float(east[0]) / 20) * 20, round(float(north[0]) / 20) * 20
        self.region = _region(centre, half)
        reach = half + options.margin_m
        self.home = snapped(self.epsg, (centre[0] - reach, centre[1] - reach, centre[0] + reach, centre[1] + reach))
        self.surface = lru_cache(maxsize=8)(self._surface)
        self._measured = lru_cache(maxsize=2)(self._measure)

    @cached_property
    def landscape(self) -> Landscape:
        """The parcels."""
        west, south, east, north = self.home.bounds
        return build(self.options, (float(west), float(south), float(east), float(north)))

    # --- grids ----------------------------------------------------------------------------------------------------

    @cached_property
    def neighbour(self) -> Grid:
        """The archive's grid in the neighbouring zone; beyond the area it has no data."""
        target = neighbour_epsg(self.epsg, self.options.place[0])
        west, south, east, north = self.region.buffer(0.8 * self.options.margin_m).bounds
        x, y = reproject(np.array([west, west, east, east]), np.array([south, north, south, north]), self.epsg, target)
        return snapped(target, (float(x.min()), float(y.min()), float(x.max()), float(y.max())))

    def granules(self, item: S2Pass) -> list[Granule]:
        """The granules that a pass delivers."""
        width = self.home.width
        overlap = self.options.overlap * width
        first = int((width + overlap) / 4) * 2
        second = int((width - overlap) / 4) * 2
        result: list[Granule] = []
        if item.neighbour != "only":
            grids = (self.home.crop(0, first), self.home.crop(second, width))
            west, east = (Granule(grid, name) for grid, name in zip(grids, self.tiles, strict=True))
            split = item.quirk == "split datastrip"
            result += (
                [Granule(west.grid, west.tile, "north"), Granule(west.grid, west.tile, "south")] if split else [west]
            )
            result.append(east)
        if item.neighbour != "none":
            result.append(Granule(self.neighbour, self._square(self.neighbour)))
        return result

    @cached_property
    def tiles(self) -> tuple[str, str]:
        """MGRS names of the two granules of the home zone."""
        west, _, east, north = self.home.bounds
        name = self._square(self.home)
        middle = (west + east) / 2
        # Sentinel-2's squares reach 9.8 km into the next one to the east; the place is seen by the nearer neighbour.
        eastward = middle % 100_000 > 50_000
        step = 100_000 if eastward else -100_000
        other = mgrs_square(self.epsg, middle + step, north - 10.0, self.options.place[1])
        return (name, other) if eastward else (other, name)

    def _square(self, grid: Grid) -> str:
        west, south, east, north = grid.bounds
        return mgrs_square(grid.epsg, (west + east) / 2, (south + north) / 2, self.options.place[1])

    def frame(self, item: S1Pass) -> Grid:
        """The grid of a radar product."""
        return self.neighbour if item.zone == "neighbour" else self.home

    # --- the ground -----------------------------------------------------------------------------------------------

    def _surface(self, grid: Grid) -> Surface:
        x, y = reproject(*grid.centres(), grid.epsg, self.epsg)
        seed = self.options.seed
        vigour = 1 + 0.07 * fractal(x, y, 140.0, seed_of(seed, _VIGOUR), octaves=2)
        soil = 1 + 0.05 * fractal(x, y, 190.0, seed_of(seed, _SOIL), octaves=2)
        west, south, east, north = self.home.bounds
        inside = (x >= west) & (x <= east) & (y >= south) & (y <= north)
        place = self.landscape.locate(x, y)
        return Surface(x, y, place, vigour.astype(np.float32), soil.astype(np.float32), inside)

    def kinds(self, grid: Grid) -> NDArray[np.int16]:
        """Positions in `crops.CROPS` at 10 m pixel centres, (H, W)."""
        return self.landscape.kind[self.surface(grid).place]

    def codes(self, grid: Grid) -> NDArray[np.uint8]:
        """Legend codes at 10 m pixel centres, (H, W)."""
        return np.array([crop.code for crop in CROPS], np.uint8)[self.kinds(grid)]

    def conditions(self, moment: datetime) -> Weather:
        """The weather of one day, axis of one."""
        return weather(np.array([moment.date()], "datetime64[D]"), self.options.climate, self.options.seed)

    def _standing(self, grid: Grid, today: Weather) -> tuple[Fields, Canopy]:
        """Parameters and canopies of pixels (H, W)."""
        surface = self.surface(grid)
        by_parcel = grow(self.landscape.fields, today)
        at = surface.place
        fields = self.landscape.fields.take(at).scaled(surface.vigour, surface.soil)
        canopy = Canopy(
            by_parcel.green[at] * surface.vigour,
            by_parcel.dry[at] * surface.vigour,
            by_parcel.straw[at],
            by_parcel.bloom[at],
            by_parcel.biomass[at] * surface.vigour,
        )
        return fields, canopy

    # --- Sentinel-2 -----------------------------------------------------------------------------------------------

    def clear_reflectance(self, item: S2Pass, grid: Grid) -> Floats:
        """What a cloudless pass measures at 10 m, sensor noise included: (H, W, 10) in the order of `BANDS`."""
        if self._within_home(grid):
            return self._measured(item, self.home)[self.home.window(grid)].copy()
        return self._measured(item, grid).copy()

    def _within_home(self, grid: Grid) -> bool:
        west, south, east, north = self.home.bounds
        own = grid.bounds
        return grid.epsg == self.epsg and own[0] >= west and own[1] >= south and own[2] <= east and own[3] <= north

    def _measure(self, item: S2Pass, grid: Grid) -> Floats:
        today = self.conditions(item.moment)
        fields, canopy = self._standing(grid, today)
        clear = delivered(reflectance(fields, canopy, today.moisture, today.snow), today)
        if self.options.noise > 0:
            surface = self.surface(grid)
            cells = (surface.x // 10).astype(np.int64), (surface.y // 10).astype(np.int64)
            for band in range(len(BANDS)):
                seed = seed_of(self.options.seed, _NOISE, item.moment.toordinal(), band)
                clear[..., band] += np.float32(self.options.noise) * white(*cells, seed)
        return clear

    def sky(self, item: S2Pass, grid: Grid) -> clouds.Sky:
        """Clouds and shadows on the 20 m pixels of a grid."""
        seed = self.options.seed
        level = clouds.threshold(*self.home.centres(20), item, seed)
        x, y = reproject(*grid.centres(20), grid.epsg, self.epsg)
        return clouds.sky(x, y, item, seed, level, self.sun(item))

    def sun(self, item: S2Pass) -> tuple[float, float]:
        """Zenith and azimuth of the sun in degrees."""
        return clouds.solar_angles(item, self.options.place[1])

    def seen(self, item: S2Pass, granule: Granule) -> NDArray[np.bool_]:
        """Which 20 m pixels of a granule lie in the swath, in the datastrip and in the archive's area, (H/2, W/2)."""
        grid = granule.grid
        x, y = reproject(*grid.centres(20), grid.epsg, self.epsg)
        west, south, east, north = self.home.bounds
        valid = (x >= west) & (x <= east) & (y >= south) & (y <= north)
        if item.edge:
            border = west + 0.72 * (east - west) - 0.22 * (y - (south + north) / 2)
            valid &= x < border
        if granule.part != "whole":
            border = (south + north) / 2 + 0.18 * (x - (west + east) / 2)
            valid &= (y >= border) if granule.part == "north" else (y < border)
        return valid

    def s2_product(self, item: S2Pass, granule: Granule) -> tuple[dict[str, NDArray[np.uint16]], NDArray[np.uint8]]:
        """What a granule stores: numbers by band at native resolution (0 where nothing was seen) and its SCL."""
        grid = granule.grid
        clear = self.clear_reflectance(item, grid)
        above = self.sky(item, grid)
        x, y = reproject(*grid.centres(20), grid.epsg, self.epsg)
        corner = self.kinds(grid)[::2, ::2]
        ground = np.array([crop.ground for crop in CROPS])[corner]
        odd = np.zeros(x.shape, np.uint8)
        if self.options.quirks:
            odd = clouds.odd_pixels(x, y, item, self.options.seed, ground, self.sun(item)[0])
        valid = self.seen(item, granule)
        scl = clouds.classify(halved(clear), above, valid, odd)
        stored = quantised(clouds.covered(clear, above, odd), item.offset)
        for band, numbers in stored.items():
            mask = valid if band in TWENTY_METRES else valid.repeat(2, axis=0).repeat(2, axis=1)
            numbers[~mask] = 0
        return stored, scl

    # --- Sentinel-1 -----------------------------------------------------------------------------------------------

    def mean_power(self, item: S1Pass) -> Floats:
        """Linear gamma nought before speckle on the product's frame, (H, W, 2)."""
        today = self.conditions(item.moment)
        fields, canopy = self._standing(self.frame(item), today)
        return backscatter(fields, canopy, today.moisture, today.snow, item.orbit)

    def s1_product(self, item: S1Pass) -> Floats:
        """Linear gamma nought with speckle on the whole frame, (H, W, 2)."""
        mean = self.mean_power(item)
        direction = 0 if item.orbit == "ascending" else 1
        seed = seed_of(self.options.seed, _SPECKLE, item.moment.toordinal(), direction)
        return mean * speckle(mean.shape, self.options.looks, np.random.default_rng(seed))

    def unseen(self, item: S1Pass, part: int) -> NDArray[np.bool_]:
        """Where a radar product is filled with zeros, (H, W): beyond the slice's end and in a corner of the frame."""
        x, y = self.frame(item).centres()
        grid = self.frame(item)
        west, south, east, north = grid.bounds
        width, height = east - west, north - south
        u, v = (x - west) / width, (y - south) / height
        if item.slices == 2:
            return np.asarray((v < 0.42 + 0.1 * u) if part == 0 else (v > 0.56 + 0.1 * u), bool)
        if self.options.quirks and item.orbit == "descending":
            return np.asarray(u + v > 1.93 - 0.25 * ((item.moment.toordinal() // 12) % 2), bool)
        return np.zeros(grid.shape, bool)


def halved(values: Floats) -> Floats:
    """Means of 2 x 2 pixels: (H, W, C) to (H/2, W/2, C)."""
    height, width, channels = values.shape
    return np.asarray(values.reshape(height // 2, 2, width // 2, 2, channels).mean(axis=(1, 3)), np.float32)


def quantised(values: Floats, offset: int) -> dict[str, NDArray[np.uint16]]:
    """Stored numbers by band: reflectance x 10000, rounded half to even, plus the offset, kept within 1 to 65535.

    Bands of 20 m hold the mean of the four 10 m pixels below them.
    """
    stored: dict[str, NDArray[np.uint16]] = {}
    coarse = halved(values)
    for place, band in enumerate(BANDS):
        numbers = (values if band in TEN_METRES else coarse)[..., place]
        stored[band] = np.clip(np.rint(numbers * np.float32(10000)) + offset, 1, 65535).astype(np.uint16)
    return stored


def _region(centre: tuple[float, float], half: float) -> Any:
    """A slanted polygon with a hole, in metres of the home zone."""
    outer = [(-1.0, -0.86), (-0.9, 0.55), (-0.55, 1.0), (0.78, 0.93), (1.0, -0.35), (0.62, -1.0)]
    hole = [(0.12, 0.16), (0.3, 0.2), (0.27, 0.38), (0.1, 0.34)]
    unit = Polygon(outer, [hole])
    return affinity.translate(affinity.scale(unit, half, half, origin=(0, 0)), *centre)
