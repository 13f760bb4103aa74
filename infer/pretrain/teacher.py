"""A teacher for distillation: the engine itself, run on the drawn pixels with all their observations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from infer.contract import Tile
from infer.device import Device
from infer.engine import Engine
from infer.pretrain.tiles import cut
from infer.weights import check_source, load_checkpoint


class Teacher:
    """Embeds pixels with a published model of any family that the engine runs."""

    def __init__(self, path: Path, device: torch.device) -> None:
        """Load a checkpoint.

        Raises:
            SmaltiError: if it is not a checkpoint that smalti knows.
        """
        self.checkpoint = load_checkpoint(path)
        threads = torch.get_num_threads()
        self._engine = Engine(self.checkpoint, Device(device, "float32", 1))
        torch.set_num_threads(threads)  # the engine takes one thread a worker; training goes on with its own
        self.dim = self._engine.architecture.saved

    def __call__(self, tile: Tile, position_p: NDArray[np.int64]) -> torch.Tensor:
        """(P, E) float32 embeddings of the pixels at flat positions of a tile."""
        check_source(self.checkpoint, tile.name, tile.manifest.data_source)
        result = self._engine.embed(cut(tile, position_p))
        return torch.from_numpy(np.ascontiguousarray(result.values_hwc[0]))
