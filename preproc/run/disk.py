"""What a run takes on disk, stage by stage: bytes and files at the peak and at the end. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from infer.contract import Plan
from preproc.run.config import Config
from preproc.run.waves import NOTHING, TILE_FILES, Space, budget

RECORD = Space(2**14, TILE_FILES - 7)
"""What is kept of a tile whose arrays were let go: mask, manifest, quality and its picture, and that it was."""
_RELEASED = Space(0, 1)


@dataclass(frozen=True)
class StageDisk:
    """Of one stage."""

    stage: str
    peak: Space
    end: Space


def mosaic_bytes(pixels: float, config: Config) -> tuple[float, float]:
    """What the store and the GeoTIFFs of a mosaic take, about, for so many pixels of the region; 0: not written.

    Noise hardly compresses: what is saved is mostly what lies outside of the region.
    """
    dim, settings = config.model.dim, config.stitch
    store = dim + 4 + 24 if "zarr" in settings.formats else 0  # with the depths
    values = 4 * dim if settings.dtype == "float32" else dim + 4
    return pixels * store * 0.85, pixels * (values * 4 / 3 if "cog" in settings.formats else 0) * 0.85  # with overviews


def disk_of(plan: Plan, config: Config) -> list[StageDisk]:
    """What each stage that the plan reckons takes, and all of them together."""
    stages = []
    for stage, cost in plan.estimate.items():
        written = Space(cost.written_bytes, cost.files)
        stages.append(
            _fetch(written, len(plan.tiles), config) if stage == "fetch" else StageDisk(stage, written, written)
        )
    rest = sum((stage.end for stage in stages if stage.stage != "fetch"), NOTHING)
    tiles = next((stage for stage in stages if stage.stage == "fetch"), StageDisk("fetch", NOTHING, NOTHING))
    embedded = next((stage.end for stage in stages if stage.stage == "infer"), NOTHING)
    peak = tiles.peak + embedded  # tiles go before mosaics are made
    end = tiles.end + rest
    return [*stages, StageDisk("all", Space(max(peak.bytes, end.bytes), max(peak.files, end.files)), end)]


def _fetch(written: Space, tiles: int, config: Config) -> StageDisk:
    if config.tiles.keep != "record":
        return StageDisk("fetch", written, written)
    kept = (RECORD + _RELEASED) * tiles
    space = budget(config)
    if space is None:
        return StageDisk("fetch", Space(max(written.bytes, kept.bytes), max(written.files, kept.files)), kept)
    at_once = Space(min(space.bytes, written.bytes), min(space.files, written.files))
    return StageDisk("fetch", at_once + kept, kept)
