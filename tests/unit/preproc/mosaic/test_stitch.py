"""The stitch stage: embeddings of tiles -> mosaics with item, preview and manifest."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
import rasterio
import zarr
from matplotlib.image import imread
from numpy.typing import NDArray
from rio_cogeo import cog_validate
from support.embedded import ABOUT
from support.mosaicked import MODEL, config, embed_crops, embed_places, looks, planned_run, write_tile

from infer.contract import Run, SmaltiError, planned_tiles, read_manifest, write_manifest
from infer.contract.record import to_json
from preproc.mosaic.pca import principal_components
from preproc.mosaic.stage import StitchStage
from preproc.raster.strips import to_codes, without_nodata
from preproc.raster.zones import zone_grids
from preproc.run.stage import run_stage

CELLS = [(32631, 0, 0), (32631, 2, 1), (32631, 1, 0), (32632, 0, 0)]
FLOAT = '[stitch]\ndtype = "float32"'


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return planned_run(tmp_path / "run", CELLS)


def digest(run: Run) -> dict[str, str]:
    return {name: hashlib.sha256((run.mosaic / name).read_bytes()).hexdigest() for name in sorted(files_of(run))}


def files_of(run: Run) -> set[str]:
    return {path.relative_to(run.mosaic).as_posix() for path in run.mosaic.rglob("*") if path.is_file()}


def listed(run: Run) -> set[str]:
    """What the manifests list, and the manifests."""
    names = {"mosaic.json", *read_manifest(run.mosaic_manifest, "mosaic", remedy="")["files"]}
    for path in run.mosaic.glob("sheet_*.json"):
        names |= {path.name, *read_manifest(path, "mosaic-sheet", remedy="")["files"]}
    return names


def mosaic(run: Run, zone: str, *, int8: bool = False) -> NDArray[np.float32]:
    """(H, W, C) what a user reads from the mosaic."""
    with rasterio.open(run.mosaic / f"embeddings_{zone}.tif") as raster:
        values = np.moveaxis(raster.read(), 0, 2)
    if not int8:
        return values
    with rasterio.open(run.mosaic / f"embeddings_{zone}_scales.tif") as raster:
        return values.astype(np.float32) * raster.read(1)[..., None]


def expected(run: Run, tiles: dict[str, NDArray[np.float32]], zone: str) -> NDArray[np.float32]:
    grid = next(grid for grid in zone_grids(planned_tiles(run)) if grid.label == zone)
    dim = next(iter(tiles.values())).shape[2]
    whole = np.full((grid.height, grid.width, dim), np.nan, dtype=np.float32)
    for tile in grid.tiles:
        row, column = grid.place(tile)
        whole[row : row + tile.size, column : column + tile.size] = tiles[tile.name]
    return whole


@pytest.mark.parametrize("stored_int8", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_the_mosaic_holds_every_tiles_values_in_place(run: Run, stored_int8: bool, dtype: str) -> None:
    tiles = embed_places(run, int8=stored_int8)
    run_stage(StitchStage(), run, config(run, FLOAT if dtype == "float32" else ""))
    for zone in ("31N", "32N"):
        values, wanted = mosaic(run, zone, int8=dtype == "int8"), expected(run, tiles, zone)
        np.testing.assert_array_equal(np.isnan(values), np.isnan(wanted))
        if dtype == "int8" and not stored_int8:
            np.testing.assert_allclose(values, wanted, atol=0.5 / 127 + 1e-6)  # half a code of the largest, which is 1
        else:
            np.testing.assert_array_equal(values, wanted)
        for path in run.mosaic.glob(f"embeddings_{zone}*.tif"):
            assert cog_validate(path, strict=True) == (True, [], [])


def test_files_say_what_they_are(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    embed_places(run)
    run_stage(StitchStage(), run, config(run))
    assert "not trained (untrained demonstration model)" in capsys.readouterr().err
    with rasterio.open(run.mosaic / "embeddings_31N.tif") as raster:
        tags = raster.tags()
        assert raster.descriptions == tuple(f"e{index:03d}" for index in range(8))
    assert tags["SMALTI_MODEL"] == "demo"
    assert tags["SMALTI_MODEL_TRAINED"] == "no"
    assert tags["SMALTI_CHECKPOINT_SHA256"] == "ab" * 32
    assert (tags["SMALTI_MODEL_LICENCE"], tags["SMALTI_MODEL_CITATION"]) == ("MIT", "smalti")
    assert (tags["SMALTI_WINDOW_START"], tags["SMALTI_WINDOW_END"]) == ("2018-12-01", "2019-11-30")
    assert (tags["SMALTI_ARCHIVE"], tags["SMALTI_DATA_SOURCE"]) == ("mpc", "mpc")
    manifest = read_manifest(run.mosaic_manifest, "mosaic", remedy="")
    assert manifest["model"]["trained"] is False
    assert manifest["pixels"] == 4 * (32 * 32 - 8 * 10)
    assert listed(run) == files_of(run)
    item = pystac.Item.from_file(str(run.mosaic / "embeddings_31N.json"))
    assert set(item.assets) == {"embeddings", "scales", "observations", "preview"}
    assert item.properties["smalti:model"]["label"] == "untrained demonstration model"
    assert item.properties["proj:code"] == "EPSG:32631"
    assert tags["SMALTI_CONTENT"].startswith("embeddings of untrained demonstration model")
    assert item.properties["title"].startswith("Embeddings of untrained demonstration model")
    assert item.assets["embeddings"].title == "Embeddings of untrained demonstration model"


def test_only_a_published_model_makes_tessera_embeddings(run: Run) -> None:
    embed_places(run, model=replace(MODEL, name="tessera-v2-small", label="TESSERA v2 small", trained=True))
    run_stage(StitchStage(), run, config(run))
    with rasterio.open(run.mosaic / "embeddings_31N.tif") as raster:
        assert raster.tags()["SMALTI_CONTENT"] == "TESSERA embeddings: value = code * embeddings_31N_scales.tif"


def test_no_output_names_this_machine(run: Run) -> None:
    embed_places(run)
    run_stage(StitchStage(), run, config(run))
    for path in filter(Path.is_file, run.mosaic.rglob("*")):
        assert str(run.root).encode() not in path.read_bytes(), path.name


@pytest.mark.parametrize("extra", ["", FLOAT])
def test_bytes_do_not_depend_on_the_order_of_the_plan(tmp_path: Path, extra: str) -> None:
    outcomes = []
    for attempt in range(2):
        cells = list(CELLS)
        random.Random(attempt).shuffle(cells)
        run = planned_run(tmp_path / f"run{attempt}", cells)
        embed_places(run, int8=True)
        run_stage(StitchStage(), run, config(run, extra))
        outcomes.append(digest(run))
    assert outcomes[0] == outcomes[1]


def test_again_is_nothing_to_do_and_forced_is_the_same(run: Run) -> None:
    embed_places(run)
    assert run_stage(StitchStage(), run, config(run)).built == 3
    before = digest(run)
    assert run_stage(StitchStage(), run, config(run)).built == 0
    run_stage(StitchStage(), run, config(run), force=True)
    assert digest(run) == before


def test_another_type_or_embedding_makes_the_mosaic_anew(run: Run) -> None:
    embed_places(run)
    run_stage(StitchStage(), run, config(run))
    before = digest(run)
    run_stage(StitchStage(), run, config(run, FLOAT))
    assert "embeddings_31N_scales.tif" not in files_of(run), "they would be taken for part of this mosaic"
    run_stage(StitchStage(), run, config(run, '[stitch]\nformats = ["cog"]'))
    assert not (run.mosaic / "embeddings.zarr").exists()
    run_stage(StitchStage(), run, config(run, '[stitch]\nformats = ["zarr"]'))
    assert not list(run.mosaic.glob("embeddings*.tif"))
    run_stage(StitchStage(), run, config(run))
    assert digest(run) == before
    tile = planned_tiles(run)[0]
    write_tile(run, tile, np.ones((32, 32, 8), np.float32))
    assert run_stage(StitchStage(), run, config(run)).built == 2, "its sheet, and what is said of all"
    np.testing.assert_allclose(mosaic(run, "31N", int8=True)[:32, :32], 1, rtol=1e-6)


@pytest.mark.parametrize("decide", [1 << 18, 70])
def test_the_preview_shows_all_zones_in_the_same_colours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decide: int
) -> None:
    monkeypatch.setattr("preproc.mosaic.join._DECIDE", decide)
    run = planned_run(tmp_path / "run", [(32631, 0, 0), (32632, 0, 0)])
    generator = np.random.default_rng(0)
    for tile in planned_tiles(run):
        values = np.where(np.arange(32)[:, None, None] < 16, -1.0, 1.0) * np.array([3.0, 2.0, 0.1, 0.0])
        write_tile(run, tile, (values + generator.normal(size=(32, 32, 4)) * 0.01).astype(np.float32))
    run_stage(StitchStage(), run, config(run))
    for zone in ("31N", "32N"):
        picture = imread(run.mosaic / f"preview_{zone}.png")
        assert picture.shape == (640, 640, 4)
        assert (picture[..., 3] == 1).all()
        np.testing.assert_array_less(picture[:320, :, 0], 0.1)  # the first component is the step between the halves
        np.testing.assert_array_less(0.9, picture[320:, :, 0])
    shares = read_manifest(run.mosaic_manifest, "mosaic", remedy="")["preview"]["variance_explained"]
    assert shares[0] > 0.99


def test_the_same_pixels_decide_on_colours_however_a_zone_is_divided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preproc.mosaic.join._DECIDE", 500)
    decided = []
    monkeypatch.setattr(
        "preproc.mosaic.join.principal_components",
        lambda values: decided.append(np.unique(values, axis=0)) or principal_components(values),
    )
    run = planned_run(tmp_path / "run", [(32631, column, row) for row in range(4) for column in range(5)], size=48)
    embed_places(run, dim=4)
    pictures = []
    for side in (128, 256):
        run_stage(StitchStage(), run, config(run, f"[stitch]\nsheet = {side}"))
        pictures.append((run.mosaic / "preview_31N.png").read_bytes())
    assert pictures[0] == pictures[1]
    np.testing.assert_array_equal(*decided)
    assert 300 < len(decided[0]) <= 500


# --- what can be wrong --------------------------------------------------------------------------------------------


def test_missing_embeddings_are_counted_and_named(run: Run) -> None:
    with pytest.raises(
        SmaltiError, match=r"4 of 4 tiles have no valid embedding: t32631_0_0 \(missing\).* and 1 more: run"
    ):
        run_stage(StitchStage(), run, config(run))
    embed_places(run)
    (run.embeddings / "t32631_2_1.npy").write_bytes(b"short")
    with pytest.raises(SmaltiError, match=r"1 of 4 tiles .* t32631_2_1 \(broken\): run `smalti infer"):
        run_stage(StitchStage(), run, config(run))


def test_damage_that_only_a_checksum_shows_stops_the_mosaic_and_keeps_no_half(run: Run) -> None:
    embed_places(run)
    path = run.embeddings / "t32632_0_0.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(SmaltiError, match=r"t32632_0_0\.npy: its contents do not match"):
        run_stage(StitchStage(), run, config(run))
    assert not (run.mosaic_manifest).exists()
    assert (run.mosaic / "sheet_31N.json").exists(), "one bad sheet does not stop the others"
    assert not [path for path in run.mosaic.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("change", "what"),
    [({"checkpoint": "cd" * 32}, "checkpoint"), ({"dim": 4}, "dimensions"), ({"int8": True}, "output")],
)
def test_embeddings_that_do_not_belong_together_are_refused(run: Run, change: dict[str, Any], what: str) -> None:
    embed_places(run)
    options = {"checkpoint": "ab" * 32, "dim": 8, "int8": False, **change}
    values = np.ones((32, 32, options.pop("dim")), np.float32)
    write_tile(run, planned_tiles(run)[2], values, **options)
    with pytest.raises(SmaltiError, match=rf"t32631_0_0 and t32631_1_0 differ in {what}"):
        run_stage(StitchStage(), run, config(run))


def test_an_embedding_of_another_size_than_the_plans_is_refused(run: Run) -> None:
    embed_places(run)
    write_tile(run, planned_tiles(run)[0], np.ones((16, 16, 8), np.float32))
    with pytest.raises(SmaltiError, match="16 x 16 pixels, the plan says 32 x 32"):
        run_stage(StitchStage(), run, config(run))


def test_a_run_without_a_single_valid_pixel_is_told(run: Run) -> None:
    for tile in planned_tiles(run):
        write_tile(run, tile, np.full((32, 32, 8), np.nan, np.float32))
    with pytest.raises(SmaltiError, match="no pixel of any tile has an embedding"):
        run_stage(StitchStage(), run, config(run))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": None}, "model = None is not a table"),
        ({"model": {**to_json(MODEL), "trained": "yes"}}, "model.trained = 'yes' is not true or false"),
        ({"origin": {"dataset": "x"}}, "origin.source is missing"),
        ({"inputs": {}}, r"lacks what a mosaic has to state \(inputs.checkpoint\)"),
        ({"files": {}}, r"lacks what a mosaic has to state \(the shape of t32631_0_0.npy\)"),
    ],
)
def test_an_embedding_whose_manifest_was_edited_is_refused_by_its_key(
    run: Run, change: dict[str, Any], said: str
) -> None:
    embed_places(run)
    path = run.embeddings / "t32631_0_0.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(SmaltiError, match=rf"t32631_0_0\.json: {said}: delete it, then run `smalti infer` again$"):
        run_stage(StitchStage(), run, config(run))


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    embed_places(run)
    monkeypatch.setattr("preproc.mosaic.stage.scratch_bytes", lambda *_: 10**18)
    with pytest.raises(SmaltiError, match=r"needs 1000000000\.0 GB of free disk while it is written"):
        run_stage(StitchStage(), run, config(run))
    monkeypatch.setattr("preproc.mosaic.stage.worker_count", lambda *_: 2)
    with pytest.raises(SmaltiError, match=r"needs 2000000000\.0 GB of free disk while it is written"):
        run_stage(StitchStage(), run, config(run))
    assert not run.mosaic.exists()


def test_a_plan_without_tiles_is_told(tmp_path: Path) -> None:
    run = planned_run(tmp_path / "run", [])
    with pytest.raises(SmaltiError, match="it has no tiles"):
        run_stage(StitchStage(), run, config(run))


# --- quantisation -------------------------------------------------------------------------------------------------


def test_a_code_that_is_the_mosaics_nodata_moves_by_one_and_is_counted(run: Run) -> None:
    from infer.contract import read_embedding, write_embedding

    codes = np.zeros((32, 32, 8), np.int8)
    codes[0, 0] = [-128, 127, 0, 1, -127, 5, 6, 7]
    scales = np.full((32, 32), 0.5, np.float32)
    scales[1] = np.nan
    write_embedding(run.embeddings, "t32631_0_0", codes, scales, inputs={"checkpoint": "x"}, about=ABOUT)
    read = to_codes(read_embedding(run.embeddings, "t32631_0_0"), slice(0, 2), slice(None))
    assert read[0][0, 0, 0] == -128, "the store has the engine's codes as they are"
    found, kept, clipped = without_nodata(*read)
    assert clipped == 1
    assert found[0, 0].tolist() == [-127, 127, 0, 1, -127, 5, 6, 7]
    assert (found[1] == -128).all()
    assert np.isnan(kept[1]).all()


def test_a_pixel_of_zeros_is_valid_and_stays_zero(run: Run) -> None:
    from infer.contract import read_embedding

    tile = planned_tiles(run)[0]
    write_tile(run, tile, np.zeros((32, 32, 8), np.float32))
    codes, scales = to_codes(read_embedding(run.embeddings, tile.name), slice(None), slice(None))
    assert not codes.any()
    assert not scales.any()


def test_manifest_is_written_last(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    embed_places(run)
    seen: list[set[str]] = []

    def spy(path: Path, *arguments: Any, **named: Any) -> Any:
        seen.append(files_of(run))
        return write_manifest(path, *arguments, **named)

    monkeypatch.setattr("infer.contract.record.write_manifest", spy)
    run_stage(StitchStage(), run, config(run))
    assert seen[-1] == files_of(run) - {"mosaic.json"}
    assert {"sheet_31N.json", "sheet_32N.json"} & seen[0] == set()


def test_counts_of_observations_and_reasons_lie_beside_the_mosaic(run: Run) -> None:
    embed_crops(run, min_clear_s2=12)
    run_stage(StitchStage(), run, config(run))
    with rasterio.open(run.mosaic / "observations_31N.tif") as raster:
        assert raster.descriptions == ("clear_s2", "s1", "reason", "origin")
        assert raster.tags()["SMALTI_MIN_CLEAR_S2"] == "12"
        values = np.moveaxis(raster.read(), 0, 2)
    seen = looks(32)
    np.testing.assert_array_equal(values[:32, :32, :2], seen)
    np.testing.assert_array_equal(values[:32, :32, 2] == 2, (seen[..., 0] < 12) & seen.any(axis=2))
    assert (values[32:, :32] == 255).all(), "where there is no tile"
    stored: Any = zarr.open_group(run.mosaic / "embeddings.zarr", mode="r")["utm31/observations"]
    assert stored.attrs["smalti:layers"] == ["clear_s2", "s1", "reason", "origin"]
    np.testing.assert_array_equal(np.moveaxis(stored[0], 0, 2), values)
    np.testing.assert_array_equal(values[..., 2] == 0, ~np.isnan(mosaic(run, "31N", int8=True)[..., 0]))
    np.testing.assert_array_equal(values[..., 3], np.where(values[..., 2] == 0, 0, 255), "no embedding, no origin")
    assert cog_validate(run.mosaic / "observations_31N.tif", strict=True) == (True, [], [])
    item = pystac.Item.from_file(run.mosaic / "embeddings_31N.json")
    reason = item.assets["observations"].extra_fields["bands"][2]
    assert [entry["name"] for entry in reason["classification:classes"]] == ["embedded", "unseen", "too-few"]


def test_embeddings_of_older_versions_have_no_counts(run: Run) -> None:
    embed_places(run)
    run_stage(StitchStage(), run, config(run))
    with rasterio.open(run.mosaic / "observations_32N.tif") as raster:
        values = raster.read()
    assert (values[:2] == 255).all()
    assert set(np.unique(values[2])) == {0, 1}
