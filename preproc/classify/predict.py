"""The `predict` stage: embeddings and classifier -> the layers of a map, sheet by sheet, then the map."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infer.contract import Inputs, Plan, PlannedTile, Run, SmaltiError
from infer.contract.classification import ClassifierManifest, RegressorManifest
from infer.contract.rasters import CleanedMap, MapManifest, MapSheet, ValueMapManifest
from infer.contract.segment import Ground, lattice, zone_of
from preproc.classify.class_map import MapZoneSheets, join_map, map_layers, sheet_manifest
from preproc.classify.cleaned import clean_map
from preproc.classify.elsewhere import refuse_other_embeddings, remarks
from preproc.classify.model import Classifier, load_classifier
from preproc.classify.regression import load_regressor
from preproc.classify.unet import WINDOW, Blended, UNet
from preproc.classify.value_map import ValueSheetMaker, join_values
from preproc.raster.cog import cog_writer
from preproc.raster.observations import BANDS, NODATA, tally
from preproc.raster.provenance import Embeddings, RunProvenance, missing_lines
from preproc.raster.strips import ROWS, Strip, strips
from preproc.raster.zones import Sheet, ZoneGrid, sheets_of, zone_grids
from preproc.run.classifier import (
    about_classifier,
    maps_number,
    model_folder,
    read_regressor,
    refuse_settings_of_classes,
)
from preproc.run.config import Config
from preproc.run.progress import say
from preproc.run.stage import Built, Due, LateInputs, Session, Unit, one_by_one
from preproc.run.workers import side_by_side, within_unit, worker_count

StripShares = Callable[[Strip], NDArray[np.float32]]
"""(h, W, K) probabilities of a strip's pixels, seen with what is around them."""
_PIXELS = 1 << 15
"""Pixels classified at a time: 16 MiB of 128 float32 numbers."""


class PredictStage:
    """`smalti predict`: every sheet, then the map."""

    name = "predict"
    noun = "sheets and the map"
    sharded = True
    apart = False

    def open(self, run: Run, config: Config) -> Session:
        """The sheets by zone, from north to south, then the map; all embeddings are looked at, once."""
        opened = _open(run, config)
        facts = opened.embeddings.provenance(opened.tiles)
        opened.refuse(facts)
        inputs = opened.inputs(facts)
        kind = ValueMapManifest.kind if opened.numbers else MapManifest.kind
        units = [*opened.units(), Unit("map", run.map_manifest, kind, inputs)]
        if config.clean.steps:
            steps = {**inputs, "clean": config.clean.model_dump(mode="json")}
            units.append(Unit("cleaned map", CleanedMap.path(run), CleanedMap.kind, steps))
        after = partial(missing_lines, self.name, run, facts.missing)
        return Session(units, lambda due: _build(opened, facts, due), after=after)


class PredictSheetsStage:
    """The sheets alone, in shards; `smalti predict` without --shard joins them afterwards."""

    name = "predict"
    noun = "sheets"
    sharded = True
    apart = False

    def open(self, run: Run, config: Config) -> Session:
        """The sheets; the embeddings of each are looked at when it is asked for."""
        opened = _open(run, config)
        _ = opened.classifier  # without one no sheet can be made
        return Session(opened.units(), lambda due: _build_sheets(opened, due.units))


@dataclass
class _Opened:
    run: Run
    config: Config
    planned: Sequence[PlannedTile]
    """The plan's tiles."""
    zones: list[MapZoneSheets]
    embeddings: Embeddings

    @cached_property
    def classifier(self) -> str:
        """Fingerprint of it."""
        if self.numbers:
            return read_regressor(model_folder(self.run, self.config)).fingerprint
        return about_classifier(self.run, self.config).fingerprint

    @cached_property
    def numbers(self) -> bool:
        """A number is mapped, not classes."""
        return maps_number(self.config)

    @property
    def tiles(self) -> Sequence[Any]:
        return [tile for zone in self.zones for tile in zone.grid.tiles]

    @property
    def sheets(self) -> list[Sheet]:
        return [sheet for zone in self.zones for sheet in zone.sheets]

    def inputs(self, facts: RunProvenance) -> Inputs:
        """What a map of some tiles depends on."""
        found = {
            "classifier": self.classifier,
            "embeddings": facts.fingerprint,
            "model": [facts.model, facts.label, facts.trained],
            "window": list(facts.window),
            "archive": [facts.archive, *facts.data_sources],
            "sheet": self.config.stitch.sheet,
        }
        return {**found, "probabilities": True} if self.config.predict.probabilities else found

    def units(self) -> list[Unit]:
        return [
            Unit(
                sheet.name,
                sheet_manifest(self.run, sheet.name),
                MapSheet.kind,
                LateInputs(lambda sheet=sheet: self._sheet_inputs(sheet)),  # type: ignore[misc]  # the sheet of now
            )
            for sheet in self.sheets
        ]

    def _sheet_inputs(self, sheet: Sheet) -> Inputs:
        grid = [sheet.grid.epsg, *sheet.grid.bounds, sheet.row, sheet.column]
        found = {**self.inputs(self.embeddings.provenance(sheet.grid.tiles)), "grid": grid}
        if not self.segments:
            return found
        return {**found, "around": self.embeddings.provenance(self.around(sheet)).fingerprint}

    def around(self, sheet: Sheet) -> list[PlannedTile]:
        """The tiles that a segmentation head sees when it maps a sheet."""
        return [tile for tile, _, _ in self._ground.tiles(*_surroundings(sheet.grid, WINDOW))]

    @cached_property
    def segments(self) -> bool:
        """A pixel's surroundings count as well."""
        return not self.numbers and about_classifier(self.run, self.config).method == "segment"

    @cached_property
    def _ground(self) -> Ground:
        return Ground(self.run, self.planned, checksums=False)

    def refuse(self, facts: RunProvenance) -> None:
        """Make sure that a classifier of another run knows such embeddings."""
        _refuse_other(self.run, self.config, facts)


def _open(run: Run, config: Config) -> _Opened:
    if maps_number(config):
        refuse_settings_of_classes(run, config)
    plan = Plan.read(run)
    embeddings = Embeddings.of_run(run, plan, gaps=config.stitch.missing == "nodata")
    zones = [MapZoneSheets(grid, tuple(sheets_of(grid, config.stitch.sheet))) for grid in zone_grids(plan.tiles)]
    return _Opened(run, config, plan.tiles, zones, embeddings)


def _build(opened: _Opened, facts: RunProvenance, due: Due) -> Generator[Built]:
    run, config = opened.run, opened.config
    sheets = [unit for unit in due.units if unit.kind == MapSheet.kind]
    if sheets:
        folder = model_folder(run, config)  # said once, not for every sheet
        dim = (load_regressor if opened.numbers else load_classifier)(folder).dim
        _refuse_misfit(run, config, facts, dim)
        if config.labels is None:
            for line in remarks(_about(run, config), facts):
                say(f"predict: {line}")
    failed = 0
    for built in _build_sheets(opened, sheets):
        failed += built.error is not None
        yield built
    for unit in due.units:
        if unit.kind == MapSheet.kind:
            continue
        if failed:
            unit.manifest.unlink(missing_ok=True)
            yield Built(unit, SmaltiError(f"not joined: {failed} of its sheets failed"))
        else:
            make = _clean if unit.kind == CleanedMap.kind else _join
            yield from one_by_one([unit], lambda unit, make=make: make(opened, facts, unit))  # type: ignore[misc]


def _join(opened: _Opened, facts: RunProvenance, unit: Unit) -> None:
    run, config = opened.run, opened.config
    if opened.numbers:
        join_values(run, read_regressor(model_folder(run, config)).value, facts, opened.zones, unit)
        return
    legend = about_classifier(run, config).classes
    join_map(run, legend, facts, opened.zones, unit, probabilities=config.predict.probabilities)


def _clean(opened: _Opened, facts: RunProvenance, unit: Unit) -> None:
    run, config = opened.run, opened.config
    legend = about_classifier(run, config).classes
    clean_map(run, config.clean, legend, facts, [zone.grid for zone in opened.zones], unit)


def _build_sheets(opened: _Opened, units: Sequence[Unit]) -> Generator[Built]:
    wanted = {unit.name for unit in units}
    sheets = {sheet.name: sheet for sheet in opened.sheets if sheet.name in wanted}
    around = {name: opened.around(sheet) for name, sheet in sheets.items()} if opened.segments else {}
    make: Callable[[Unit], None] = _SheetMaker(opened.run, opened.config, opened.embeddings, sheets, around)
    if opened.numbers:
        make = ValueSheetMaker(opened.run, model_folder(opened.run, opened.config), opened.embeddings, sheets)
    pixels = sum(sheet.pixels for sheet in sheets.values())
    yield from side_by_side(units, make, worker_count(opened.config, pixels))


@dataclass
class _SheetMaker:
    """Predicts sheets; each process loads the classifier once."""

    run: Run
    config: Config
    embeddings: Embeddings
    sheets: Mapping[str, Sheet]
    """Name -> sheet."""
    around: Mapping[str, Sequence[PlannedTile]]
    """Name -> tiles that a segmentation head sees when it maps the sheet."""

    def __call__(self, unit: Unit) -> None:
        """Write the layers of a sheet and, last, its manifest."""
        sheet = self.sheets[unit.name]
        facts = self.embeddings.provenance(sheet.grid.tiles)
        classifier = self._classifier
        _refuse_misfit(self.run, self.config, facts, classifier.dim)
        layers = map_layers(facts, classifier.classes, probabilities=self.config.predict.probabilities)
        paths = {layer.key: layer.sheet_path(self.run.map, sheet) for layer in layers}
        unit.manifest.unlink(missing_ok=True)
        counts = np.zeros((256, 101), dtype=np.int64)
        without: Counter[str] = Counter()
        with ExitStack() as stack:
            steps = -(-sheet.grid.height // ROWS)
            done = stack.enter_context(within_unit(f"predict: {sheet.name}", steps, "strips"))
            writers = {
                layer.key: stack.enter_context(cog_writer(paths[layer.key], sheet.grid, layer.layer))
                for layer in layers
            }
            blended = self._blended(sheet) if isinstance(classifier.model, UNet) else None
            for strip in strips(self.run, sheet, facts, codes=facts.int8, values=not facts.int8):
                found = predict_strip(strip, classifier, blended)
                for key, writer in writers.items():
                    writer.write(strip.top, 0, found[key])
                cells = found["classes"].astype(np.int64) * 101 + found["confidence"]
                counts += np.bincount(cells.ravel(), minlength=counts.size).reshape(counts.shape)
                if "reasons" in writers:
                    tally(without, found["reasons"])
                done()
        about = MapSheet(
            **facts.stated(),
            without=dict(sorted(without.items())),
            zone=sheet.zone,
            row=sheet.row,
            column=sheet.column,
            epsg=sheet.grid.epsg,
            bounds=sheet.grid.bounds,
            confidence={str(entry.code): tuple(counts[entry.code].tolist()) for entry in classifier.classes},
        )
        about.write(unit.manifest, inputs=unit.inputs, files=list(paths.values()))

    def _blended(self, sheet: Sheet) -> StripShares:
        """What a segmentation head says of the strips of a sheet."""
        model = self._classifier.model
        assert isinstance(model, UNet), "asked for of segmentation heads only"
        zone, top, left, _, width = _surroundings(sheet.grid, 0)
        blended = Blended(model, Ground(self.run, self.around[sheet.name], checksums=True), zone)
        return lambda strip: blended.rectangle(top + strip.top, left, strip.scales_hw.shape[0], width)

    @cached_property
    def _classifier(self) -> Classifier:
        return load_classifier(model_folder(self.run, self.config))

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_classifier"}


def _refuse_other(run: Run, config: Config, facts: RunProvenance) -> None:
    """Make sure that a classifier trained on other runs knows such embeddings."""
    if config.predict.model is not None or config.train.runs:
        refuse_other_embeddings(model_folder(run, config), _about(run, config), facts)


def _about(run: Run, config: Config) -> ClassifierManifest | RegressorManifest:
    return read_regressor(model_folder(run, config)) if maps_number(config) else about_classifier(run, config)


def _refuse_misfit(run: Run, config: Config, facts: RunProvenance, dim: int) -> None:
    _refuse_other(run, config, facts)
    if facts.dim != dim:
        raise SmaltiError(
            f"{run.model}: trained on embeddings of {dim} numbers, those in {run.embeddings} have "
            f"{facts.dim}: run `smalti sample {run.quoted}` and `smalti train {run.quoted}` again"
        )


def _surroundings(grid: ZoneGrid, margin: int) -> tuple[int, int, int, int, int]:
    """Zone, first row, first column, height and width of a grid in the zone's lattice, with a margin of pixels."""
    tops, lefts = lattice(np.array([grid.epsg]), np.array([grid.west + 5]), np.array([grid.north - 5]))
    corner = int(tops[0]) - margin, int(lefts[0]) - margin
    return zone_of(grid.epsg), *corner, grid.height + 2 * margin, grid.width + 2 * margin


def predict_strip(
    strip: Strip, classifier: Classifier, blended: StripShares | None = None
) -> dict[str, NDArray[np.uint8]]:
    """What the layers of the map hold of some rows: (h, W, bands) by key. Of equally probable classes the lower wins.

    Confidence is 1 to 100 percent, since 0 is nodata there; probabilities are 0 to 100.
    """
    height, width = strip.scales_hw.shape
    codes_k = np.array([entry.code for entry in classifier.classes], dtype=np.uint8)
    valid_n = np.isfinite(strip.scales_hw.reshape(-1))
    classes_n, confidence_n = np.zeros((2, height * width), dtype=np.uint8)
    shares_nk = None if blended is None else blended(strip).reshape(height * width, -1)
    percent_nk = np.full((height * width, len(codes_k)), NODATA, dtype=np.uint8)
    for start in range(0, height * width, _PIXELS):
        part = slice(start, start + _PIXELS)
        valid = valid_n[part]
        if shares_nk is None:
            found_nk = classifier.predict_proba(strip.valid_values(part.start, part.stop))
        else:
            found_nk = shares_nk[part][valid]
        best_n = found_nk.argmax(axis=1)
        classes_n[part][valid] = codes_k[best_n]
        best = np.rint(found_nk[np.arange(len(best_n)), best_n] * 100.0)
        confidence_n[part][valid] = np.clip(best, 1, 100).astype(np.uint8)
        percent_nk[part][valid] = np.rint(found_nk * 100.0).astype(np.uint8)
    return {
        "classes": classes_n.reshape(height, width, 1),
        "confidence": confidence_n.reshape(height, width, 1),
        "reasons": strip.observed_hwc[..., BANDS.index("reason"), None],
        "probabilities": percent_nk.reshape(height, width, len(codes_k)),
    }
