"""From canopies and soils to what the sensors see: reflectance and gamma nought.

A closed canopy's reflectance is approached exponentially with leaf area from the ground's (Baret & Guyot 1991,
doi:10.1016/0034-4257(91)90009-U, band by band): R = R_canopy + (R_ground - R_canopy) exp(-k LAI). End members are
typical field spectra averaged over the bands of Sentinel-2. Arrays end in (..., 10), in the order of `BANDS`.

Backscatter at C band is a water-cloud model (Attema & Ulaby 1978, doi:10.1029/RS013i002p00357): the canopy attenuates
the soil's signal and adds its own, in linear power. Arrays end in (..., 2): VV, VH.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from infer.contract import BANDS
from preproc.simulate.crops import CROPS, Crop
from preproc.simulate.phenology import Canopy, Fields, canopy
from preproc.simulate.weather import Weather

Floats = NDArray[np.float32]

_SPECTRUM_BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
Orbit = Literal["ascending", "descending"]
ORBITS: tuple[Orbit, ...] = ("ascending", "descending")

INCIDENCE = {"ascending": 38.5, "descending": 34.0}
"""Incidence angle in degrees at the place."""
_SOIL_DRY = np.array([-15.3, -22.8], np.float32)
_SOIL_WET = np.array([6.0, 5.0], np.float32)
_FIXED = {"water": (-21.0, -28.0), "built": (-4.5, -12.5), "road": (-13.5, -20.5)}


def _spectrum(*values: float) -> Floats:
    """Values by wavelength, put into the order of `BANDS`."""
    by_band = dict(zip(_SPECTRUM_BANDS, values, strict=True))
    return np.array([by_band[band] for band in BANDS], np.float32)


GREEN = _spectrum(0.022, 0.050, 0.021, 0.085, 0.290, 0.405, 0.435, 0.455, 0.200, 0.090)
DRY = _spectrum(0.065, 0.105, 0.155, 0.185, 0.220, 0.245, 0.270, 0.290, 0.350, 0.240)
STRAW = _spectrum(0.095, 0.140, 0.190, 0.220, 0.250, 0.270, 0.295, 0.315, 0.390, 0.290)
FLOWER = _spectrum(-0.004, 0.075, 0.075, 0.070, 0.045, 0.020, 0.015, 0.015, 0.000, 0.000)
SNOW = _spectrum(0.880, 0.890, 0.880, 0.870, 0.860, 0.850, 0.830, 0.810, 0.110, 0.090)
CLOUD = _spectrum(0.690, 0.680, 0.680, 0.690, 0.700, 0.710, 0.710, 0.720, 0.480, 0.360)
GROUNDS = {
    "soil": _spectrum(0.078, 0.112, 0.150, 0.172, 0.190, 0.205, 0.225, 0.240, 0.320, 0.275),
    "litter": _spectrum(0.035, 0.050, 0.062, 0.080, 0.110, 0.125, 0.140, 0.155, 0.190, 0.130),
    "water": _spectrum(0.042, 0.044, 0.028, 0.022, 0.014, 0.012, 0.009, 0.007, 0.0012, 0.0006),
    "built": _spectrum(0.135, 0.150, 0.172, 0.185, 0.196, 0.205, 0.215, 0.225, 0.250, 0.235),
    "road": _spectrum(0.095, 0.105, 0.115, 0.122, 0.128, 0.133, 0.140, 0.145, 0.160, 0.150),
}
_EXTINCTION = _spectrum(0.95, 0.85, 0.95, 0.75, 0.58, 0.50, 0.48, 0.47, 0.66, 0.78)
_WETTING = _spectrum(0.45, 0.45, 0.45, 0.45, 0.44, 0.43, 0.43, 0.43, 0.50, 0.58)
_PIGMENT = _spectrum(0.35, 0.9, 0.6, 0.9, 0.35, 0.08, 0.0, 0.0, 0.0, 0.0)
_NIR = _spectrum(0.0, 0.1, 0.0, 0.3, 0.8, 1.0, 1.0, 1.0, 0.5, 0.3)
_WATER = _spectrum(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.05, 0.55, 0.8)


@lru_cache(maxsize=2)
def _canopies(crops: tuple[Crop, ...]) -> Floats:
    """Reflectance of a closed green canopy, (kinds, 10)."""
    rows = [
        GREEN * (crop.leaf.chlorophyll**-_PIGMENT) * (crop.leaf.nir**_NIR) * (crop.leaf.water**-_WATER)
        for crop in crops
    ]
    return np.array(rows, np.float32)


@lru_cache(maxsize=2)
def _grounds(crops: tuple[Crop, ...]) -> tuple[Floats, Floats]:
    """Reflectance of the dry ground (kinds, 10) and whether moisture darkens it (kinds,)."""
    rows = np.array([GROUNDS[crop.ground] for crop in crops], np.float32)
    porous = np.array([{"soil": 1.0, "litter": 0.6, "road": 0.2, "built": 0.1}.get(crop.ground, 0.0) for crop in crops])
    return rows, porous.astype(np.float32)


def reflectance(
    fields: Fields, canopy: Canopy, moisture: Floats, snow: Floats, crops: tuple[Crop, ...] = CROPS
) -> Floats:
    """Surface reflectance without cloud.

    Args:
        fields: parcels or pixels, any shape.
        canopy: their canopies, of the shape to which `fields`, `moisture` and `snow` broadcast.
        moisture: water in the topsoil, 0 dry to 1 saturated.
        snow: part of the ground under snow, 0 to 1.
        crops: what `fields.kind` counts.

    Returns:
        (..., 10) float32 in the order of `BANDS`; water may come out slightly below zero after noise, never here.
    """
    dry_ground, porous = _grounds(crops)
    kind = fields.kind
    wet = (moisture * porous[kind])[..., None] * _WETTING
    ground = dry_ground[kind] * fields.soil[..., None] * (1 - wet)
    ground = ground + (STRAW - ground) * canopy.straw[..., None]
    leaves = canopy.green + canopy.dry
    share = (canopy.dry / np.maximum(leaves, 1e-3))[..., None]
    closed = _canopies(crops)[kind] * (1 - share) + DRY * share
    open_sky = np.exp(-_EXTINCTION * leaves[..., None])
    surface = closed + (ground - closed) * open_sky
    surface = surface + FLOWER * (canopy.bloom * (1 - np.exp(-0.6 * leaves)))[..., None]
    white = (snow * np.exp(-0.35 * leaves))[..., None] * np.float32(0.95)
    frozen = np.array([crop.ground != "water" for crop in crops])[kind][..., None]
    return np.asarray(np.where(frozen, surface + (SNOW - surface) * white, surface), np.float32)


@lru_cache(maxsize=2)
def _table(crops: tuple[Crop, ...]) -> dict[str, Floats]:
    columns = {
        "canopy": [(crop.radar.vv, crop.radar.vh) for crop in crops],
        "depth": [crop.radar.depth for crop in crops],
        "woody": [crop.radar.woody for crop in crops],
        "rough": [crop.radar.rough for crop in crops],
        "fixed": [_FIXED.get(crop.ground, (np.nan, np.nan)) for crop in crops],
    }
    return {name: np.array(values, np.float32) for name, values in columns.items()}


def decibels(power: Floats) -> Floats:
    """10 log10 of linear power."""
    return np.asarray(10 * np.log10(power), np.float32)


def backscatter(
    fields: Fields, canopy: Canopy, moisture: Floats, snow: Floats, orbit: Orbit, crops: tuple[Crop, ...] = CROPS
) -> Floats:
    """Mean backscatter, before speckle.

    Args:
        fields: parcels or pixels, any shape.
        canopy: their canopies.
        moisture: water in the topsoil, 0 to 1, broadcastable.
        snow: part of the ground under (wet) snow, 0 to 1.
        orbit: which look direction; the steeper one sees more of the soil.
        crops: what `fields.kind` counts.

    Returns:
        (..., 2) float32 linear gamma nought.
    """
    table, kind = _table(crops), fields.kind
    cosine = np.cos(np.radians(INCIDENCE[orbit]))
    look = 0.0 if orbit == "ascending" else 0.5 * np.pi + 0.3
    rows = (
        0.9
        * np.cos(2 * (fields.rows - look))
        * np.array([1.0, 0.5], np.float32)[:, None].reshape((2,) + (1,) * fields.rows.ndim)
    )
    soil_db = (
        _SOIL_DRY
        + _SOIL_WET * moisture[..., None]
        + (fields.rough + table["rough"][kind])[..., None]
        + np.moveaxis(rows, 0, -1)
        + (INCIDENCE["ascending"] - INCIDENCE[orbit]) * 0.22
        - 2.0 * snow[..., None]
    )
    biomass = canopy.biomass + table["woody"][kind]
    transparent = np.exp(-2 * table["depth"][kind] * biomass / cosine)[..., None]
    volume = 10 ** ((table["canopy"][kind] + (INCIDENCE["ascending"] - INCIDENCE[orbit]) * 0.06) / 10)
    power = volume * (1 - transparent) + 10 ** (soil_db / 10) * transparent
    fixed = table["fixed"][kind] + 3.0 * (fields.soil[..., None] - 1) * 4
    return np.where(np.isnan(fixed), power, 10 ** (fixed / 10)).astype(np.float32)


def speckle(shape: tuple[int, ...], looks: float, rng: np.random.Generator) -> Floats:
    """Multiplicative speckle of mean one: gamma distributed with `looks` looks; ones when `looks` is 0."""
    if looks == 0:
        return np.ones(shape, np.float32)
    return (rng.standard_gamma(looks, shape, np.float32) / np.float32(looks)).astype(np.float32)


def grow(fields: Fields, weather: Weather) -> Canopy:
    """Canopies of parcels of shape (..., 1) on the T days of `weather`, (..., T)."""
    return canopy(replace(fields, vigour=fields.vigour * weather.lushness), weather.day)


def delivered(surface: Floats, weather: Weather) -> Floats:
    """What atmospheric correction leaves behind: each day's factor and addition, on (..., T, 10)."""
    return surface * weather.gain + weather.haze
