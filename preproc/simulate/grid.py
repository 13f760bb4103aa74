"""Pixel grids in UTM zones, the MGRS names of the squares that they lie in, and the archive's GeoTIFFs on them.

Files are cloud-optimised: tiled, deflated, with overviews when they are large.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.io import MemoryFile
from rasterio.transform import Affine

from infer.contract import writing

Floats = NDArray[np.float64]
PIXEL = 10
"""Ground size of a 10 m pixel in metres."""


@dataclass(frozen=True)
class Grid:
    """A north-up grid of 10 m pixels whose corner lies on a multiple of 20 m, with even sides."""

    epsg: int
    """UTM zone, 326xx or 327xx."""
    west: int
    """Easting of the left edge, metres."""
    north: int
    """Northing of the upper edge, metres."""
    width: int
    """Columns of 10 m."""
    height: int
    """Rows of 10 m."""

    @property
    def bounds(self) -> tuple[int, int, int, int]:
        """West, south, east, north in metres."""
        return self.west, self.north - PIXEL * self.height, self.west + PIXEL * self.width, self.north

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of 10 m."""
        return self.height, self.width

    def transform(self, pixel: int = PIXEL) -> tuple[float, float, float, float, float, float]:
        """Affine coefficients (a, b, c, d, e, f) for pixels of this size."""
        return float(pixel), 0.0, float(self.west), 0.0, -float(pixel), float(self.north)

    def centres(self, pixel: int = PIXEL) -> tuple[Floats, Floats]:
        """Eastings and northings of the pixels' centres, each (H, W) for pixels of this size."""
        factor = pixel // PIXEL
        x = self.west + pixel * (np.arange(self.width // factor) + 0.5)
        y = self.north - pixel * (np.arange(self.height // factor) + 0.5)
        east, north = np.meshgrid(x, y)
        return east, north

    def crop(self, first: int, last: int, top: int = 0, bottom: int | None = None) -> Grid:
        """Columns `first` to `last` and rows `top` to `bottom` (exclusive); all even."""
        bottom = self.height if bottom is None else bottom
        return Grid(self.epsg, self.west + PIXEL * first, self.north - PIXEL * top, last - first, bottom - top)

    def window(self, inner: Grid) -> tuple[slice, slice]:
        """Rows and columns of a grid inside this one."""
        top, left = (self.north - inner.north) // PIXEL, (inner.west - self.west) // PIXEL
        return slice(top, top + inner.height), slice(left, left + inner.width)


def utm_epsg(longitude: float, latitude: float) -> int:
    """The regular UTM zone (no Norwegian exceptions, as Sentinel-2 has none) of a place."""
    zone = min(60, int((longitude + 180) // 6) + 1)
    return (32600 if latitude >= 0 else 32700) + zone


def neighbour_epsg(epsg: int, longitude: float) -> int:
    """The zone on the other side of the nearer zone boundary."""
    base, zone = epsg // 100 * 100, epsg % 100
    middle = -183 + 6 * zone
    return base + (zone % 60 + 1 if longitude >= middle else (zone - 2) % 60 + 1)


def snapped(epsg: int, bounds: tuple[float, float, float, float]) -> Grid:
    """The smallest grid on multiples of 20 m that covers the bounds (west, south, east, north)."""
    west, south = (math.floor(value / 20) * 20 for value in bounds[:2])
    east, north = (math.ceil(value / 20) * 20 for value in bounds[2:])
    return Grid(epsg, west, north, (east - west) // PIXEL, (north - south) // PIXEL)


def reproject(x: Floats, y: Floats, source: int, target: int) -> tuple[Floats, Floats]:
    """Coordinates of one CRS in another, x before y."""
    if source == target:
        return x, y
    east, north = Transformer.from_crs(source, target, always_xy=True).transform(x, y)
    return np.asarray(east, np.float64), np.asarray(north, np.float64)


def mgrs_square(epsg: int, east: float, north: float, latitude: float) -> str:
    """The 100 km square of a point, as Sentinel-2 names its tiles, for example 31UFS."""
    zone = epsg % 100
    band = "CDEFGHJKLMNPQRSTUVWX"[min(19, int((latitude + 80) // 8))]
    columns = ("STUVWXYZ", "ABCDEFGH", "JKLMNPQR")[zone % 3]
    column = columns[(int(east // 100_000) - 1) % 8]
    rows = "ABCDEFGHJKLMNPQRSTUV"
    row = rows[(int(north // 100_000) + (5 if zone % 2 == 0 else 0)) % 20]
    return f"{zone:02d}{band}{column}{row}"


def write_cog(
    path: Path,
    values: NDArray[Any],
    grid: Grid,
    *,
    nodata: float | None,
    colours: Mapping[int, tuple[int, int, int]] | None = None,
    average: bool = True,
) -> None:
    """Write one band.

    Args:
        path: a path in a folder that is already temporary.
        values: (H, W) at 10 or 20 m; the pixel size follows from the grid.
        grid: where it lies.
        nodata: value of missing pixels.
        colours: colour table of a class map.
        average: overviews are means (False: nearest neighbours, for classes).

    Raises:
        SmaltiError: if the file system refuses.
    """
    height, width = values.shape
    pixel = grid.width * 10 // width
    large = max(height, width) > 512
    profile: dict[str, Any] = {
        "driver": "COG",
        "dtype": values.dtype.name,
        "count": 1,
        "height": height,
        "width": width,
        "crs": f"EPSG:{grid.epsg}",
        "transform": Affine(*grid.transform(pixel)),
        "compress": "DEFLATE",
        "predictor": "FLOATING_POINT" if values.dtype == np.float32 else "STANDARD",
        "blocksize": 512 if large else 128,
        "overviews": "AUTO" if large else "NONE",
        "overview_resampling": "AVERAGE" if average else "NEAREST",
        "num_threads": 1,
    }
    if nodata is not None:
        profile["nodata"] = nodata
    with MemoryFile() as memory:  # GDAL would report a full disk in its own words, and not always
        with memory.open(**profile) as target:
            if colours:
                target.write_colormap(1, {code: (*colour, 255) for code, colour in colours.items()})
            target.write(values, 1)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(memory.read())
