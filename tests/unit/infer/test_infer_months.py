"""Networks over monthly composites: parity with an independent computation, what they need, what they refuse."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pyproj import Transformer
from support.months_reference import MANIFEST, galileo, gappy_tile, presto, random_galileo, random_presto
from support.recorded import GOLDEN

from infer.__main__ import main
from infer.contract import (
    TILE_ARRAYS,
    SmaltiError,
    Tile,
    read_embedding,
    read_tile,
    write_npy,
    write_pixels_of,
)
from infer.contract.provenance import TileGrid
from infer.contract.registry import REGISTRY, cache_path
from infer.contract.tile import TileManifest
from infer.device import Device, choose_device
from infer.families import OVER_MONTHS, make_engine
from infer.location import degrees, unit_vectors
from infer.model.months import MonthsNetwork
from infer.model.presto import presto_network
from infer.monthly import MonthsEngine
from infer.tilework import InterruptedTileError, Watch, quantise
from infer.weights import Checkpoint, load_checkpoint

TOLERANCE = 1e-5
STATES = {"presto": random_presto, "galileo-nano": random_galileo}
PLAIN = {"presto": presto, "galileo-nano": galileo}
FAMILIES = tuple(STATES)


def saved(folder: Path, content: Mapping[str, object]) -> Checkpoint:
    path = folder / "made.pt"
    torch.save(dict(content), path)
    return load_checkpoint(path)


def embed(
    checkpoint: Checkpoint, tile: Tile, *, budget: int | None = None, workers: int = 1, precision: str = "float32"
):
    device: Device = replace(choose_device("cpu", precision), workers=workers)
    engine = MonthsEngine(checkpoint, device, OVER_MONTHS[checkpoint.family](checkpoint), token_budget=budget)
    try:
        return engine.embed(tile)
    finally:
        engine.close()


def apart(found: NDArray[np.float32], expected: NDArray[np.floating]) -> float:
    assert np.array_equal(np.isnan(found), np.isnan(expected))
    return float(np.nanmax(np.abs(found - expected)))


@pytest.mark.parametrize("family", FAMILIES)
def test_golden_vectors(family, tmp_path):
    expected, state, tile = np.load(GOLDEN / family / "expected.npy"), STATES[family](), gappy_tile()
    assert np.isnan(expected[0, :5]).all(axis=1).tolist() == [False, False, True, False, False]
    for row, column in ((0, 0), (0, 2), (0, 3), (0, 4)):  # the others would take a while
        one = PLAIN[family](state, tile, row, column)
        np.testing.assert_allclose(np.full(expected.shape[2], np.nan) if one is None else one, expected[row, column])
    checkpoint = saved(tmp_path, state)
    assert checkpoint.family == family
    for budget, workers in ((None, 1), (1, 2), (300, 3)):
        assert apart(embed(checkpoint, tile, budget=budget, workers=workers).values_hwc, expected) <= TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_published_weights_give_what_their_own_code_gives(family):
    """Where they were fetched; the vectors were made by the publisher's code."""
    if not cache_path(family).is_file():
        pytest.skip(f"smalti weights fetch {family}")
    checkpoint = load_checkpoint(cache_path(family), REGISTRY[family])
    expected = np.load(GOLDEN / family / "expected_published.npy")
    assert apart(embed(checkpoint, gappy_tile()).values_hwc, expected) <= TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_same_bits_whatever_the_cores_and_close_in_bfloat16(family, precision, tmp_path):
    checkpoint, tile = saved(tmp_path, STATES[family]()), gappy_tile()
    if (family, precision) == ("galileo-nano", "bfloat16"):
        with pytest.raises(SmaltiError, match=r"galileo-nano in bfloat16: its tokens nearly cancel.*precision float32"):
            make_engine(checkpoint, "cpu", precision)
        return
    first, again = (embed(checkpoint, tile, workers=n, precision=precision).values_hwc for n in (1, 3))
    np.testing.assert_array_equal(first, again)
    plain = np.load(GOLDEN / family / "expected.npy")
    there = ~np.isnan(plain[..., 0])
    a, b = first[there].astype(np.float64), plain[there]
    cosine = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosine.min() > 0.999


@pytest.mark.parametrize("family", FAMILIES)
def test_codes_counts_and_the_least_number_of_observations(family, tmp_path):
    checkpoint, tile = saved(tmp_path, STATES[family]()), gappy_tile()
    floats = embed(checkpoint, tile)
    engine = make_engine(checkpoint, "cpu", min_clear_s2=1)
    try:
        codes = engine.embed(tile, output="int8")
        with pytest.raises(SmaltiError, match=rf"dim 16: {family} gives 32"):
            engine.dimensions(16, "int8")
    finally:
        engine.close()
    least = tile.masks_thw.sum(axis=0) >= 1
    expected, scales = quantise(floats.values.view(-1, 32))
    np.testing.assert_array_equal(codes.values_hwc[least], expected.view(6, 6, -1).numpy()[least])
    np.testing.assert_array_equal(codes.scales_hw[least], scales.view(6, 6).numpy()[least])
    assert np.isnan(codes.scales_hw[~least]).all()
    assert codes.nodata_pixels == int((~least).sum()) > floats.nodata_pixels == 1
    assert codes.observations_hwm[..., 0].max() == tile.masks_thw.sum(axis=0).max()
    assert floats.tokens > 0


def test_a_galileo_may_be_named_backbone_but_must_be_nano(tmp_path):
    state, tile = random_galileo(), gappy_tile()
    plain = embed(saved(tmp_path, state), tile).values_hwc
    renamed = {key.replace("attn.", "attn.backbone."): value for key, value in state.items()}
    np.testing.assert_array_equal(embed(saved(tmp_path, renamed), tile).values_hwc, plain)
    with pytest.raises(SmaltiError, match="a Galileo 192 wide, not nano"):
        make_engine(saved(tmp_path, random_galileo(192, 1)), "cpu")


def test_a_galileo_needs_the_season_alone(tmp_path):
    checkpoint, tile = saved(tmp_path, random_galileo()), gappy_tile()
    placeless = replace(tile, manifest=replace(MANIFEST, grid=None))
    np.testing.assert_array_equal(embed(checkpoint, placeless).values_hwc, embed(checkpoint, tile).values_hwc)
    with pytest.raises(SmaltiError, match="galileo-nano needs the season"):
        embed(checkpoint, replace(tile, manifest=replace(MANIFEST, window=None)))


def test_checkpoints_with_a_head_or_wrapped_are_the_same_network(tmp_path):
    """WorldCereal's fine-tuned ones have a head in the place of the decoder."""
    state, tile = random_presto(), gappy_tile()
    plain = embed(saved(tmp_path, state), tile).values_hwc
    encoder = {key: value for key, value in state.items() if key.startswith("encoder.")}
    tuned = {**encoder, "head.linear.weight": torch.ones(1, 32), "head.linear.bias": torch.zeros(1)}
    bare = {key.removeprefix("encoder."): value for key, value in encoder.items()}
    for content in (tuned, {"model_state_dict": tuned, "epoch": 3}, {f"module.{k}": v for k, v in tuned.items()}, bare):
        np.testing.assert_array_equal(embed(saved(tmp_path, content), tile).values_hwc, plain)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"encoder.valid_month_embed.weight": torch.ones(12, 8)}, "left over valid_month_embed"),
        ({"encoder.blocks.1.mlp.fc2.bias": None}, "missing blocks.1.mlp.fc2.bias"),
        ({"encoder.month_embed.weight": torch.ones(13, 8)}, r"of another shape month_embed.weight \(13, 8\)"),
        ({"encoder.norm.weight": torch.full((32,), float("nan"))}, "'norm.weight' holds numbers that are not finite"),
        ({"encoder.eo_patch_embed.S1.weight": torch.ones(20, 2)}, "20 wide cannot be divided"),
        ({"encoder.eo_patch_embed.S1.weight": torch.tensor(1.0)}, "0 wide cannot be divided"),
    ],
)
def test_other_networks_are_refused_in_a_line(change, match, tmp_path):
    state = {key: value for key, value in {**random_presto(), **change}.items() if value is not None}
    with pytest.raises(SmaltiError, match=match) as caught:
        make_engine(saved(tmp_path, state), "cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            {"window": None, "grid": None},
            r"made: presto needs the season \(window\).* and the place of its pixels.*fetch the tile with smalti",
        ),
        ({"grid": None}, "presto needs the place of its pixels"),
        ({"grid": TileGrid("EPSG:3035", (1, 2, 3, 4, 5, 6))}, "UTM zone"),
        ({"grid": TileGrid("EPSG:32661", (10, 0, 0, 0, -10, 0))}, "UTM zone"),
        ({"grid": TileGrid("EPSG:32631", (10, 0, 10**400, 0, -10, 0))}, "UTM zone"),
        ({"window": None}, "presto needs the season"),
    ],
)
def test_a_tile_that_cannot_give_what_is_needed_is_refused(change, match, tmp_path):
    engine = make_engine(saved(tmp_path, random_presto()), "cpu")
    try:
        for ask in (engine.load, engine.embed):
            with pytest.raises(SmaltiError, match=match) as caught:
                ask(replace(gappy_tile(), manifest=replace(MANIFEST, **change)))
            assert "\n" not in str(caught.value)
    finally:
        engine.close()


def test_composites_may_be_made_ahead_in_small_blocks(tmp_path, monkeypatch):
    """As for an accelerator, whose host does that meanwhile."""
    checkpoint, tile = saved(tmp_path, random_presto()), gappy_tile()
    plain = embed(checkpoint, tile)
    for most in (1, 4, 7):
        monkeypatch.setattr(MonthsEngine, "_block_pixels", most)
        engine = make_engine(checkpoint, "cpu", "float32")
        engine._composers = ThreadPoolExecutor(2)
        try:
            found = engine.embed(tile)
            assert apart(found.values_hwc, plain.values_hwc) <= TOLERANCE
            np.testing.assert_array_equal(found.observations_hwm, plain.observations_hwm)
            with pytest.raises(InterruptedTileError):
                engine.embed(tile, watch=Watch(stop=lambda: True))
        finally:
            engine.close()


def test_little_memory_makes_smaller_batches(tmp_path, monkeypatch):
    checkpoint, tile = saved(tmp_path, random_presto()), gappy_tile()
    expected, plain = embed(checkpoint, tile), MonthsNetwork.forward

    def scarce(self, values_pmc, *rest):
        if len(values_pmc) > 8:
            raise torch.OutOfMemoryError("out of memory")
        return plain(self, values_pmc, *rest)

    monkeypatch.setattr(MonthsNetwork, "forward", scarce)
    monkeypatch.setattr("infer.monthly._SMALLEST_BATCH", 1)
    full = replace(tile, masks_thw=np.ones_like(tile.masks_thw))
    engine = MonthsEngine(checkpoint, choose_device("cpu", "float32"), presto_network(checkpoint), token_budget=4096)
    try:
        found, again = engine.embed(full), engine.embed(full)
    finally:
        engine.close()
    assert found.oom_halvings == again.oom_halvings > 0, "of each tile, which depends on none before it"
    monkeypatch.undo()
    assert apart(found.values_hwc, embed(checkpoint, full, budget=4096).values_hwc) <= TOLERANCE
    assert expected.oom_halvings == 0


def test_stopping_and_progress(tmp_path):
    checkpoint, told = saved(tmp_path, random_presto()), []
    engine = make_engine(checkpoint, "cpu")
    try:
        engine.embed(gappy_tile(), watch=Watch(advance=told.append))
        assert sum(told) == pytest.approx(1.0)
        with pytest.raises(InterruptedTileError):
            engine.embed(gappy_tile(), watch=Watch(stop=lambda: True))
    finally:
        engine.close()


def test_pixels_taken_from_a_tile_are_where_they_were(tmp_path):
    state, tile = random_presto(), gappy_tile()
    corner = torch.from_numpy(unit_vectors(tile, np.array([0]), np.array([0])))[0]
    weight = 1e5 * state["encoder.latlon_embed.weight"]  # ten metres count
    state |= {"encoder.latlon_embed.weight": weight, "encoder.latlon_embed.bias": -weight @ corner}
    checkpoint = saved(tmp_path, state)
    folder = tmp_path / "taken"
    folder.mkdir()
    places = np.array([[5, 1], [0, 3], [2, 4]], dtype=np.int32)
    write_pixels_of(read_tile(stated(tmp_path / "whole", tile, MANIFEST), need_manifest=True), folder, places, {})
    taken = embed(checkpoint, read_tile(folder, need_manifest=True)).values_hwc[0]
    there = embed(checkpoint, tile).values_hwc[places[:, 0], places[:, 1]]
    np.testing.assert_allclose(taken, there, atol=1e-4)
    moved = replace(read_tile(folder, need_manifest=True), pixels_p2=None)
    assert np.abs(embed(checkpoint, moved).values_hwc[0] - there).max() > 1e-3


def test_places_agree_with_pyproj():
    rng = np.random.default_rng(0)
    for epsg in (32601, 32631, 32660, 32733, 32701):
        south = epsg // 100 == 327
        easting, northing = rng.uniform(100_000, 900_000, 500), rng.uniform(0, 9_300_000, 500) + 700_000 * south
        expected = Transformer.from_crs(epsg, 4326, always_xy=True).transform(easting, northing)
        found = degrees(epsg, easting, northing)
        turned = (found[0] - expected[0] + 180) % 360 - 180
        assert max(np.abs(turned).max(), np.abs(found[1] - expected[1]).max()) < 1e-9


def stated(folder: Path, tile: Tile, manifest: TileManifest) -> Path:
    folder.mkdir(parents=True)
    for field, spec in TILE_ARRAYS.items():
        write_npy(folder / spec.file, getattr(tile, field).astype(spec.dtype))
    files = [folder / spec.file for spec in TILE_ARRAYS.values()]
    manifest.write(folder / "tile.json", inputs={}, files=files)
    return folder


def test_the_command_writes_embeddings_that_say_what_made_them(tmp_path, capsys):
    for name, manifest in (("stated", MANIFEST), ("unknown", replace(MANIFEST, grid=None, window=None))):
        stated(tmp_path / "tiles" / name, gappy_tile(), manifest)
    checkpoint = saved(tmp_path, random_presto())
    arguments = ["--tiles", str(tmp_path / "tiles"), "--checkpoint", str(checkpoint.path), "--device", "cpu"]
    assert main([*arguments, "--out", str(tmp_path / "out"), "--dtype", "float32"]) == 1
    assert "unknown: presto needs the season" in capsys.readouterr().err
    embedding = read_embedding(tmp_path / "out", "stated")
    assert embedding.manifest.model.family == "presto"
    assert embedding.manifest.dimensions == 32
    assert apart(embedding.values_hwc, np.load(GOLDEN / "presto" / "expected.npy")) <= TOLERANCE
