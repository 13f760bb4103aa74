"""One sheet of the mosaic: its tiles, read strip by strip, become a shard of the store, a GeoTIFF, or both."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infer.contract import Run, atomic_file, open_npy, write_npy
from infer.contract.embedding import dequantise
from infer.contract.rasters import MosaicSheet
from preproc.mosaic.store import STORE, arrays_of, shard_writers
from preproc.raster.cog import Layer, cog_writer
from preproc.raster.observations import BANDS, observation_layer, tally
from preproc.raster.provenance import Embeddings, RunProvenance
from preproc.raster.strips import CODES_NODATA, ROWS, Strip, strips, without_nodata
from preproc.raster.vrt import INDEX
from preproc.raster.zones import Sheet
from preproc.run.config import Stitch
from preproc.run.stage import Unit
from preproc.run.workers import within_unit

PREVIEWS = "previews"
"""Folder of the pixels that previews are made of; what the mosaic is to others does not need it."""


def codes_layer(facts: RunProvenance, stem: str) -> Layer:
    """The GeoTIFF of int8 codes."""
    tags = {**facts.tags(), "SMALTI_CONTENT": f"{facts.content}: value = code * {stem}_scales.tif"}
    return Layer("int8", CODES_NODATA, band_names(facts), "nearest", tags)


def scales_layer(facts: RunProvenance, stem: str) -> Layer:
    """The GeoTIFF of their scales."""
    tags = {**facts.tags(), "SMALTI_CONTENT": f"scales of the codes in {stem}.tif"}
    return Layer("float32", float("nan"), ("scale",), "nearest", tags)


def values_layer(facts: RunProvenance) -> Layer:
    """The GeoTIFF of float32 values."""
    tags = {**facts.tags(), "SMALTI_CONTENT": f"{facts.content}: value"}
    return Layer("float32", float("nan"), band_names(facts), "average", tags)


def band_names(facts: RunProvenance) -> tuple[str, ...]:
    """Of the numbers of an embedding, as the columns of samples.parquet."""
    return tuple(f"e{index:03d}" for index in range(facts.dim))


@dataclass(frozen=True)
class SheetFiles:
    """Where what is made of a sheet goes."""

    folder: Path
    """RUN/mosaic."""
    name: str
    """Of the sheet."""

    @property
    def stem(self) -> str:
        """Of its GeoTIFFs and its STAC item."""
        return f"embeddings_{self.name}"

    @property
    def raster(self) -> Path:
        """Values or codes."""
        return self.folder / f"{self.stem}.tif"

    @property
    def scales(self) -> Path:
        """Of codes."""
        return self.folder / f"{self.stem}_scales.tif"

    @property
    def small_codes(self) -> Path:
        """Every so many pixels' codes, for the preview."""
        return self.folder / PREVIEWS / f"{self.name}.npy"

    @property
    def small_scales(self) -> Path:
        """And their scales."""
        return self.folder / PREVIEWS / f"{self.name}_scales.npy"

    @property
    def manifest(self) -> Path:
        """Of all of them."""
        return self.folder / f"sheet_{self.name}.json"

    @property
    def observations(self) -> Path:
        """How often each pixel was seen, as a GeoTIFF."""
        return self.folder / f"observations_{self.name}.tif"

    def rasters(self, dtype: str) -> list[Path]:
        """The GeoTIFFs of the embeddings."""
        return [self.raster, self.scales] if dtype == "int8" else [self.raster]


@dataclass
class SheetMaker:
    """Makes sheets, in whatever process."""

    run: Run
    settings: Stitch
    embeddings: Embeddings
    sheets: Mapping[str, Sheet]
    """Name -> sheet."""
    steps: Mapping[str, int]
    """Label of a zone -> pixels along one of its preview."""

    def __call__(self, unit: Unit) -> None:
        """Make the files of a sheet and, last, its manifest.

        Raises:
            SmaltiError: if an embedding is missing, damaged or of another model, or the disk is full.
        """
        sheet = self.sheets[unit.name]
        facts = self.embeddings.provenance(sheet.grid.tiles)
        files = SheetFiles(self.run.mosaic, sheet.name)
        _withdraw(self.run)
        unit.manifest.unlink(missing_ok=True)
        made = [files.small_codes, files.small_scales, files.observations]
        without: Counter[str] = Counter()
        with ExitStack() as stack:
            takers: list[Callable[[Strip], int]] = []
            if "zarr" in self.settings.formats:
                arrays, store = arrays_of(facts), self.run.mosaic / STORE
                threads = len(os.sched_getaffinity(0))
                put = stack.enter_context(shard_writers(store, sheet, arrays, self.settings.sheet, threads))
                takers.append(lambda strip: _give(put, strip))
                made += [store / array.file(sheet) for array in arrays]
            if "cog" in self.settings.formats:
                takers.append(_cog_taker(stack, files, sheet, facts, self.settings.dtype))
                made += files.rasters(self.settings.dtype)
            floats = "cog" in self.settings.formats and self.settings.dtype == "float32"
            observed = stack.enter_context(cog_writer(files.observations, sheet.grid, observation_layer(facts)))
            steps = -(-sheet.grid.height // ROWS)
            done = stack.enter_context(within_unit(f"stitch: {sheet.name}", steps, "strips"))
            small = _Small(sheet, self.steps[sheet.zone])
            pixels = clipped = 0
            for strip in strips(self.run, sheet, facts, codes=True, values=floats):
                clipped += sum(take(strip) for take in takers)
                small.take(strip)
                observed.write(strip.top, 0, strip.observed_hwc)
                tally(without, strip.observed_hwc[..., BANDS.index("reason")])
                pixels += int(np.count_nonzero(np.isfinite(strip.scales_hw)))
                done()
        small.write(files)
        about = MosaicSheet(
            **facts.stated(),
            without=dict(sorted(without.items())),
            zone=sheet.zone,
            row=sheet.row,
            column=sheet.column,
            epsg=sheet.grid.epsg,
            bounds=sheet.grid.bounds,
            pixels=pixels,
            codes_clipped=clipped,
            tiles=tuple(tile.name for tile in sheet.grid.tiles),
            embeddings={t.name: self.embeddings.digest(t) for t in sheet.grid.tiles if t.name not in facts.missing},
        )
        about.write(unit.manifest, inputs=unit.inputs, files=made)


def _withdraw(run: Run) -> None:
    """Take back what is said of all sheets together: one is made again, perhaps with another corner of the zone."""
    run.mosaic_manifest.unlink(missing_ok=True)
    (run.mosaic / STORE / "zarr.json").unlink(missing_ok=True)
    for suffix in (".vrt", INDEX):
        for path in run.mosaic.glob(f"*{suffix}"):
            path.unlink(missing_ok=True)


def _give(put: Callable[[int, NDArray[np.int8], NDArray[np.float32], NDArray[np.uint8]], None], strip: Strip) -> int:
    assert strip.codes_hwc is not None
    put(strip.top, strip.codes_hwc, strip.scales_hw, strip.observed_hwc)
    return 0


def _cog_taker(
    stack: ExitStack, files: SheetFiles, sheet: Sheet, facts: RunProvenance, dtype: str
) -> Callable[[Strip], int]:
    """What writes strips to the GeoTIFFs and says how many codes it had to move."""
    if dtype == "float32":
        pixels = stack.enter_context(cog_writer(files.raster, sheet.grid, values_layer(facts)))

        def take_values(strip: Strip) -> int:
            if strip.values_hwc is not None and np.isfinite(strip.scales_hw).any():
                pixels.write(strip.top, 0, strip.values_hwc)
            return 0

        return take_values
    codes = stack.enter_context(cog_writer(files.raster, sheet.grid, codes_layer(facts, files.stem)))
    scales = stack.enter_context(cog_writer(files.scales, sheet.grid, scales_layer(facts, files.stem)))

    def take_codes(strip: Strip) -> int:
        assert strip.codes_hwc is not None
        if not np.isfinite(strip.scales_hw).any():
            return 0  # what is never written is nodata
        codes_hwc, scales_hw, clipped = without_nodata(strip.codes_hwc, strip.scales_hw)
        codes.write(strip.top, 0, codes_hwc)
        scales.write(strip.top, 0, scales_hw[..., None])
        return clipped

    return take_codes


@dataclass
class _Small:
    """Every `step`-th pixel of the zone in both directions."""

    sheet: Sheet
    step: int
    codes: list[NDArray[np.int8]] = field(default_factory=list)
    scales: list[NDArray[np.float32]] = field(default_factory=list)

    def take(self, strip: Strip) -> None:
        rows = slice(-(self.sheet.top + strip.top) % self.step, None, self.step)
        columns = slice(-self.sheet.left % self.step, None, self.step)
        assert strip.codes_hwc is not None
        self.codes.append(strip.codes_hwc[rows, columns].copy())
        self.scales.append(strip.scales_hw[rows, columns].copy())

    def write(self, files: SheetFiles) -> None:
        for path, parts in ((files.small_codes, self.codes), (files.small_scales, self.scales)):
            with atomic_file(path) as temporary:
                write_npy(temporary, np.concatenate(parts))


def small_values(
    files: SheetFiles, rows: slice = slice(None), columns: slice = slice(None)
) -> Iterator[NDArray[np.float32]]:
    """(h, w, C) values of a sheet's pixels in the preview, or of some, NaN = nodata, a few rows at a time."""
    codes_hwc, scales_hw = (
        open_npy(path, "run `smalti stitch` again")[rows, columns] for path in (files.small_codes, files.small_scales)
    )
    for top in range(0, codes_hwc.shape[0], ROWS):
        rows_hw = np.asarray(scales_hw[top : top + ROWS])
        yield dequantise(np.asarray(codes_hwc[top : top + ROWS]), np.where(np.isfinite(rows_hw), rows_hw, np.nan))
