"""groups.json and similar.json: what was found in the embeddings of a run without labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from infer.contract.classification import ClassEntry
from infer.contract.rasters import Provenance
from infer.contract.run import Run


@dataclass(frozen=True)
class Group(ClassEntry):
    """Pixels whose embeddings are alike; the largest group has the lowest code."""

    pixels: int


@dataclass(frozen=True, kw_only=True)
class GroupsManifest(Provenance):
    """groups.json: a map of groups."""

    kind = "groups"
    stage = "cluster"

    groups: tuple[Group, ...]
    centres: tuple[tuple[float, ...], ...]
    """Of each group, in the space of the embeddings."""
    sample: int
    """Pixels that the centres were learnt from."""
    seed: int
    zones: Mapping[str, str]
    """Label such as 31N -> GeoTIFF."""

    @classmethod
    def path(cls, run: Run) -> Path:
        """RUN/groups/groups.json."""
        return run.root / "groups" / "groups.json"


@dataclass(frozen=True, kw_only=True)
class SimilarManifest(Provenance):
    """similar.json: how like some places every pixel is."""

    kind = "similar"
    stage = "similar"

    at: tuple[tuple[float, float], ...]
    """Longitude and latitude of the examples."""
    unlike: tuple[tuple[float, float], ...]
    """Of what it should not be like."""
    places: int
    """Points in places.geojson."""
    zones: Mapping[str, str]
    """Label such as 31N -> GeoTIFF."""

    @classmethod
    def path(cls, run: Run) -> Path:
        """RUN/similar/similar.json."""
        return run.root / "similar" / "similar.json"
