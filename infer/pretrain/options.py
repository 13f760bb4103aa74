"""What a training run does: everything that its result depends on, as one frozen record."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from infer.contract import JsonObject, SmaltiError
from infer.pretrain.views import Noise

Precision = Literal["float32", "bfloat16"]
RECIPE_VERSION = 3
"""Raised when the same recipe trains another way."""


@dataclass(frozen=True)
class Shape:
    """Size of a student."""

    latent_dim: int = 16
    """Width d is four times this."""
    num_layers: int = 2
    nhead: int = 4
    dim_feedforward: int = 128
    repr_dim: int = 128
    """Length of the embedding."""

    @property
    def width(self) -> int:
        """Width d of a backbone."""
        return 4 * self.latent_dim


@dataclass(frozen=True)
class Recipe:
    """One training. Equal recipes on equal tiles give equal weights (same machine, same number of threads)."""

    shape: Shape = field(default_factory=Shape)
    """The student."""
    steps: int = 6000
    """Optimiser steps."""
    batch: int = 256
    """Pixels a step, over all processes."""
    groups: int = 2
    """Tiles a step, over all processes; their pixels are standardised tile by tile in the loss."""
    learning_rate: float = 2e-3
    """At the end of the warm-up."""
    warmup: int = 100
    """Steps of linear warm-up; a cosine follows, down to 2 % of the rate."""
    weight_decay: float = 0.01
    clip: float = 1.0
    """Largest norm of the gradient."""
    redundancy: float = 5e-3
    """Weight of the off-diagonal elements in the Barlow Twins loss."""
    prefix_weight: float = 0.5
    """Weight of the loss on one Matryoshka prefix a step."""
    direct_weight: float = 1.0
    """Weight of the same loss on the embedding itself, without projector."""
    direct_redundancy: float = 5e-3
    """Weight of its off-diagonal elements: larger ones use more directions, and those added last are the weakest."""
    twins_weight: float = 0.1
    """Weight of all that is Barlow Twins."""
    monthly_weight: float = 5.0
    """Weight of the mean square by which the embedding misses its pixel's months of the whole season."""
    monthly_power: float = 0.35
    """How far directions in which neighbours differ count for less in those months, 0 (not at all) to 0.5."""
    offset_weight: float = 1.0
    """Weight, relative to that, of the mean square by which whole tiles' embeddings lie apart."""
    prefixes: tuple[int, ...] = (16, 32, 64, 128)
    """Matryoshka prefixes; the last one is the whole embedding."""
    projector: int = 256
    """Width of the projector."""
    reach: int = 2
    """How far, in pixels, the pixel of the second view may lie from that of the first; 0: the same pixel."""
    shortest: int = 8
    """Fewest observations of a modality in a view."""
    longest: int = 24
    """Most observations of a modality in a view."""
    ema: float = 0.995
    """Decay of the averaged weights, which are what is exported."""
    noise: Noise = field(default_factory=Noise)
    precision: Precision = "float32"
    """bfloat16: autocast, without a gradient scaler."""
    seed: int = 1
    teacher: str | None = None
    """SHA-256 of the checkpoint that is distilled, or None: Barlow Twins."""

    def __post_init__(self) -> None:
        positive = ("steps", "batch", "groups", "learning_rate", "clip", "projector", "shortest")
        for name in positive:
            if not getattr(self, name) > 0:
                raise SmaltiError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be above 0")
        for name in ("twins_weight", "monthly_weight", "offset_weight"):
            if getattr(self, name) < 0:
                raise SmaltiError(f"--{name.replace('_', '-')} {getattr(self, name)}: must not be negative")
        if self.twins_weight == self.monthly_weight == 0:
            raise SmaltiError("--twins-weight and --monthly-weight: one of them must be above 0")
        if not 0 <= self.monthly_power <= 0.5:
            raise SmaltiError(f"--monthly-power {self.monthly_power}: must lie between 0 and 0.5")
        if self.batch % self.groups or self.batch // self.groups < 4:
            raise SmaltiError(f"--batch {self.batch}: must be a multiple of --groups {self.groups}, at least fourfold")
        if self.longest < self.shortest:
            raise SmaltiError(f"--longest {self.longest}: must not be below --shortest {self.shortest}")
        if not 0 <= self.ema < 1:
            raise SmaltiError(f"--ema {self.ema}: must be at least 0 and below 1")
        if list(self.prefixes) != sorted(set(self.prefixes)) or self.prefixes[-1] != self.shape.repr_dim:
            raise SmaltiError(f"prefixes {self.prefixes}: must rise and end with the embedding's {self.shape.repr_dim}")
        if self.shape.width % self.shape.nhead:
            raise SmaltiError(f"--nhead {self.shape.nhead}: must divide the width {self.shape.width}")

    def published_args(self) -> dict[str, Any]:
        """The `args` of the student's checkpoint."""
        return {**asdict(self.shape), "matryoshka_dims": ",".join(map(str, self.prefixes))}

    def as_json(self) -> dict[str, Any]:
        """The recipe as plain JSON, with its version."""
        content = asdict(self)
        content["prefixes"] = list(self.prefixes)
        content["version"] = RECIPE_VERSION
        return content


def differences(one: JsonObject, two: JsonObject) -> list[str]:
    """Names of the entries in which two recipes differ."""
    return sorted(key for key in {*one, *two} if one.get(key) != two.get(key))
