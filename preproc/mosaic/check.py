"""`smalti stitch --check`: a finished mosaic read back and compared with the embeddings, number by number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import zarr
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.windows import Window

from infer.contract import Plan, Run, SmaltiError
from infer.contract.rasters import MosaicManifest
from preproc.mosaic.sheet import SheetFiles
from preproc.mosaic.store import OBSERVATIONS, STORE, arrays_of, group_of
from preproc.raster.provenance import Embeddings, RunProvenance
from preproc.raster.strips import Strip, strips, without_nodata
from preproc.raster.zones import FALSE_NORTHING, Sheet, ZoneGrid, sheets_of, zone_grids
from preproc.run.config import Config
from preproc.run.progress import progress

_MOST = 20
"""Problems that are told."""


def check_mosaic(run: Run, config: Config) -> str:
    """Read a mosaic back: place and CRS, coverage, every code and scale of the store and of the GeoTIFFs.

    Returns:
        For people: what was compared.

    Raises:
        SmaltiError: listing what is not as it should be.
    """
    made = MosaicManifest.read(run)
    plan = Plan.read(run)
    embeddings = Embeddings.of_run(run, plan, gaps=config.stitch.missing == "nodata")
    zones = [(grid, sheets_of(grid, config.stitch.sheet)) for grid in zone_grids(plan.tiles)]
    problems: list[str] = []
    missing = sorted({grid.label for grid, _ in zones} ^ set(made.zones))
    problems += [f"{run.mosaic_manifest}: zone {label} is in the plan or the mosaic, not in both" for label in missing]
    pixels = 0
    with progress("stitch: checking", sum(len(sheets) for _, sheets in zones), "sheets") as bar:
        for grid, sheets in zones:
            for sheet in sheets:
                facts = embeddings.provenance(sheet.grid.tiles)
                try:
                    pixels += _check_sheet(run, made, facts, grid, sheet, problems)
                except (RasterioError, OSError, ValueError, KeyError, RuntimeError) as error:
                    problems.append(f"{sheet.name}: cannot be read: {' '.join(str(error).split())}")
                bar.advance(note=sheet.name)
    if pixels != made.pixels and not problems:
        problems.append(f"{run.mosaic_manifest}: says {made.pixels} pixels with an embedding, there are {pixels}")
    if problems:
        more = [f"... and {len(problems) - _MOST} more"] if len(problems) > _MOST else []
        remedy = f"run `smalti stitch {run.quoted} --force`"
        raise SmaltiError("\n".join([f"{run.mosaic}: not what the embeddings say: {remedy}", *problems[:_MOST], *more]))
    kinds = " and ".join([*(["store"] if made.store else []), *(["GeoTIFFs"] if _has_rasters(made) else [])])
    return f"{run.mosaic}: {pixels} pixels of {kinds} have the numbers of the embeddings, in their places"


def _has_rasters(made: MosaicManifest) -> bool:
    return any(zone.raster is not None for zone in made.zones.values())


def _check_sheet(
    run: Run, made: MosaicManifest, facts: RunProvenance, grid: ZoneGrid, sheet: Sheet, problems: list[str]
) -> int:
    """Compare one sheet; how many of its pixels have an embedding."""
    readers = []
    if made.store is not None:
        readers.append(_store_problems(run.mosaic / STORE, facts, grid, sheet))
    if _has_rasters(made):
        readers.append(_raster_problems(SheetFiles(run.mosaic, sheet.name), made.dtype, sheet))
    for reader in readers:
        next(reader)
    pixels = 0
    for strip in strips(run, sheet, facts, codes=True, values=made.dtype == "float32"):
        pixels += int(np.count_nonzero(np.isfinite(strip.scales_hw)))
        for reader in readers:
            problems += [f"{sheet.name}, rows from {strip.top}: {text}" for text in reader.send(strip)]
            next(reader)
    return pixels


_Reader = Any
"""A generator: sent a strip, it yields what is wrong there."""


def _store_problems(folder: Path, facts: RunProvenance, grid: ZoneGrid, sheet: Sheet) -> _Reader:
    group: Any = zarr.open_group(folder, mode="r")[group_of(grid)]
    north = grid.north - (FALSE_NORTHING if grid.epsg > 32700 else 0)
    found = group.attrs["proj:code"], list(group.attrs["spatial:transform"])
    wanted = f"EPSG:{32600 + grid.epsg % 100}", [10.0, 0.0, float(grid.west), 0.0, -10.0, float(north)]
    arrays = arrays_of(facts)
    absent = [array.name for array in arrays if not (folder / array.file(sheet)).is_file()]
    first = [f"the store's shard of {name} is not there" for name in absent]
    first += [] if found == wanted else [f"the store lies at {found}, expected {wanted}"]
    strip: Strip = yield
    while True:
        texts, first = first, []
        scales = np.where(strip.scales_hw == 0, np.float32(1), strip.scales_hw)
        rows = slice(sheet.top + strip.top, sheet.top + strip.top + scales.shape[0])
        columns = slice(sheet.left, sheet.left + scales.shape[1])
        for array in arrays:
            if array.bands:
                read = np.moveaxis(group[array.name][0, :, rows, columns], 0, 2)
                wanted_hwc = strip.observed_hwc if array.name == OBSERVATIONS else _stored_codes(strip)
                same = read == wanted_hwc[..., : array.bands]
                wrong = int(np.count_nonzero(~same.all(axis=2)))
            else:
                read = group[array.name][0, rows, columns]
                wrong = int(np.count_nonzero(~((read == scales) | (np.isnan(read) & np.isnan(scales)))))
            texts += [f"{wrong} pixels of {array.name} in the store differ"] if wrong else []
        yield texts
        strip = yield


def _stored_codes(strip: Strip) -> NDArray[np.int8]:
    """Of pixels whose scale is 0 the store has no codes, see `shard_writers`."""
    assert strip.codes_hwc is not None
    return np.where((strip.scales_hw == 0)[..., None], np.int8(0), strip.codes_hwc)


def _raster_problems(files: SheetFiles, dtype: str, sheet: Sheet) -> _Reader:
    first: list[str] = []
    paths = files.rasters(dtype)
    sources = [rasterio.open(path) for path in paths]
    for path, source in zip(paths, sources, strict=True):
        found = source.crs.to_epsg(), source.transform, source.width, source.height
        wanted = sheet.grid.epsg, sheet.grid.transform, sheet.grid.width, sheet.grid.height
        first += [] if found == wanted else [f"{path.name} lies at {found}, expected {wanted}"]
    try:
        strip: Strip = yield
        while True:
            texts, first = first, []
            window = Window(0, strip.top, *strip.scales_hw.shape[::-1])
            assert strip.codes_hwc is not None
            if dtype == "float32":
                expected: list[Any] = [strip.values_hwc]
            else:
                codes_hwc, scales_hw, _ = without_nodata(strip.codes_hwc, strip.scales_hw)
                expected = [codes_hwc, scales_hw[..., None]]
            for path, source, wanted_hwc in zip(paths, sources, expected, strict=True):
                read = np.moveaxis(source.read(window=window), 0, 2)
                same = (read == wanted_hwc) | ((read != read) & (wanted_hwc != wanted_hwc))  # NaN is NaN
                wrong = int(np.count_nonzero(~same.all(axis=2)))
                texts += [f"{wrong} pixels of {path.name} differ"] if wrong else []
            yield texts
            strip = yield
    finally:
        for source in sources:
            source.close()
