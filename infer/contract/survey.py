"""survey/design.json: a reference sample as it was drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from infer.contract.record import Record
from infer.contract.run import Run


@dataclass(frozen=True)
class Stratum:
    """A class of the map, and the points drawn in it."""

    code: int
    name: str
    pixels: int
    hectares: float
    expected_users_accuracy: float
    points: int


@dataclass(frozen=True, kw_only=True)
class DesignManifest(Record):
    """design.json."""

    kind = "design"
    stage = "design"

    strata: tuple[Stratum, ...]
    """By ascending code."""
    points: int
    sizes_by: str
    """How the sizes came about, for people."""
    seed: int
    rounds: tuple[Mapping[str, int], ...]
    """Code -> points, of the first draw and of each that added some: ids go on from round to round."""
    names: Mapping[str, str]
    """Code -> name of every class that a point may be labelled with: the legend."""

    @classmethod
    def path(cls, run: Run) -> Path:
        """RUN/survey/design.json."""
        return run.root / "survey" / "design.json"
