"""From labels and embeddings to samples: which pixels, whose, in which order; placement against an oracle."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import rasterio.features
import shapely
from hypothesis import given
from hypothesis import strategies as st
from pyproj import Transformer
from rasterio.transform import Affine
from support.embedded import (
    EPSG,
    NORTH,
    TOML,
    WEST,
    centre_grid,
    embed,
    parcels,
    tiled_run,
    truth,
    write_vector,
)
from support.mosaicked import far_run, put_together

from infer.contract import PlannedTile, Run, Shard, SmaltiError, planned_tiles, read_embedding, read_manifest
from preproc.classify.picked import LabelledTiles, SamplesPart
from preproc.classify.pixels import claim_pixels, holds_centre, prepare_shapes
from preproc.classify.sample import SampleStage, SampleTilesStage
from preproc.classify.table import keep_per_group, pixel_hash, read_samples
from preproc.cluster.submitted import SubmittedJob, slurm_folder, write_ledger
from preproc.cluster.tasks import look_at_queue
from preproc.raster.zones import own_rows, shares_of, zone_grids
from preproc.run.config import Config, parse_config
from preproc.run.stage import StageFailedError, run_stage
from preproc.run.status import Survey

TILE = PlannedTile("t", EPSG, WEST, NORTH, 32)


def array(*geometries: Any) -> np.ndarray:
    made = np.empty(len(geometries), dtype=object)
    made[:] = geometries
    return made


def settings(run: Run, extra: str = "") -> Config:
    text = f'{TOML}[labels]\npath = "labels.gpkg"\nclass = "crop"\ngroup = "parcel"\n[classify]\n{extra}'
    return parse_config(text, run.config)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Four tiles of 32 x 32 pixels, 64 square parcels of 8 x 8 pixels, three crops."""
    made = tiled_run(tmp_path / "run")
    embed(made)
    shapes, names = parcels(made)
    fields = {"crop": np.array(names, dtype=object), "parcel": np.arange(len(shapes))}
    write_vector(made.root / "labels.gpkg", shapes, fields, to=4326)
    return made


def sample(run: Run, extra: str = "", force: bool = False) -> Any:
    run_stage(SampleStage(), run, settings(run, extra), force=force)
    return pq.read_table(run.samples)


# placement


polygons = st.lists(st.tuples(st.integers(-40, 360), st.integers(-40, 360)), min_size=3, max_size=7, unique=True).map(
    lambda corners: shapely.MultiPoint([(WEST + x, NORTH - y) for x, y in corners]).convex_hull
)


@given(polygons)
def test_pixels_of_a_polygon_are_those_that_gdal_burns(polygon: Any) -> None:
    if polygon.geom_type != "Polygon" or polygon.area < 1:
        return
    x, y = centre_grid(TILE)
    on_edge = shapely.distance(shapely.boundary(polygon), shapely.points(x, y)) < 1e-6
    burnt = rasterio.features.rasterize([polygon], (32, 32), transform=Affine(*TILE.transform), dtype="uint8")
    claims = claim_pixels(TILE, prepare_shapes(array(polygon), 0.0), np.zeros(1, np.int32))
    mine = np.zeros((32, 32), bool)
    mine[claims.rows_m, claims.cols_m] = True
    assert (mine == (burnt > 0))[~on_edge].all()


@given(polygons, st.integers(1, 40))
def test_shrinking_takes_the_pixels_farther_than_the_margin_from_the_edge(polygon: Any, shrink: int) -> None:
    if polygon.geom_type != "Polygon":
        return
    shapes = prepare_shapes(array(polygon), shrink + 0.5)
    claims = claim_pixels(TILE, shapes, np.zeros(1, np.int32))
    x, y = centre_grid(TILE)
    points = shapely.points(x, y)
    deep = shapely.contains(polygon, points)
    if not shapes.kept_whole_n[0]:
        deep &= shapely.distance(shapely.boundary(polygon), points) > shrink + 0.5
    mine = np.zeros((32, 32), bool)
    mine[claims.rows_m, claims.cols_m] = True
    assert (mine == deep).all()


def test_a_polygon_that_would_vanish_is_kept_whole() -> None:
    small = shapely.box(WEST + 100, NORTH - 120, WEST + 118, NORTH - 100)
    shapes = prepare_shapes(array(small, shapely.box(WEST, NORTH - 80, WEST + 80, NORTH)), 10.0)
    assert shapes.kept_whole_n.tolist() == [True, False]
    claims = claim_pixels(TILE, shapes, np.zeros(2, np.int32))
    assert sorted(zip(claims.rows_m, claims.cols_m, strict=True))[-4:] == [(10, 10), (10, 11), (11, 10), (11, 11)]
    assert (claims.features_m == 1).sum() == 36


def test_a_sliver_between_pixel_centres_holds_none() -> None:
    assert not holds_centre(shapely.box(WEST + 6, NORTH - 300, WEST + 9, NORTH))
    assert holds_centre(shapely.box(WEST + 4, NORTH - 300, WEST + 6, NORTH))
    assert not holds_centre(shapely.Polygon())


@given(st.integers(0, 319), st.integers(1, 320))
def test_a_point_belongs_to_the_pixel_that_contains_it_and_to_one_tile_only(dx: int, dy: int) -> None:
    point = shapely.Point(WEST + dx, NORTH - dy + 1)
    around = [PlannedTile(f"{i}{j}", EPSG, WEST + 320 * i, NORTH - 320 * j, 32) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    shapes = prepare_shapes(array(point), 10.0)
    found = [(t, claim_pixels(t, shapes, np.zeros(1, np.int32))) for t in around]
    found = [(t, c) for t, c in found if len(c.rows_m)]
    assert len(found) == 1
    tile, claims = found[0]
    assert tile.west + 10 * claims.cols_m[0] <= point.x < tile.west + 10 * claims.cols_m[0] + 10
    assert tile.north - 10 * claims.rows_m[0] >= point.y > tile.north - 10 * claims.rows_m[0] - 10


def test_pixels_that_two_classes_claim_are_left_out_and_counted() -> None:
    left = shapely.box(WEST, NORTH - 100, WEST + 100, NORTH)
    right = shapely.box(WEST + 60, NORTH - 100, WEST + 160, NORTH)
    shapes = prepare_shapes(array(left, right), 0.0)
    apart = claim_pixels(TILE, shapes, np.array([0, 1], np.int32))
    assert apart.conflicts == 40
    assert len(apart.rows_m) == 120
    assert set(apart.cols_m[apart.features_m == 0]) == set(range(6))
    alike = claim_pixels(TILE, shapes, np.array([0, 0], np.int32))
    assert alike.conflicts == 0
    assert (alike.features_m == 0).sum() == 100
    assert (alike.features_m == 1).sum() == 60


def test_conflicts_are_judged_by_the_whole_outlines() -> None:
    left = shapely.box(WEST, NORTH - 100, WEST + 100, NORTH)
    right = shapely.box(WEST + 80, NORTH - 100, WEST + 180, NORTH)
    claims = claim_pixels(TILE, prepare_shapes(array(left, right), 10.0), np.array([0, 1], np.int32))
    assert claims.cols_m[claims.features_m == 0].max() == 7  # column 8 is inside left's core and right's edge


# hashing and the cap


def test_the_hash_tells_pixels_apart_and_knows_nothing_of_order() -> None:
    x, y = (v.ravel() for v in centre_grid(TILE))
    epsg = np.full(x.size, EPSG)
    hashes = pixel_hash(0, epsg, x, y)
    assert len(set(hashes.tolist())) == x.size
    assert (pixel_hash(0, epsg[::-1], x[::-1], y[::-1]) == hashes[::-1]).all()
    assert (pixel_hash(0, epsg, x + 4, y - 4) == hashes).all()
    assert (pixel_hash(1, epsg, x, y) != hashes).all()
    assert (pixel_hash(0, epsg + 1, x, y) != hashes).all()
    assert 0.4 < (hashes / 2.0**64).mean() < 0.6


@given(st.lists(st.integers(0, 5), max_size=60), st.integers(1, 8))
def test_the_cap_keeps_the_smallest_hashes_of_each_group(groups: list[int], limit: int) -> None:
    hashes = np.random.default_rng(0).permutation(len(groups)).astype(np.uint64)
    kept = keep_per_group(np.array(groups, dtype=int), hashes, limit)
    for group in set(groups):
        rows = np.flatnonzero(np.array(groups) == group)
        assert set(hashes[rows[kept[rows]]]) == set(sorted(hashes[rows])[:limit])


# the stage


def test_samples_carry_the_right_pixels_classes_and_values(run: Run) -> None:
    table = sample(run)
    manifest = read_manifest(run.samples_manifest, "samples", remedy="")
    # 8 x 8 pixels shrunk by 10 m leave 6 x 6; the first tile's row 0 is nodata but lies on the margin
    assert table.num_rows == manifest["rows"] == 64 * 36
    x, y = table["x"].to_numpy(), table["y"].to_numpy()
    assert table["class"].to_pylist() == [f"crop {'abc'[i]}" for i in truth(x, y)]
    tiles = {tile.name: tile for tile in planned_tiles(run)}
    values = np.column_stack([table[f"e{i:03d}"].to_numpy() for i in range(6)])
    for index in range(0, table.num_rows, 97):
        tile = tiles[table["tile"][index].as_py()]
        row, col = table["row"][index].as_py(), table["col"][index].as_py()
        assert (x[index], y[index]) == (tile.west + 10 * col + 5, tile.north - 10 * row - 5)
        expected = read_embedding(run.embeddings, tile.name).window(slice(row, row + 1), slice(col, col + 1))[0, 0]
        assert (values[index] == expected).all()
    order = [
        (list(tiles).index(t), r, c)
        for t, r, c in zip(*(table[n].to_pylist() for n in ("tile", "row", "col")), strict=True)
    ]
    assert order == sorted(order)


def test_nodata_pixels_are_left_out_and_counted(run: Run) -> None:
    table = sample(run, "shrink = 0")
    assert table.num_rows == 64 * 64 - 32
    counts = read_manifest(run.samples_manifest, "samples", remedy="")["counts"]
    assert counts["pixels dropped: no embedding there"] == 32
    assert np.isfinite(np.column_stack([table[f"e{i:03d}"].to_numpy() for i in range(6)])).all()


def test_int8_embeddings_are_dequantised(run: Run) -> None:
    embed(run, int8=True)
    table = sample(run)
    tile = planned_tiles(run)[0]
    embedding = read_embedding(run.embeddings, tile.name)
    row, col = table["row"][0].as_py(), table["col"][0].as_py()
    expected = embedding.values_hwc[row, col].astype(np.float32) * embedding.scales_hw[row, col]
    assert [table[f"e{i:03d}"][0].as_py() for i in range(6)] == expected.tolist()


def test_the_cap_does_not_depend_on_how_the_region_is_tiled(run: Run, tmp_path: Path) -> None:
    big = np.array(["crop a", "crop b"], dtype=object)
    shapes = [
        shapely.box(WEST, NORTH - 640, WEST + 320, NORTH),
        shapely.box(WEST + 320, NORTH - 640, WEST + 640, NORTH),
    ]
    drawn = []
    for name, across, size in (("coarse", 2, 32), ("fine", 4, 16)):
        other = tiled_run(tmp_path / name, across=across, down=across, size=size)
        embed(other)
        write_vector(other.root / "labels.gpkg", shapes, {"crop": big, "parcel": np.arange(2)})
        table = sample(other, "max_pixels = 50")
        assert table.num_rows == 100
        drawn.append(set(zip(table["x"].to_pylist(), table["y"].to_pylist(), strict=True)))
    # The nodata row of the first tile lies on the shrunk margin, so that both tilings offer the same pixels.
    assert drawn[0] == drawn[1]
    assert set(zip(sample(run)["x"].to_pylist(), sample(run)["y"].to_pylist(), strict=True)) != drawn[0]


def test_bytes_are_the_same_every_time_and_change_with_the_labels(run: Run) -> None:
    sample(run)
    before = hashlib.sha256(run.samples.read_bytes()).hexdigest(), run.samples_manifest.read_bytes()
    sample(run, force=True)
    assert (hashlib.sha256(run.samples.read_bytes()).hexdigest(), run.samples_manifest.read_bytes()) == before
    stage, config = SampleStage(), settings(run)
    assert stage.open(run, config).units[0].state(checksums=True).complete
    shapes, names = parcels(run)
    fields = {"crop": np.array(names[::-1], dtype=object), "parcel": np.arange(len(shapes))}
    (run.root / "labels.gpkg").unlink()
    write_vector(run.root / "labels.gpkg", shapes, fields)
    assert stage.open(run, config).units[0].state().kind == "stale"
    embed(run, seed=5)
    assert "embeddings" in stage.open(run, config).units[0].state().reason


def test_integer_classes_keep_their_codes_and_names(run: Run) -> None:
    shapes, names = parcels(run)
    codes = np.array([10 * "abc".index(name[-1]) + 5 for name in names])
    (run.root / "labels.gpkg").unlink()
    write_vector(run.root / "labels.gpkg", shapes, {"crop": codes, "parcel": np.arange(len(shapes))})
    sample(run)
    assert read_samples(run).legend == {5: "5", 15: "15", 25: "25"}


def test_points_are_sampled_too(run: Run) -> None:
    shapes, names = parcels(run)
    (run.root / "labels.gpkg").unlink()
    fields = {"crop": np.array(names, dtype=object), "parcel": np.arange(len(shapes))}
    write_vector(run.root / "labels.gpkg", shapely.centroid(shapes), fields, to=4326)
    table = sample(run)
    assert table.num_rows == 64
    assert table["class"].to_pylist() == [
        f"crop {'abc'[i]}" for i in truth(table["x"].to_numpy(), table["y"].to_numpy())
    ]


def relabel(run: Run, shapes: list[Any], names: list[str]) -> None:
    (run.root / "labels.gpkg").unlink()
    fields = {"crop": np.array(names, dtype=object), "parcel": np.arange(len(shapes))}
    write_vector(run.root / "labels.gpkg", shapes, fields)


def test_unusable_labels_end_with_one_line_and_leave_the_old_table(run: Run) -> None:
    before = sample(run).num_rows
    shapes, names = parcels(run)
    relabel(run, shapes, ["wheat"] * len(shapes))
    with pytest.raises(SmaltiError, match=r"labels.gpkg: all labels in the region are of one class \(crop = wheat\)"):
        sample(run)
    relabel(run, [shapely.affinity.translate(s, 50_000, 0) for s in shapes], names)
    with pytest.raises(SmaltiError, match=r"labels.gpkg: no label lies in the region"):
        sample(run)
    top = [shapely.box(WEST, NORTH - 10, WEST + 320, NORTH), shapely.box(WEST, NORTH - 10, WEST + 160, NORTH)]
    relabel(run, top, ["a", "b"])
    with pytest.raises(SmaltiError, match=r"no label covers a pixel that has an embedding"):
        sample(run)
    relabel(run, [shapes[5], shapes[5]], ["a", "b"])
    with pytest.raises(SmaltiError, match=r"labels of different classes lie on all \d+ labelled pixels"):
        sample(run)
    assert len(read_samples(run)) == before


def test_what_is_needed_is_named(run: Run) -> None:
    with pytest.raises(SmaltiError, match=r"\[labels\]: missing: add .*path.*class"):
        SampleStage().open(run, parse_config(TOML, run.config))
    (run.embeddings / "t00.json").write_text("{")
    with pytest.raises(SmaltiError, match=r"t00.json: the manifest of this embedding is not valid JSON"):
        SampleStage().open(run, settings(run))
    (run.embeddings / "t10.json").unlink()
    with pytest.raises(
        SmaltiError, match=r"1 of 4 tiles have no embedding yet \(the first is t10\): run `smalti infer"
    ):
        SampleStage().open(run, settings(run))


def test_a_damaged_embedding_is_not_sampled(run: Run) -> None:
    path = run.embeddings / "t00.npy"
    content = bytearray(path.read_bytes())
    content[-9] ^= 255
    path.write_bytes(content)
    with pytest.raises(SmaltiError, match=r"t00.npy: its contents do not match"):
        sample(run)


def test_labels_on_missing_tiles_are_left_out_where_that_is_wished(run: Run) -> None:
    whole = sample(run)
    before = read_manifest(run.samples_manifest, "samples", remedy="")["counts"]
    gone = planned_tiles(run)[1].name
    (run.embeddings / f"{gone}.json").unlink()
    with pytest.raises(SmaltiError, match="1 of 4 tiles have no embedding yet"):
        sample(run)
    found = sample(run, '[stitch]\nmissing = "nodata"')
    assert found.equals(whole.filter(pc.field("tile") != gone))
    counts = read_manifest(run.samples_manifest, "samples", remedy="")["counts"]
    assert counts["pixels dropped: no embedding there"] >= whole.num_rows - found.num_rows
    assert counts["features without a pixel"] == before["features without a pixel"], "they have pixels, not embeddings"


def test_tiles_without_labels_are_not_read_and_any_number_of_threads_gives_the_same_table(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes, names = parcels(run)
    inside = [index for index, shape in enumerate(shapes) if shape.bounds[2] <= WEST + 320]
    fields = {"crop": np.array(names, dtype=object)[inside], "parcel": np.arange(len(inside))}
    write_vector(run.root / "labels.gpkg", [shapes[index] for index in inside], fields, to=4326)
    opened: list[str] = []
    for module in ("raster.strips", "classify.sample"):
        monkeypatch.setattr(
            f"preproc.{module}.read_embedding",
            lambda folder, name, **how: opened.append(name) or read_embedding(folder, name, **how),
        )
    sample(run, "[site]\nworkers = 1")
    first = run.samples.read_bytes()
    assert set(opened) == {tile.name for tile in planned_tiles(run) if tile.west == WEST}
    sample(run, "[site]\nworkers = 3", force=True)
    assert run.samples.read_bytes() == first


# tasks that share the tiles

CAP = "max_pixels = 60\n"


def across_tiles(run: Run) -> None:
    """Labels of which groups and features reach over several tiles, some too small to shrink, some on no tile."""
    shapes, names = parcels(run)
    wide = [shapely.box(WEST + 30, NORTH - 630, WEST + 600, NORTH - 590), shapely.box(WEST, NORTH - 9, WEST + 9, NORTH)]
    more = ["crop b", "crop a", "crop c"]
    shapes = [*shapes, *wide, shapely.box(WEST - 90, NORTH, WEST, NORTH + 90)]
    (run.root / "labels.gpkg").unlink()
    fields = {"crop": np.array([*names, *more], dtype=object), "parcel": np.arange(len(shapes)) % 9}
    write_vector(run.root / "labels.gpkg", shapes, fields, to=4326)


def shards(run: Run, order: list[int], count: int, extra: str = CAP) -> None:
    for index in order:
        run_stage(SampleTilesStage(), run, settings(run, extra), shard=Shard(index, count))


def made(run: Run) -> tuple[bytes, bytes]:
    return run.samples.read_bytes(), run.samples_manifest.read_bytes()


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part a tile: sheets have 128 pixels or more."""
    monkeypatch.setattr("preproc.classify.picked.shares_of", lambda tiles, _: shares_of(tiles, tiles[0].size))


@pytest.fixture
def alone(run: Run) -> tuple[bytes, bytes]:
    """What one process makes."""
    across_tiles(run)
    sample(run, CAP)
    return made(run)


@pytest.fixture
def no_picking(monkeypatch: pytest.MonkeyPatch) -> list[range]:
    """Which tiles are looked at from now on."""
    seen: list[range] = []
    pick = LabelledTiles.pick
    monkeypatch.setattr(LabelledTiles, "pick", lambda self, tiles: seen.append(tiles) or pick(self, tiles))
    return seen


@pytest.mark.parametrize("order", [[0], [1, 0], [3, 1, 4, 0, 2]])
def test_tasks_pick_what_one_process_does(
    run: Run, alone: tuple[bytes, bytes], no_picking: list[range], order: list[int]
) -> None:
    shards(run, order, len(order))
    assert sorted(no_picking, key=lambda tiles: tiles.start) == [range(index, index + 1) for index in range(4)]
    shards(run, order, len(order))
    assert len(no_picking) == 4, "nothing is picked twice"
    sample(run, CAP, force=True)
    assert len(no_picking) == 4, "nor when the table is made"
    assert made(run) == alone
    assert not (run.logs / "samples").exists()


def test_a_killed_task_and_one_that_never_ran_change_no_byte(
    run: Run, alone: tuple[bytes, bytes], no_picking: list[range], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as killing:
        killing.setattr(SamplesPart, "write", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            shards(run, [1], 4)
    shards(run, [2], 4)
    assert [path.name for path in sorted((run.logs / "samples").iterdir())] == [
        "part-00001.npz", "part-00002.json", "part-00002.npz"
    ]  # fmt: skip
    sample(run, CAP, force=True)
    assert no_picking == [range(1, 2), range(2, 3), range(2), range(3, 4)], "neighbours are picked together"
    assert made(run) == alone
    shards(run, [0, 1, 2, 3], 4)
    sample(run, CAP, force=True)
    assert made(run) == alone


def test_a_part_that_is_stale_or_damaged_is_picked_again(run: Run, no_picking: list[range]) -> None:
    across_tiles(run)
    shards(run, [0], 1)
    one = run.logs / "samples" / "part-00002.npz"
    one.write_bytes(one.read_bytes()[:-1] + b"x")
    del no_picking[:]
    sample(run, CAP)
    assert no_picking == [range(2, 3)]
    shards(run, [0], 1)
    embed(run, seed=5)
    del no_picking[:]
    sample(run, CAP, force=True)
    assert no_picking == [range(4)]
    shards(run, [0], 1, "max_pixels = 61")
    sample(run, CAP, force=True)
    assert no_picking[-1] == range(4), "picked with other settings"


def test_a_task_whose_tile_has_no_embedding_says_so_and_picks_the_others(
    run: Run, alone: tuple[bytes, bytes], no_picking: list[range]
) -> None:
    gone = planned_tiles(run)[1].name
    aside = (run.embeddings / f"{gone}.json").rename(run.root / "aside.json")
    with pytest.raises(StageFailedError, match=rf"part-00001: .*1 of 1 tiles have no valid embedding: {gone}"):
        shards(run, [0], 1)
    assert len(list((run.logs / "samples").glob("*.json"))) == 3
    with pytest.raises(SmaltiError, match="1 of 4 tiles have no embedding yet"):
        sample(run, CAP, force=True)
    gaps = CAP + '[stitch]\nmissing = "nodata"'
    shards(run, [0, 1], 2, gaps)
    sample(run, gaps)
    divided = made(run)
    sample(run, gaps, force=True)
    assert made(run) == divided
    assert divided[0] != alone[0]
    aside.rename(run.embeddings / f"{gone}.json")
    shards(run, [0, 1], 2)
    sample(run, CAP, force=True)
    assert made(run) == alone


def test_status_counts_tasks_by_the_parts_that_are_there(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preproc.cluster.slurm.queued", lambda _: {})
    monkeypatch.setattr("preproc.cluster.slurm.accounted", lambda _: None)
    slurm_folder(run).mkdir(parents=True)
    write_ledger(run, [SubmittedJob(7, "sample-tiles", ("sample",), "0-2", 3)])

    def done() -> list[int | None]:
        view = look_at_queue(Survey(run, settings(run, CAP)))
        assert view is not None
        return [task.task.index for task in view.jobs[0].tasks if task.state == "done"]

    across_tiles(run)
    assert done() == []
    shards(run, [1], 3)
    assert done() == [1]
    shards(run, [0], 3)
    assert done() == [0, 1]
    sample(run, CAP)
    assert done() == [0, 1, 2], "and what they picked is gone"


def test_at_equator_and_antimeridian_every_sample_is_in_its_place_whatever_the_division(tmp_path: Path) -> None:
    run, tiles = far_run(tmp_path / "run", dim=6)
    shapes, names = [], []
    for west in (832_900, 166_400):
        for row in range(-2, 2):  # half of them south of the equator, in the northern zone's metres
            shapes.append(shapely.box(west, row * 100, west + 700, row * 100 + 80))
            names.append(f"crop {'ab'[row % 2]}")
    degrees = [
        shapely.transform(shape, lambda xy, epsg=epsg: np.column_stack(back(epsg, *xy.T)))
        for shape, epsg in zip(shapes, [32660] * 4 + [32601] * 4, strict=True)
    ]
    write_vector(run.root / "labels.gpkg", degrees, {"crop": np.array(names), "parcel": np.arange(8)}, epsg=4326)
    extra = 'shrink = 0\nmax_pixels = 1000\n[stitch]\nsheet = 128\nmissing = "nodata"'
    sample(run, extra)
    alone = made(run)
    shards(run, [1, 0], 2, extra)
    sample(run, extra, force=True)
    assert made(run) == alone
    samples = read_samples(run)
    places = {tile.name: tile for tile in planned_tiles(run)}
    for at in range(len(samples)):
        tile, row, col = places[str(samples.tile_n[at])], int(samples.row_n[at]), int(samples.col_n[at])
        assert (samples.x_n[at], samples.y_n[at]) == (tile.west + col * 10 + 5, tile.north - row * 10 - 5)
        np.testing.assert_array_equal(samples.values_nc[at], tiles[tile.name][row, col])
        north = samples.y_n[at] - (10_000_000 if tile.epsg > 32700 else 0)
        shape = shapes[int(str(samples.group_n[at]))]
        assert shapely.distance(shape, shapely.Point(samples.x_n[at], north)) < 0.01
    for number, shape in enumerate(shapes):
        west, _, east, north = shape.bounds
        here = samples.group_n == str(number)
        label = "60N" if number < 4 else "01N"
        [grid] = [grid for grid in zone_grids(planned_tiles(run)) if grid.label == label]
        own = {name: values.copy() for name, values in tiles.items()}
        for name, values in own.items():
            values[~own_rows(places[name], np.arange(48))] = np.nan
        values = put_together(run, own, label)
        top, left = round((grid.north - north) / 10), round((west - grid.west) / 10)
        window = values[top : top + 8, left : left + round((east - west) / 10)]
        wanted = int(np.isfinite(window[..., 0]).sum())
        assert here.sum() == wanted > 100, "each pixel once, though the row below 0 is in tiles of both hemispheres"


def back(epsg: int, x: np.ndarray, y: np.ndarray) -> Any:
    return Transformer.from_crs(epsg, 4326, always_xy=True).transform(x, y)
