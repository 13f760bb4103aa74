"""The lazy mosaic: the same numbers as the file, and errors that say what to do. Needs the extra `interactive`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from support.embedded import mosaic_of

from infer.contract import SmaltiError
from infer.contract.rasters import MosaicZone

rioxarray = pytest.importorskip("rioxarray", reason="pip install 'smalti[interactive]'")


def write(path: Path, values: np.ndarray) -> None:
    profile = {"driver": "GTiff", "count": values.shape[0], "height": 32, "width": 48, "dtype": values.dtype}
    with rasterio.open(path, "w", crs=32631, transform=from_origin(500_000, 5_600_000, 10, 10), **profile) as out:
        out.write(values)
        for number in range(1, values.shape[0] + 1):
            out.set_band_description(number, f"e{number - 1:03d}")


@pytest.fixture
def codes() -> np.ndarray:
    return np.random.default_rng(1).integers(-127, 128, (4, 32, 48)).astype(np.int8)


def make(run: Path, zones: dict[str, dict[str, str | None]]) -> None:
    folder = run / "mosaic"
    files = [folder / name for zone in zones.values() for name in zone.values() if name is not None]
    made = {
        label: MosaicZone(32631, 48, 32, (0, 0, 1, 1), 1, **zone, item="", preview="") for label, zone in zones.items()
    }
    mosaic_of(made).write(folder / "mosaic.json", inputs={}, files=files)


def test_floats_are_the_files(tmp_path: Path, codes: np.ndarray) -> None:
    from preproc import open_mosaic

    (tmp_path / "mosaic").mkdir()
    values = codes.astype(np.float32)
    values[:, 0, 0] = np.nan
    write(tmp_path / "mosaic" / "e.tif", values)
    make(tmp_path, {"31N": {"raster": "e.tif", "scales": None}})
    lazy = open_mosaic(tmp_path, chunk=16)
    assert lazy.dims == ("band", "y", "x")
    assert lazy.chunks == ((4,), (16, 16), (16, 16, 16))
    assert lazy.rio.crs.to_epsg() == 32631
    np.testing.assert_array_equal(lazy.compute().values, values)


def test_codes_are_multiplied_by_their_scales(tmp_path: Path, codes: np.ndarray) -> None:
    from preproc import open_mosaic

    (tmp_path / "mosaic").mkdir()
    scales = np.random.default_rng(2).random((1, 32, 48)).astype(np.float32)
    scales[0, 3, 5] = np.nan
    write(tmp_path / "mosaic" / "e.tif", codes)
    write(tmp_path / "mosaic" / "s.tif", scales)
    make(tmp_path, {"31N": {"raster": "e.tif", "scales": "s.tif"}})
    lazy = open_mosaic(tmp_path)
    assert lazy.dtype == np.float32
    np.testing.assert_array_equal(lazy.compute().values, codes.astype(np.float32) * scales)
    assert lazy.rio.crs.to_epsg() == 32631


@pytest.mark.parametrize("int8", [False, True])
def test_some_bands_can_be_written_as_the_notebook_does(tmp_path: Path, codes: np.ndarray, int8: bool) -> None:
    from preproc import open_mosaic

    (tmp_path / "mosaic").mkdir()
    write(tmp_path / "mosaic" / "e.tif", codes if int8 else codes.astype(np.float32))
    write(tmp_path / "mosaic" / "s.tif", np.ones((1, 32, 48), np.float32))
    make(tmp_path, {"31N": {"raster": "e.tif", "scales": "s.tif" if int8 else None}})
    mosaic = open_mosaic(tmp_path)
    assert mosaic["band_name"].values.tolist() == ["e000", "e001", "e002", "e003"]
    mosaic.sel(band=1).rio.to_raster(tmp_path / "first.tif")
    mosaic.sel(band=[2, 4]).rio.to_raster(tmp_path / "two.tif")
    with rasterio.open(tmp_path / "first.tif") as first, rasterio.open(tmp_path / "two.tif") as two:
        np.testing.assert_array_equal(first.read(1), codes[0])
        np.testing.assert_array_equal(two.read(), codes[[1, 3]])


def test_several_zones_must_be_chosen_from(tmp_path: Path, codes: np.ndarray) -> None:
    from preproc import open_mosaic

    with pytest.raises(SmaltiError, match="smalti stitch"):
        open_mosaic(tmp_path)
    (tmp_path / "mosaic").mkdir()
    for name in ("a.tif", "b.tif"):
        write(tmp_path / "mosaic" / name, codes)
    make(tmp_path, {"31N": {"raster": "a.tif", "scales": None}, "32N": {"raster": "b.tif", "scales": None}})
    with pytest.raises(SmaltiError, match="zones 31N, 32N: name one"):
        open_mosaic(tmp_path)
    with pytest.raises(SmaltiError, match="no zone 33N"):
        open_mosaic(tmp_path, zone="33N")
    assert open_mosaic(tmp_path, zone="32N").shape == (4, 32, 48)


def test_the_store_is_read_where_there_is_one_and_gives_what_the_geotiffs_give(tmp_path: Path) -> None:
    pytest.importorskip("xarray")
    from support.mosaicked import config, embed_places, planned_run

    from preproc import open_mosaic
    from preproc.mosaic.stage import StitchStage
    from preproc.run.stage import run_stage

    run = planned_run(tmp_path / "run", [(32631, 0, 0), (32631, 1, 0)])
    embed_places(run, int8=True)
    read = {}
    for formats in ('["zarr", "cog"]', '["zarr"]', '["cog"]'):
        run_stage(StitchStage(), run, config(run, f"[stitch]\nformats = {formats}"))
        mosaic = open_mosaic(run.root, chunk=32)
        assert mosaic.chunks == ((8,), (32,), (32, 32))
        assert mosaic.rio.crs.to_epsg() == 32631
        assert mosaic["band_name"].values[0] == "e000"
        assert mosaic["band"].values[0] == 1
        assert mosaic.rio.transform().c == 573_440
        read[formats] = mosaic.values
    np.testing.assert_array_equal(read['["zarr"]'], read['["zarr", "cog"]'])
    np.testing.assert_array_equal(read['["zarr"]'], read['["cog"]'])
