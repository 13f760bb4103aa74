"""The engine of the family `monthly`: medians instead of a network, by the same runner and into the same files.

They are computed on the host, also where there is an accelerator: sorting a few numbers a month takes less time than
reading them, and so the numbers are the same everywhere, to the bit those that the venv side takes of labelled pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from infer.contract import FormatError, Tile
from infer.contract.embedding import MOST_OBSERVED
from infer.contract.monthly import MONTHLY_DIM, monthly_composites
from infer.device import Device, choose_device
from infer.engine import Output, TileResult
from infer.prepare import LoadedTile
from infer.tilework import InterruptedTileError, Watch
from infer.weights import Checkpoint
from infer.workers import Workers

_OBSERVATIONS = 1 << 20
"""Of a block of rows: some tens of megabytes while they are sorted."""


class MonthlyEngine:
    """Takes the place of `infer.engine.Engine`."""

    budget = 0
    compiled = False
    draws = False

    def __init__(self, checkpoint: Checkpoint, *, min_clear_s2: int = 0) -> None:
        """Start the threads.

        Args:
            checkpoint: of the family `monthly`.
            min_clear_s2: leave pixels with fewer clear Sentinel-2 observations without numbers.
        """
        self.checkpoint = checkpoint
        self.device: Device = choose_device("cpu", "float32")
        self.min_clear_s2 = min_clear_s2
        self._workers = Workers(self.device)

    def close(self) -> None:
        """End the threads."""
        self._workers.close()

    def dimensions(self, requested: int, output: Output) -> int:
        """Numbers a pixel.

        Raises:
            FormatError: for a part of them, or for codes, which have no way to say that a month is missing.
        """
        if requested not in (0, MONTHLY_DIM):
            raise FormatError(f"dim {requested}: monthly gives {MONTHLY_DIM} (0 = all)")
        if output != "float32":
            raise FormatError('monthly leaves months without an observation missing, as codes cannot: output "float32"')
        return MONTHLY_DIM

    def load(self, tile: Tile) -> Tile:
        """Nothing goes to a device."""
        return tile

    def embed(
        self, tile: Tile | LoadedTile, *, output: Output = "float32", dim: int = 0, watch: Watch | None = None
    ) -> TileResult:
        """Monthly medians of every pixel of a tile; see `Engine.embed`."""
        tile = tile.tile if isinstance(tile, LoadedTile) else tile
        watch = watch or Watch()
        height, width = tile.shape_hw
        values = np.full((height, width, self.dimensions(dim, output)), np.nan, dtype=np.float32)
        counts = np.zeros((height, width, 2), dtype=np.int64)
        dates = max(1, len(tile.doys_t), len(tile.sar_asc_doys_t) + len(tile.sar_desc_doys_t))
        step = max(1, _OBSERVATIONS // (dates * width))

        def block(top: int) -> Callable[[], None]:
            rows = slice(top, min(top + step, height))

            def task() -> None:
                if watch.stop():
                    raise InterruptedTileError(f"{tile.name}: abandoned, asked to stop: run the same command again")
                counts[rows, :, 0] = (tile.masks_thw[:, rows] == 1).sum(axis=0)
                for stack in (tile.sar_asc_thwp, tile.sar_desc_thwp):
                    counts[rows, :, 1] += (stack[:, rows] != 0).any(axis=-1).sum(axis=0)
                found = monthly_composites(tile, rows, slice(None)).reshape(-1, width, MONTHLY_DIM)
                found[counts[rows, :, 0] < self.min_clear_s2] = np.nan
                values[rows] = found
                watch.advance((rows.stop - rows.start) / height)

            return task

        def tasks() -> Iterator[Callable[[], None]]:
            for top in range(0, height, step):
                yield block(top)

        self._workers.run(tasks())
        active = counts.any(axis=-1) & (counts[..., 0] >= self.min_clear_s2)
        return TileResult(
            torch.from_numpy(values),
            None,
            {"s2": _summary(counts[..., 0][active]), "s1": _summary(counts[..., 1][active])},
            int((~active).sum()),
            0,
            int(counts[active].sum()),
            np.minimum(counts, MOST_OBSERVED).astype(np.uint8),
        )


def _summary(counts: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> dict[str, float]:
    if not len(counts):
        return {"min": 0.0, "median": 0.0, "max": 0.0}
    return {"min": float(counts.min()), "median": float(np.median(counts)), "max": float(counts.max())}
