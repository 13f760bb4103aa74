"""The labelled pixels of a run and what classifiers may see of them: raw monthly features, or embeddings.

Monthly medians are kept beside a tile's record: its arrays may go, and `validate` still compares.
tiles/<tile>/medians.npz: pixels (N, 2) int32 rows and columns, values (N, 144) float32, and of which tile and by which
recipe they are. 576 bytes a pixel.
"""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infer.contract import TILE_MANIFEST, Run, SmaltiError, Tile, read_embedding, read_tile, sha256_file, write_bytes
from infer.contract.monthly import MONTHLY_DIM, monthly_composites, months_go_by_date
from infer.contract.registry import cached_checkpoint
from infer.contract.regular import read_regular
from infer.contract.tile import TileSeason
from preproc.classify.out_of_fold import Places
from preproc.classify.table import Samples

Floats = NDArray[np.float32]
FILE = "medians.npz"
_AT_ONCE = 4096
"""Pixels whose season is in memory: 16 MB a hundred dates."""
_MOST_BYTES = 1 << 30
MOST_WORK = 400_000
"""Pixels times classes that `validate` trains on unasked: about a minute."""

Pixels = NDArray[np.int32]


def _by_tile(samples: Samples | Places, one: Callable[[str, NDArray[np.int32], NDArray[np.int32]], Floats]) -> Floats:
    """Features of all samples, from a function of tile, rows and columns."""
    result: Floats | None = None
    for name in np.unique(samples.tile_n):
        here = samples.tile_n == name
        values = one(str(name), samples.row_n[here], samples.col_n[here])
        if result is None:
            result = np.empty((len(samples), values.shape[1]), np.float32)
        result[here] = values
    if result is None:
        raise SmaltiError("no labelled pixels: run `smalti sample` with labels that lie in the region")
    return result


def raw_features(run: Run, samples: Samples | Places) -> Floats:
    """(N, 144) monthly features of the samples, NaN where a month has none."""

    return _by_tile(samples, lambda name, rows, cols: labelled_medians(run.tiles / name, rows, cols))


def embedding_features(folder: Path, samples: Samples) -> Floats:
    """(N, C) embeddings of the samples from a folder of embeddings of the same tiles; NaN where a month is missing."""

    def one(name: str, rows: NDArray[np.int32], cols: NDArray[np.int32]) -> Floats:
        embedding = read_embedding(folder, name)
        values = embedding.window(slice(None), slice(None))[rows, cols]
        if np.isnan(values).all(axis=1).any():  # of `monthly` some months may be missing
            raise SmaltiError(f"{folder / name}.npy: labelled pixels have no embedding: embed the run's own tiles")
        return np.asarray(values, np.float32)

    return _by_tile(samples, one)


def filled(train_nc: Floats, test_nc: Floats) -> tuple[Floats, Floats]:
    """NaN replaced by the training rows' means (0 where a column is empty): linear models need numbers."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Mean of empty slice", category=RuntimeWarning)
        mean = np.nan_to_num(np.nanmean(train_nc, axis=0))
    return np.where(np.isnan(train_nc), mean, train_nc), np.where(np.isnan(test_nc), mean, test_nc)


def keep_classes(samples: Samples, names: Sequence[str] | None) -> Samples:
    """Only the samples of these classes (all, for None).

    Raises:
        SmaltiError: naming a class that is not there.
    """
    if names is None:
        return samples
    by_name = {name: code for code, name in samples.legend.items()}
    missing = [name for name in names if name not in by_name]
    if missing:
        raise SmaltiError(f"--classes: no {missing[0]!r} among the labels; they have {', '.join(by_name)}")
    return samples.take(np.isin(samples.code_n, [by_name[name] for name in names]))


def medians_of(tile: Tile, rows: Pixels, cols: Pixels) -> Floats:
    """(N, 144) monthly medians of some pixels."""
    parts = (slice(start, start + _AT_ONCE) for start in range(0, len(rows), _AT_ONCE))
    return np.concatenate([monthly_composites(tile, rows[part], cols[part]) for part in parts])


def labelled_medians(folder: Path, rows: Pixels, cols: Pixels) -> Floats:
    """(N, 144) monthly medians of labelled pixels of a tile: those that were kept, else from its arrays.

    Raises:
        FormatError: if neither is there; the message says how to get the arrays.
    """
    found = kept_medians(folder, rows, cols)
    return medians_of(read_tile(folder, need_manifest=True), rows, cols) if found is None else found


def keep_medians(folder: Path, tile: Tile, rows: Pixels, cols: Pixels, *, values: Floats | None = None) -> None:
    """Keep the medians of some pixels, in the place of what was kept before.

    Args:
        folder: of the tile, with its tile.json.
        tile: its arrays.
        rows: of the pixels.
        cols: likewise.
        values: their medians, if they were reckoned already.
    """
    values = medians_of(tile, rows, cols) if values is None else values
    stream = io.BytesIO()
    np.savez(stream, pixels=np.column_stack([rows, cols]).astype(np.int32), values=values, of=np.array(_of(folder)))
    write_bytes(folder / FILE, stream.getvalue())


def kept_medians(folder: Path, rows: Pixels, cols: Pixels) -> Floats | None:
    """What was kept of some pixels; None if that is nothing, of another tile, damaged, or not of all of them."""
    try:
        with np.load(io.BytesIO(read_regular(folder / FILE, _MOST_BYTES)), allow_pickle=False) as stored:
            pixels, values, of = stored["pixels"], stored["values"], str(stored["of"])
        current = _of(folder)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, SmaltiError):
        return None
    whole = pixels.shape == (len(values), 2) and pixels.dtype == np.int32
    if of != current or not whole or values.dtype != np.float32 or values.shape[1:] != (MONTHLY_DIM,):
        return None
    places = {place: index for index, place in enumerate(map(tuple, pixels.tolist()))}
    try:
        chosen = [places[place] for place in zip(rows.tolist(), cols.tolist(), strict=True)]
    except KeyError:
        return None
    found: Floats = values[chosen]
    return found


def _of(folder: Path) -> str:
    """The tile, and how medians are reckoned."""
    path = folder / TILE_MANIFEST
    rule = " by date" if months_go_by_date(TileSeason.of_folder(folder)) else ""
    return f"{sha256_file(path)} {sha256_file(cached_checkpoint('monthly'))}{rule}"
