"""Embeddings small enough for a browser: eight numbers a pixel, for the preview and the search by example.

The first axis is the direction of the mean, the others the principal axes of what differs from it: cosines between
such short vectors are those of the embeddings, as far as the eight axes hold what differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infer.contract import Run, SmaltiError, planned_tiles
from infer.contract.embedding import dequantise
from preproc.explore.groups import draw_sample
from preproc.explore.strips import Strip, squares, write_layer
from preproc.raster.cog import Layer
from preproc.raster.provenance import read_provenance
from preproc.raster.zones import zone_grids
from preproc.run.progress import progress, say

NUMBERS = 8
MIDDLE = 128
"""Code of 0; codes are 1 to 255, and 0 is nodata."""
_WIDEST = 99.9
"""Percentile of the sample that becomes the largest code: a few pixels are cut, all others told apart more finely."""


@dataclass(frozen=True)
class Shortened:
    """How to shorten an embedding of length one."""

    axes_ck: NDArray[np.float32]
    """(C, K) orthonormal."""
    scale_k: NDArray[np.float32]
    """Number = (code - MIDDLE) * scale."""
    low_3: NDArray[np.float32]
    """Of numbers 1 to 3, what is black in the preview."""
    high_3: NDArray[np.float32]

    def codes(self, values_nc: NDArray[np.float32]) -> NDArray[np.uint8]:
        """(N, K) codes of embeddings of any length but 0."""
        short_nk = _units(values_nc) @ self.axes_ck
        whole_nk = np.clip(np.rint(short_nk / self.scale_k), -MIDDLE + 1, MIDDLE - 1)
        codes_nk: NDArray[np.uint8] = (whole_nk + MIDDLE).astype(np.uint8)
        return codes_nk

    def described(self) -> dict[str, Any]:
        """For the page."""
        parts = {"scale": self.scale_k, "low": self.low_3, "high": self.high_3}
        return {name: [float(f"{value:.6g}") for value in part] for name, part in parts.items()}


def learn_axes(sample_nc: NDArray[np.float32]) -> Shortened:
    """The axes that tell the pixels of a sample apart best. Pure.

    Args:
        sample_nc: (N, C) embeddings, at least one.
    """
    units_nc = _units(sample_nc).astype(np.float64)
    mean_c = units_nc.mean(axis=0)
    first_c = mean_c / max(float(np.linalg.norm(mean_c)), 1e-12)
    rest_nc = units_nc - np.outer(units_nc @ first_c, first_c)
    rest_nc -= rest_nc.mean(axis=0)
    _, vectors_cc = np.linalg.eigh(rest_nc.T @ rest_nc)
    others_ck = vectors_cc[:, ::-1][:, : min(NUMBERS, len(mean_c)) - 1]  # the last one of all is the first axis again
    others_ck = others_ck * np.sign(others_ck[np.abs(others_ck).argmax(axis=0), np.arange(others_ck.shape[1])])
    axes_ck = np.zeros((len(mean_c), NUMBERS))  # of embeddings with fewer numbers the last axes are empty
    axes_ck[:, 0] = first_c
    axes_ck[:, 1 : 1 + others_ck.shape[1]] = others_ck
    short_nk = units_nc @ axes_ck
    widest_k = np.percentile(np.abs(short_nk), _WIDEST, axis=0)
    low_3, high_3 = np.percentile(short_nk[:, 1:4], (2, 98), axis=0)
    high_3 = np.where(high_3 > low_3, high_3, low_3 + 1)
    scale_k = np.maximum(widest_k, 1e-6) / (MIDDLE - 1)
    return Shortened(*(part.astype(np.float32) for part in (axes_ck, scale_k, low_3, high_3)))


def _units(values_nc: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths_n1 = np.linalg.norm(values_nc, axis=1, keepdims=True)
    units_nc: NDArray[np.float32] = values_nc / np.maximum(lengths_n1, 1e-12)
    return units_nc


def _nothing(strip: Strip, values_hwk: NDArray[np.uint8]) -> None:
    """What has to be done with the values of a strip, beside writing them."""


def write_short(run: Run, folder: Path) -> tuple[Shortened, tuple[Path, ...]] | None:
    """Write short_<zone>.tif of all zones; None, and a line that says why, where there are no embeddings.

    Args:
        run: the run directory.
        folder: for the rasters.
    """
    try:
        facts = read_provenance(run, gaps=True)
        found = learn_axes(draw_sample(run, facts, 0))
    except SmaltiError as error:
        say(f"atlas: no preview and no search by example: {error}")
        return None
    tiles = planned_tiles(run)
    if facts.missing:
        say(f"atlas: {len(facts.missing)} of {len(tiles)} tiles have no embedding: preview and search are without them")

    def shorten(strip: Strip) -> NDArray[np.uint8]:
        valid_hw = strip.valid_hw
        codes_hwk = np.zeros((*valid_hw.shape, NUMBERS), np.uint8)
        values = strip.values_hwc[valid_hw]
        if strip.scales_hw is not None:
            values = dequantise(values, strip.scales_hw[valid_hw])
        codes_hwk[valid_hw] = found.codes(values)
        return codes_hwk

    layer = Layer("uint8", 0, tuple(f"number {index}" for index in range(NUMBERS)), "nearest")
    grids, paths = zone_grids(tiles), []
    folder.mkdir(parents=True, exist_ok=True)
    with progress("atlas: embeddings", sum(len(squares(grid)) for grid in grids), "squares") as bar:
        for grid in grids:
            paths.append(folder / f"short_{grid.label}.tif")
            write_layer(run, paths[-1], grid, layer, facts, shorten, _nothing, bar)
    return found, tuple(paths)
