"""Parity with what the reference implementation gives, case by case, in float32 on a CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.recorded import GOLDEN

from infer.contract import read_tile
from infer.device import choose_device
from infer.engine import Engine
from infer.model import build_network, uniform_batch
from infer.weights import load_checkpoint

TOLERANCE = 2e-5
TILES = ("v2-student", "v2-student-qknorm", "v2-student-long", "v2-teacher", "v1.1-mpc", "v1.1-aws")


def embed(folder: Path, output: str = "float32", precision: str = "float32", budget: int | None = None):
    engine = Engine(load_checkpoint(folder / "checkpoint.pt"), choose_device("cpu", precision), token_budget=budget)
    try:
        return engine.embed(read_tile(folder / "tile", need_manifest=False), output=output)
    finally:
        engine.close()


def nodata(folder: Path) -> NDArray[np.bool_]:
    tile = read_tile(folder / "tile", need_manifest=False)
    sar = [np.any(stack, axis=(0, 3)) for stack in (tile.sar_asc_thwp, tile.sar_desc_thwp)]
    return ~(tile.masks_thw.any(axis=0) | sar[0] | sar[1])


@pytest.mark.parametrize("budget", [None, 100])
@pytest.mark.parametrize("case", TILES)
def test_tile_agrees_with_the_reference(case: str, budget: int | None):
    expected = np.load(GOLDEN / case / "expected.npy")
    found = embed(GOLDEN / case, budget=budget).values_hwc
    empty = nodata(GOLDEN / case)
    assert empty.any()
    assert np.isnan(found[empty]).all()
    assert np.abs(found - expected)[~empty].max() <= TOLERANCE


@pytest.mark.parametrize("case", ["v1.1-mpc", "v1.1-aws"])
def test_codes_agree_within_one(case: str):
    result = embed(GOLDEN / case, output="int8")
    full = ~nodata(GOLDEN / case)
    expected = np.load(GOLDEN / case / "expected_int8.npy").astype(int)
    assert np.abs(result.values_hwc.astype(int) - expected)[full].max() <= 1
    assert result.scales_hw is not None
    assert np.abs(result.scales_hw - np.load(GOLDEN / case / "expected_scales.npy"))[full].max() <= TOLERANCE
    assert np.isnan(result.scales_hw[~full]).all()
    assert (result.values_hwc[~full] == 0).all()


@pytest.mark.parametrize("case", ["v1.0-float32", "v1.0-qat"])
def test_network_of_v1_0_agrees_with_the_reference(case: str):
    folder = GOLDEN / case
    network = build_network(load_checkpoint(folder / "checkpoint.pt", heads=4))
    s2, s1 = (torch.from_numpy(np.load(folder / f"{name}.npy")) for name in ("s2", "s1"))
    with torch.inference_mode():
        pooled = [
            network.encode(name, uniform_batch(x[..., :-1], x[..., -1], range(40)))
            for name, x in (("s2", s2), ("s1", s1))
        ]
        found = network.fuse(pooled[0], pooled[1]).numpy()
    assert np.abs(found - np.load(folder / "expected.npy")).max() <= TOLERANCE


def test_v1_0_does_not_guess_its_heads():
    with pytest.raises(Exception, match="--heads"):
        build_network(load_checkpoint(GOLDEN / "v1.0-float32" / "checkpoint.pt"))


@pytest.mark.parametrize("case", TILES)
def test_bfloat16_stays_close(case: str):
    expected = np.load(GOLDEN / case / "expected.npy")
    full = ~nodata(GOLDEN / case)
    found = embed(GOLDEN / case, precision="bfloat16").values_hwc[full].astype(np.float64)
    other = expected[full].astype(np.float64)
    cosine = (found * other).sum(axis=1) / np.linalg.norm(found, axis=1) / np.linalg.norm(other, axis=1)
    assert cosine.min() >= 0.999, f"{case}: {cosine.min()}"
