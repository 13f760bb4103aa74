"""Published embeddings become the embeddings of a run, each number in its place."""

from __future__ import annotations

import os
import struct
import sys
import threading
from datetime import date
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import rasterio
import zarr
from support.embedded import ABOUT, plan_of
from support.published import made_npy, made_store, place_codes, place_scales
from support.range_server import RangeServer, serve_folder
from support.s3_server import S3Server

from infer.contract import (
    BusyError,
    PlannedTile,
    Run,
    Shard,
    SmaltiError,
    planned_tiles,
    read_embedding,
    read_manifest,
    stage_lock,
    write_embedding,
)
from infer.contract.imported import imported_tiles
from preproc.exchange.geotessera import open_published
from preproc.exchange.importing import import_embeddings
from preproc.mosaic.stage import StitchStage
from preproc.raster.provenance import read_provenance
from preproc.region.grid import region_mask, zone_epsg
from preproc.region.region import load_region
from preproc.run.config import Config, parse_config
from preproc.run.engine import InferStage
from preproc.run.stage import run_stage

TOML = """\
[region]
bbox = [{west}, {south}, {east}, {north}]
start = "2021-01-01"
end = "2021-12-31"
[archive]
source = "mpc"
[model]
name = "tessera-v1.1-mpc"
{extra}
"""


def planned(root: Path, longitude: float, latitude: float, *, size: int = 32, extra: str = "") -> tuple[Run, Config]:
    """A run of 2 x 2 small tiles, the first of whose pixels lies at a place; its region leaves some of them out."""
    epsg = zone_epsg(longitude, latitude)
    from pyproj import Transformer

    x, y = Transformer.from_crs(4326, epsg, always_xy=True).transform(longitude, latitude)
    step = size * 10
    west, north = int(x // step) * step, int(y // step + 1) * step
    tiles = [
        PlannedTile(f"t{column}{row}", epsg, west + column * step, north - row * step, size)
        for row in range(2)
        for column in range(2)
    ]
    run = Run(root)
    root.mkdir(parents=True)
    back = Transformer.from_crs(epsg, 4326, always_xy=True)
    left, bottom = back.transform(west + step // 4, north - 2 * step + step // 4)
    right, top = back.transform(west + 2 * step - 1, north - 1)
    box = {"west": left, "south": bottom, "east": right, "north": top}
    run.config.write_text(TOML.format(**box, extra=extra))
    plan_of(tiles).write(run.plan, inputs={}, files=[])
    return run, parse_config(run.config.read_text(), run.config)


def around(run: Run, margin: int = 40) -> tuple[int, float, float, tuple[int, int]]:
    """Zone, west, north and shape of a store that covers a run's tiles, off their lattice of 32 pixels."""
    tiles = planned_tiles(run)
    south = 10_000_000 if tiles[0].epsg > 32700 else 0
    west, north = min(t.west for t in tiles) - margin * 10 - 70, max(t.north for t in tiles) + margin * 10 - south
    return tiles[0].epsg % 100, west, north, (64 + 2 * margin, 71 + 2 * margin)


def expected(run: Run, config: Config, tile: PlannedTile) -> tuple[Any, Any]:
    steps = (np.arange(tile.size) + 0.5) * 10
    x, y = np.meshgrid(tile.west + steps, tile.north - steps)
    y = y - (10_000_000 if tile.epsg > 32700 else 0)
    inside = region_mask(load_region(config.region), tile) > 0
    codes, scales = place_codes(x, y), place_scales(x, y)
    codes[~inside] = 0
    scales[~inside] = np.nan
    return codes, scales


@pytest.mark.parametrize("place", [(3.01, 50.5), (15.3, -0.9), (-179.97, 62.0)], ids=["north", "south", "antimeridian"])
def test_every_pixel_of_a_store_comes_to_its_place(tmp_path: Path, place: tuple[float, float]) -> None:
    run, config = planned(tmp_path / "run", *place)
    zone, *where = around(run)
    made_store(tmp_path / "store", {zone: (where[0], where[1], where[2])})
    import_embeddings(run, config, str(tmp_path / "store"))
    outside = 0
    for tile in planned_tiles(run):
        found = read_embedding(run.embeddings, tile.name)
        codes, scales = expected(run, config, tile)
        np.testing.assert_array_equal(found.values_hwc, codes)
        np.testing.assert_array_equal(found.scales_hw, scales)
        assert found.manifest.as_json()["origin"]["placement"] == "whole pixels"
        outside += int(np.isnan(scales).sum())
    assert outside > 100, "the region has an edge in this test"
    facts = read_provenance(run)
    assert facts.origins == {"TESSERA 1.1 from store": 4}
    assert facts.content == "TESSERA embeddings"


def test_again_is_nothing_to_do_and_the_engine_is_not_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, config = planned(tmp_path / "run", 3.01, 50.5)
    zone, west, north, shape = around(run)
    made_store(tmp_path / "store", {zone: (west, north, shape)})
    import_embeddings(run, config, str(tmp_path / "store"))
    before = {path.name: path.stat().st_mtime_ns for path in run.embeddings.iterdir()}
    import_embeddings(run, config, str(tmp_path / "store"))
    assert {path.name: path.stat().st_mtime_ns for path in run.embeddings.iterdir()} == before
    assert "4 already complete" in capsys.readouterr().err
    outcome = run_stage(InferStage(), run, config)  # there are no weights of this model here
    assert outcome.complete_before == 4
    run_stage(StitchStage(), run, config)
    with rasterio.open(run.mosaic / "observations_31N.tif") as raster:
        reason, origin = raster.read([3, 4])
        assert {0, 1} <= set(np.unique(reason))
        np.testing.assert_array_equal(origin, np.where(reason == 0, 1, 255), "where there is an embedding, no more")
        assert raster.tags()["SMALTI_IMPORTED_FROM"] == "TESSERA 1.1 from store"
    (run.embeddings / "t00.json").unlink()
    with pytest.raises(SmaltiError, match=r"t00.*run `smalti import .* SOURCE` again"):
        run_stage(InferStage(), run, config)


def test_an_import_and_the_engine_do_not_write_the_same_files_at_once(tmp_path: Path) -> None:
    run, config = planned(tmp_path / "run", 3.01, 50.5)
    zone, west, north, shape = around(run)
    made_store(tmp_path / "store", {zone: (west, north, shape)})
    with stage_lock(run, "infer", Shard(0, 2)), pytest.raises(BusyError):
        import_embeddings(run, config, str(tmp_path / "store"))
    assert not run.embeddings.exists()


def test_an_icechunk_repository_is_read_as_its_main_branch_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    icechunk = pytest.importorskip("icechunk", reason="pip install 'smalti[icechunk]'")
    run, config = planned(tmp_path / "run", 3.01, 50.5)
    zone, west, north, shape = around(run)
    repository = icechunk.Repository.create(icechunk.local_filesystem_storage(str(tmp_path / "store")))
    session = repository.writable_session("main")
    made_store(session.store, {zone: (west, north, shape)})
    session.commit("all of it")
    import_embeddings(run, config, str(tmp_path / "store"))
    for tile in planned_tiles(run):
        found = read_embedding(run.embeddings, tile.name)
        codes, scales = expected(run, config, tile)
        np.testing.assert_array_equal(found.values_hwc, codes)
        np.testing.assert_array_equal(found.scales_hw, scales)
    server = S3Server()
    server.public = True
    files = (path for path in (tmp_path / "store").rglob("*") if path.is_file())
    server.files |= {
        f"/public/v1.1/all.icechunk/{path.relative_to(tmp_path / 'store')}": path.read_bytes() for path in files
    }
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    with server.running():
        far = open_published("s3://public/v1.1/all.icechunk", 2021)
        (patch,) = far.patches(planned_tiles(run)[0])
        assert patch.read(slice(0, 8), slice(0, 8))[0].any()
    before = open_published(str(tmp_path / "store"), 2021).dataset.fingerprint
    assert far.dataset.fingerprint == before
    session = repository.writable_session("main")
    zarr.open_group(session.store, mode="a")["utm31/scales"][-1, :4, :4] = np.nan
    session.commit("a correction")
    assert open_published(str(tmp_path / "store"), 2021).dataset.fingerprint != before
    next((tmp_path / "store" / "snapshots").iterdir()).write_bytes(b"torn")
    for name in (tmp_path / "store" / "refs").rglob("ref.json"):
        name.write_bytes(b"{")
    with pytest.raises(SmaltiError, match="store: not a Zarr v3 store that can be read"):
        open_published(str(tmp_path / "store"), 2021)


def test_without_the_package_an_icechunk_repository_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "icechunk", None)
    monkeypatch.setattr("preproc.exchange.zarr_store.importlib.util.find_spec", lambda _: None)
    (tmp_path / "store" / "snapshots").mkdir(parents=True)
    for source in (str(tmp_path / "store"), "s3://bucket/v1.1/global.icechunk"):
        with pytest.raises(SmaltiError, match=r"an Icechunk repository: pip install 'smalti\[icechunk\]' reads it"):
            open_published(source, 2021)


def test_what_is_absent_water_or_damaged_is_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, config = planned(tmp_path / "run", 3.01, 50.5)
    zone, west, north, shape = around(run)
    root = made_store(tmp_path / "store", {zone: (west, north, shape)})
    scales: Any = root["utm31/scales"]
    top, left = 40, 47  # of the first tile
    scales[-1, top + 2, left + 20 : left + 24] = np.inf
    scales[-1, top + 3, left + 20 : left + 25] = np.nan
    scales[-1, top + 4, left + 20 : left + 22] = -1
    scales[-1, top + 4, left + 22 : left + 24] = 3e30
    import_embeddings(run, config, str(tmp_path / "store"))
    found = read_embedding(run.embeddings, "t00")
    assert found.scales_hw is not None
    assert np.isnan(found.scales_hw[2:5, 20:24]).all()
    assert not np.isnan(found.scales_hw[2:5, 25:]).any()
    said = found.manifest.as_json()["origin"]
    assert (said["pixels_absent"], said["pixels_without_data"], said["pixels_damaged"]) == (4, 5, 4)
    assert "import: 4 pixels are not published there: no data" in capsys.readouterr().err


def test_fill_leaves_to_the_engine_what_is_not_whole_and_keeps_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, config = planned(tmp_path / "run", 3.01, 50.5)
    zone, west, north, shape = around(run)
    root = made_store(tmp_path / "store", {zone: (west, north, shape)})
    scales: Any = root["utm31/scales"]
    scales[-1, 40 + 5, 47 + 40] = np.inf  # one pixel of t10
    own = np.zeros((32, 32, 128), np.int8), np.ones((32, 32), np.float32)
    write_embedding(run.embeddings, "t11", *own, inputs={"tile": "x"}, about=ABOUT)
    import_embeddings(run, config, str(tmp_path / "store"), fill=True)
    assert sorted(imported_tiles(run)) == ["t00", "t01"]
    assert not (run.embeddings / "t10.json").exists()
    assert "import" not in read_manifest(run.embeddings / "t11.json", "embedding", remedy="")["inputs"]
    said = capsys.readouterr().err
    assert "import: 2 built, 1 already complete (" in said, "and one that is left to the engine is neither"
    assert "1 tiles keep what the engine computed" in said
    assert "1 tiles are not whole there: `smalti fetch" in said
    checkpoint = read_manifest(run.embeddings / "t00.json", "embedding", remedy="")["inputs"]["checkpoint"]
    assert checkpoint.startswith("5dab0f070d57"), "the published hash of the model, as the engine will state it"
    import_embeddings(run, config, str(tmp_path / "store"))
    assert sorted(imported_tiles(run)) == ["t00", "t01", "t10"], "without --fill what there is is taken"


def test_a_tile_on_the_seam_of_zones_takes_the_nearest_pixel_of_the_neighbour(tmp_path: Path) -> None:
    run, config = planned(tmp_path / "run", 5.995, 50.5)
    tiles = planned_tiles(run)
    from pyproj import Transformer

    x, y = Transformer.from_crs(tiles[0].epsg, 32632, always_xy=True).transform(tiles[0].west, tiles[0].north)
    west, north = x // 10 * 10 - 600, y // 10 * 10 + 600
    made_store(tmp_path / "store", {32: (west, north, (200, 200))})
    import_embeddings(run, config, str(tmp_path / "store"))
    said = read_embedding(run.embeddings, "t00").manifest.as_json()["origin"]
    assert said["placement"] == "nearest pixels"
    assert 0 < said["largest_shift_m"] <= 7.08
    tile = tiles[0]
    px, py = tile.west + 20.5 * 10, tile.north - 9.5 * 10
    there = Transformer.from_crs(tile.epsg, 32632, always_xy=True).transform(px, py)
    wanted = place_codes(np.array([[there[0]]]), np.array([[there[1]]]))[0, 0]
    np.testing.assert_array_equal(read_embedding(run.embeddings, "t00").values_hwc[9, 20], wanted)


def test_npy_tiles_are_placed_by_their_names_and_cut_by_their_masks(tmp_path: Path) -> None:
    run, config = planned(tmp_path / "run", 3.0985, 50.4985)  # where four of them meet
    cells = [(3.05, 50.45), (3.15, 50.45), (3.05, 50.55), (3.15, 50.55)]
    made_npy(tmp_path / "npy", cells, (3.0985, 50.4985))
    import_embeddings(run, config, str(tmp_path / "npy"))
    for tile in planned_tiles(run):
        codes, scales = expected(run, config, tile)
        found = read_embedding(run.embeddings, tile.name)
        np.testing.assert_array_equal(found.values_hwc, codes)
        np.testing.assert_array_equal(found.scales_hw, scales)
    assert found.manifest.as_json()["origin"]["dataset"] == "TESSERA 1.1 cambridge"
    made_npy(tmp_path / "land", cells, (3.0985, 50.4985), land=True)
    import_embeddings(run, config, str(tmp_path / "land"))
    for tile in planned_tiles(run):
        codes, scales = expected(run, config, tile)
        found = read_embedding(run.embeddings, tile.name)
        assert found.manifest.as_json()["origin"]["pixels_without_data"] > 100
        assert found.scales_hw is not None
        land = ~np.isnan(found.scales_hw)
        assert land.any()
        np.testing.assert_array_equal(found.values_hwc[land], codes[land])


def test_a_store_behind_an_address(tmp_path: Path) -> None:
    run, config = planned(tmp_path / "run", 3.01, 50.5, extra='output = "float32"')
    zone, west, north, shape = around(run)
    made_store(tmp_path / "store", {zone: (west, north, shape)})
    with RangeServer(serve_folder(tmp_path)).running() as server:
        import_embeddings(run, config, f"{server.url}/store")
    tile = planned_tiles(run)[0]
    codes, scales = expected(run, config, tile)
    found = read_embedding(run.embeddings, tile.name)
    np.testing.assert_array_equal(found.values_hwc, codes.astype(np.float32) * scales[..., None])
    plain = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=tmp_path))  # no ranges
    threading.Thread(target=plain.serve_forever, args=(0.05,), daemon=True).start()
    with plain, pytest.raises(SmaltiError, match=r"/store/utm31: its server sends no parts of files \(HTTP Range\)"):
        import_embeddings(run, config, f"http://127.0.0.1:{plain.server_port}/store/", force=True)
    plain.shutdown()
    with pytest.raises(SmaltiError, match=r"127.0.0.1:9/store: not a Zarr v3 store that can be read"):
        import_embeddings(run, config, "http://127.0.0.1:9/store")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"name": "tessera-v2-small"},
            r"asks for tessera-v2-small, the source has TESSERA 1.1: .*family v1.1",
        ),
        ({"extra": "dim = 64"}, r"\[model\] dim is 64, the source has 128"),
        ({"extra": "min_clear_s2 = 15"}, r"does not say how often its pixels were seen"),
        ({"end": "2021-11-30"}, r"the season is .*, the source's 2021-01-01 to 2021-12-31: set \[region\]"),
        ({"years": (2019, 2020)}, r"utm31: has 2019, 2020, not 2021"),
        ({"model": ""}, r"do not say int8 embeddings of a model"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    run, _ = planned(tmp_path / "run", 3.01, 50.5, extra=change.get("extra", ""))
    text = run.config.read_text().replace("tessera-v1.1-mpc", change.get("name", "tessera-v1.1-mpc"))
    run.config.write_text(text)
    if "end" in change:
        from dataclasses import replace

        from infer.contract import Plan

        plan = replace(Plan.read(run), window=(date(2021, 1, 1), date.fromisoformat(change["end"])))
        plan.write(run.plan, inputs={}, files=[])
    zone, west, north, shape = around(run)
    options = {key: change[key] for key in ("years",) if key in change}
    if "model" in change:
        options["model"] = None
    made_store(tmp_path / "store", {zone: (west, north, shape)}, **options)
    with pytest.raises(SmaltiError, match=message):
        import_embeddings(run, parse_config(text, run.config), str(tmp_path / "store"))
    assert not run.embeddings.exists() or not list(run.embeddings.glob("*.npy"))


@pytest.mark.parametrize(
    ("array", "shape", "message"),
    [
        ("embeddings", (2, 1, 144, 151), r"utm31: codes int8 \(2, 1, 144, 151\) .* do not fit 2 years of 128 numbers"),
        ("embeddings", (1, 128, 144, 151), r"utm31: codes int8 \(1, 128, 144, 151\) .* do not fit 2 years"),
        ("scales", (151,), "utm31: embeddings and scales are no arrays of geotessera's layout"),
        ("embeddings", (2, 128, 144, 151), "utm31: a chunk of its arrays takes more than 256 MiB"),
        (None, (), "utm31: its corner nan, .* lies beyond the Earth"),
        ("time", (10**9,), r"utm31: not a zone of geotessera's layout .*1000000000 years"),
        ("embeddings", (2, 128, 144, 151), r"utm31: its chunks, \(1, 1, 1, 1\), are too small"),
        ("observations", (2, 3, 144, 151), "utm31: its arrays are packed by 'numcodecs.bz2', which may unpack to any"),
    ],
    ids=["one number", "a year short", "flat", "large chunks", "nowhere", "years", "small chunks", "codec"],
)
def test_a_store_that_is_built_otherwise_is_refused_in_a_line(
    tmp_path: Path, array: str | None, shape: tuple[int, ...], message: str
) -> None:
    run, config = planned(tmp_path / "run", 3.01, 50.5)
    zone, west, north, shape_hw = around(run)
    assert shape_hw == (144, 151)
    root = made_store(tmp_path / "store", {zone: (float("nan") if array is None else west, north, shape_hw)})
    group: Any = root["utm31"]
    if array is not None:
        if array in group:
            del group[array]
        chunks = (1, 128, 4096, 4096) if "MiB" in message else (1, 1, 1, 1) if "small" in message else shape
        kind = "int8" if array == "embeddings" else "float32"
        codec = zarr.codecs.numcodecs.BZ2() if array == "observations" else "auto"
        group.create_array(array, shape=shape, chunks=chunks, dtype=kind, fill_value=0, compressors=codec)
    zarr.consolidate_metadata(tmp_path / "store", zarr_format=3)
    with pytest.raises(SmaltiError, match=message):
        import_embeddings(run, config, str(tmp_path / "store"))


def _packed(kind: str) -> bytes:
    """Four megabytes of zeros, where a chunk has 87 kB; the last is a header that says so, of nothing."""
    if kind == "blosc":
        return struct.pack("<BBBBIII", 2, 1, 0x15, 4, 1 << 22, 1 << 20, 2000) + bytes(1984)
    stream = pa.BufferOutputStream()
    with pa.CompressedOutputStream(stream, kind) as packer:
        packer.write(bytes(1 << 22))
    return stream.getvalue().to_pybytes()


@pytest.mark.parametrize("kind", ["zstd", "gzip", "blosc"])
def test_a_chunk_unpacks_to_what_its_shape_has_room_for_and_no_more(tmp_path: Path, kind: str) -> None:
    run, config = planned(tmp_path / "run", 3.01, 50.5)
    zone, *where = around(run)
    group: Any = made_store(tmp_path / "store", {zone: where})["utm31"]
    del group["scales"]
    codec = {"zstd": zarr.codecs.ZstdCodec, "gzip": zarr.codecs.GzipCodec, "blosc": zarr.codecs.BloscCodec}[kind]()
    options = {"dtype": "float32", "fill_value": np.inf, "compressors": codec}
    scales = group.create_array("scales", shape=(2, *where[2]), chunks=(1, *where[2]), **options)
    scales[:] = 0.01
    zarr.consolidate_metadata(tmp_path / "store", zarr_format=3)
    import_embeddings(run, config, str(tmp_path / "store"))
    (tmp_path / "store/utm31/scales/c/1/0/0").write_bytes(_packed(kind))
    for source in (str(tmp_path / "store"), None):
        refused = pytest.raises(SmaltiError, match=r"utm31: a chunk unpacks to more than the \d+ bytes of its numbers")
        with RangeServer(serve_folder(tmp_path)).running() as server, refused:
            import_embeddings(run, config, source or f"{server.url}/store", force=True)


@pytest.mark.parametrize("remote", [False, True])
def test_no_more_is_read_of_an_object_than_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remote: bool) -> None:
    run, config = planned(tmp_path / "run", 3.01, 50.5)
    zone, *where = around(run)
    made_store(tmp_path / "store", {zone: where})
    monkeypatch.setattr("preproc.exchange.zarr_store._MOST_CHUNK", 200_000)
    monkeypatch.setattr("preproc.exchange.zarr_store.check_array", lambda _: None)
    for shard in (tmp_path / "store/utm31/scales/c/1").rglob("[0-9]"):
        if shard.is_file():
            os.truncate(shard, 1 << 32)  # a hole takes no room
    refused = pytest.raises(SmaltiError, match=r"utm31: .*has more than 200000 bytes|utm31: cannot be read")
    with RangeServer(serve_folder(tmp_path)).running() as server, refused:
        import_embeddings(run, config, f"{server.url}/store" if remote else str(tmp_path / "store"))
    assert not list(run.embeddings.glob("*.npy"))


def test_a_damaged_shard_fails_its_tiles_and_no_others(tmp_path: Path) -> None:
    run, config = planned(tmp_path / "run", 3.01, 50.5)
    zone, west, north, shape = around(run)
    made_store(tmp_path / "store", {zone: (west, north, shape)})
    shard = tmp_path / "store" / "utm31" / "embeddings" / "c" / "1" / "0" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:2000])
    with pytest.raises(SmaltiError, match=r"(?s)of the tiles failed.*utm31: cannot be read"):
        import_embeddings(run, config, str(tmp_path / "store"))
    assert (run.embeddings / "t11.json").exists()


def test_neither_a_store_nor_tiles(tmp_path: Path) -> None:
    run, config = planned(tmp_path / "run", 3.01, 50.5)
    with pytest.raises(SmaltiError, match="neither a Zarr v3 store"):
        import_embeddings(run, config, str(tmp_path))
    zarr.create_array(tmp_path / "array", shape=(2,), dtype="int8", zarr_format=3)
    with pytest.raises(SmaltiError, match="not a Zarr v3 store that can be read"):
        import_embeddings(run, config, str(tmp_path / "array"))
