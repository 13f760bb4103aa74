"""The engine against an independent plain computation, and what must not change its results."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.recorded import GOLDEN

from bench.infer_baseline import embed_plain
from bench.made_tile import made_tile
from infer.contract import SmaltiError, Tile
from infer.device import Device, choose_device
from infer.engine import Engine
from infer.model.linear import add_norm, agrees, fused_add_norm
from infer.model.network import Network, random_student
from infer.tilework import InterruptedTileError, Watch, quantise
from infer.weights import Checkpoint, load_checkpoint
from infer.workers import Workers

TOLERANCE = 2e-5
SIZES = {"repr_dim": 128, "latent_dim": 8, "num_layers": 2, "nhead": 4, "dim_feedforward": 48}
QK = {**SIZES, "enable_qk_norm": True, "nhead": 2}
SMALL = {"repr_dim": 128, "latent_dim": 64, "num_layers": 4, "nhead": 4, "dim_feedforward": 1024}
MEDIUM = {"repr_dim": 128, "latent_dim": 96, "num_layers": 6, "nhead": 6, "dim_feedforward": 1536}


def student(arguments: dict[str, object], seed: int = 0) -> Checkpoint:
    state = random_student(arguments, seed)
    return Checkpoint("made", Path("made"), "0", "v2-student", state, arguments, "v2-student", None, False, "made")


def on_cpu(precision: str = "float32", workers: int = 1) -> Device:
    return replace(choose_device("cpu", precision), workers=workers)


def embed(checkpoint: Checkpoint, tile: Tile, device: Device | None = None, budget: int | None = None, **options):
    engine = Engine(checkpoint, device or on_cpu(), token_budget=budget)
    try:
        return engine.embed(tile, **options)
    finally:
        engine.close()


def agree(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    assert np.array_equal(np.isnan(found), np.isnan(expected))
    return float(np.nanmax(np.abs(found - expected), initial=0.0))


@st.composite
def tiles(draw) -> Tile:
    """Tiles of a few pixels with any number of dates, days that repeat, and any pattern of what is missing."""
    height, width = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    dates = [draw(st.one_of(st.integers(0, 20), st.integers(0, 300))) for _ in range(3)]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    present = [draw(st.sampled_from([0.0, 0.05, 0.3, 0.7, 1.0])) for _ in range(3)]
    masks = (rng.random((dates[0], height, width)) < present[0]).astype(np.uint8)
    bands = rng.integers(0, 65536, (dates[0], height, width, 10)).astype(np.uint16)
    stacks = []
    for n, share in zip(dates[1:], present[1:], strict=True):
        stack = rng.integers(-100, 32767, (n, height, width, 2)).astype(np.int16)
        stack[rng.random((n, height, width)) >= share] = 0
        stacks.append(stack)
    days = [np.sort(rng.integers(1, 367, n)) for n in dates]
    return Tile(
        "drawn", bands, masks, days[0].astype(np.uint16), stacks[0], days[1].astype(np.int16), stacks[1],
        days[2].astype(np.int16),
    )  # fmt: skip


@pytest.mark.parametrize("case", ["student", "qk", "teacher", "v1.1"])
@given(tile=tiles(), budget=st.sampled_from([1, 40, 300, 1024, 4096]), workers=st.sampled_from([1, 2]))
@settings(deadline=None, max_examples=25)
def test_any_tile_at_any_budget_agrees_with_the_plain_computation(case, cases, tile, budget, workers):
    checkpoint = cases(case)
    found = embed(checkpoint, tile, on_cpu(workers=workers), budget).values_hwc
    expected = embed_plain(tile, checkpoint)
    assert agree(found, expected) <= TOLERANCE


@pytest.fixture(scope="module")
def cases():
    def get(case: str) -> Checkpoint:
        if case in ("student", "qk"):
            return student(SIZES if case == "student" else QK)
        return load_checkpoint(GOLDEN / {"teacher": "v2-teacher", "v1.1": "v1.1-mpc"}[case] / "checkpoint.pt")

    return get


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_bits_do_not_depend_on_cores_or_neighbours(precision):
    checkpoint, tile = student(SIZES), made_tile(24, 30, 20)
    first = embed(checkpoint, tile, on_cpu(precision)).values_hwc
    engine = Engine(checkpoint, on_cpu(precision, workers=3))
    try:
        engine.embed(made_tile(13, 17, 9, seed=5))
        again = [engine.embed(tile).values_hwc for _ in range(2)]
    finally:
        engine.close()
    assert all(np.array_equal(first, other, equal_nan=True) for other in again)


def test_values_across_batch_sizes_agree_within_the_stated_bound():
    checkpoint, tile = student(SMALL), made_tile(12, 40, 30)
    values = [embed(checkpoint, tile, budget=budget).values_hwc for budget in (128, 1024, 5000)]
    assert agree(values[0], values[1]) <= TOLERANCE
    assert agree(values[0], values[2]) <= TOLERANCE


def test_a_part_of_a_tile_gives_the_values_of_the_whole():
    checkpoint, tile = student(SIZES), made_tile(16, 20, 12)
    part = replace(
        tile,
        bands_thwb=tile.bands_thwb[:, 3:9, 2:7],
        masks_thw=tile.masks_thw[:, 3:9, 2:7],
        sar_asc_thwp=tile.sar_asc_thwp[:, 3:9, 2:7],
        sar_desc_thwp=tile.sar_desc_thwp[:, 3:9, 2:7],
    )
    whole = embed(checkpoint, tile).values_hwc[3:9, 2:7]
    assert agree(embed(checkpoint, part).values_hwc, whole) <= TOLERANCE


@pytest.mark.parametrize("arguments", [SMALL, MEDIUM], ids=["small", "medium"])
def test_bfloat16_keeps_the_direction_of_every_pixel(arguments):
    checkpoint, tile = student(arguments, seed=3), made_tile(8, 70, 60)
    a = embed(checkpoint, tile).values_hwc.reshape(-1, 128).astype(np.float64)
    b = embed(checkpoint, tile, on_cpu("bfloat16")).values_hwc.reshape(-1, 128).astype(np.float64)
    cosine = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosine.min() >= 0.9999


def test_a_kernel_between_products_gives_the_same_values(monkeypatch):
    monkeypatch.setattr("infer.engine.fused_add_norm", lambda *_arguments: add_norm)
    checkpoint, tile = student(SIZES), made_tile(8, 20, 10)
    engine = Engine(checkpoint, on_cpu(workers=2))
    try:
        assert engine.compiled
        assert agree(engine.embed(tile).values_hwc, embed(checkpoint, tile).values_hwc) <= TOLERANCE
    finally:
        engine.close()


def test_what_a_failed_batch_held_is_free_once_its_error_was_handled():
    class Held:
        pass

    held = [Held()]
    gone = weakref.ref(held[0])

    def fails() -> None:
        mine = held.pop()
        raise RuntimeError(f"out of memory {mine}")

    workers = Workers(on_cpu())
    gc.disable()  # on a GPU nobody waits for it either
    try:
        with contextlib.suppress(RuntimeError):
            workers.run([fails])
        assert gone() is None
    finally:
        gc.enable()
        workers.close()


def test_a_failure_is_raised_once_the_running_tasks_have_ended():
    slow_runs, ended = threading.Event(), []

    def fails() -> None:
        slow_runs.wait(5)
        raise RuntimeError("no memory")

    def slow() -> None:
        slow_runs.set()
        time.sleep(0.2)
        ended.append(True)

    workers = Workers(on_cpu(workers=2))
    try:
        with pytest.raises(RuntimeError, match="no memory"):
            workers.run([fails, slow])
        assert ended, "it may write into a result that nobody waits for any more"
    finally:
        workers.close()


def test_a_kernel_that_fails_or_is_wrong_is_not_used(monkeypatch):
    plain = partial(torch.ones, 3)
    assert agrees(plain, plain)
    assert not agrees(partial(torch.zeros, 3), plain)
    assert not agrees(partial(torch.full, (3,), float("nan")), plain)
    assert not agrees(lambda: 1 / 0, plain)
    assert fused_add_norm(torch.device("cpu"), torch.float32, 32) is None


def test_prefixes_are_the_first_dimensions():
    checkpoint, tile = student(SIZES), made_tile(6, 10, 8)
    whole = embed(checkpoint, tile).values_hwc
    assert np.array_equal(embed(checkpoint, tile, dim=32).values_hwc, whole[..., :32], equal_nan=True)


def test_int8_is_the_quantised_float32():
    checkpoint, tile = student(SIZES), made_tile(10, 12, 0, clear=0.05)
    values = embed(checkpoint, tile).values_hwc
    coded = embed(checkpoint, tile, output="int8")
    assert coded.scales_hw is not None
    empty = np.isnan(values).any(axis=-1)
    assert empty.any()
    assert np.array_equal(np.isnan(coded.scales_hw), empty)
    assert (coded.values_hwc[empty] == 0).all()
    decoded = coded.values_hwc * coded.scales_hw[..., None]
    assert np.nanmax(np.abs(decoded - values) / coded.scales_hw[..., None]) <= 0.5 + 1e-3
    assert coded.nodata_pixels == empty.sum()


@given(
    values=st.lists(
        st.lists(st.floats(-1e4, 1e4, width=32), min_size=3, max_size=3) | st.just([float("nan")] * 3), min_size=1
    ),
    rounding=st.sampled_from(["v2", "v1"]),
)
def test_codes_and_scales_give_the_values_back(values, rounding):
    given_values = torch.tensor(values, dtype=torch.float32)
    codes, scales = quantise(given_values, rounding)
    nodata = torch.isnan(given_values).any(dim=1)
    assert torch.equal(torch.isnan(scales), nodata)
    assert (codes[nodata] == 0).all()
    error = (codes.float() * scales[:, None] - given_values).abs()[~nodata]
    limit = 0.501 * scales[~nodata][:, None] + 1e-30
    assert (error <= limit).all()
    assert codes.min() >= (-127 if rounding == "v2" else -128)


def test_an_empty_tile_is_all_nodata():
    result = embed(student(SIZES), made_tile(5, 0, 0))
    assert np.isnan(result.values_hwc).all()
    assert result.nodata_pixels == 25
    assert result.tokens == 0
    assert result.observations["s2"] == {"min": 0.0, "median": 0.0, "max": 0.0}


def test_v1_0_is_reproducible_whatever_the_batches():
    tile = made_tile(9, 50, 20)
    for case in ("v1.0-float32", "v1.0-qat"):
        checkpoint = load_checkpoint(GOLDEN / case / "checkpoint.pt", heads=4)
        one = embed(checkpoint, tile, budget=200).values_hwc
        other = embed(checkpoint, tile, on_cpu(workers=2), 5000).values_hwc
        assert agree(one, other) <= TOLERANCE
        moved = embed(checkpoint, replace(tile, name="elsewhere")).values_hwc
        assert not np.allclose(one, moved, equal_nan=True)


def test_v1_0_without_any_date_of_a_modality_is_refused():
    checkpoint = load_checkpoint(GOLDEN / "v1.0-qat" / "checkpoint.pt", heads=4)
    with pytest.raises(SmaltiError, match="S1 dates a pixel and this tile has none"):
        embed(checkpoint, made_tile(4, 10, 0))


def test_nan_in_the_output_names_the_pixel():
    checkpoint = student(SIZES)
    broken = {**checkpoint.state, "s1_backbone.embedding.0.bias": torch.full((32,), float("nan"))}
    tile = made_tile(5, 12, 4)
    tile.sar_asc_thwp[:, :2] = 0
    tile.sar_desc_thwp[:, :2] = 0
    with pytest.raises(SmaltiError, match="NaN or infinity") as caught:
        embed(replace(checkpoint, state=broken), tile)
    assert "made" in str(caught.value)
    assert "row 0, column 0" in str(caught.value)
    assert caught.value.exit_code == 1


def out_of_memory_above(rows: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make batches of more than `rows` rows fail as a full device does; the sizes that were tried."""
    tried: list[int] = []
    plain = Network.encode

    def encode(self, modality, batch):
        tried.append(len(batch.values_nc))
        if len(batch.values_nc) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return plain(self, modality, batch)

    monkeypatch.setattr(Network, "encode", encode)
    return tried


def test_out_of_memory_halves_the_batches_and_goes_on(monkeypatch):
    checkpoint, tile = student(SIZES), made_tile(20, 40, 30)
    expected = embed(checkpoint, tile).values_hwc
    engine = Engine(checkpoint, on_cpu(), token_budget=4096)
    seen: list[float] = []
    try:
        tried = out_of_memory_above(1100, monkeypatch)
        result = engine.embed(tile, watch=Watch(advance=seen.append))
        again = engine.embed(tile)
    finally:
        engine.close()
    assert max(tried) > 1100
    assert result.oom_halvings == 2
    assert again.oom_halvings == 2, "every tile starts at the same budget, so that its bits do not depend on others"
    assert agree(result.values_hwc, expected) <= TOLERANCE
    assert sum(seen) == pytest.approx(1.0, abs=1e-6)


def test_too_little_memory_for_anything_is_said(monkeypatch):
    engine = Engine(student(SIZES), on_cpu())
    try:
        out_of_memory_above(0, monkeypatch)
        with pytest.raises(SmaltiError, match="out of memory even with"):
            engine.embed(made_tile(4, 5, 5))
    finally:
        engine.close()


def test_a_tile_is_abandoned_between_batches():
    stop = threading.Event()
    watch = Watch(stop.is_set, lambda _share: stop.set())
    with pytest.raises(InterruptedTileError):
        embed(student(SIZES), made_tile(20, 40, 30), budget=256, watch=watch)


def test_progress_adds_up_to_one():
    seen: list[float] = []
    embed(student(SIZES), made_tile(20, 20, 10), watch=Watch(advance=seen.append))
    assert sum(seen) == pytest.approx(1.0)


def test_each_distinct_observation_is_computed_once():
    tile = made_tile(10, 30, 20)
    s2 = tile.masks_thw.astype(int).sum()
    s1 = sum(int((stack != 0).any(axis=-1).sum()) for stack in (tile.sar_asc_thwp, tile.sar_desc_thwp))
    assert embed(student(SIZES), tile).tokens == s2 + s1


@pytest.mark.parametrize("case", ["student", "v1.1"])
def test_pixels_with_too_few_clear_looks_are_left_out_and_the_others_are_as_before(case, cases):
    tile = made_tile(12, 30, 20)
    masks = np.array(tile.masks_thw)
    masks[9:, :3] = 0
    tile = replace(tile, masks_thw=masks)
    engines = [Engine(cases(case), on_cpu(), min_clear_s2=least) for least in (0, 12)]
    whole, few = (engine.embed(tile) for engine in engines)
    for engine in engines:
        engine.close()
    clear = masks.sum(axis=0)
    radar = sum((stack != 0).any(axis=3).sum(axis=0) for stack in (tile.sar_asc_thwp, tile.sar_desc_thwp))
    np.testing.assert_array_equal(few.observations_hwm, np.stack([clear, radar], axis=-1))
    refused = clear < 12
    assert refused.any()
    assert not refused.all()
    np.testing.assert_array_equal(np.isnan(few.values_hwc[..., 0]), np.isnan(whole.values_hwc[..., 0]) | refused)
    np.testing.assert_allclose(few.values_hwc[~refused], whole.values_hwc[~refused], atol=TOLERANCE)
