"""What a mirror refuses to copy: files whose windows would give other tiles, or none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from support.tiny import EPSG, NORTH, SIZE, WEST, write_raster

from infer.contract import PlannedTile
from preproc.mirror.extract import copy_needed
from preproc.reader.gdal import gdal_settings
from preproc.reader.ranges import MissingDataError, RangeClient
from preproc.reader.read import REFLECTANCE
from preproc.reader.whereabouts import Whereabouts

MOON = 'GEOGCS["Moon",DATUM["Moon",SPHEROID["Moon",1737400,0]],PRIMEM["Reference",0],UNIT["degree",0.0174532925]]'


def copy(path: Path, said: Whereabouts | None = None) -> None:
    tile = PlannedTile("t", EPSG, WEST, NORTH, SIZE)
    with gdal_settings(), RangeClient() as client:
        copy_needed(client, str(path), [tile], REFLECTANCE, path.with_name("copy.tif"), said)


def test_a_mask_a_shift_and_another_planet_are_refused(tmp_path: Path) -> None:
    values = np.full((64, 64), 7, np.uint16)
    path = write_raster(tmp_path / "x.tif", values, pixel=10, nodata=65535)
    copy(path)
    with rasterio.open(tmp_path / "copy.tif") as dataset:
        assert dataset.nodata == 65535
    box = (WEST + 100.0, NORTH - 640.0, WEST + 740.0, float(NORTH))
    with pytest.raises(MissingDataError, match=r"x\.tif: is not where its item says"):
        copy(path, Whereabouts(f"EPSG:{EPSG}", (box,), (5.0, 50.0, 6.0, 51.0)))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(values > 7)
    with pytest.raises(MissingDataError, match=r"x\.tif: has a mask inside, .* --whole"):
        copy(path)
    write_raster(path, values, pixel=0.0001)
    with rasterio.open(path, "r+") as dataset:
        dataset.crs = rasterio.crs.CRS.from_wkt(MOON)
    with pytest.raises(MissingDataError, match=r"x\.tif: its pixels cannot be placed: .* Moon"):
        copy(path)
