"""The `stitch` stage: embeddings -> sheets of a Zarr store and of GeoTIFFs, then what is said of all of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from infer.contract import Inputs, Plan, Run, SmaltiError, remove_stale_temporaries
from infer.contract.rasters import MosaicManifest, MosaicSheet
from preproc.mosaic.join import ZoneSheets, join_sheets
from preproc.mosaic.sheet import SheetFiles, SheetMaker, codes_layer, values_layer
from preproc.raster.cog import scratch_bytes
from preproc.raster.preview import picture_step
from preproc.raster.provenance import Embeddings, RunProvenance, missing_lines
from preproc.raster.zones import sheets_of, zone_grids
from preproc.run.config import Config
from preproc.run.stage import Built, Due, LateInputs, Session, Unit, one_by_one
from preproc.run.text import human_bytes
from preproc.run.waves import mosaic_bytes
from preproc.run.workers import side_by_side, worker_count


class StitchStage:
    """`smalti stitch`: every sheet, then what joins them."""

    name = "stitch"
    noun = "sheets and the mosaic"
    sharded = True
    apart = False

    def open(self, run: Run, config: Config) -> Session:
        """The sheets by zone, from north to south, and the mosaic; all embeddings are looked at, once."""
        opened = _open(run, config)
        facts = opened.embeddings.provenance(opened.tiles)
        joined = opened.joined(facts)
        units = [*opened.units(), joined]
        after = partial(missing_lines, self.name, run, facts.missing)
        before = partial(_cost_lines, opened, units)
        return Session(units, lambda due: _build(opened, facts, joined, due), before=before, after=after)


class StitchSheetsStage:
    """The sheets alone, in shards; `smalti stitch` without --shard joins them afterwards."""

    name = "stitch"
    noun = "sheets"
    sharded = True
    apart = False

    def open(self, run: Run, config: Config) -> Session:
        """The sheets; the embeddings of each are looked at when it is asked for."""
        opened = _open(run, config)
        return Session(opened.units(), lambda due: _build_sheets(opened, due.units))


@dataclass
class _Opened:
    run: Run
    config: Config
    zones: list[ZoneSheets]
    embeddings: Embeddings

    @property
    def tiles(self) -> Sequence[Any]:
        return [tile for zone in self.zones for tile in zone.grid.tiles]

    def units(self) -> list[Unit]:
        return [
            Unit(
                sheet.name,
                SheetFiles(self.run.mosaic, sheet.name).manifest,
                MosaicSheet.kind,
                LateInputs(lambda sheet=sheet: self._inputs(sheet)),  # type: ignore[misc]  # the sheet of now
            )
            for zone in self.zones
            for sheet in zone.sheets
        ]

    def _inputs(self, sheet: Any) -> Inputs:
        facts = self.embeddings.provenance(sheet.grid.tiles)
        settings = self.config.stitch
        return {
            **_common(facts),
            "grid": [sheet.grid.epsg, *sheet.grid.bounds, sheet.row, sheet.column],
            "formats": list(settings.formats),
            "dtype": settings.dtype if "cog" in settings.formats else "",
            "sheet": settings.sheet,
        }

    def joined(self, facts: RunProvenance) -> Unit:
        """The mosaic as a whole."""
        settings = self.config.stitch
        inputs = {
            **_common(facts),
            "formats": list(settings.formats),
            "dtype": settings.dtype if "cog" in settings.formats else "",
            "sheet": settings.sheet,
        }
        return Unit(MosaicManifest.kind, self.run.mosaic_manifest, MosaicManifest.kind, inputs)


def _common(facts: RunProvenance) -> dict[str, Any]:
    """What sheets and mosaic depend on alike, each of its own tiles."""
    return {
        "embeddings": facts.fingerprint,
        "checkpoint": facts.checkpoint,
        "model": [facts.model, facts.label, facts.trained],
        "window": list(facts.window),
        "archive": [facts.archive, *facts.data_sources],
    }


def _open(run: Run, config: Config) -> _Opened:
    plan = Plan.read(run)
    for folder, _, _ in os.walk(run.mosaic):  # what killed processes left there
        remove_stale_temporaries(Path(folder))
    embeddings = Embeddings.of_run(run, plan, gaps=config.stitch.missing == "nodata")
    zones = [
        ZoneSheets(grid, tuple(sheets_of(grid, config.stitch.sheet)), picture_step(grid.width, grid.height))
        for grid in zone_grids(plan.tiles)
    ]
    return _Opened(run, config, zones, embeddings)


def _cost_lines(opened: _Opened, units: Sequence[Unit]) -> list[str]:
    """What a large mosaic will take on disk, told before it is written."""
    if opened.run.mosaic_manifest.exists() or len(units) <= 2:
        return []  # it was written before, or is a sheet
    pixels = sum(tile.size**2 for tile in opened.tiles)
    store, rasters = mosaic_bytes(pixels, opened.config)
    free = shutil.disk_usage(opened.run.root).free
    parts = [f"{human_bytes(store)} for the store"] if store else []
    parts += [f"{human_bytes(rasters)} for the GeoTIFFs"] if rasters else []
    hint = '; [stitch] formats = ["zarr"] or ["cog"] writes one of them' if store and rasters else ""
    return [f"stitch: about {' and '.join(parts)} at most; {human_bytes(free)} are free{hint}"]


def _build(opened: _Opened, facts: RunProvenance, joined: Unit, due: Due) -> Generator[Built]:
    sheets = [unit for unit in due.units if unit.kind == MosaicSheet.kind]
    _check_space(opened, facts, sheets)
    failed = 0
    for built in _build_sheets(opened, sheets):
        failed += built.error is not None
        yield built
    if failed:
        joined.manifest.unlink(missing_ok=True)
        yield Built(joined, SmaltiError(f"not joined: {failed} of its sheets failed"))
        return
    join = partial(join_sheets, opened.run, opened.config.stitch, facts, opened.zones)
    for built in one_by_one([joined], join):
        if joined in due.units or built.error is not None:  # else it was complete until a sheet was made again
            yield built


def _build_sheets(opened: _Opened, units: Sequence[Unit]) -> Generator[Built]:
    wanted = {unit.name for unit in units}
    sheets = {sheet.name: sheet for zone in opened.zones for sheet in zone.sheets if sheet.name in wanted}
    steps = {zone.grid.label: zone.step for zone in opened.zones}
    make = SheetMaker(opened.run, opened.config.stitch, opened.embeddings, sheets, steps)
    pixels = sum(sheet.pixels for sheet in sheets.values())
    yield from side_by_side(units, make, worker_count(opened.config, pixels))


def _check_space(opened: _Opened, facts: RunProvenance, units: Sequence[Unit]) -> None:
    """Refuse early what cannot fit: GeoTIFFs stand uncompressed on the disk for a while."""
    wanted = {unit.name for unit in units}
    sheets = [sheet for zone in opened.zones for sheet in zone.sheets if sheet.name in wanted]
    if "cog" not in opened.config.stitch.formats or not sheets:
        return
    layer = codes_layer(facts, "") if opened.config.stitch.dtype == "int8" else values_layer(facts)
    workers = worker_count(opened.config, sum(sheet.pixels for sheet in sheets))  # each has one on the disk
    needed = sum(sorted(scratch_bytes(sheet.pixels, layer) for sheet in sheets)[-workers:])
    folder = opened.run.mosaic
    free = shutil.disk_usage(folder if folder.exists() else folder.parent).free
    if free < needed:
        raise SmaltiError(
            f"{folder}: the mosaic needs {needed / 1e9:.1f} GB of free disk while it is written, "
            f'{free / 1e9:.1f} GB are free: make room, or set [stitch] formats = ["zarr"] (none needed), '
            'dtype = "int8" (a quarter), or fewer [site] workers'
        )
