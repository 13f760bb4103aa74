"""The labelled pixels of a run and what classifiers may see of them: raw monthly features, or embeddings."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infer.contract import Run, SmaltiError, read_embedding
from preproc.classify.medians import labelled_medians
from preproc.classify.out_of_fold import Places
from preproc.classify.table import Samples

Floats = NDArray[np.float32]


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
