"""Clouds, their displaced shadows and the scene classification (SCL) that goes with them, on a 20 m grid.

The sky is a function of position in the home zone, so that every granule of a date sees the same clouds. What the SCL
calls clear is exactly clear: no opacity is left where the class says 4, 5, 6, 7 or 11.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infer.contract import BANDS
from preproc.simulate.noise import fractal, hash_cells, seed_of
from preproc.simulate.schedule import S2Pass
from preproc.simulate.sensors import CLOUD

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]

NODATA, SATURATED, DARK, SHADOW, VEGETATION, BARE, WATER, UNCLASSIFIED, MEDIUM, HIGH, CIRRUS, SNOW = range(12)
_CLOUDS, _CIRRUS, _THICKNESS, _ODD = 31, 32, 33, 34
_VISIBLE = 0.15
"""Opacity below which a pixel counts, and is made, clear."""
_SHADE = np.array([{"B02": 0.48, "B03": 0.53, "B04": 0.57, "B05": 0.58}.get(band, 0.64) for band in BANDS], np.float32)


@dataclass(frozen=True)
class Sky:
    """What stands between the ground and the sensor; arrays (H, W) of 20 m pixels, 0 to 1."""

    cloud: Floats32
    cirrus: Floats32
    shadow: Floats32


def solar_angles(item: S2Pass, latitude: float) -> tuple[float, float]:
    """Zenith and azimuth of the sun in degrees, to about a degree, at half past ten local solar time."""
    day = item.moment.timetuple().tm_yday
    angle = math.radians(-15 * 1.5)
    parallel = math.radians(latitude)
    declination = math.radians(-23.44 * math.cos(2 * math.pi * (day + 10) / 365.25))
    up = math.sin(parallel) * math.sin(declination) + math.cos(parallel) * math.cos(declination) * math.cos(angle)
    north = math.cos(parallel) * math.sin(declination) - math.sin(parallel) * math.cos(declination) * math.cos(angle)
    east = -math.cos(declination) * math.sin(angle)
    return math.degrees(math.acos(up)), math.degrees(math.atan2(east, north)) % 360


def _field(x: Floats, y: Floats, item: S2Pass, seed: int) -> Floats:
    return fractal(x, y, 1100.0, seed_of(seed, _CLOUDS, item.moment.toordinal()), octaves=4, gain=0.55)


def threshold(x: Floats, y: Floats, item: S2Pass, seed: int) -> float:
    """The level above which a field has a cloud, so that the date's fraction of these points is covered."""
    if item.cloud <= 0:
        return math.inf
    if item.cloud >= 1:
        return -math.inf
    return float(np.quantile(_field(x, y, item, seed), 1 - item.cloud))


def _opacity(x: Floats, y: Floats, item: S2Pass, seed: int, level: float) -> Floats32:
    if level == math.inf:
        return np.zeros(x.shape, np.float32)
    if level == -math.inf:
        thick = fractal(x, y, 700.0, seed_of(seed, _THICKNESS, item.moment.toordinal()))
        return np.clip(0.8 + 0.12 * thick, 0.4, 1).astype(np.float32)
    opacity = np.clip((_field(x, y, item, seed) - level) / 0.9, 0, 1)
    return np.where(opacity > _VISIBLE, opacity**0.7, 0).astype(np.float32)


def sky(x: Floats, y: Floats, item: S2Pass, seed: int, level: float, sun: tuple[float, float]) -> Sky:
    """The sky over points of the home zone.

    Args:
        x: eastings of 20 m pixel centres in metres of the home zone, (H, W).
        y: northings.
        item: the pass.
        seed: of the simulation.
        level: from `threshold`.
        sun: zenith and azimuth in degrees.
    """
    cloud = _opacity(x, y, item, seed, level)
    day = item.moment.toordinal()
    height = 450.0 + 900.0 * (seed_of(seed, _THICKNESS, day, 1) % 1000) / 1000
    reach = height * min(math.tan(math.radians(sun[0])), 2.5)
    east, north = (-reach * function(math.radians(sun[1])) for function in (math.sin, math.cos))
    shadow = np.zeros(x.shape, np.float32)
    if math.isfinite(level):
        shadow = np.minimum(1.0, 1.4 * _opacity(x - east, y - north, item, seed, level))
    shadow = np.where(cloud > 0, 0, shadow)
    thin = fractal(x, y, 2300.0, seed_of(seed, _CIRRUS, day), octaves=2)
    cirrus = np.clip((thin - 1.25) * 0.8, 0, 0.5) if 0.05 < item.cloud < 1 else np.zeros(x.shape)
    free = (cirrus > 0.05) & (cloud == 0) & (shadow == 0)
    return Sky(cloud, np.where(free, cirrus, 0).astype(np.float32), np.asarray(shadow, np.float32))


def classify(clear: Floats32, sky: Sky, valid: NDArray[np.bool_], odd: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The scene classification.

    Args:
        clear: (H, W, 10) reflectance of 20 m pixels without clouds.
        sky: what covers them.
        valid: False outside the swath.
        odd: class of the few pixels that a sensor or a hill spoils (1, 2 or 7), 0 elsewhere.

    Returns:
        (H, W) uint8.
    """
    band = {name: clear[..., place] for place, name in enumerate(BANDS)}

    def index(one: str, other: str) -> Floats32:
        return np.asarray((band[one] - band[other]) / np.maximum(band[one] + band[other], 1e-3), np.float32)

    scl = np.where(index("B08", "B04") > 0.38, VEGETATION, BARE).astype(np.uint8)
    scl[index("B03", "B08") > 0.1] = WATER
    scl[(index("B03", "B11") > 0.4) & (band["B03"] > 0.25)] = SNOW
    scl = np.where(odd > 0, odd, scl)
    scl[sky.shadow > 0] = SHADOW
    scl[sky.cirrus > 0] = CIRRUS
    scl[sky.cloud > 0] = MEDIUM
    scl[sky.cloud > 0.5] = HIGH
    scl[~valid] = NODATA
    return scl.astype(np.uint8)


def odd_pixels(
    x: Floats, y: Floats, item: S2Pass, seed: int, ground: NDArray[np.str_], zenith: float
) -> NDArray[np.uint8]:
    """Glinting roofs in summer (1), dark wood edges under a low sun (2), and what no class fits (7); 20 m pixels."""
    cells = (x // 20).astype(np.int64), (y // 20).astype(np.int64)
    chance = hash_cells(*cells, seed_of(seed, _ODD)).astype(np.float64) / 2.0**64
    daily = hash_cells(*cells, seed_of(seed, _ODD, item.moment.toordinal())).astype(np.float64) / 2.0**64
    odd = np.where(daily < 0.004, UNCLASSIFIED, 0)
    odd = np.where((ground == "built") & (chance < 0.02) & (zenith < 40), SATURATED, odd)
    odd = np.where((ground == "litter") & (chance < 0.04) & (zenith > 62), DARK, odd)
    return odd.astype(np.uint8)


def covered(clear: Floats32, sky: Sky, odd: NDArray[np.uint8]) -> Floats32:
    """Reflectance (H, W, 10) of 10 m pixels under the sky of the 20 m pixels that they lie in."""

    def wide(values: NDArray[np.float32] | NDArray[np.uint8]) -> Floats32:
        return values.repeat(2, axis=0).repeat(2, axis=1)[..., None].astype(np.float32)

    flag = wide(odd)
    seen = np.where(flag == DARK, clear * np.float32(0.3), clear)
    seen = np.where(flag == SATURATED, np.float32(1.9), seen)
    seen = seen * (1 - wide(sky.shadow) * (1 - _SHADE))
    opacity = np.clip(wide(sky.cloud), 0, 0.97)
    seen = seen + (CLOUD * (0.75 + 0.25 * opacity) - seen) * opacity
    seen = seen + (CLOUD - seen) * (0.35 * wide(sky.cirrus))
    return np.asarray(seen, np.float32)
