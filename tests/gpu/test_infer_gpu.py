"""The engine on an accelerator: parity with the CPU, the same bits again, kernels against each other, out of memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.months_reference import gappy_tile, random_galileo, random_presto
from support.recorded import GOLDEN

from bench.made_tile import made_tile
from infer.contract import read_tile
from infer.device import accelerator_count, choose_device
from infer.engine import Engine
from infer.families import make_engine
from infer.model.attention import Segment, attend, kernel_for
from infer.model.network import random_student
from infer.selftest import deviation
from infer.weights import Checkpoint, load_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(accelerator_count() == 0, reason="torch sees no accelerator here"),
]

SMALL = {"repr_dim": 128, "latent_dim": 64, "num_layers": 4, "nhead": 4, "dim_feedforward": 1024}
TILES = ("v2-student", "v2-student-qknorm", "v2-student-long", "v2-teacher", "v1.1-mpc", "v1.1-aws")


def small() -> Checkpoint:
    state = random_student(SMALL, 1)
    return Checkpoint("made", Path("made"), "0", "v2-student", state, SMALL, "v2-student", None, False, "made")


def embed(checkpoint: Checkpoint, tile, device: str, precision: str, budget: int | None = None):
    engine = Engine(checkpoint, choose_device(device, precision), token_budget=budget)
    try:
        return engine.embed(engine.load(tile)).values_hwc
    finally:
        engine.close()


@pytest.mark.parametrize("case", TILES)
def test_float32_agrees_with_the_reference(case):
    folder = GOLDEN / case
    found = embed(
        load_checkpoint(folder / "checkpoint.pt"), read_tile(folder / "tile", need_manifest=False), "auto", "float32"
    )
    expected = np.load(folder / "expected.npy")
    assert np.nanmax(np.abs(found - expected)) <= 2e-4


@pytest.mark.parametrize(("family", "state"), [("presto", random_presto), ("galileo-nano", random_galileo)])
def test_networks_over_months_agree_with_the_plain_computation(family, state, tmp_path):
    torch.save(state(), tmp_path / "made.pt")
    checkpoint, expected = load_checkpoint(tmp_path / "made.pt"), np.load(GOLDEN / family / "expected.npy")
    for precision in ("float32", "auto"):
        engine = make_engine(checkpoint, "auto", precision)
        try:
            found, again = (engine.embed(engine.load(gappy_tile())).values_hwc for _ in range(2))
        finally:
            engine.close()
        assert np.array_equal(found, again, equal_nan=True)
        close = 2e-4 if engine.device.precision == "float32" else 0.2
        assert np.nanmax(np.abs(found - expected)) <= close


def test_self_test():
    assert deviation(choose_device("auto", "float32"))[1] >= 0.99999
    assert deviation(choose_device("auto", "auto"))[1] >= 0.9995


def test_bfloat16_keeps_the_direction_of_every_pixel():
    tile = made_tile(48)
    a = embed(small(), tile, "cpu", "float32").reshape(-1, 128)
    b = embed(small(), tile, "auto", "bfloat16").reshape(-1, 128)
    cosine = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert np.nanmin(cosine) >= 0.9999


def test_the_same_bits_again():
    tile = made_tile(48)
    assert np.array_equal(embed(small(), tile, "auto", "auto"), embed(small(), tile, "auto", "auto"), equal_nan=True)


@pytest.mark.parametrize("length", [5, 8, 37, 64])
def test_attention_kernels_agree(length):
    device = choose_device("auto").torch_device
    log = torch.log(torch.arange(1, length + 1, device=device).float())
    qkv = torch.randn(6 * length, 3 * 256, device=device, dtype=torch.bfloat16) / 4
    segments = (Segment(0, 0, 6, length, log),)
    exact = attend(qkv.float(), segments, 4, None, "batched")
    kernels = ["batched", "fused", "bias"]
    with torch.inference_mode():
        if kernel_for(device, torch.bfloat16, 64) == "packed":
            kernels.append("packed")
        for kernel in kernels:
            assert (attend(qkv, segments, 4, None, kernel).float() - exact).abs().max() <= 2e-2


def test_kernels_of_our_own_are_used_where_triton_works():
    pytest.importorskip("triton")
    assert kernel_for(choose_device("cuda").torch_device, torch.bfloat16, 64) == "packed"
    engine = Engine(small(), choose_device("cuda", "bfloat16"))
    assert engine.compiled
    engine.close()


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("length", [1, 16, 33, 128, 200])
def test_the_packed_kernel_is_exact(length, norms):
    device = choose_device("cuda").torch_device
    log = torch.log(torch.randint(1, 9, (6, length), device=device).float())
    qkv = torch.randn(6 * length + 3, 3 * 128, device=device, dtype=torch.bfloat16) / 4
    segments = (Segment(0, 0, 6, length, log),)
    weights = (torch.rand(32, device=device), torch.rand(32, device=device)) if norms else None
    exact = attend(qkv.float(), segments, 4, weights, "batched")
    if weights is not None:
        weights = tuple(weight.to(torch.bfloat16) for weight in weights)
    if kernel_for(device, torch.bfloat16, 32) != "packed":
        pytest.skip("Triton does not work here")
    found = attend(qkv, segments, 4, weights, "packed").float()
    assert (found - exact).abs().max() <= 3e-2
    assert not found[6 * length :].any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="limits the memory of a CUDA or ROCm device")
def test_a_full_device_goes_on_with_smaller_batches():
    tile = made_tile(160)
    expected = embed(small(), tile, "cuda", "bfloat16", 1 << 13)
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, (700 << 20) / total))
    try:
        engine = Engine(small(), choose_device("cuda", "bfloat16"), token_budget=1 << 19)
        try:
            result = engine.embed(tile)
            assert result.oom_halvings >= 1
            assert np.nanmax(np.abs(result.values_hwc - expected)) <= 0.1
        finally:
            engine.close()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
