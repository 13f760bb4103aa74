"""Groups of like pixels, and places like given ones, against plain computations of the same."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from pyproj import Transformer
from rio_cogeo import cog_validate
from support.mosaicked import config, crops, embed_crops, far_run, planned_run, put_together, write_tile

from infer.contract import Run, SmaltiError, planned_tiles, read_embedding
from infer.contract.explored import GroupsManifest, SimilarManifest
from preproc.explore.groups import draw_sample, find_groups
from preproc.explore.similar import SAME, cosines, find_similar, parse_places
from preproc.raster.provenance import read_provenance

CELLS = [(32631, 0, 0), (32631, 1, 0), (32631, 1, 1), (32632, 0, 0)]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = planned_run(tmp_path / "run", CELLS)
    embed_crops(run)
    return run


def read(path: Path) -> NDArray[Any]:
    with rasterio.open(path) as raster:
        return raster.read(1)


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def degrees(x: float, y: float, epsg: int = 32631) -> tuple[float, float]:
    longitude, latitude = Transformer.from_crs(epsg, 4326, always_xy=True).transform(x, y)
    return longitude, latitude


def test_groups_are_the_crops_that_nobody_named(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    find_groups(run, config(run), 3, 0)
    tile = planned_tiles(run)[3]
    codes, truth = read(run.root / "groups" / "groups_32N.tif"), crops(tile)
    assert (codes[:3, :3] == 0).all()
    table = np.zeros((4, 3), int)
    np.add.at(table, (codes.ravel(), truth.ravel()), 1)
    assert table[1:].max(axis=0).sum() > 0.95 * (codes > 0).sum(), "each crop is one group"
    assert len(set(table[1:].argmax(axis=0))) == 3
    made = GroupsManifest.read(run).verify(run)
    assert sum(group.pixels for group in made.groups) == 4 * (32 * 32 - 9)
    assert "group 1: " in capsys.readouterr().err
    assert cog_validate(run.root / "groups" / "groups_31N.tif", strict=True) == (True, [], [])


def test_the_same_seed_gives_the_same_bytes_and_another_may_not(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    find_groups(run, config(run), 5, 3)
    first = digest(run.root / "groups")
    monkeypatch.setattr("preproc.explore.strips._PIXELS", 200)
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: {0, 1, 2})
    find_groups(run, config(run), 5, 3, force=True)
    assert digest(run.root / "groups") == first, "neither strips nor threads change a byte"
    find_groups(run, config(run), 4, 3)
    assert digest(run.root / "groups") != first


def test_the_sample_is_drawn_by_place(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = read_provenance(run)
    whole = draw_sample(run, facts, 0)
    assert len(whole) == 4 * (32 * 32 - 9)
    monkeypatch.setattr("preproc.explore.groups._SAMPLE", 400)
    few, others = draw_sample(run, facts, 0), draw_sample(run, facts, 1)
    assert 300 < len(few) < 500
    assert {tuple(row) for row in few.tolist()} != {tuple(row) for row in others.tolist()}


def test_too_many_groups_are_refused(run: Run, tmp_path: Path) -> None:
    for number in (1, 255):
        with pytest.raises(SmaltiError, match=r"from 2 to 254 groups"):
            find_groups(run, config(run), number, 0)
    flat = planned_run(tmp_path / "flat", CELLS[:1])
    write_tile(flat, planned_tiles(flat)[0], np.ones((32, 32, 6), np.float32))
    with pytest.raises(SmaltiError, match=r"ask for fewer groups"):
        find_groups(flat, config(flat), 3, 0)


@pytest.mark.parametrize("dtype", [np.int8, np.float32])
def test_cosines_are_those_of_the_plain_product(dtype: type[Any]) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(-128, 128, (5000, 128)).astype(dtype)
    codes[7] = 0
    queries = rng.normal(size=(3, 128)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        plain = (codes.astype(np.float64) @ queries.T) / np.linalg.norm(codes.astype(np.float64), axis=1)[:, None]
    found = cosines(codes, queries)
    assert np.isnan(found[7]).all()
    np.testing.assert_allclose(found, plain, atol=1e-6)


def test_places_like_an_example_have_its_crop_and_those_unlike_have_nothing(run: Run) -> None:
    tile = planned_tiles(run)[0]
    truth = crops(tile)
    examples = {}
    for crop in (0, 1):
        row, column = (int(values[len(values) // 2]) for values in np.nonzero(truth == crop))
        examples[crop] = degrees(tile.west + column * 10 + 5, tile.north - row * 10 - 5)
    find_similar(run, config(run), (examples[0],), (examples[1],), 20)
    folder = run.root / "similar"
    scores = read(folder / "similarity_32N.tif")
    elsewhere = planned_tiles(run)[3]
    there = crops(elsewhere)
    assert (scores[:3, :3] == 255).all()
    seen = scores != 255
    assert np.median(scores[seen & (there == 0)]) > 0.8 * SAME
    assert (scores[seen & (there == 1)] == 0).mean() > 0.9
    places = json.loads((folder / "places.geojson").read_text())["features"]
    assert len(places) == 20
    values = [place["properties"]["similarity"] for place in places]
    assert values == sorted(values, reverse=True)
    assert values[0] > 0.9
    cells = set()
    for place in places:
        longitude, latitude = place["geometry"]["coordinates"]
        for other in planned_tiles(run):
            x, y = Transformer.from_crs(4326, other.epsg, always_xy=True).transform(longitude, latitude)
            if other.west <= x < other.west + 320 and other.north - 320 < y <= other.north:
                assert crops(other)[int((other.north - y) // 10), int((x - other.west) // 10)] == 0
                cells.add((other.epsg, int(x // 100), int(y // 100)))
    assert len(cells) == 20, "one of each square of 100 m"
    assert cog_validate(folder / "similarity_31N.tif", strict=True) == (True, [], [])


def test_an_example_is_like_itself_whatever_its_scale(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    tile = planned_tiles(run)[2]
    place = degrees(tile.west + 155, tile.north - 205)
    find_similar(run, config(run), (place,), (), 5)
    first = digest(run.root / "similar")
    with rasterio.open(run.root / "similar" / "similarity_31N.tif") as raster:
        assert next(raster.sample([(tile.west + 155, tile.north - 205)]))[0] == SAME
    vector = read_embedding(run.embeddings, tile.name).window(slice(20, 21), slice(15, 16))[0, 0].astype(np.float64)
    other = read_embedding(run.embeddings, "t32632_0_0").window(slice(9, 10), slice(9, 10))[0, 0].astype(np.float64)
    cosine = vector @ other / np.linalg.norm(vector) / np.linalg.norm(other)
    assert read(run.root / "similar" / "similarity_32N.tif")[9, 9] == round(max(0.0, cosine) * SAME)
    monkeypatch.setattr("preproc.explore.strips._PIXELS", 100)
    find_similar(run, config(run), (place,), (), 5, force=True)
    assert digest(run.root / "similar") == first


def test_what_is_no_place_is_said(run: Run) -> None:
    tile = planned_tiles(run)[0]
    for text in ("4.05", "4.05;50.7", "a,b", "4,5,6", "nan,2"):
        with pytest.raises(SmaltiError, match=r"--at .*: (write longitude,latitude|longitude is)"):
            parse_places([text], "--at")
    with pytest.raises(SmaltiError, match=r"longitude is -180 to 180 and comes first"):
        parse_places(["50.7,104.0"], "--at")
    with pytest.raises(SmaltiError, match=r"0.0,0.0: lies in no tile"):
        find_similar(run, config(run), ((0.0, 0.0),), (), 5)
    with pytest.raises(SmaltiError, match=r"has no embedding: it was not observed"):
        find_similar(run, config(run), (degrees(tile.west + 15, tile.north - 15),), (), 5)


def cosine_map(run: Run, label: str, vector: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(H, W) what the raster of a zone should hold, tile by tile."""
    found = {}
    for tile in planned_tiles(run):
        values = np.full((tile.size, tile.size, len(vector)), np.nan)
        if (run.embeddings / f"{tile.name}.json").exists():
            values = read_embedding(run.embeddings, tile.name).window(slice(None), slice(None)).astype(np.float64)
        cosines = values @ vector / np.linalg.norm(values, axis=2) / np.linalg.norm(vector)
        found[tile.name] = np.rint(np.clip(cosines, 0, 1) * SAME).astype(np.float32)[..., None]
    return np.nan_to_num(put_together(run, found, label)[..., 0], nan=255).astype(np.uint8)


def test_at_equator_and_antimeridian_a_pixel_of_both_hemispheres_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, tiles = far_run(tmp_path / "run", dim=6)
    settings = config(run, '[stitch]\nmissing = "nodata"')
    monkeypatch.setattr("preproc.explore.strips._SIDE", 96)
    example = next(tile for tile in planned_tiles(run) if tile.name == "s60_1_0")
    find_similar(run, settings, (degrees(example.west + 55, example.north - 205, 32760),), (), 500)
    find_groups(run, settings, 3, 0)
    mapped = 0
    for label in ("60N", "01N"):
        found = read(run.root / "similar" / f"similarity_{label}.tif")
        np.testing.assert_array_equal(found, cosine_map(run, label, tiles[example.name][20, 5]))
        groups = read(run.root / "groups" / f"groups_{label}.tif")
        np.testing.assert_array_equal(groups == 0, found == 255)
        mapped += np.count_nonzero(groups)
    assert sum(group.pixels for group in GroupsManifest.read(run).groups) == mapped
    places = json.loads((run.root / "similar" / "places.geojson").read_text())["features"]
    latitudes = [place["geometry"]["coordinates"][1] for place in places]
    assert min(latitudes) < -0.005
    assert max(latitudes) > 0.01


def test_without_tiles_that_are_missing_where_that_is_wished(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    gone = planned_tiles(run)[1]
    (run.embeddings / f"{gone.name}.json").unlink()
    tile = planned_tiles(run)[0]
    place = degrees(tile.west + 155, tile.north - 205)
    for explore in (lambda c: find_groups(run, c, 3, 0), lambda c: find_similar(run, c, (place,), (), 5)):
        with pytest.raises(SmaltiError, match=rf"1 of 4 tiles have no valid embedding: {gone.name}"):
            explore(config(run))
        explore(config(run, '[stitch]\nmissing = "nodata"'))
        assert f"1 tile has no embedding and is nodata ([stitch] missing): {gone.name}" in capsys.readouterr().err
    vector = read_embedding(run.embeddings, tile.name).window(slice(20, 21), slice(15, 16))[0, 0]
    found = read(run.root / "similar" / "similarity_31N.tif")
    np.testing.assert_array_equal(found, cosine_map(run, "31N", vector))
    np.testing.assert_array_equal(read(run.root / "groups" / "groups_31N.tif") == 0, found == 255)
    assert GroupsManifest.read(run).missing == SimilarManifest.read(run).missing == (gone.name,)
    with pytest.raises(SmaltiError, match="has no embedding: it was not observed"):
        there = degrees(gone.west + 155, gone.north - 205)
        find_similar(run, config(run, '[stitch]\nmissing = "nodata"'), (there,), (), 5)
