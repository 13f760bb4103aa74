"""The cleaned map, RUN/map/cleaned/: the map after the steps of [clean], beside the one that was predicted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window

from infer.contract import PIXEL_SIZE, Run, write_bytes
from infer.contract.classification import ClassEntry
from infer.contract.rasters import CleanedClass, CleanedMap, MapManifest
from preproc.classify.class_map import map_layers
from preproc.classify.clean import majority, minimum_unit, smoothed, unit_margin
from preproc.raster.cog import cog_writer, scratch_folder
from preproc.raster.legend import gdal_categories, qgis_style
from preproc.raster.observations import NODATA
from preproc.raster.provenance import RunProvenance
from preproc.raster.zones import ZoneGrid
from preproc.run.config import Clean
from preproc.run.progress import Bar, progress, say
from preproc.run.stage import Unit

_BLOCK = 1024
"""Pixels along a block; each step sees a margin around it."""
_ROUNDS = 20
"""Of the minimum unit at the most: patches of patches of patches."""
_HECTARES = PIXEL_SIZE**2 / 10_000

Step = Callable[[NDArray[np.uint8], Window], NDArray[np.uint8]]
"""Codes of a window (H, W), and the window -> cleaned codes."""


def unit_pixels(hectares: float) -> int:
    """Pixels of a minimum mapping unit."""
    return int(np.ceil(hectares / _HECTARES - 1e-9))


def clean_map(
    run: Run, settings: Clean, legend: Sequence[ClassEntry], facts: RunProvenance, grids: Sequence[ZoneGrid], unit: Unit
) -> None:
    """Clean the joined map zone by zone; writes RUN/map/cleaned/ and, last, its manifest.

    Raises:
        SmaltiError: if the map is missing or damaged, or the disk is full.
    """
    unit.manifest.unlink(missing_ok=True)
    made = MapManifest.read(run).verify(run)
    folder = run.map / "cleaned"
    folder.mkdir(exist_ok=True)
    plain = map_layers(facts, legend, probabilities=False)[0].layer
    layer = replace(plain, tags={**plain.tags, "SMALTI_CLEANED": "; ".join(settings.steps)})
    counts, files, changed = np.zeros(256, dtype=np.int64), [], 0
    with progress("predict: cleaning", None, "blocks") as bar:
        for grid in grids:
            zone = made.zones[grid.label]
            target = folder / f"classes_{grid.label}.tif"
            with scratch_folder(target) as scratch:
                source = run.map / zone.classes
                shares = None if zone.probabilities is None else run.map / zone.probabilities
                cleaned = _cleaned(source, shares, scratch, settings, legend, bar)
                with (
                    rasterio.open(source) as before,
                    rasterio.open(cleaned) as after,
                    cog_writer(target, grid, layer, tell=lambda text: bar.advance(0, note=text)) as writer,
                ):
                    for window in _blocks(after):
                        codes_hw = after.read(1, window=window)
                        if codes_hw.any():
                            writer.write(int(window.row_off), int(window.col_off), codes_hw[..., None])
                            counts += np.bincount(codes_hw.ravel(), minlength=256)
                            changed += int((codes_hw != before.read(1, window=window)).sum())
            style, categories = target.with_suffix(".qml"), target.with_name(f"{target.name}.aux.xml")
            write_bytes(style, qgis_style(legend))
            write_bytes(categories, gdal_categories(legend))
            files += [target, style, categories]
    for path in folder.iterdir():  # of zones that the plan no longer has
        if path.is_file() and path.name.startswith("classes_") and path not in files:
            path.unlink()
    counts[0] = 0
    about = CleanedMap(
        steps=settings.steps,
        pixels=int(counts.sum()),
        changed=changed,
        classes=tuple(
            CleanedClass(e.code, e.name, e.color, int(counts[e.code]), round(int(counts[e.code]) * _HECTARES, 2))
            for e in legend
        ),
        zones={grid.label: f"classes_{grid.label}.tif" for grid in grids},
    )
    about.write(unit.manifest, inputs=unit.inputs, files=files)
    share = changed / max(1, about.pixels)
    say(f"predict: map/cleaned differs from the map in {share:.1%} of the pixels: {'; '.join(settings.steps)}")


def _cleaned(
    source: Path, shares: Path | None, scratch: Path, settings: Clean, legend: Sequence[ClassEntry], bar: Bar
) -> Path:
    """The steps one after the other, each from a file to a file in `scratch`; the last file."""
    current = source
    if settings.smooth and shares is not None:
        codes_k = np.array([entry.code for entry in legend], dtype=np.uint8)
        with rasterio.open(shares) as probabilities:

            def smooth(codes_hw: NDArray[np.uint8], window: Window) -> NDArray[np.uint8]:
                percent_khw = probabilities.read(window=window)
                index_hw = smoothed(percent_khw, settings.smooth, settings.smoothness, NODATA)
                return np.where(codes_hw > 0, codes_k[index_hw], 0).astype(np.uint8)

            current = _step(current, scratch / "smooth.tif", settings.smooth // 2, smooth, bar)[0]
    if settings.majority:
        side = settings.majority
        current = _step(current, scratch / "majority.tif", side // 2, lambda hw, _: majority(hw, side), bar)[0]
    pixels = unit_pixels(settings.minimum_unit)
    for number in range(_ROUNDS if pixels > 1 else 0):
        margin = unit_margin(pixels)
        path = scratch / f"unit{number % 2}.tif"
        current, changed = _step(current, path, margin, lambda hw, _: minimum_unit(hw, pixels), bar)
        if not changed:
            break
    return current


def _step(source: Path, target: Path, margin: int, step: Step, bar: Bar) -> tuple[Path, int]:
    """One step over a whole raster, block by block; the target and how many pixels it changed."""
    changed = 0
    with rasterio.open(source) as before:
        profile: dict[str, Any] = {
            "driver": "GTiff",
            "width": before.width,
            "height": before.height,
            "count": 1,
            "dtype": "uint8",
            "nodata": 0,
            "crs": before.crs,
            "transform": before.transform,
            "tiled": True,
            "blockxsize": 256,
            "blockysize": 256,
            "compress": "lzw",
            "sparse_ok": True,
        }
        with rasterio.open(target, "w", **profile) as after:
            for core in _blocks(before):
                top, left = max(0, int(core.row_off) - margin), max(0, int(core.col_off) - margin)
                bottom = min(before.height, int(core.row_off + core.height) + margin)
                right = min(before.width, int(core.col_off + core.width) + margin)
                window = Window(left, top, right - left, bottom - top)
                codes_hw = before.read(1, window=window)
                rows = slice(int(core.row_off) - top, int(core.row_off) - top + int(core.height))
                columns = slice(int(core.col_off) - left, int(core.col_off) - left + int(core.width))
                if codes_hw[rows, columns].any():
                    made_hw = step(codes_hw, window)[rows, columns]
                    changed += int((made_hw != codes_hw[rows, columns]).sum())
                    after.write(made_hw, 1, window=core)
                bar.advance(note=target.stem)
    return target, changed


def _blocks(raster: Any) -> Iterator[Window]:
    for top in range(0, raster.height, _BLOCK):
        for left in range(0, raster.width, _BLOCK):
            yield Window(left, top, min(_BLOCK, raster.width - left), min(_BLOCK, raster.height - top))
