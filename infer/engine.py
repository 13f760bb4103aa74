"""One tile in, its embedding out: blocks of pixels, batches of tokens, both backbones apart, fusion once."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from infer import draw
from infer.contract import EXIT_FAILED, EXIT_TRY_AGAIN, SmaltiError, Tile
from infer.device import Device, is_out_of_memory
from infer.model import Modality, Network, build_network
from infer.prepare import (
    BlockBatch,
    ModalityData,
    Multiplicities,
    Upload,
    counted_batches,
    drawn_batches,
    load_modalities,
    zero_batch,
)
from infer.quantise import quantise
from infer.sequence import MAX_BIN
from infer.weights import Checkpoint

SEMANTICS = 1
"""Version of the engine's arithmetic: outputs made by another version are made again."""

_CPU_POOLED_BYTES = 128 << 20
_GPU_POOLED_BYTES = 1 << 30
_CPU_OBSERVATIONS = 1 << 22
_GPU_OBSERVATIONS = 1 << 26
_SMALLEST_BUDGET = 256
_FUSED_PIXELS = 4096

Output = Literal["float32", "int8"]


@dataclass(frozen=True)
class Watch:
    """How a caller follows and stops the computation of a tile; called from any thread."""

    stop: Callable[[], bool] = lambda: False
    """Asked between batches; true abandons the tile."""
    advance: Callable[[float], None] = lambda _fraction: None
    """Told the fraction of the tile that each batch was."""


class InterruptedTileError(SmaltiError):
    """The tile was abandoned because the process was asked to stop."""

    exit_code = EXIT_TRY_AGAIN


@dataclass(frozen=True)
class TileResult:
    """One tile's embedding and what its manifest says about the computation."""

    values_hwc: NDArray[Any]
    """(H, W, C) float32 with NaN for nodata, or int8 codes."""
    scales_hw: NDArray[np.float32] | None
    """(H, W) float32, NaN = nodata; None for float32 output."""
    observations: dict[str, dict[str, float]]
    """Per modality: min, median and max number of observations over the pixels that have any of either."""
    nodata_pixels: int
    oom_halvings: int
    """How often the token budget was halved because the device was out of memory."""
    tokens: int
    """Tokens computed."""


class Workers:
    """Runs tasks one after another, or on a CPU on one thread a core, each thread with one core's share of torch.

    A task is computed by one thread whatever their number, so results do not depend on the number of cores.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) if count > 1 else None
        if count == 1:
            torch.set_num_threads(1)

    def run(self, tasks: Iterable[Callable[[], None]]) -> None:
        """Run all tasks; the first failure is raised after the running ones have ended."""
        if self._pool is None:
            for task in tasks:
                task()
            return
        lock, source = threading.Lock(), iter(tasks)
        failed = threading.Event()

        def work() -> None:
            with torch.inference_mode():
                while not failed.is_set():
                    with lock:
                        task = next(source, None)
                    if task is None:
                        return
                    try:
                        task()
                    except BaseException:
                        failed.set()
                        raise

        for future in [self._pool.submit(work) for _ in range(self._count)]:
            future.result()

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()


class Engine:
    """A network on a device, ready for tile after tile."""

    def __init__(self, checkpoint: Checkpoint, device: Device, *, token_budget: int | None = None) -> None:
        """Build the network.

        Args:
            checkpoint: what to run.
            device: where and how.
            token_budget: tokens of a batch, to override the device's.

        Raises:
            FormatError: if the checkpoint's parameters do not fit its network.
        """
        self.checkpoint = checkpoint
        self.device = device
        self.network: Network = build_network(checkpoint).to(device.torch_device, device.dtype)
        self.architecture = self.network.architecture
        self.budget = token_budget or device.token_budget(self.architecture.s2.width)
        self._workers = Workers(device.workers)
        rule = self.architecture.rule
        recurrent = self.architecture.pool != "softmax"
        self._tables = None if rule is None else Multiplicities(rule, device.torch_device, expand=recurrent)

    def close(self) -> None:
        """End the engine's threads."""
        self._workers.close()

    def upload(self, array: NDArray[Any]) -> torch.Tensor:
        """Copy an array to the device; on a CPU it is shared."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # tiles are read-only
            return torch.from_numpy(np.ascontiguousarray(array)).to(self.device.torch_device)

    def embed(self, tile: Tile, *, output: Output = "float32", dim: int = 0, watch: Watch = Watch()) -> TileResult:
        """Embed every pixel of a tile.

        Args:
            tile: the tile.
            output: float32, or int8 codes with scales.
            dim: leading dimensions to keep (0 = what the family saves).
            watch: follows and stops the computation.

        Returns:
            The embedding. The same bits on one device whatever else is computed before or beside it.

        Raises:
            InterruptedTileError: if `watch` said so.
            SmaltiError: for a NaN or infinity in the output, with its position; when memory does not suffice.
        """
        budget, halvings = self.budget, 0
        while True:
            try:
                with torch.inference_mode():
                    return self._embed(tile, output, self.architecture.dimensions(dim), watch, budget, halvings)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if budget // 2 < _SMALLEST_BUDGET:
                    raise SmaltiError(
                        f"{tile.name}: out of memory even with {budget} tokens a batch: use a device with more memory",
                        exit_code=EXIT_FAILED,
                    ) from error
            budget, halvings = budget // 2, halvings + 1

    def _block_pixels(self, dates: int) -> int:
        pooled, observed = (
            (_CPU_POOLED_BYTES, _CPU_OBSERVATIONS) if self.device.on_cpu else (_GPU_POOLED_BYTES, _GPU_OBSERVATIONS)
        )
        return max(1024, min(pooled // (8 * self.architecture.s2.width), observed // max(dates, 1)))

    def _embed(self, tile: Tile, output: Output, dim: int, watch: Watch, budget: int, halvings: int) -> TileResult:
        height, width = tile.shape_hw
        upload: Upload = self.upload
        s2, s1 = load_modalities(tile, self.checkpoint.normalisation, upload, self.device.torch_device)
        counts = [data.valid_tp.sum(dim=0).cpu().numpy() for data in (s2, s1)]
        active = (counts[0] + counts[1]) > 0
        values, scales = _empty_output(height * width, dim, output)
        work = _TileWork(self, tile, (s2, s1), budget, watch)
        work.expect(counts, active)
        step = self._block_pixels(max(s2.dates, s1.dates))
        for first in range(0, height * width, step):
            block = slice(first, min(first + step, height * width))
            if active[block].any():
                work.block(block, counts[0][block], counts[1][block], active[block], values, scales, dim)
        return TileResult(
            values.reshape(height, width, dim),
            None if scales is None else scales.reshape(height, width),
            {name: _summary(n[active]) for name, n in zip(("s2", "s1"), counts, strict=True)},
            int((~active).sum()),
            halvings,
            work.tokens,
        )


def _summary(counts: NDArray[np.int64]) -> dict[str, float]:
    if not len(counts):
        return {"min": 0.0, "median": 0.0, "max": 0.0}
    return {"min": float(counts.min()), "median": float(np.median(counts)), "max": float(counts.max())}


def _empty_output(pixels: int, dim: int, output: Output) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
    if output == "float32":
        return np.full((pixels, dim), np.nan, dtype=np.float32), None
    return np.zeros((pixels, dim), dtype=np.int8), np.full(pixels, np.nan, dtype=np.float32)


class _TileWork:
    """The computation of one tile, block by block."""

    def __init__(
        self, engine: Engine, tile: Tile, data: tuple[ModalityData, ModalityData], budget: int, watch: Watch
    ) -> None:
        self._engine = engine
        self._tile = tile
        self._data: dict[Modality, ModalityData] = {"s2": data[0], "s1": data[1]}
        self._budget = budget
        self._watch = watch
        self._expected = 1
        self._seed = draw.tile_seed(tile.name, tile.manifest)
        self.tokens = 0

    def expect(self, counts: Iterable[NDArray[np.int64]], active: NDArray[np.bool_]) -> None:
        """Learn how many tokens there will be, for progress (v1.0 draws at most 40 a pixel and modality)."""
        longest = MAX_BIN if self._engine._tables is not None else draw.DRAWN
        self._expected = max(1, sum(int(np.minimum(n[active], longest).sum()) for n in counts))

    def block(
        self,
        block: slice,
        s2_counts: NDArray[np.int64],
        s1_counts: NDArray[np.int64],
        active: NDArray[np.bool_],
        values: NDArray[Any],
        scales: NDArray[np.float32] | None,
        dim: int,
    ) -> None:
        """Compute a block of pixels and put it into `values` and `scales`."""
        s2_pd = self._pooled("s2", block.start, s2_counts, active)
        s1_pd = self._pooled("s1", block.start, s1_counts, active)
        places = np.flatnonzero(active)
        rows = torch.from_numpy(places).to(s2_pd.device)
        fused = torch.empty(len(places), dim, device=s2_pd.device)

        def fuse(start: int) -> Callable[[], None]:
            def task() -> None:
                part = rows[start : start + _FUSED_PIXELS]
                whole = self._engine.network.fuse(s2_pd.index_select(0, part), s1_pd.index_select(0, part))
                fused[start : start + _FUSED_PIXELS] = whole[:, :dim]

            return task

        self._engine._workers.run(fuse(start) for start in range(0, len(places), _FUSED_PIXELS))
        self._check(fused, block.start + places)
        target = block.start + places
        if scales is None:
            values[target] = fused.cpu().numpy()
            return
        v1 = self._engine.architecture.family in ("v1.1", "v1.0-qat", "v1.0")
        codes, found = quantise(fused, "v1" if v1 else "v2")
        values[target], scales[target] = codes.cpu().numpy(), found.cpu().numpy()

    def _check(self, fused: torch.Tensor, places: NDArray[np.int64]) -> None:
        good = torch.isfinite(fused).all(dim=1)
        if bool(good.all()):
            return
        bad = places[np.flatnonzero(~good.cpu().numpy())]
        row, column = divmod(int(bad[0]), self._tile.shape_hw[1])
        raise SmaltiError(
            f"{self._tile.name}: NaN or infinity in the embedding of {len(bad)} pixels, first at row {row}, "
            f"column {column}: check the checkpoint, or use --precision float32",
            exit_code=EXIT_FAILED,
        )

    def _batches(
        self, modality: Modality, first: int, counts: NDArray[np.int64], active: NDArray[np.bool_]
    ) -> Iterator[BlockBatch]:
        data, tables = self._data[modality], self._engine._tables
        if tables is None:
            return drawn_batches(data, first, active, self._tile.shape_hw[1], self._seed, self._budget)
        return counted_batches(data, first, counts, self._budget, tables)

    def _pooled(
        self, modality: Modality, first: int, counts: NDArray[np.int64], active: NDArray[np.bool_]
    ) -> torch.Tensor:
        """(P, d) pooled vectors of a block; rows of pixels that are not computed are undefined."""
        engine, data = self._engine, self._data[modality]
        pooled = torch.empty(len(counts), engine.architecture.s2.width, device=data.raw_xc.device)
        empty = np.flatnonzero(active & (counts == 0))
        if len(empty) and engine._tables is not None:
            alone = engine.network.encode(modality, zero_batch(data, engine._tables))
            pooled[torch.from_numpy(empty).to(pooled.device)] = alone
            self.tokens += 1

        def task(batch: BlockBatch) -> Callable[[], None]:
            def compute() -> None:
                if self._watch.stop():
                    raise InterruptedTileError(
                        f"{self._tile.name}: abandoned, asked to stop: run the same command again"
                    )
                pooled[batch.pixels_p] = engine.network.encode(modality, batch.build())
                self._watch.advance(batch.tokens / self._expected)

            self.tokens += batch.tokens
            return compute

        engine._workers.run(task(batch) for batch in self._batches(modality, first, counts, active))
        return pooled
