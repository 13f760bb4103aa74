"""The cleaned map, RUN/map/cleaned/: the map after the steps of [clean], beside the one that was predicted.

The steps (smoothed probabilities, a majority of neighbours, a minimum mapping unit) are pure: each takes a window with
a margin and is right inside of it, so that a map of any size is cleaned block by block with the same outcome, wherever
the blocks lie. 0 is nodata: it is no neighbour, and stays what it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from rasterio.windows import Window

from infer.contract import PIXEL_SIZE, Run, write_bytes
from infer.contract.classification import ClassEntry
from infer.contract.rasters import CleanedClass, CleanedMap, MapManifest
from preproc.classify.class_map import map_layers
from preproc.raster.cog import cog_writer, scratch_folder
from preproc.raster.legend import gdal_categories, qgis_style
from preproc.raster.observations import NODATA
from preproc.raster.provenance import RunProvenance
from preproc.raster.zones import ZoneGrid
from preproc.run.config import Clean
from preproc.run.progress import Bar, progress, say
from preproc.run.stage import Unit

FRACTION = 0.5
"""Of the neighbours, by falling probability, that count in smoothing: across an edge there are others."""
_ROWS = 32
"""Smoothed at a time: 49 neighbours of a block of 1024 take 6 MiB a class."""
_ALL, _FIRST, _LAST = slice(None), slice(None, -1), slice(1, None)
_SIDES = (
    ((_FIRST, _ALL), (_LAST, _ALL)),
    ((_LAST, _ALL), (_FIRST, _ALL)),
    ((_ALL, _FIRST), (_ALL, _LAST)),
    ((_ALL, _LAST), (_ALL, _FIRST)),
)
"""Pixels and their neighbours, in four directions."""
_BLOCK = 1024
"""Pixels along a block; each step sees a margin around it."""
_ROUNDS = 20
"""Of the minimum unit at the most: patches of patches of patches."""
_HECTARES = PIXEL_SIZE**2 / 10_000

Step = Callable[[NDArray[np.uint8], Window], NDArray[np.uint8]]
"""Codes of a window (H, W), and the window -> cleaned codes."""


def smoothed(percent_khw: NDArray[np.uint8], side: int, smoothness: float, nodata: int) -> NDArray[np.intp]:
    """The likeliest class after Bayesian smoothing (Camara et al. 2024, R package sits: sits_smooth), margin side // 2.

    The logit x of a pixel's probability is drawn towards the mean m of its neighbourhood: with their variance s2 it
    becomes (s2 x + smoothness m) / (s2 + smoothness), class by class.

    Args:
        percent_khw: (K, H, W) probabilities in percent.
        side: of the square neighbourhood, odd.
        smoothness: variance that a pixel's own logit is believed to have; larger is smoother.
        nodata: of percent_khw.

    Returns:
        (H, W) index of the class; meaningless where there is no data.
    """
    half = side // 2
    best_hw = np.full(percent_khw.shape[1:], -np.inf, dtype=np.float32)
    index_hw = np.zeros(percent_khw.shape[1:], dtype=np.intp)
    for k, percent_hw in enumerate(percent_khw):
        share_hw = np.clip(percent_hw.astype(np.float32) / 100, 0.005, 0.995)
        logit_hw = np.log(share_hw / (1 - share_hw))
        logit_hw[percent_hw == nodata] = np.nan
        padded = np.pad(logit_hw, half, constant_values=np.nan)
        for top in range(0, len(logit_hw), _ROWS):
            own_hw = logit_hw[top : top + _ROWS]
            around = sliding_window_view(padded[top : top + len(own_hw) + 2 * half], (side, side))
            # the largest first, what is missing last
            ordered = -np.sort(-around.reshape(*own_hw.shape, side * side), axis=2)
            count_hw = np.rint(FRACTION * (~np.isnan(ordered)).sum(axis=2))
            used = np.arange(side * side) < count_hw[..., None]
            with np.errstate(divide="ignore", invalid="ignore"):
                mean_hw = np.where(used, ordered, 0).sum(axis=2) / count_hw
                variance_hw = np.where(used, (ordered - mean_hw[..., None]) ** 2, 0).sum(axis=2) / (count_hw - 1)
                drawn_hw = (variance_hw * own_hw + smoothness * mean_hw) / (variance_hw + smoothness)
            drawn_hw = np.where(count_hw >= 2, drawn_hw, own_hw)
            better = drawn_hw > best_hw[top : top + _ROWS]
            best_hw[top : top + _ROWS][better] = drawn_hw[better]
            index_hw[top : top + _ROWS][better] = k
    return index_hw


def majority(codes_hw: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """The commonest class of a square around each pixel, margin side // 2; its own wins a tie, then the lower."""
    present = np.unique(codes_hw[codes_hw > 0])
    most_hw = np.zeros(codes_hw.shape, dtype=np.int32)
    for code in present:
        own = codes_hw == code
        most_hw[own] = _around(own, side)[own]
    made = codes_hw.copy()
    for code in present:
        count_hw = _around(codes_hw == code, side)
        better = (count_hw > most_hw) & (codes_hw > 0)
        made[better] = code
        most_hw[better] = count_hw[better]
    return made


def _around(is_hw: NDArray[np.bool_], side: int) -> NDArray[np.int32]:
    """How many pixels of a square around each are."""
    half = side // 2
    sums = np.pad(is_hw, ((half + 1, half), (half + 1, half))).cumsum(axis=0, dtype=np.int32).cumsum(axis=1)
    return np.asarray(sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side], np.int32)


def unit_margin(pixels: int) -> int:
    """Margin that `minimum_unit` needs: a patch of fewer pixels and the patches beside it are seen whole, or large."""
    return 2 * pixels + 1


def minimum_unit(codes_hw: NDArray[np.uint8], pixels: int) -> NDArray[np.uint8]:
    """One round of giving patches of fewer pixels to their neighbours; see `unit_margin`.

    A patch (pixels of one class that touch by their sides) takes the class that most of its border is shared with, of
    patches that are large enough; where it has none of them, it waits for the next round. Of equal ones the lower wins.
    """
    from scipy import ndimage  # here: few maps are cleaned

    patch_hw = np.zeros(codes_hw.shape, dtype=np.int32)
    count = 0
    for code in np.unique(codes_hw[codes_hw > 0]):
        labels_hw, found = ndimage.label(codes_hw == code)
        here = labels_hw > 0
        patch_hw[here] = labels_hw[here] + count
        count += found
    small_p = np.bincount(patch_hw.ravel(), minlength=count + 1) < pixels
    small_p[0] = False
    small_hw = small_p[patch_hw]
    large_hw = (codes_hw > 0) & ~small_hw
    keys = []
    for here, there in _SIDES:
        touching = small_hw[here] & large_hw[there]
        keys.append(patch_hw[here][touching].astype(np.int64) * 256 + codes_hw[there][touching])
    pairs, lengths = np.unique(np.concatenate(keys), return_counts=True)
    order = np.lexsort((-(pairs % 256), lengths, pairs // 256))  # the last of a patch is what it becomes
    becomes_p = np.zeros(count + 1, dtype=np.uint8)
    becomes_p[pairs[order] // 256] = pairs[order] % 256
    new_hw = becomes_p[patch_hw]
    return np.where(small_hw & (new_hw > 0), new_hw, codes_hw)


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
