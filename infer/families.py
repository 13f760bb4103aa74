"""Which engine runs a checkpoint: the one place where its family decides that.

What runs tiles knows an engine by what `AnyEngine` says and nothing else, so that a family is a file and a line here.
Several models side by side are an engine too (demo+monthly): each embeds the tile, and their numbers make one row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

import numpy as np
import torch

from infer.contract import FormatError, Tile
from infer.contract.monthly import MONTHLY_FAMILY
from infer.contract.registry import Family, registered_model
from infer.device import Device, Precision, choose_device
from infer.due import Output
from infer.engine import Engine, TileResult
from infer.model.galileo import galileo_network
from infer.model.months import MonthsNetwork
from infer.model.presto import presto_network
from infer.monthly import MonthlyEngine, MonthsEngine
from infer.prepare import LoadedTile
from infer.tilework import Watch
from infer.weights import Checkpoint

OVER_MONTHS: Mapping[Family, Callable[[Checkpoint], MonthsNetwork]] = {
    "presto": presto_network,
    "galileo-nano": galileo_network,
}
"""Families whose networks take monthly composites."""


class JoinedEngine:
    """Takes the place of `infer.engine.Engine`. A pixel that one part has no numbers for has none at all."""

    def __init__(self, checkpoint: Checkpoint, parts: Sequence[AnyEngine]) -> None:
        """Put engines side by side.

        Args:
            checkpoint: of all of them.
            parts: the engines of its parts, in their order; they are closed with this one.
        """
        self.checkpoint = checkpoint
        self._parts = tuple(parts)
        self.device: Device = next((part.device for part in parts if not part.device.on_cpu), parts[0].device)
        self.min_clear_s2 = parts[0].min_clear_s2
        self.budget = max(part.budget for part in parts)
        self.compiled = any(part.compiled for part in parts)
        self.draws = any(part.draws for part in parts)

    def close(self) -> None:
        """End the threads of all parts."""
        for part in self._parts:
            part.close()

    def _dims(self, output: Output) -> list[int]:
        usual = [registered_model(part.checkpoint.name).usual_dim for part in self._parts]
        return [part.dimensions(dim, output) for part, dim in zip(self._parts, usual, strict=True)]

    def dimensions(self, requested: int, output: Output) -> int:
        """Numbers a pixel.

        Raises:
            FormatError: for a part of them, or for codes.
        """
        name = self.checkpoint.name
        if output != "float32":
            raise FormatError(
                f"{name}: one scale a pixel would crush the model with the smaller numbers: use float32 "
                "([model] output, --dtype)"
            )
        total = sum(self._dims(output))
        if requested not in (0, total):
            raise FormatError(f"dim {requested}: {name} gives {total} (0 = all)")
        return total

    def load(self, tile: Tile) -> Tile:
        """Each part loads the tile when its turn comes; it is refused here if one cannot use it."""
        for part in self._parts:
            if not isinstance(part.device, Device) or part.device.on_cpu:
                part.load(tile)
        return tile

    def embed(
        self, tile: Tile | LoadedTile, *, output: Output = "float32", dim: int = 0, watch: Watch | None = None
    ) -> TileResult:
        """Embed every pixel of a tile with each part; see `Engine.embed`."""
        tile = tile.tile if isinstance(tile, LoadedTile) else tile
        watch = watch or Watch()
        height, width = tile.shape_hw
        values = np.empty((height, width, self.dimensions(dim, output)), dtype=np.float32)
        lacking = np.zeros((height, width), dtype=bool)
        results: list[TileResult] = []
        first = 0
        for part, numbers in zip(self._parts, self._dims(output), strict=True):
            share = Watch(watch.stop, lambda fraction: watch.advance(fraction / len(self._parts)))
            made = part.embed(part.load(tile), output=output, dim=numbers, watch=share)
            own = values[..., first : first + numbers]
            own[...] = made.values_hwc
            lacking |= np.isnan(own).all(axis=-1)
            first += numbers
            results.append(made)
        values[lacking] = np.nan
        return TileResult(
            torch.from_numpy(values),
            None,
            results[0].observations,
            int(lacking.sum()),
            sum(made.oom_halvings for made in results),
            sum(made.tokens for made in results),
            results[0].observations_hwm,
        )


def takes_months(checkpoint: Checkpoint) -> bool:
    """Whether a model, or one of several side by side, starts from monthly composites."""
    families = [part.family for part in checkpoint.parts or (checkpoint,)]
    return any(family == MONTHLY_FAMILY or family in OVER_MONTHS for family in families)


class AnyEngine(Protocol):
    """A model on a device: one tile in, its embedding out. `infer.engine.Engine` says what each does."""

    @property
    def checkpoint(self) -> Checkpoint:
        """What is run."""

    @property
    def device(self) -> Device:
        """Where and how."""

    @property
    def min_clear_s2(self) -> int:
        """Pixels with fewer clear Sentinel-2 observations are left without an embedding."""

    @property
    def budget(self) -> int:
        """Tokens of a batch; 0 where there are none."""

    @property
    def compiled(self) -> bool:
        """Whether kernels of our own run between the products."""

    @property
    def draws(self) -> bool:
        """Whether observations are drawn at random."""

    def dimensions(self, requested: int, output: Output) -> int:
        """Numbers a pixel that are written for a requested number of them (0 = what the family saves)."""

    def load(self, tile: Tile) -> Tile | LoadedTile:
        """Bring a tile to the device. One thread may load the next tile while another embeds."""

    def embed(
        self, tile: Tile | LoadedTile, *, output: Output = "float32", dim: int = 0, watch: Watch | None = None
    ) -> TileResult:
        """Embed every pixel of a tile."""

    def close(self) -> None:
        """End the engine's threads."""


def make_engine(
    checkpoint: Checkpoint,
    device: str = "auto",
    precision: Literal["auto"] | Precision = "auto",
    *,
    index: int = 0,
    min_clear_s2: int = 0,
) -> AnyEngine:
    """The engine of a checkpoint's family, ready for tile after tile; `close` it when done.

    Args:
        checkpoint: of any family.
        device: auto, cpu or a torch device type; families that compute on the host do so whatever is named.
        precision: auto, float32 or bfloat16.
        index: which accelerator.
        min_clear_s2: leave pixels with fewer clear Sentinel-2 observations without an embedding.

    Raises:
        SmaltiError: for a device that is not there, or parameters that do not fit their network.
    """
    if checkpoint.parts:
        how = {"index": index, "min_clear_s2": min_clear_s2}
        return JoinedEngine(checkpoint, [make_engine(part, device, precision, **how) for part in checkpoint.parts])
    if checkpoint.family == MONTHLY_FAMILY:
        return MonthlyEngine(checkpoint, min_clear_s2=min_clear_s2)
    if checkpoint.family in OVER_MONTHS:
        network = OVER_MONTHS[checkpoint.family](checkpoint)
        if network.float32_only and precision == "auto":
            precision = "float32"
        return MonthsEngine(checkpoint, choose_device(device, precision, index), network, min_clear_s2=min_clear_s2)
    chosen = choose_device(device, precision, index)
    return Engine(checkpoint, chosen, min_clear_s2=min_clear_s2)
