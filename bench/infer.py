"""The engine against the machine and the plain way, on a made tile with 70 S2 dates (patchy clouds) and 60 S1 dates.

    python -m bench.infer [--sizes nano,small,medium] [--side 96] [--repeats 3] [--device auto] [--no-baseline]

Printed per size and precision: pixels a second from .npy to .npy, the fraction of the matmul ceiling, the time of each
phase, the peak memory of `python -m infer`, the smallest cosine to float32, and the ratio to the plain baseline
(bench/infer_baseline.py, float32, the best of several batch sizes). Engine, ceiling and baseline run in turns and the
medians are told, because other work on the machine disturbs all of them.

Ceiling: the fastest product of the same precision that torch offers here, plain or packed for oneDNN, square or in the
model's own shapes, on as many threads as the engine has. Only useful operations count: those of distinct tokens. On a
CPU both are also compared per second of core time, which does not see other people's work (nor idle cores).
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray

from bench.infer_baseline import embed_plain, plain_network
from bench.made_tile import made_tile
from infer.contract import TILE_ARRAYS, Tile, read_tile, write_embedding, write_npy
from infer.contract.embedding import EmbeddingManifest, EmbeddingModel
from infer.device import Device, Precision, choose_device
from infer.engine import Engine
from infer.model import BackboneShape, Network, Segment
from infer.model.attention import Kernel, attend, kernel_for
from infer.model.linear import Linear
from infer.model.network import random_student
from infer.prepare import ModalityData
from infer.weights import Checkpoint, load_checkpoint
from infer.workers import Workers

ROOT = Path(__file__).parents[1]
ABOUT = EmbeddingManifest(model=EmbeddingModel("made", "made weights", False, "v2-student", None, "v2-student"))
SIZES: dict[str, dict[str, int]] = {
    "nano": {"latent_dim": 32, "num_layers": 2, "nhead": 4, "dim_feedforward": 512},
    "small": {"latent_dim": 64, "num_layers": 4, "nhead": 4, "dim_feedforward": 1024},
    "medium": {"latent_dim": 96, "num_layers": 6, "nhead": 6, "dim_feedforward": 1536},
}
"""About 1, 7 and 21 M parameters. The published nano and medium may divide theirs otherwise."""
TARGETS = {"float32": (0.85, 1.8), "bfloat16": (0.65, 3.0)}
"""Fraction of the ceiling and ratio to the baseline, for small on a CPU."""


@dataclass(frozen=True)
class Timing:
    """Seconds by the clock and of core time."""

    wall: float
    core: float


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "xpu":
        torch.xpu.synchronize(device)


def timed(device: torch.device, work: Callable[[], object]) -> Timing:
    synchronise(device)
    wall, core = time.perf_counter(), time.process_time()
    work()
    synchronise(device)
    return Timing(time.perf_counter() - wall, time.process_time() - core)


def useful_flops(tile: Tile, shape: BackboneShape, outputs: int) -> float:
    """Operations (two a product) of the matrix products of a tile's distinct tokens; norms and the like not counted."""
    d = shape.width
    layer = 2 * (4 * d * d + 2 * d * shape.hidden)
    total = 0.0
    stacks = [(stack != 0).any(axis=-1) for stack in (tile.sar_asc_thwp, tile.sar_desc_thwp)]
    for valid, bands in ((tile.masks_thw != 0, 10), (np.concatenate(stacks), 2)):
        n = np.minimum(valid.sum(axis=0), 256).astype(np.float64)
        total += n.sum() * (shape.layers * layer + 2 * d * d + 2 * d * bands + 2 * d + 2 * d)
        total += (n**2).sum() * shape.layers * 4 * d
    return float(total + tile.masks_thw[0].size * 2 * (8 * d * d + 4 * d * outputs))


def _products(shape: BackboneShape, device: Device) -> Iterator[tuple[float, Callable[[], object]]]:
    """Operations and a callable, for every product that may be the fastest."""
    on, dtype = device.torch_device, device.dtype
    rows = device.token_budget(shape.width)
    square = 2048 if device.on_cpu else 8192
    d = shape.width
    for m, k, n in ((square, square, square), (rows, d, 3 * d), (rows, d, shape.hidden), (rows, shape.hidden, d)):
        x = torch.randn(m, k, device=on).to(dtype)
        weight, bias = (torch.randn(n, k) * 0.02).to(on, dtype), torch.zeros(n).to(on, dtype)
        packed, plain = Linear.of(weight, bias), Linear.of(weight, bias)
        if device.on_cpu:
            packed.pack()
        for product in (packed, plain):
            yield 2.0 * m * k * n, lambda x=x, product=product: product(x)  # type: ignore[misc]  # bound now


def ceiling(shape: BackboneShape, device: Device, *, packed_too: bool = True) -> Timing:
    """Operations a second by the clock and per second of core time; the best product, on the engine's threads."""
    workers = Workers(device)
    best = Timing(0.0, 0.0)
    try:
        for number, (flops, product) in enumerate(_products(shape, device)):
            if not packed_too and number % 2 == 0:
                continue
            times = max(3, int((2e10 if device.on_cpu else 4e13) / flops))

            def run(product: Callable[[], object] = product, times: int = times) -> None:
                for _ in range(times):
                    product()

            for _ in range(2):  # the first one warms up
                spent = timed(device.torch_device, lambda run=run: workers.run([run] * device.workers))  # type: ignore[misc]  # bound now
            done = flops * times * device.workers
            best = Timing(max(best.wall, done / spent.wall), max(best.core, done / max(spent.core, 1e-9)))
    finally:
        workers.close()
    return best


def write_tile(folder: Path, tile: Tile) -> Path:
    folder.mkdir(parents=True)
    for name, spec in TILE_ARRAYS.items():
        write_npy(folder / spec.file, getattr(tile, name).astype(spec.dtype))
    return folder


def end_to_end(engine: Engine, folder: Path, out: Path) -> None:
    result = engine.embed(engine.load(read_tile(folder, need_manifest=False)), output="int8")
    write_embedding(out, folder.name, result.values_hwc, result.scales_hw, inputs={}, about=ABOUT)


@contextmanager
def phases(device: torch.device) -> Iterator[Mapping[str, float]]:
    """Seconds of core time (on an accelerator: of the clock) spent in each phase while the block runs."""
    spent: dict[str, float] = defaultdict(float)
    clock = time.thread_time if device.type == "cpu" else time.perf_counter
    with ExitStack() as stack:

        def watch(owner: Any, name: str, phase: str) -> None:
            plain = getattr(owner, name)

            def wrapped(*args: Any, **kwargs: Any) -> Any:
                synchronise(device)
                start = clock()
                result = plain(*args, **kwargs)
                synchronise(device)
                spent[phase] += clock() - start
                return result

            stack.enter_context(mock.patch.object(owner, name, wrapped))

        watch(sys.modules[__name__], "read_tile", "read")
        watch(sys.modules[__name__], "write_embedding", "write")
        watch(Engine, "load", "prepare")
        watch(ModalityData, "batch", "prepare")
        watch(Network, "encode", "encode")
        watch(Network, "fuse", "fuse")
        yield spent


def peak_memory(folder: Path, checkpoint: Path, out: Path, device: str, precision: str) -> tuple[float, float]:
    """MiB that `python -m infer` takes at most on this tile, and that it takes before any tile (imports, weights)."""
    code = "import sys; from infer.__main__ import main; main(sys.argv[1:]); " + (
        "print([x for x in open('/proc/self/status') if x.startswith('VmHWM')][0].split()[1])"
    )
    peaks = []
    for tiles in (folder, write_tile(out / "tiny" / precision, made_tile(2, 3, 3))):
        arguments = ["--tiles", str(tiles), "--checkpoint", str(checkpoint), "--out", str(out / "peak"), "--overwrite"]
        command = [sys.executable, "-c", code, *arguments, "--device", device, "--precision", precision]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        peaks.append(int(ran.stdout.split()[-1]) / 1024)
    return peaks[0], peaks[1]


def smallest_cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    x, y = (v.reshape(-1, v.shape[-1]).astype(np.float64) for v in (a, b))
    full = ~np.isnan(x).any(axis=1)
    x, y = x[full], y[full]
    return float(((x * y).sum(axis=1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)).min())


def attention_kernels(shape: BackboneShape, device: Device) -> str:
    """Nanoseconds a token and layer of each attention kernel; on a CPU on one core, as the engine's threads run it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    told = []
    for length in (24, 45, 64):
        pixels = max(1, device.token_budget(shape.width) // length)
        log = torch.zeros(length, device=device.torch_device)
        segments = (Segment(0, 0, pixels, length, log),)
        qkv = torch.randn(pixels * length, 3 * shape.width, device=device.torch_device).to(device.dtype)
        found = []
        kernels: list[Kernel] = ["batched", "fused", "bias"]
        with torch.inference_mode():
            if kernel_for(device.torch_device, device.dtype, shape.width // shape.heads) == "packed":
                kernels.append("packed")
        for kernel in kernels:
            spent = []
            with torch.inference_mode():
                for _ in range(8):
                    work = partial(attend, qkv, segments, shape.heads, None, kernel)
                    run = timed(device.torch_device, work)
                    spent.append(run.core if device.on_cpu else run.wall)
            found.append(f"{kernel} {statistics.median(spent[2:]) / (pixels * length) * 1e9:.0f}")
        told.append(f"{length} tokens: {', '.join(found)}")
    torch.set_num_threads(threads)
    return "; ".join(told)


def made_checkpoint(name: str, folder: Path) -> Checkpoint:
    args: dict[str, Any] = {"repr_dim": 128, **SIZES[name]}
    path = folder / f"{name}.pt"
    torch.save({"args": args, "model": random_student(args, 1)}, path)
    return load_checkpoint(path)


def best_batch(tile: Tile, checkpoint: Checkpoint, device: torch.device) -> int:
    """Batch size (pixels) at which the baseline is fastest."""
    network = plain_network(checkpoint)
    sizes = (64, 256, 1024) if device.type == "cpu" else (1024, 4096, 16384)
    spent = {}
    for size in sizes:
        work = partial(embed_plain, tile, checkpoint, batch_pixels=size, device=str(device), network=network)
        spent[size] = timed(device, work).wall
    return min(spent, key=lambda size: spent[size])


def compare(name: str, precision: Precision, options: argparse.Namespace, folder: Path) -> None:
    """Measure one size in one precision and print it."""
    device = choose_device(options.device, precision)
    checkpoint = made_checkpoint(name, folder)
    tile_folder = folder / f"tile{options.side}"
    if not tile_folder.exists():
        write_tile(tile_folder, made_tile(options.side))
    tile = read_tile(tile_folder, need_manifest=False)
    engine = Engine(checkpoint, device)
    shape, pixels = engine.architecture.s2, options.side**2
    flops = useful_flops(tile, shape, engine.architecture.output)
    run = partial(end_to_end, engine, tile_folder, folder / "out")
    run()
    batch = 0
    if options.baseline:
        batch = best_batch(made_tile(max(16, options.side // 3)), checkpoint, device.torch_device)
    network = plain_network(checkpoint)
    spent: list[Timing] = []
    tops: list[Timing] = []
    plain: list[Timing] = []
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    for _ in range(options.repeats):
        tops.append(ceiling(shape, device))
        spent.append(timed(device.torch_device, run))
        if options.baseline:
            work = partial(
                embed_plain, tile, checkpoint, batch_pixels=batch, device=str(device.torch_device), network=network
            )
            plain.append(timed(device.torch_device, work))
    mm = ceiling(shape, device, packed_too=False)
    _tell(name, device, engine, pixels, flops, spent, tops, mm, plain, batch)
    with phases(device.torch_device) as seconds:
        run()
    total = sum(seconds.values())
    print("  phases: " + ", ".join(f"{key} {100 * value / total:.1f} %" for key, value in sorted(seconds.items())))
    print(f"  attention, ns a token and layer: {attention_kernels(shape, device)}")
    if precision == "bfloat16":
        other = Engine(checkpoint, choose_device(options.device, "float32"))
        small = made_tile(24, seed=1)
        cosine = smallest_cosine(other.embed(small).values_hwc, engine.embed(small).values_hwc)
        print(f"  smallest cosine to float32: {cosine:.6f} (at least 0.9999)")
        other.close()
    engine.close()
    if options.memory:
        peak, before = peak_memory(tile_folder, folder / f"{name}.pt", folder / "out", options.device, precision)
        size = sum((tile_folder / spec.file).stat().st_size for spec in TILE_ARRAYS.values()) / 2**20
        print(f"  peak memory: {peak:.0f} MiB, of which {before:.0f} without a tile; the tile: {size:.0f} MiB")
    if not device.on_cpu and device.torch_device.type == "cuda":
        print(f"  peak memory of the device: {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB")


def _tell(
    name: str,
    device: Device,
    engine: Engine,
    pixels: int,
    flops: float,
    spent: list[Timing],
    tops: list[Timing],
    mm: Timing,
    plain: list[Timing],
    batch: int,
) -> None:
    parameters = sum(tensor.numel() for tensor in engine.checkpoint.state.values()) / 1e6
    wall = statistics.median(flops / s.wall / t.wall for s, t in zip(spent, tops, strict=True))
    core = statistics.median(flops / s.core / t.core for s, t in zip(spent, tops, strict=True))
    rate = pixels / statistics.median(s.wall for s in spent)
    top = statistics.median(t.wall for t in tops) / 1e9
    print(f"{name} ({parameters:.2f} M), {device.precision}, {device.kind}: {rate:.0f} pixels/s")
    want = TARGETS[device.precision]
    goal = f" (target for small on a CPU {want[0]})" if device.on_cpu else " (target 0.45 in bfloat16)"
    print(f"  of the ceiling of {top:.0f} GFLOP/s: {wall:.2f} by the clock, {core:.2f} by core time{goal}")
    print(f"  of torch's own matmul ({mm.wall / 1e9:.0f} GFLOP/s): {flops / min(s.wall for s in spent) / mm.wall:.2f}")
    if plain:
        ratio = statistics.median(p.wall / s.wall for p, s in zip(plain, spent, strict=True))
        per_core = statistics.median(p.core / s.core for p, s in zip(plain, spent, strict=True))
        goal = f"target for small on a CPU {want[1]}" if device.on_cpu else "target 20"
        print(
            f"  of the plain baseline ({batch} pixels a batch): {ratio:.1f} x by the clock, {per_core:.1f} x ({goal})"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="nano,small,medium")
    parser.add_argument("--precisions", default="float32,bfloat16")
    parser.add_argument("--side", type=int, default=96, help="pixels of the made tile's side")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--no-baseline", dest="baseline", action="store_false")
    parser.add_argument("--no-memory", dest="memory", action="store_false")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in options.sizes.split(","):
            for precision in options.precisions.split(","):
                compare(name, precision, options, Path(folder))
    print(f"peak memory of this benchmark: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
