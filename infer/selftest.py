"""`python -m infer --self-test`: what the engine finds here, whether it computes what it should, and how fast.

The model and the tile are made by formula (no file, no random generator of any library); the expected numbers were
computed once by the plain baseline in float64 (bench/infer_baseline.py) and lie in infer/checkpoints/selftest.npy.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from infer import sequence
from infer.contract import EXIT_FAILED, EXIT_OK, FormatError, Tile
from infer.device import Device, accelerator_count, allotted_cores, choose_device
from infer.engine import Engine
from infer.model.network import random_student
from infer.progress import say
from infer.weights import Checkpoint

EXPECTED = Path(__file__).parent / "checkpoints" / "selftest.npy"
"""(6, 7, 128) float32, of `formula_tile` under `formula_checkpoint`."""
SETTINGS: dict[str, Any] = {
    "repr_dim": 128,
    "latent_dim": 16,
    "num_layers": 2,
    "nhead": 4,
    "dim_feedforward": 128,
    "matryoshka_dims": "16,32,64,128",
}
TOLERANCE = 2e-5
"""Largest difference in float32."""
COSINE = 0.9995
"""Smallest cosine in bfloat16."""


def _uniform(seed: int, count: int) -> NDArray[np.float64]:
    """`count` numbers in [0, 1), the same on every machine."""
    row = np.zeros(1, dtype=np.int64)
    bits = sequence.keys(seed, 0, row, row, count)[0] >> np.uint64(11)
    numbers: NDArray[np.float64] = bits.astype(np.float64) / float(1 << 53)
    return numbers


def formula_checkpoint() -> Checkpoint:
    """A small v2 student whose weights are a formula."""
    shapes = {name: tensor.shape for name, tensor in random_student(SETTINGS, 0).items()}
    state = {}
    for number, (name, shape) in enumerate(shapes.items()):
        values = 2 * _uniform(number + 1, math.prod(shape)) - 1
        if ".norm" in name or "reducer.1." in name:
            values = values * 0.1 + (1.0 if name.endswith("weight") else 0.0)
        else:
            values = values / math.sqrt(shape[-1])
        state[name] = torch.from_numpy(values.reshape(shape).astype(np.float32))
    name = "self-test"
    return Checkpoint(name, Path(name), "", "v2-student", state, SETTINGS, "v2-student", None, False, name)


def formula_tile(height: int = 6, width: int = 7, s2_dates: int = 45, s1_dates: int = 38) -> Tile:
    """A tile whose values are a formula: counts from none to all, both modalities missing at the first pixel."""
    shape = (s2_dates, height, width)
    share = np.linspace(0, 1.02, height * width).reshape(1, height, width)
    masks = (_uniform(1001, math.prod(shape)).reshape(shape) < share).astype(np.uint8)
    bands = (_uniform(1002, math.prod(shape) * 10) * 8000).astype(np.uint16).reshape(*shape, 10)
    stacks = []
    for number, dates in enumerate((s1_dates // 2, s1_dates - s1_dates // 2)):
        stack = (2000 + _uniform(1003 + number, dates * height * width * 2) * 4000).astype(np.int16)
        stack = stack.reshape(dates, height, width, 2)
        stack[: dates // 3, :, : width // 2] = 0
        stack[:, 0, 0] = 0
        stacks.append(stack)
    masks[:, 0, 0] = 0
    days = [np.linspace(3, 360, n).astype(int) for n in (s2_dates, len(stacks[0]), len(stacks[1]))]
    return Tile(
        "self-test",
        bands,
        masks,
        days[0].astype(np.uint16),
        stacks[0],
        days[1].astype(np.int16),
        stacks[1],
        days[2].astype(np.int16),
    )


def deviation(device: Device) -> tuple[float, float]:
    """Largest difference and smallest cosine of this device's embedding to the expected one."""
    try:
        expected = np.load(EXPECTED, allow_pickle=False).astype(np.float64)
    except (OSError, ValueError) as error:
        raise FormatError(f"{EXPECTED}: not readable ({error}): install smalti again") from error
    engine = Engine(formula_checkpoint(), device)
    try:
        found = engine.embed(formula_tile()).values_hwc.astype(np.float64)
    finally:
        engine.close()
    full = ~np.isnan(expected).any(axis=-1)
    if not np.array_equal(full, ~np.isnan(found).any(axis=-1)):
        return math.inf, -1.0
    a, b = found[full], expected[full]
    cosine = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return float(np.abs(a - b).max()), float(cosine.min())


def _speed(device: Device, side: int) -> float:
    """Pixels a second of the small formula model on a larger formula tile, the first run not counted."""
    engine = Engine(formula_checkpoint(), device)
    tile = formula_tile(side, side)
    try:
        engine.embed(tile)
        start = time.perf_counter()
        engine.embed(tile).values.cpu()
        return side * side / (time.perf_counter() - start)
    finally:
        engine.close()


def _memory(device: Device) -> str:
    if device.torch_device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device.torch_device)
        return f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free on the device"
    for line in Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").is_file() else ():
        if line.startswith("MemAvailable"):
            return f"{int(line.split()[1]) / 2**20:.1f} GiB available"
    return "memory not known"


def self_test(wanted: str = "auto", precision: Literal["auto", "float32", "bfloat16"] = "auto") -> int:
    """Print what is found, and test parity in float32 and in the precision that would be used.

    Returns:
        0 if the engine computes what it should, else 1.
    """
    device = choose_device(wanted, precision)
    hip = f", HIP {torch.version.hip}" if torch.version.hip else ""
    say(f"self-test: torch {torch.__version__}{hip}, {accelerator_count()} accelerators, {allotted_cores()} cores")
    say(f"self-test: {device.kind}, {device.precision}, {_memory(device)}")
    passed = True
    for tried in dict.fromkeys(("float32", device.precision)):
        difference, cosine = deviation(choose_device(wanted, tried))
        good = difference <= TOLERANCE if tried == "float32" and device.on_cpu else cosine >= COSINE
        passed = passed and good
        verdict = "as expected" if good else "NOT as expected: do not use this installation"
        say(f"self-test: {tried}: largest difference {difference:.1e}, smallest cosine {cosine:.6f}: {verdict}")
    rate = _speed(device, 48 if device.on_cpu else 256)
    say(f"self-test: {rate:.0f} pixels/s with a {_parameters():.2f} M parameter model, {device.precision}")
    return EXIT_OK if passed else EXIT_FAILED


def _parameters() -> float:
    return sum(tensor.numel() for tensor in formula_checkpoint().state.values()) / 1e6
