"""Time series of parcels without any raster: the core of the simulation, for archives and for made-up training data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from preproc.simulate.optics import reflectance
from preproc.simulate.phenology import Canopy, Fields, canopy
from preproc.simulate.radar import Orbit, backscatter, speckle
from preproc.simulate.weather import Weather

Floats = NDArray[np.float32]


def grow(fields: Fields, weather: Weather) -> Canopy:
    """Canopies of parcels of shape (..., 1) on the T days of `weather`, (..., T)."""
    return canopy(replace(fields, vigour=fields.vigour * weather.lushness), weather.day)


def s2_series(fields: Fields, weather: Weather) -> Floats:
    """Sentinel-2 surface reflectance of parcels under a clear sky, as it would be delivered but for sensor noise.

    Args:
        fields: N parcels (or any shape S).
        weather: T days.

    Returns:
        (N, T, 10) float32 in the order of `infer.contract.BANDS`.
    """
    wide = fields.expand()
    return delivered(reflectance(wide, grow(wide, weather), weather.moisture, weather.snow), weather)


def delivered(surface: Floats, weather: Weather) -> Floats:
    """What atmospheric correction leaves behind: each day's factor and addition, on (..., T, 10)."""
    return surface * weather.gain + weather.haze


def s1_series(
    fields: Fields, weather: Weather, orbit: Orbit, *, looks: float = 0.0, rng: np.random.Generator | None = None
) -> Floats:
    """Sentinel-1 gamma nought of parcels.

    Args:
        fields: N parcels (or any shape S).
        weather: T days.
        orbit: look direction.
        looks: equivalent number of looks of the speckle; 0 gives the mean signal.
        rng: draws the speckle; needed when `looks` is not 0.

    Returns:
        (N, T, 2) float32 linear power, VV and VH.
    """
    wide = fields.expand()
    power = backscatter(wide, grow(wide, weather), weather.moisture, weather.snow, orbit)
    if looks == 0 or rng is None:
        return power
    return power * speckle(power.shape, looks, rng)
