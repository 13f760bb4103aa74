"""oof.parquet: what the classifier says of each sample without having seen its group. The one owner of its columns.

Columns: tile, row, col, x, y, epsg, group, code, fold, predicted, and p001 ... the probability of each class by code.
Fold -1 is what was held out: the finished classifier says of it what stands there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from infer.contract import FormatError
from preproc.classify.table import Samples

HELD_OUT = -1
"""Fold of what was held out."""
_NUMBERS = ("x", "y", "epsg", "code", "fold", "predicted")


@dataclass(frozen=True)
class OutOfFold:
    """Out-of-fold predictions (N samples, K classes)."""

    x_n: NDArray[np.float64]
    """Easting of the pixel's centre in metres, in zone `epsg_n`."""
    y_n: NDArray[np.float64]
    epsg_n: NDArray[np.int32]
    group_n: NDArray[Any]
    code_n: NDArray[np.int32]
    fold_n: NDArray[np.int32]
    predicted_n: NDArray[np.int32]
    """Most probable class code."""
    probabilities_nk: NDArray[np.float32]
    """By ascending code."""

    def take(self, where_n: NDArray[np.bool_]) -> OutOfFold:
        """Some of the rows."""
        return OutOfFold(*(getattr(self, part.name)[where_n] for part in fields(self)))

    @property
    def cross_validated(self) -> OutOfFold:
        """Without what was held out."""
        return self.take(self.fold_n != HELD_OUT)


@dataclass(frozen=True)
class Places:
    """Pixels of tiles (N)."""

    tile_n: NDArray[Any]
    row_n: NDArray[np.int32]
    col_n: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.tile_n)


def read_places(path: Path) -> Places:
    """Where the rows of `read_out_of_fold` that were cross-validated lie; it has found the file to be readable."""
    table = pq.read_table(path, columns=["tile", "row", "col", "fold"])
    crossed = table.column("fold").to_numpy() != HELD_OUT
    names = np.array(table.column("tile").to_pylist(), dtype=np.str_)
    return Places(names[crossed], *(table.column(name).to_numpy()[crossed] for name in ("row", "col")))


def write_out_of_fold(
    path: Path, samples: Samples, fold_n: NDArray[np.int32], codes_k: NDArray[Any], values_nk: NDArray[np.float32]
) -> None:
    """Write the predictions to a path that is already temporary."""
    columns: dict[str, Any] = {
        "tile": pa.array(samples.tile_n.tolist(), pa.string()),
        "row": pa.array(samples.row_n),
        "col": pa.array(samples.col_n),
        "x": pa.array(samples.x_n),
        "y": pa.array(samples.y_n),
        "epsg": pa.array(samples.epsg_n),
        "group": pa.array(samples.group_n.tolist(), pa.string()),
        "code": pa.array(samples.code_n),
        "fold": pa.array(fold_n),
        "predicted": pa.array(codes_k[values_nk.argmax(axis=1)].astype(np.int32)),
    }
    for index, code in enumerate(codes_k):
        columns[_column(int(code))] = pa.array(np.ascontiguousarray(values_nk[:, index]))
    pq.write_table(pa.table(columns), path, compression="zstd")


def read_out_of_fold(path: Path, codes: Sequence[int]) -> OutOfFold:
    """Read predictions of the classes `codes`; the caller has verified the file's checksum.

    Raises:
        FormatError: if it is not what it should be.
    """
    remedy = "run `smalti train` again"
    try:
        table = pq.read_table(path, columns=[*_NUMBERS, "group", *map(_column, codes)])
    except (pa.ArrowInvalid, OSError, KeyError) as error:
        raise FormatError(f"{path}: not readable as out-of-fold predictions ({error}): {remedy}") from error
    numbers = {name: table.column(name).to_numpy() for name in _NUMBERS}
    return OutOfFold(
        x_n=numbers["x"],
        y_n=numbers["y"],
        epsg_n=numbers["epsg"],
        group_n=np.array(table.column("group").to_pylist(), dtype=np.str_),
        code_n=numbers["code"],
        fold_n=numbers["fold"],
        predicted_n=numbers["predicted"],
        probabilities_nk=np.column_stack([table.column(_column(code)).to_numpy() for code in codes]),
    )


def _column(code: int) -> str:
    return f"p{code:03d}"
