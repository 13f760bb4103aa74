"""The chain of stages by name, in order. Each is imported only when it is used, so that `smalti --help` is quick."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal, cast

from infer.contract import PlannedTile, Run
from preproc.run.config import Config
from preproc.run.stage import Stage


@dataclass(frozen=True)
class StageEntry:
    """One link of the chain."""

    name: str
    implementation: str
    """module:class"""
    needs: tuple[str, ...]
    """Stages whose outputs it reads; what those read in turn is not repeated."""
    gathers: bool
    """It reads all tiles at once, so it cannot work around a tile that failed before."""
    makes: Literal["embeddings", "samples", "classifier", "map"]
    """What it is a step towards: a run without labels makes no classifier, one without either no map."""
    cheap: bool = False
    """Whether it is up to date is told without more than the shards that build on it look at themselves."""
    measures_map: bool = False
    """It reads the map as well, in a run with [validate]."""
    in_shards: str = ""
    """module:class of the part of the stage that can be divided, where that is not the whole of it."""

    def load(self, *, shard: bool = False) -> Stage:
        """The stage itself, or the part of it that shards divide."""
        implementation = self.in_shards if shard and self.in_shards else self.implementation
        module, name = implementation.split(":")
        return cast(Stage, getattr(import_module(module), name)())


STAGES = (
    StageEntry("plan", "preproc.plan.stage:PlanStage", needs=(), gathers=False, makes="embeddings", cheap=True),
    StageEntry("fetch", "preproc.tile.stage:FetchStage", needs=("plan",), gathers=False, makes="embeddings"),
    StageEntry("infer", "preproc.run.engine:InferStage", needs=("fetch",), gathers=False, makes="embeddings"),
    StageEntry(
        "stitch",
        "preproc.mosaic.stage:StitchStage",
        needs=("infer",),
        gathers=True,
        makes="embeddings",
        in_shards="preproc.mosaic.stage:StitchSheetsStage",
    ),
    StageEntry(
        "sample",
        "preproc.classify.sample:SampleStage",
        needs=("infer",),
        gathers=True,
        makes="samples",
        in_shards="preproc.classify.sample:SampleTilesStage",
    ),
    StageEntry(
        "train",
        "preproc.classify.train:TrainStage",
        needs=("sample",),
        gathers=True,
        makes="classifier",
        cheap=True,
        in_shards="preproc.classify.train:TrainTrialsStage",
    ),
    StageEntry(
        "predict",
        "preproc.classify.predict:PredictStage",
        needs=("train",),
        gathers=True,
        makes="map",
        in_shards="preproc.classify.predict:PredictSheetsStage",
    ),
    StageEntry(
        "validate",
        "preproc.classify.validate:ValidateStage",
        needs=("train",),
        gathers=True,
        makes="map",
        measures_map=True,
    ),
    StageEntry(
        "report",
        "preproc.report.stage:ReportStage",
        needs=("stitch", "predict", "validate"),
        gathers=True,
        makes="map",
    ),
)


Keep = Callable[[Path, PlannedTile], None]
"""Keeps something in the folder of a finished tile."""


def keeper(run: Run, config: Config, tiles: Sequence[PlannedTile]) -> Keep | None:
    """What keeps the medians of labelled pixels for `validate`, for tiles whose arrays go once they are embedded."""
    found = import_module("preproc.classify.sample").median_keeper(run, config, tiles)
    return cast(Keep | None, found)


def stage_named(name: str) -> StageEntry:
    """The entry of a stage; the name is one of the commands, so a wrong one is a bug."""
    return next(entry for entry in STAGES if entry.name == name)


def chain(config: Config) -> list[StageEntry]:
    """The stages of this run, in order: without labels or a classifier it ends with the mosaic of embeddings."""
    sampled = config.labels is not None and config.trains
    wanted = {"embeddings": True, "samples": sampled, "classifier": config.trains, "map": config.maps}
    return [entry for entry in STAGES if wanted[entry.makes]]


def before(entry: StageEntry, config: Config) -> list[StageEntry]:
    """The stages that a stage of this run builds on, near and far, in order."""
    wanted = {entry.name}
    for other in reversed(STAGES):  # whoever needs a stage comes after it
        if other.name in wanted:
            wanted.update(other.needs)
            if other.measures_map and config.validate_ is not None:
                wanted.add("predict")
    return [other for other in chain(config) if other.name in wanted - {entry.name}]
