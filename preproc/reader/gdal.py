"""GDAL's and PROJ's settings, in one place, and a check that coordinates come out right."""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import rasterio
from pyproj import Transformer
from pyproj.exceptions import ProjError
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.warp import transform as gdal_transform

from infer.contract import SmaltiError
from preproc.run.environment import drop_foreign_data_paths
from preproc.run.progress import say

GDAL_OPTIONS: dict[str, str | int] = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",  # no listing of the folder, no side-car files: 3-5 times faster opens
    "GDAL_PAM_ENABLED": "NO",  # no .aux.xml is looked for, and none is written beside somebody's data
    "GDAL_CACHEMAX": 64,  # MB of decoded blocks; each is used once, so a large cache only costs memory
    "GDAL_NUM_THREADS": 1,  # smalti reads in parallel itself
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".none",  # GDAL itself never goes to the network
}


# WGS 84 longitude, latitude -> UTM 31N easting, northing (the Atomium in Brussels), by the
# series of Krueger (1912), as tests/unit/preproc/reader/test_gdal.py computes them.
_KNOWN_LONLAT = (4.341556, 50.894941)
_KNOWN_UTM31 = (594347.1225, 5638999.2263)
_TOLERANCE_M = 0.01


@functools.cache
def check_coordinates() -> None:
    """Make sure, once per process, that both coordinate libraries put a known point where it is.

    Raises:
        SmaltiError: if one does not.
    """
    dropped = drop_foreign_data_paths()
    if dropped:
        say(f"{', '.join(dropped)} of another installation: left out, because it gives wrong coordinates")
    longitude, latitude = _KNOWN_LONLAT
    try:
        found = {
            "pyproj": Transformer.from_crs("EPSG:4326", "EPSG:32631", always_xy=True).transform(longitude, latitude),
            "GDAL": tuple(v[0] for v in gdal_transform("EPSG:4326", "EPSG:32631", [longitude], [latitude])),
        }
    except (ProjError, RasterioError) as error:
        raise SmaltiError(
            f"coordinates cannot be transformed ({error}): unset PROJ_DATA, PROJ_LIB and GDAL_DATA, "
            "or install smalti's environment anew"
        ) from error
    for library, (x, y) in found.items():
        if not (abs(x - _KNOWN_UTM31[0]) <= _TOLERANCE_M and abs(y - _KNOWN_UTM31[1]) <= _TOLERANCE_M):
            raise SmaltiError(
                f"{library} puts a known point at ({x:.3f}, {y:.3f}) instead of {_KNOWN_UTM31}: its data files belong "
                "to another version: unset PROJ_DATA, PROJ_LIB and GDAL_DATA, or install smalti's environment anew"
            )


@functools.cache
def _hush() -> None:
    """Keep GDAL's own words from standard error, once per process: what matters becomes one of smalti's errors."""
    logging.getLogger("rasterio").addHandler(logging.NullHandler())  # otherwise Python prints what nobody handles
    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)


@contextmanager
def gdal_settings() -> Iterator[None]:
    """GDAL's settings for reads, for this thread and (from the main thread) those that it starts."""
    check_coordinates()
    _hush()
    with rasterio.Env(**GDAL_OPTIONS):
        yield
