"""`open_run`: what it gives is what the files hold, at the place that was asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pyproj import Transformer
from support.embedded import embed, tiled_run

from infer.contract import FormatError, Run, SmaltiError
from preproc import open_run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = tiled_run(tmp_path / "run")
    embed(made, int8=True)
    return made


def test_embeddings_at_points_are_those_of_the_pixels_under_them(run: Run) -> None:
    opened = open_run(run.root)
    lonlat = Transformer.from_crs(32631, 4326, always_xy=True)
    expected, points = [], []
    for tile in opened.tiles:
        points.append(lonlat.transform(tile.west + 10 * 7 + 1.0, tile.north - 10 * 11 - 9.0))
        expected.append(opened.embedding(tile.name).window(slice(11, 12), slice(7, 8))[0, 0])
    points.append((0.0, 0.0))
    found = opened.embeddings_at(points)
    np.testing.assert_array_equal(found[:-1], expected)
    assert np.isnan(found[-1]).all()
    first = opened.tiles[0]
    edge = opened.embeddings_at([(first.west, first.north), (first.west, first.north - 320)], epsg=32631)
    below = next(tile for tile in opened.tiles if (tile.west, tile.north) == (first.west, first.north - 320))
    assert np.isnan(edge[0]).all(), "row 0 of the first tile is nodata"
    np.testing.assert_array_equal(edge[1], opened.embedding(below.name).window(slice(0, 1), slice(0, 1))[0, 0])


def test_a_window_is_joined_from_its_tiles_and_nodata_beyond(run: Run) -> None:
    opened = open_run(run.root)
    west, north = opened.tiles[0].west, opened.tiles[0].north
    raster = opened.embeddings_in((west - 20, north - 400, west + 400, north + 10), epsg=32631)
    assert (raster.epsg, raster.values.shape) == (32631, (41, 42, 6))
    assert raster.transform * (0, 0) == (west - 20, north + 10)
    assert np.isnan(raster.values[:, :2]).all()
    for tile in opened.tiles:
        top, left = (north + 10 - tile.north) // 10, (tile.west - west + 20) // 10
        shown = raster.values[top : top + 32, left : left + 32]
        whole = opened.embedding(tile.name).window(slice(0, shown.shape[0]), slice(0, shown.shape[1]))
        np.testing.assert_array_equal(shown, whole)
    with pytest.raises(SmaltiError, match="no tile lies in"):
        opened.embeddings_in((10, 10, 11, 11))


def test_what_is_not_there_is_named(run: Run, tmp_path: Path) -> None:
    opened = open_run(run.root)
    with pytest.raises(SmaltiError, match="no tile 'x' in the plan: it has 4"):
        opened.embedding("x")
    with pytest.raises(FormatError, match="no such tile folder"):
        opened.tile(opened.tiles[0].name)
    with pytest.raises(SmaltiError, match="smalti predict"):
        opened.map()
    with pytest.raises(SmaltiError, match="no such run directory"):
        open_run(tmp_path / "nothing")
