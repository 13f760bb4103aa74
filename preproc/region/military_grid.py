"""Squares of 100 km of the military grid reference system, by which Sentinel-2 tiles are named. Pure.

A Sentinel-2 tile is its square widened to 109.8 km to the east and south; squares themselves do not overlap.
"""

from __future__ import annotations

import re

from infer.contract import SmaltiError

SIDE = 100_000
"""Metres."""
_COLUMNS = ("STUVWXYZ", "ABCDEFGH", "JKLMNPQR")
"""Column letters of the zones whose number modulo 3 is 0, 1, 2; the first stands for eastings from 100 km."""
_ROWS = "ABCDEFGHJKLMNPQRSTUV"
"""Row letters, repeated every 2000 km; in even zones they begin with F."""
_BANDS = "CDEFGHJKLMNPQRSTUVWX"
"""Latitude bands of 8 degrees from 80 degrees south; X has 12."""
_QUADRANT = 10_001_966
"""Metres from the equator to a pole along a meridian."""
_NAME = re.compile(r"T?(\d{1,2})([A-Z])([A-Z])([A-Z])")


def mgrs_bounds(name: str) -> tuple[int, int, int, int, int]:
    """EPSG code of the zone, and west, south, east, north in metres of a square.

    Args:
        name: zone, band, column and row, for example 31UES (or T31UES).

    Raises:
        SmaltiError: if the name is not of that form. That the square touches its zone and band is for the caller to
            check, who can reproject: see `mgrs_cell`.
    """
    match = _NAME.fullmatch(name.strip().upper())
    if match is None:
        raise SmaltiError(f"run.toml: [region] mgrs: {name!r} is not like 31UES")
    zone, (band, column, row) = int(match[1]), match.groups()[1:]
    columns = _COLUMNS[zone % 3]
    if not 1 <= zone <= 60 or band not in _BANDS or column not in columns or row not in _ROWS:
        raise no_such_square(name)
    south_latitude = -80 + 8 * _BANDS.index(band)
    lowest = (south_latitude / 90) * _QUADRANT * 0.9996  # northing of the band's southern edge, to a few kilometres
    residue = (_ROWS.index(row) - (0 if zone % 2 else 5)) % 20 * SIDE
    first = (lowest - 1.5 * SIDE - residue) // (20 * SIDE) + 1
    south = int(residue + first * 20 * SIDE)
    west = SIDE * (columns.index(column) + 1)
    false_northing, epsg = (0, 32600 + zone) if band >= "N" else (10_000_000, 32700 + zone)
    return epsg, west, south + false_northing, west + SIDE, south + false_northing + SIDE


def mgrs_cell(name: str) -> tuple[float, float, float, float]:
    """West, south, east, north in degrees of the zone and band that a square is named after; the square must touch it.

    Bands V and X are widened by the three degrees that zones give each other in Norway and Svalbard.
    """
    match = _NAME.fullmatch(name.strip().upper())
    if match is None or match[2] not in _BANDS:
        raise no_such_square(name)
    west, south = 6 * int(match[1]) - 186, -80 + 8 * _BANDS.index(match[2])
    wider = 3 if match[2] in "VX" else 0
    return west - wider, south, west + 6 + wider, south + (12 if match[2] == "X" else 8)


def no_such_square(name: str) -> SmaltiError:
    """The error for a name that stands for nothing."""
    return SmaltiError(f"run.toml: [region] mgrs: there is no square {name!r} in the military grid")
