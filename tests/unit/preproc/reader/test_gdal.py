"""Coordinates are right whatever GIS software a machine has, or it is said."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from preproc.reader import gdal


def utm(longitude: float, latitude: float, meridian: float) -> tuple[float, float]:
    """WGS 84 to UTM north by Krueger's series to the fourth order in the third flattening (good to micrometres)."""
    a, f = 6378137.0, 1 / 298.257223563
    n = f / (2 - f)
    radius = a / (1 + n) * (1 + n**2 / 4 + n**4 / 64)
    alpha = (
        n / 2 - 2 * n**2 / 3 + 5 * n**3 / 16 + 41 * n**4 / 180,
        13 * n**2 / 48 - 3 * n**3 / 5 + 557 * n**4 / 1440,
        61 * n**3 / 240 - 103 * n**4 / 140,
        49561 * n**4 / 161280,
    )
    phi, lam = math.radians(latitude), math.radians(longitude - meridian)
    e = 2 * math.sqrt(n) / (1 + n)
    t = math.sinh(math.atanh(math.sin(phi)) - e * math.atanh(e * math.sin(phi)))
    xi, eta = math.atan2(t, math.cos(lam)), math.atanh(math.sin(lam) / math.sqrt(1 + t * t))
    east = eta + sum(c * math.cos(2 * j * xi) * math.sinh(2 * j * eta) for j, c in enumerate(alpha, start=1))
    north = xi + sum(c * math.sin(2 * j * xi) * math.cosh(2 * j * eta) for j, c in enumerate(alpha, start=1))
    return 500000 + 0.9996 * radius * east, 0.9996 * radius * north


def test_the_known_point_is_where_the_formulas_put_it() -> None:
    x, y = utm(*gdal._KNOWN_LONLAT, 3)
    assert (round(x, 4), round(y, 4)) == gdal._KNOWN_UTM31


def test_data_paths_of_another_installation_are_left_out_and_ones_own_stay(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = str(Path(sys.prefix) / "share" / "proj")
    monkeypatch.setenv("PROJ_DATA", str(tmp_path))
    monkeypatch.setenv("PROJ_LIB", own)
    monkeypatch.setenv("GDAL_DATA", "/opt/gis/share/gdal")
    assert gdal.drop_foreign_data_paths() == ["PROJ_DATA", "GDAL_DATA"]
    assert "PROJ_DATA" not in os.environ
    assert os.environ["PROJ_LIB"] == own


def test_a_process_with_foreign_data_paths_still_computes_the_right_coordinates(tmp_path: Path) -> None:
    """The check runs in a process of its own: both libraries look at the environment when they start."""
    (tmp_path / "proj.db").write_bytes(b"")
    code = (
        "from preproc.reader.gdal import check_coordinates; check_coordinates();"
        "from rasterio.warp import transform; print(transform('EPSG:4326', 'EPSG:32631', [3.0], [0.0]))"
    )
    environment = {**os.environ, "PROJ_DATA": str(tmp_path), "PROJ_LIB": str(tmp_path), "GDAL_DATA": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "PROJ_DATA, PROJ_LIB, GDAL_DATA of another installation" in done.stderr
    x, y = eval(done.stdout)  # noqa: S307  # our own output
    assert x[0] == pytest.approx(500000, abs=1e-3)
    assert y[0] == pytest.approx(0, abs=1e-3)


def test_a_wrong_known_point_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gdal, "_KNOWN_UTM31", (594347.2, 5638999.2))
    gdal.check_coordinates.cache_clear()
    with pytest.raises(gdal.SmaltiError, match="puts a known point at"):
        gdal.check_coordinates()
    gdal.check_coordinates.cache_clear()


SPOILT = """
import sys
import numpy as np, rasterio
from preproc.reader.gdal import gdal_settings
from preproc.reader.placement import Target
from preproc.reader.ranges import MissingDataError, RangeClient
from preproc.reader.read import REFLECTANCE, Reader
name = sys.argv[1]
with gdal_settings():
    with rasterio.open(name, "w", driver="GTiff", count=1, height=256, width=256, dtype="uint16", crs="EPSG:32631",
                       compress="deflate") as dataset:
        dataset.write(np.full((1, 256, 256), 7, "uint16"))
    content, random = open(name, "rb").read(), np.random.default_rng(1)
    for _ in range(60):
        spoilt = bytearray(content)
        spoilt[random.integers(8, 400)] = random.integers(256)
        open(name, "wb").write(spoilt)
        try:
            Reader(RangeClient()).read(name, [Target(32631, 0, 0, 16, 16)], REFLECTANCE)
        except MissingDataError:
            pass
"""


def test_gdal_does_not_speak_between_smaltis_lines(tmp_path: Path) -> None:
    """A file without a georeference, and damaged in many ways: what is wrong is an error's text, and nothing else."""
    done = subprocess.run(
        [sys.executable, "-c", SPOILT, tmp_path / "x.tif"], capture_output=True, text=True, check=True
    )
    assert done.stdout + done.stderr == ""
