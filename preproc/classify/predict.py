"""The `predict` stage: embeddings and classifier -> classes and confidence, tile by tile, then the map."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infer.contract import (
    Embedding,
    Plan,
    PlannedTile,
    Run,
    SmaltiError,
    planned_tiles,
    read_embedding,
)
from infer.contract.rasters import MapManifest
from preproc.classify.class_map import build_map
from preproc.classify.elsewhere import refuse_other_embeddings, remarks
from preproc.classify.model import Classifier, load_classifier
from preproc.classify.tile_map import KIND as TILE_KIND
from preproc.classify.tile_map import combine, prediction_paths, write_prediction
from preproc.raster.provenance import Embeddings, RunProvenance
from preproc.run.classifier import about_classifier, model_folder
from preproc.run.config import Config
from preproc.run.progress import say
from preproc.run.stage import Built, Due, Session, Unit, one_by_one
from preproc.run.workers import side_by_side, worker_count

_PIXELS = 1 << 15
"""Pixels classified at a time: 16 MiB of 128 float32 numbers."""


class PredictStage:
    """`smalti predict`: every tile, then the map of all."""

    name = "predict"
    noun = "tiles and the map"
    sharded = False
    apart = False

    def open(self, run: Run, config: Config) -> Session:
        """The tiles in the order of the plan, then the map."""
        plan = Plan.read(run)
        embeddings = Embeddings.of_run(run, plan)
        facts = embeddings.provenance(plan.tiles)
        about = about_classifier(run, config)
        classifier = about.fingerprint
        if config.predict.model is not None or config.train.runs:
            refuse_other_embeddings(model_folder(run, config), about, facts)
        inputs = {
            "classifier": classifier,
            "embeddings": facts.fingerprint,
            "model": [facts.model, facts.label, facts.trained],
            "window": list(facts.window),
            "archive": [facts.archive, *facts.data_sources],
        }
        units = [
            Unit(
                tile.name,
                prediction_paths(run, tile.name)[1],
                TILE_KIND,
                {"classifier": classifier, "embedding": embeddings.digest(tile)},
            )
            for tile in plan.tiles
        ]
        return Session(
            [*units, Unit("map", run.map_manifest, MapManifest.kind, inputs)],
            lambda due: _build(run, config, facts, due),
        )


class PredictTilesStage(PredictStage):
    """The tiles alone, in shards; `smalti predict` without --shard joins them afterwards."""

    noun = "tiles"
    sharded = True

    def open(self, run: Run, config: Config) -> Session:
        """The tiles in the order of the plan."""
        session = super().open(run, config)
        return replace(session, units=[unit for unit in session.units if unit.kind == TILE_KIND])


def _build(run: Run, config: Config, facts: RunProvenance, due: Due) -> Generator[Built]:
    tiles = {tile.name: tile for tile in planned_tiles(run)}
    predicted = [unit for unit in due.units if unit.kind == TILE_KIND]
    if predicted:
        _fitting_classifier(run, config, facts)  # said once, and not by every process
        if config.labels is None:
            for line in remarks(about_classifier(run, config), facts):
                say(f"predict: {line}")
        pixels = sum(tiles[unit.name].size ** 2 for unit in predicted)
        make = _TileMaker(run, config, facts, {unit.name: tiles[unit.name] for unit in predicted})
        yield from side_by_side(predicted, make, worker_count(config, pixels))
    joined = [unit for unit in due.units if unit.kind == MapManifest.kind]
    yield from one_by_one(joined, lambda unit: build_map(run, about_classifier(run, config).classes, facts, unit))


@dataclass
class _TileMaker:
    """Predicts tiles; each process loads the classifier once."""

    run: Run
    config: Config
    facts: RunProvenance
    tiles: Mapping[str, PlannedTile]

    def __call__(self, unit: Unit) -> None:
        _predict_tile(self.run, self._classifier, self.tiles[unit.name], unit)

    @cached_property
    def _classifier(self) -> Classifier:
        return _fitting_classifier(self.run, self.config, self.facts)


def _fitting_classifier(run: Run, config: Config, facts: RunProvenance) -> Classifier:
    classifier = load_classifier(model_folder(run, config))
    if facts.dim != classifier.dim:
        raise SmaltiError(
            f"{run.model}: trained on embeddings of {classifier.dim} numbers, those in {run.embeddings} have "
            f"{facts.dim}: run `smalti sample {run.quoted}` and `smalti train {run.quoted}` again"
        )
    return classifier


def _predict_tile(run: Run, classifier: Classifier, tile: PlannedTile, unit: Unit) -> None:
    embedding = read_embedding(run.embeddings, tile.name)
    if embedding.shape_hwc != (tile.size, tile.size, classifier.dim):
        raise SmaltiError(
            f"{run.embeddings / tile.name}.npy: {embedding.shape_hwc}, expected "
            f"{(tile.size, tile.size, classifier.dim)}: run `smalti infer {run.quoted}` again"
        )
    write_prediction(run, tile.name, classify(embedding, classifier), unit.inputs)


def classify(embedding: Embedding, classifier: Classifier) -> NDArray[np.uint8]:
    """(H, W, 2) class codes and confidence of a tile, some rows at a time; of equals the lower code wins."""
    height, width, _ = embedding.shape_hwc
    codes_k = np.array([entry.code for entry in classifier.classes], dtype=np.uint8)
    step = max(1, _PIXELS // width)
    strips = []
    for top in range(0, height, step):
        values_hwc = embedding.window(slice(top, min(top + step, height)), slice(None))
        valid_hw: NDArray[Any] = ~np.isnan(values_hwc[..., 0])
        shares_nk = classifier.predict_proba(values_hwc[valid_hw])
        best_n = shares_nk.argmax(axis=1)
        strips.append(combine(valid_hw, codes_k[best_n], shares_nk[np.arange(len(best_n)), best_n]))
    return np.concatenate(strips)
