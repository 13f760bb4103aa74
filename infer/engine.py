"""A network on a device: one tile in, its embedding out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from infer.contract import EXIT_FAILED, SmaltiError, Tile
from infer.device import Device, Transfer, is_out_of_memory
from infer.due import Output
from infer.model import Modality, build_network
from infer.model.linear import fused_add_norm
from infer.prepare import LoadedTile, Multiplicities, load_tile
from infer.tilework import Machinery, Product, TileWork, Watch
from infer.weights import Checkpoint
from infer.workers import Workers, arrange_host_memory

_SMALLEST_BUDGET = 256


@dataclass(frozen=True)
class TileResult:
    """One tile's embedding, still on the device, and what its manifest says about the computation."""

    values: torch.Tensor
    """(H, W, C) float32 with NaN for nodata, or int8 codes."""
    scales: torch.Tensor | None
    """(H, W) float32, NaN = nodata; None for float32 output."""
    observations: Mapping[str, Mapping[str, float]]
    """Per modality: min, median and max number of observations over the pixels that have any of either."""
    nodata_pixels: int
    oom_halvings: int
    """How often the token budget was halved because the device was out of memory."""
    tokens: int
    """Distinct tokens computed."""
    observations_hwm: NDArray[np.uint8]
    """(H, W, 2) observations of every pixel, embedded or not; see infer.contract.embedding."""

    @property
    def values_hwc(self) -> NDArray[Any]:
        """The values on the host."""
        host: NDArray[Any] = self.values.cpu().numpy()
        return host

    @property
    def scales_hw(self) -> NDArray[np.float32] | None:
        """The scales on the host."""
        return None if self.scales is None else self.scales.cpu().numpy()


class Engine:
    """A network on a device, ready for tile after tile."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: Device,
        *,
        token_budget: int | None = None,
        min_clear_s2: int = 0,
    ) -> None:
        """Build the network.

        Args:
            checkpoint: what to run.
            device: where and how.
            token_budget: tokens of a batch, to override the device's.
            min_clear_s2: leave pixels with fewer clear Sentinel-2 observations without an embedding.

        Raises:
            FormatError: if the checkpoint's parameters do not fit its network.
        """
        self.checkpoint = checkpoint
        self.device = device
        self.min_clear_s2 = min_clear_s2
        if device.on_cpu:
            arrange_host_memory()
        device.activate()
        network = build_network(checkpoint)
        self.architecture = network.architecture
        width = self.architecture.s2.width
        add_norm = fused_add_norm(device.torch_device, device.dtype, width)
        self.compiled = add_norm is not None
        """Whether kernels of our own run between the products."""
        network.place(device.torch_device, device.dtype, add_norm)
        self.budget = token_budget or device.token_budget(width)
        rule = self.architecture.rule
        recurrent = self.architecture.pool != "softmax"
        self._transfer = Transfer(device.torch_device)
        self._machinery = Machinery(
            network,
            device,
            None if rule is None else Multiplicities(rule, device.torch_device, expand=recurrent),
            Workers(device),
            "v1" if self.architecture.family in ("v1.0", "v1.0-qat", "v1.1") else "v2",
        )

    @property
    def draws(self) -> bool:
        """Whether observations are drawn at random (v1.0)."""
        return self.architecture.rule is None

    def dimensions(self, requested: int, output: Output) -> int:
        """Numbers a pixel that are written for a requested number of them (0 = what the family saves).

        Raises:
            FormatError: for a prefix that the family does not have.
        """
        del output  # any
        return self.architecture.dimensions(requested)

    def close(self) -> None:
        """End the engine's threads."""
        self._machinery.workers.close()

    def load(self, tile: Tile) -> LoadedTile:
        """Bring a tile to the device. One thread may load the next tile while another embeds."""
        place = self._transfer, self.device.torch_device
        return load_tile(tile, self.checkpoint.normalisation, *place, min_clear_s2=self.min_clear_s2)

    def embed(
        self, tile: Tile | LoadedTile, *, output: Output = "float32", dim: int = 0, watch: Watch | None = None
    ) -> TileResult:
        """Embed every pixel of a tile.

        Args:
            tile: the tile, loaded or not.
            output: float32, or int8 codes with scales.
            dim: leading dimensions to keep (0 = what the family saves).
            watch: follows and stops the computation.

        Returns:
            The embedding. The same bits on one device whatever else is computed before or beside it.

        Raises:
            InterruptedTileError: if `watch` said so.
            SmaltiError: for a NaN or infinity in the output, with its position; when memory does not suffice.
        """
        loaded = tile if isinstance(tile, LoadedTile) else self.load(tile)
        watch = watch or Watch()
        budget, halvings = self.budget, 0
        while True:
            work = TileWork(self._machinery, loaded, budget, watch)
            try:
                with torch.inference_mode():
                    return self._embed(loaded, work, output, self.architecture.dimensions(dim), halvings)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if budget // 2 < _SMALLEST_BUDGET:
                    raise SmaltiError(
                        f"{loaded.tile.name}: out of memory even with {budget} tokens a batch: use more memory",
                        exit_code=EXIT_FAILED,
                    ) from error
            watch.advance(-work.advanced)
            budget, halvings = budget // 2, halvings + 1
            release_memory(self.device.torch_device)

    def _embed(self, loaded: LoadedTile, work: TileWork, output: Output, dim: int, halvings: int) -> TileResult:
        height, width = loaded.tile.shape_hw
        product = Product.empty(height * width, dim, output, self.device.torch_device)
        work.run(product)
        return TileResult(
            product.values_pc.view(height, width, dim),
            None if product.scales_p is None else product.scales_p.view(height, width),
            {name: _summary(loaded, name) for name in loaded.counts},
            int((~loaded.active_p).sum()),
            halvings,
            work.tokens,
            loaded.observations_hwm,
        )


def release_memory(device: torch.device) -> None:
    """Give cached blocks back, so that a smaller batch finds whole ones."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "xpu":
        torch.xpu.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def _summary(loaded: LoadedTile, modality: Modality) -> dict[str, float]:
    counts = loaded.counts[modality][loaded.active_p]
    if not len(counts):
        return {"min": 0.0, "median": 0.0, "max": 0.0}
    return {"min": float(counts.min()), "median": float(np.median(counts)), "max": float(counts.max())}
