"""The labelled pixels of a run as tiles of their own, which the engine embeds as it would embed the whole tiles."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infer.contract import (
    TILE_MANIFEST,
    Run,
    SmaltiError,
    atomic_dir,
    child,
    is_released,
    output_state,
    planned_tiles,
    read_embedding,
    read_tile,
    sha256_file,
    sha256_json,
    write_pixels_of,
)
from preproc.classify.table import Samples
from preproc.run.progress import progress

_MOST = 8192
"""Pixels of a tile of pixels: a season of a hundred dates takes 20 MB."""


@dataclass(frozen=True)
class Cut:
    """Some labelled pixels of one tile."""

    name: str
    tile: str
    rows_n: NDArray[np.intp]
    """Which rows of the samples they are."""
    pixels_n2: NDArray[np.int32]
    """Row and column in the tile."""

    def inputs(self, run: Run) -> dict[str, str]:
        """What it is made from.

        Raises:
            SmaltiError: if the tile was never fetched.
        """
        manifest = child(run.tiles, self.tile) / TILE_MANIFEST
        if not manifest.is_file():
            raise SmaltiError(f"{manifest.parent}: this tile has labels and has not been fetched: run `smalti fetch`")
        return {"tile": sha256_file(manifest), "pixels": sha256_json(self.pixels_n2.tolist())}


def cuts_of(samples: Samples) -> list[Cut]:
    """All samples, in tiles of at most some thousand pixels."""
    cuts = []
    for tile in dict.fromkeys(samples.tile_n.tolist()):
        rows_n = np.flatnonzero(samples.tile_n == tile)
        for number, first in enumerate(range(0, len(rows_n), _MOST)):
            part = rows_n[first : first + _MOST]
            pixels_n2 = np.column_stack([samples.row_n[part], samples.col_n[part]]).astype(np.int32)
            cuts.append(Cut(tile if len(rows_n) <= _MOST else f"{tile}-{number}", tile, part, pixels_n2))
    return cuts


def cut(run: Run, cuts: Sequence[Cut], folder: Path) -> None:
    """Bring the tiles of pixels up to date; those that no label asks for any more go.

    Args:
        run: whose tiles are read.
        cuts: all that there should be.
        folder: where they are.

    Raises:
        SmaltiError: if arrays that are needed are not there; the message says how to get them.
    """
    due = _due(run, cuts, folder)
    planned = {tile.name: tile for tile in planned_tiles(run)}
    with progress("compare: labelled pixels", len(due), "tiles") as bar:
        for one in due:
            source = child(run.tiles, one.tile)
            tile = read_tile(source, need_manifest=True, planned=planned[one.tile])
            with atomic_dir(folder / one.name) as temporary:
                write_pixels_of(tile, temporary, one.pixels_n2, one.inputs(run))
            bar.advance(note=one.name)
    wanted = {one.name for one in cuts}
    for other in folder.iterdir() if folder.is_dir() else ():
        if other.name not in wanted and other.is_dir():
            shutil.rmtree(other, ignore_errors=True)


def _due(run: Run, cuts: Sequence[Cut], folder: Path) -> list[Cut]:
    unfetched = [one.tile for one in cuts if not (child(run.tiles, one.tile) / TILE_MANIFEST).is_file()]
    if unfetched:
        raise SmaltiError(
            f"{run.tiles}: {len(unfetched)} of the {len(cuts)} tiles with labels have not been fetched (the first is "
            f"{unfetched[0]}): run `smalti fetch {run.quoted}`"
        )
    due = [one for one in cuts if not output_state(folder / one.name / TILE_MANIFEST, "tile", one.inputs(run)).complete]
    gone = [one.tile for one in due if is_released(child(run.tiles, one.tile))]
    if gone:
        raise SmaltiError(
            f"{run.tiles}: the arrays of {len(gone)} of the {len(cuts)} tiles with labels were released (the first is "
            f"{gone[0]}): `smalti fetch --force {run.quoted}` reads them again"
        )
    return due


def values_of(embeddings: Path, cuts: Sequence[Cut], count: int) -> NDArray[np.float32]:
    """(N, C) numbers of all samples of one model; a row of NaN where it has none, single NaN where a month is missing.

    Raises:
        FormatError: if an embedding is missing or damaged.
    """
    result: NDArray[np.float32] | None = None
    for one in cuts:
        values_nc = read_embedding(embeddings, one.name).window(slice(None), slice(None), gaps=True)[0]
        if result is None:
            result = np.full((count, values_nc.shape[1]), np.nan, dtype=np.float32)
        result[one.rows_n] = values_nc
    if result is None:
        raise SmaltiError("no labelled pixels: give labels that lie in the region")
    return result
