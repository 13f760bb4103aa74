"""Several models side by side as one (demo+monthly): each embeds the tile, and their numbers are put into one row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from infer.contract import FormatError, Tile
from infer.contract.registry import registered_model
from infer.device import Device
from infer.due import Output
from infer.engine import TileResult
from infer.prepare import LoadedTile
from infer.tilework import Watch
from infer.weights import Checkpoint

if TYPE_CHECKING:
    from infer.families import AnyEngine  # which makes this one


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
                f'{name}: one scale a pixel would crush the model with the smaller numbers: output "float32"'
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
