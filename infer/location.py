"""Where a tile's pixels are on the globe, for families whose input has the place: UTM to degrees, numpy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from infer.contract import FormatError, Tile

_SEMI_MAJOR, _FLATTENING = 6_378_137.0, 1 / 298.257223563
_SCALE, _FALSE_EASTING, _FALSE_NORTHING = 0.9996, 500_000.0, 10_000_000.0
_N = _FLATTENING / (2 - _FLATTENING)
_RADIUS = _SEMI_MAJOR / (1 + _N) * (1 + _N**2 / 4 + _N**4 / 64)
_TO_SPHERE = (
    _N / 2 - 2 / 3 * _N**2 + 37 / 96 * _N**3 - _N**4 / 360,
    _N**2 / 48 + _N**3 / 15 - 437 / 1440 * _N**4,
    17 / 480 * _N**3 - 37 / 840 * _N**4,
    4397 / 161280 * _N**4,
)
"""Krueger's series, which leaves a ten-thousandth of a millimetre in a zone."""
_TO_LATITUDE = (
    2 * _N - 2 / 3 * _N**2 - 2 * _N**3 + 116 / 45 * _N**4,
    7 / 3 * _N**2 - 8 / 5 * _N**3 - 227 / 45 * _N**4,
    56 / 15 * _N**3 - 136 / 35 * _N**4,
    4279 / 630 * _N**4,
)
"""From the conformal latitude."""


def degrees(
    epsg: int, easting_p: NDArray[np.float64], northing_p: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Longitude and latitude in degrees (WGS 84) of metres in a UTM zone, 326xx or 327xx."""
    south, zone = epsg // 100 == 327, epsg % 100
    xi = (northing_p - _FALSE_NORTHING * south) / (_SCALE * _RADIUS)
    eta = (easting_p - _FALSE_EASTING) / (_SCALE * _RADIUS)
    along, across = xi.copy(), eta.copy()
    for order, beta in enumerate(_TO_SPHERE, start=1):
        along -= beta * np.sin(2 * order * xi) * np.cosh(2 * order * eta)
        across -= beta * np.cos(2 * order * xi) * np.sinh(2 * order * eta)
    conformal = np.arcsin(np.sin(along) / np.cosh(across))
    latitude = conformal.copy()
    for order, delta in enumerate(_TO_LATITUDE, start=1):
        latitude += delta * np.sin(2 * order * conformal)
    longitude = np.degrees(np.arctan2(np.sinh(across), np.cos(along))) + 6 * zone - 183
    return (longitude + 180) % 360 - 180, np.degrees(latitude)


def unit_vectors(tile: Tile, rows_p: NDArray[np.int64], columns_p: NDArray[np.int64]) -> NDArray[np.float32]:
    """The centres of pixels as points of the unit sphere.

    Args:
        tile: whose manifest states its grid.
        rows_p: rows in that grid.
        columns_p: columns in it.

    Returns:
        (P, 3) x, y, z.

    Raises:
        FormatError: for a tile that does not state where it is.
    """
    grid = tile.manifest.grid
    epsg = None if grid is None else grid.utm_epsg
    if grid is None or epsg is None:
        raise FormatError(f"{tile.name}: its tile.json states no grid in a UTM zone: fetch it with smalti")
    a, b, c, d, e, f = grid.transform
    x, y = columns_p + 0.5, rows_p + 0.5
    longitude, latitude = (np.radians(angle) for angle in degrees(epsg, a * x + b * y + c, d * x + e * y + f))
    parts = np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)
    return np.stack(parts, axis=-1).astype(np.float32)
