"""The computation of one tile: blocks of pixels, batches of tokens, both backbones apart, fusion once, int8 codes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from infer import sequence
from infer.contract import EXIT_FAILED, EXIT_TRY_AGAIN, SmaltiError, Tile
from infer.device import Device
from infer.model import Modality, Network
from infer.prepare import BlockBatch, LoadedTile, Multiplicities, counted_batches, drawn_batches, zero_batch
from infer.sequence import MAX_BIN
from infer.workers import Workers

Rounding = Literal["v2", "v1"]


def quantise(values_pc: torch.Tensor, rounding: Rounding = "v2") -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise embeddings pixel by pixel, symmetrically.

    Args:
        values_pc: (P, C) float32; a row of NaN is nodata.
        rounding: "v2" clips codes to -127..127; "v1" (v1.0, v1.1) to -128..127 with scales of at least 1e-8.

    Returns:
        (P, C) int8 codes and (P,) float32 scales.
    """
    values_pc = values_pc.float()
    nodata_p = torch.isnan(values_pc).any(dim=1)
    clean_pc = torch.where(nodata_p[:, None], torch.zeros((), device=values_pc.device), values_pc)
    scales_p = clean_pc.abs().amax(dim=1) / 127.0
    if rounding == "v1":
        scales_p = scales_p.clamp(min=1e-8)
    divisors_p = torch.where(scales_p > 0, scales_p, torch.ones_like(scales_p))
    low = -127 if rounding == "v2" else -128
    codes_pc = torch.round(clean_pc / divisors_p[:, None]).clamp_(low, 127).to(torch.int8)
    return codes_pc, torch.where(nodata_p, torch.full_like(scales_p, float("nan")), scales_p)


_CPU_POOLED_BYTES = 128 << 20
_GPU_POOLED_BYTES = 1 << 30
_CPU_OBSERVATIONS = 1 << 21
_GPU_OBSERVATIONS = 1 << 26
_CPU_FUSED_PIXELS = 4096
_GPU_FUSED_PIXELS = 1 << 16


class InterruptedTileError(SmaltiError):
    """The tile was abandoned because the process was asked to stop."""

    exit_code = EXIT_TRY_AGAIN


@dataclass(frozen=True)
class Watch:
    """How a caller follows and stops the computation of a tile; called from any thread."""

    stop: Callable[[], bool] = lambda: False
    """Asked before every batch; true abandons the tile."""
    advance: Callable[[float], None] = lambda _fraction: None
    """Told the fraction of the tile that each batch was."""


@dataclass(frozen=True)
class Machinery:
    """What computes: the network, where, with which tables and threads."""

    network: Network
    device: Device
    tables: Multiplicities | None
    """None for v1.0, whose observations are drawn."""
    workers: Workers
    rounding: Rounding


@dataclass
class Product:
    """The embedding of a tile on its device, filled block by block."""

    values_pc: torch.Tensor
    """(H * W, C) float32 or int8."""
    scales_p: torch.Tensor | None
    """(H * W,) float32 for int8 output."""

    @classmethod
    def empty(cls, pixels: int, dim: int, output: str, device: torch.device) -> Product:
        """All nodata."""
        nan = float("nan")
        if output == "float32":
            return cls(torch.full((pixels, dim), nan, device=device), None)
        codes = torch.zeros(pixels, dim, dtype=torch.int8, device=device)
        return cls(codes, torch.full((pixels,), nan, device=device))

    def put(self, places_p: torch.Tensor, fused_pc: torch.Tensor, rounding: Rounding) -> None:
        """Set the pixels at `places_p`."""
        if self.scales_p is None:
            self.values_pc.index_copy_(0, places_p, fused_pc)
            return
        codes, scales = quantise(fused_pc, rounding)
        self.values_pc.index_copy_(0, places_p, codes)
        self.scales_p.index_copy_(0, places_p, scales)


def check_finite(tile: Tile, fused_pc: torch.Tensor, places_p: torch.Tensor) -> None:
    """Refuse an embedding with numbers that are none.

    Args:
        tile: for the message.
        fused_pc: (P, C) vectors.
        places_p: (P,) their pixels, counted row by row.

    Raises:
        SmaltiError: with the position of the first one.
    """
    good = torch.isfinite(fused_pc).all(dim=1)
    if bool(good.all()):
        return
    bad = places_p[~good]
    row, column = divmod(int(bad[0]), tile.shape_hw[1])
    raise SmaltiError(
        f"{tile.name}: NaN or infinity in the embedding of {len(bad)} pixels, first at row {row}, "
        f"column {column}: check the checkpoint, or use --precision float32",
        exit_code=EXIT_FAILED,
    )


class TileWork:
    """One tile at one token budget."""

    def __init__(self, machinery: Machinery, loaded: LoadedTile, budget: int, watch: Watch) -> None:
        self._machinery = machinery
        self._loaded = loaded
        self._budget = budget
        self._watch = watch
        self._lock = threading.Lock()
        self._seed = sequence.tile_seed(loaded.tile.name, loaded.tile.manifest.grid)
        longest = MAX_BIN if machinery.tables is not None else sequence.DRAWN
        active = loaded.active_p
        self._expected = max(1, sum(int(np.minimum(n[active], longest).sum()) for n in loaded.counts.values()))
        self.tokens = 0
        """Tokens handed out so far."""
        self.advanced = 0.0
        """Fraction of the tile that the watch was told of."""

    def run(self, product: Product) -> None:
        """Fill `product`.

        Raises:
            InterruptedTileError: if the watch said so.
            SmaltiError: for a NaN or infinity, with its position.
        """
        pixels = len(self._loaded.active_p)
        step = self._block_pixels()
        for first in range(0, pixels, step):
            block = slice(first, min(first + step, pixels))
            if self._loaded.active_p[block].any():
                self._block(block, product)

    def _advance(self, share: float) -> None:
        with self._lock:
            self.advanced += share
        self._watch.advance(share)

    def _block_pixels(self) -> int:
        """Pixels of a block, so that its pooled vectors and its list of observations have bounded sizes."""
        dates = max(data.dates for data in self._loaded.data.values())
        on_cpu = self._machinery.device.on_cpu
        pooled = _CPU_POOLED_BYTES if on_cpu else _GPU_POOLED_BYTES
        observed = _CPU_OBSERVATIONS if on_cpu else _GPU_OBSERVATIONS
        return max(1024, min(pooled // (8 * self._machinery.network.architecture.s2.width), observed // max(dates, 1)))

    def _block(self, block: slice, product: Product) -> None:
        network = self._machinery.network
        active = self._loaded.active_p[block]
        s2_pd = self._pooled("s2", block, active)
        s1_pd = self._pooled("s1", block, active)
        rows = torch.from_numpy(np.flatnonzero(active)).to(s2_pd.device)
        fused = torch.empty(len(rows), product.values_pc.shape[1], device=s2_pd.device)
        step = _CPU_FUSED_PIXELS if self._machinery.device.on_cpu else _GPU_FUSED_PIXELS

        def fuse(start: int) -> Callable[[], None]:
            def task() -> None:
                part = rows[start : start + step]
                whole = network.fuse(s2_pd.index_select(0, part), s1_pd.index_select(0, part))
                fused[start : start + step] = whole[:, : fused.shape[1]]

            return task

        self._machinery.workers.run(fuse(start) for start in range(0, len(rows), step))
        places = rows + block.start
        check_finite(self._loaded.tile, fused, places)
        product.put(places, fused, self._machinery.rounding)

    def _batches(self, modality: Modality, block: slice, active: NDArray[np.bool_]) -> Iterator[BlockBatch]:
        data, tables = self._loaded.data[modality], self._machinery.tables
        if tables is None:
            return drawn_batches(data, block.start, active, self._loaded.tile, self._seed, self._budget)
        return counted_batches(data, block.start, self._loaded.counts[modality][block], self._budget, tables)

    def _pooled(self, modality: Modality, block: slice, active: NDArray[np.bool_]) -> torch.Tensor:
        """(P, d) pooled vectors of a block; rows of pixels that are not computed are undefined."""
        machinery, data = self._machinery, self._loaded.data[modality]
        network = machinery.network
        pooled = torch.empty(len(active), network.architecture.s2.width, device=data.device)

        def compute_batch(batch: BlockBatch) -> Callable[[], None]:
            def task() -> None:
                if self._watch.stop():
                    name = self._loaded.tile.name
                    raise InterruptedTileError(f"{name}: abandoned, asked to stop: run the same command again")
                pooled[batch.pixels_p] = network.encode(modality, batch.build())
                self._advance(batch.tokens / self._expected)

            self.tokens += batch.tokens
            return task

        def tasks() -> Iterator[Callable[[], None]]:
            empty = np.flatnonzero(active & (self._loaded.counts[modality][block] == 0))
            if len(empty) and machinery.tables is not None:  # pixels without observations all have the same vector
                tables, places = machinery.tables, torch.from_numpy(empty).to(pooled.device)

                def alone() -> None:
                    pooled[places] = network.encode(modality, zero_batch(data, tables))

                yield alone
            for batch in self._batches(modality, block, active):
                yield compute_batch(batch)

        machinery.workers.run(tasks())
        return pooled
