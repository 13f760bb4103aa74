"""Which engine runs a checkpoint: the one place where its family decides that.

What runs tiles knows an engine by what `AnyEngine` says and nothing else, so that a family is a file and a line here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, Protocol

from infer.contract import Tile
from infer.contract.monthly import MONTHLY_FAMILY
from infer.contract.registry import Family
from infer.device import Device, Precision, choose_device
from infer.engine import Engine, Output, TileResult
from infer.joined import JoinedEngine
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
