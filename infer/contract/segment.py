"""A training of the segmentation head on disk: the job that `train` writes, the networks that the engine trains for it,
and what both sides have to see alike: the ground around a pixel, across the edges of tiles.

A job's folder has job.json, labels.npz (the labelled pixels) and, for each network, NAME.npz with NAME.json last.
"""

from __future__ import annotations

import threading
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from infer.contract.embedding import Embedding, read_embedding
from infer.contract.errors import FormatError
from infer.contract.glance import lacks_embedding
from infer.contract.plan import PlannedTile, PlannedTiles
from infer.contract.record import Record
from infer.contract.regular import open_regular
from infer.contract.run import PIXEL_SIZE, Run

_SOUTH = 32700
_FALSE_NORTHING = 10_000_000
_OPEN = 64
"""Tiles kept open."""
BLOCKS = ("down0", "down1", "down2", "up1", "up0")
"""The convolutions of 3 x 3 pixels: on whole pixels, halves, quarters, and back."""


@dataclass(frozen=True)
class SegmentRecipe:
    """What a network depends on besides labels and embeddings."""

    steps: int
    batch: int
    """Chips of a step."""
    chip: int
    """Side of one in pixels, a multiple of 4."""
    width: int
    """Channels on whole pixels, a multiple of 8."""
    learning_rate: float
    precision: Literal["float32", "bfloat16"]
    threads: int
    """Of torch on a CPU: sums depend on it."""
    seed: int

    @property
    def warmup(self) -> int:
        """Steps until the rate is reached."""
        return max(1, self.steps // 10)


@dataclass(frozen=True)
class SegmentScene:
    """Ground that labels lie on: a UTM zone of a run."""

    run: str
    """The run's folder."""
    zone: int
    """1..60."""


@dataclass(frozen=True, kw_only=True)
class SegmentJob(Record):
    """job.json. labels.npz has, for N labelled pixels in M networks, scene_n (of `scenes`), row_n and col_n (of the
    lattice), class_n (index of `codes`), group_n, train_mn (trained on), and mean_mc and scale_mc of the embeddings."""

    kind = "segment-job"
    stage = "train"

    codes: tuple[int, ...]
    """Class codes, ascending."""
    dim: int
    networks: tuple[str, ...]
    scenes: tuple[SegmentScene, ...]
    recipe: SegmentRecipe


@dataclass(frozen=True, kw_only=True)
class SegmentNetwork(Record):
    """NAME.json of a trained network; NAME.npz has its arrays."""

    kind = "segment-network"
    stage = "train"

    loss: float
    """Mean of the last tenth of the steps."""
    device: str


def job_files(folder: Path) -> tuple[Path, Path]:
    """Paths of a job's manifest and labels."""
    return folder / "job.json", folder / "labels.npz"


def network_files(folder: Path, name: str) -> tuple[Path, Path, Path]:
    """Paths of a network's manifest, arrays, and the state of its training."""
    return folder / f"{name}.json", folder / f"{name}.npz", folder / f"{name}.state.pt"


def shapes(dim: int, width: int, classes: int) -> dict[str, tuple[int, ...]]:
    """Every array of a network and its shape: 3 x 3 weights are (row, column, in, out), others (in, out).

    Args:
        dim: numbers of an embedding; one more channel says where there is one.
        width: channels on whole pixels.
        classes: K.
    """
    into = {"down0": width, "down1": width, "down2": 2 * width, "up1": 4 * width, "up0": 3 * width}
    out = {"down0": width, "down1": 2 * width, "down2": 2 * width, "up1": 2 * width, "up0": width}
    found: dict[str, tuple[int, ...]] = {"stem_w": (dim + 1, width), "stem_b": (width,)}
    for block in BLOCKS:
        found[f"{block}_w"] = (3, 3, into[block], out[block])
        found[f"{block}_g"] = found[f"{block}_b"] = (out[block],)
    return {**found, "head_w": (width, classes), "head_b": (classes,)}


_Codes = TypeVar("_Codes", int, NDArray[np.int64])


def zone_of(epsg: _Codes) -> _Codes:
    """UTM zone of an EPSG code, or of each; both hemispheres share its lattice."""
    return epsg % 100


def lattice(epsg: NDArray[Any], x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and column, in the lattice of their zone, of the pixels that points in metres lie in.

    Rows are counted southwards from the equator, so that no run, sheet or tile moves them.
    """
    y = y - np.where(epsg > _SOUTH, _FALSE_NORTHING, 0)
    return np.floor(-y / PIXEL_SIZE).astype(np.int64), np.floor(x / PIXEL_SIZE).astype(np.int64)


class Ground:
    """The embeddings of a run as one plane a zone: windows of it are read across the edges of tiles."""

    def __init__(self, run: Run, tiles: Sequence[PlannedTile], *, checksums: bool) -> None:
        """Index the tiles, as columns: there may be a million. `checksums` verifies every byte of one that is read."""
        self._folder, self._checksums = run.embeddings, checksums
        table = PlannedTiles.of(tiles)
        epsg_n = table.column("epsg")
        row_n, column_n = lattice(epsg_n, table.column("west") + 5, table.column("north") - 5)
        order_n = np.lexsort((row_n, zone_of(epsg_n)))
        self._tiles, self._zone_n = table.chosen(order_n), zone_of(epsg_n)[order_n]
        self._row_n, self._column_n = row_n[order_n], column_n[order_n]
        self._open: OrderedDict[str, Embedding] = OrderedDict()
        self._opening = threading.Lock()
        self._gone: set[str] = set()
        self._dim = 0

    def tiles(self, zone: int, top: int, left: int, height: int, width: int) -> list[tuple[PlannedTile, int, int]]:
        """The tiles that touch a window, each with the row and column of its corner; in a fixed order."""
        first, last = np.searchsorted(self._zone_n, [zone, zone + 1])
        above = self._tiles.size - 1
        first, last = first + np.searchsorted(self._row_n[first:last], [top - above, top + height])
        column_n = self._column_n[first:last]
        found = first + np.flatnonzero((column_n >= left - above) & (column_n < left + width))
        corners = zip(self._row_n[found].tolist(), self._column_n[found].tolist(), strict=True)
        touching = [(tile, *corner) for tile, corner in zip(self._tiles.chosen(found), corners, strict=True)]
        return sorted(touching, key=lambda entry: entry[0].name)

    def window(self, zone: int, top: int, left: int, height: int, width: int) -> NDArray[np.float32] | None:
        """(h, w, C) float32 embeddings, NaN where there is none; None where no tile has one.

        Whether tiles may be missing, or broken, is for the stages to say ([stitch] missing).

        Raises:
            FormatError: if the bytes of an embedding are not those that were written.
        """
        result: NDArray[np.float32] | None = None
        for tile, row, column in self.tiles(zone, top, left, height, width):
            if self._lacks(tile.name):
                continue
            with self._opening:
                embedding = self._embedding(tile)
            if result is None:
                result = np.full((height, width, embedding.shape_hwc[2]), np.nan, dtype=np.float32)
            rows = slice(max(0, top - row), min(tile.size, top + height - row))
            columns = slice(max(0, left - column), min(tile.size, left + width - column))
            there = embedding.embedded(rows, columns)  # tiles of two hemispheres share pixels: none hides another's
            place = result[rows.start + row - top :, columns.start + column - left :][
                : there.shape[0], : there.shape[1]
            ]
            place[there] = embedding.window(rows, columns, gaps=True)[there]
        return result

    def _lacks(self, name: str) -> bool:
        if name not in self._open and name not in self._gone and lacks_embedding(self._folder, name):
            self._gone.add(name)  # for good: one that comes now is for the next time
        return name in self._gone

    def _embedding(self, tile: PlannedTile) -> Embedding:
        if tile.name not in self._open:
            found = read_embedding(self._folder, tile.name, checksums=self._checksums)
            height, width, dim = found.shape_hwc
            if (height, width) != (tile.size, tile.size) or self._dim not in (0, dim):
                raise FormatError(
                    f"{self._folder / tile.name}.npy: {found.shape_hwc} is not what the plan and its neighbours say: "
                    "run `smalti infer` again"
                )
            self._dim = dim
            self._open[tile.name] = found
            if len(self._open) > _OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(tile.name)
        return self._open[tile.name]


def standardised(
    values_hwc: NDArray[np.float32], mean_c: NDArray[np.float32], scale_c: NDArray[np.float32]
) -> NDArray[np.float32]:
    """(h, w, C + 1): what a network sees: standardised embeddings, 0 where one is missing; last, whether one is."""
    result = np.empty((*values_hwc.shape[:2], values_hwc.shape[2] + 1), dtype=np.float32)
    numbers = result[..., :-1]
    np.divide(np.subtract(values_hwc, mean_c, out=numbers), scale_c, out=numbers)
    result[..., -1] = np.isfinite(values_hwc).any(axis=-1)
    if not np.isfinite(result).all():
        np.nan_to_num(result, copy=False, nan=0.0)
    return result


def read_arrays(path: Path, names: Sequence[str], remedy: str, what: str = "readable") -> Mapping[str, NDArray[Any]]:
    """The named arrays of an .npz file, nothing of which is unpickled, and which promises no more than it stores.

    Raises:
        FormatError: if it is something else.
    """
    try:
        with open_regular(path) as stream, np.load(stream, allow_pickle=False) as stored:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in stored.zip.infolist()):
                raise ValueError("compressed, as smalti writes none")
            return {name: stored[name] for name in names}
    except (
        *(OSError, ValueError, KeyError, EOFError, TypeError, AttributeError),
        *(zipfile.BadZipFile, RuntimeError, MemoryError),  # cut short; encrypted; a shape that nothing holds
    ) as error:
        raise FormatError(f"{path}: not {what} ({error}): {remedy}") from error
