"""RUN/compare: models side by side on the labelled pixels of a run, before any of them embeds the whole of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from infer.contract.classification import Figure, LearningPoint
from infer.contract.record import Record
from infer.contract.run import Run


@dataclass(frozen=True)
class MethodFigures:
    """How well one classifier does on one model's numbers."""

    method: str
    macro_f1: Figure
    """Of all deals of the folds together; the interval draws groups, each with all its pixels in all deals."""
    overall_accuracy: Figure
    by_class: Mapping[str, float]
    """F1 of each class by its name."""
    deals: tuple[float, ...]
    """Macro-F1 of each deal."""
    curve: tuple[LearningPoint, ...]
    """With few groups of each class in training, up to all of them."""


@dataclass(frozen=True, kw_only=True)
class ComparedModel(Record):
    """compare/scores/<model>.json; beside it <model>.npy: (M, D, N) codes that each method says in each deal."""

    kind = "compared-model"
    stage = "compare"

    name: str
    label: str
    """What to call it in front of people."""
    trained: bool
    family: str
    checkpoint: str
    """SHA-256 of its weights."""
    dim: int
    """Numbers a pixel."""
    embeddings_as: Literal["float32", "int8"]
    bytes_per_pixel: int
    """On disk in a run: numbers, scale and counts of observations."""
    scores: tuple[MethodFigures, ...]


@dataclass(frozen=True)
class Difference:
    """How much better one model is than another, of which the same pixels are drawn."""

    method: str
    model: str
    against: str
    macro_f1: Figure
    overall_accuracy: Figure


@dataclass(frozen=True)
class ComparedClass:
    """A class that took part."""

    name: str
    pixels: int
    groups: int


@dataclass(frozen=True, kw_only=True)
class Comparison(Record):
    """compare/compare.json."""

    kind = "comparison"
    stage = "compare"

    models: tuple[ComparedModel, ...]
    failed: Mapping[str, str]
    """Models that could not take part, and why."""
    against: str
    """The model that differences are taken from."""
    differences: tuple[Difference, ...]
    """Of every model from `against`."""
    verdicts: Mapping[str, str]
    """By method: which model is best, and whether that is more than chance."""
    classes: tuple[ComparedClass, ...]
    left_out: tuple[str, ...]
    """Classes with too few groups."""
    pixels: int
    groups: int
    unseen: int
    """Labelled pixels that some model has no numbers for."""
    methods: tuple[str, ...]
    split: str
    folds: int
    deals: int
    seed: int

    @classmethod
    def path(cls, run: Run) -> Path:
        """RUN/compare/compare.json."""
        return run.root / "compare" / "compare.json"
