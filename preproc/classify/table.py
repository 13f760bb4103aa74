"""samples.parquet, one row a labelled pixel: the one owner of its columns. `sample` writes it, `train` reads it.

Columns: tile, row, col, x, y (metres in the tile's zone, of the pixel's centre), epsg, class, code, group, feature,
district where [labels] names one, and e000, e001 ... the embedding.
Rows are in plan order of the tiles, then row, then column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from infer.contract import PIXEL_SIZE, FormatError, Run
from infer.contract.classification import SamplesManifest, TrainedOn
from infer.contract.mixing import GOLDEN, mix64
from infer.contract.monthly import has_gaps
from infer.contract.provenance import Embedded

_REMEDY = "run `smalti sample` again"
_PLACE = (
    ("tile", pa.string()),
    ("row", pa.int32()),
    ("col", pa.int32()),
    ("x", pa.float64()),
    ("y", pa.float64()),
    ("epsg", pa.int32()),
    ("class", pa.string()),
    ("code", pa.int32()),
    ("group", pa.string()),
    ("feature", pa.int64()),
)
_DISTRICT = ("district", pa.string())
"""Only where [labels] district names an attribute; empty for a label without one."""
_VALUE = ("value", pa.float64())
"""Only where [labels] value names an attribute: the number to be learned."""


def embedding_columns(dim: int) -> list[str]:
    """Names of the embedding's columns: e000, e001 ..."""
    return [f"e{index:03d}" for index in range(dim)]


def schema(dim: int, *, district: bool = False, value: bool = False) -> pa.Schema:
    """Arrow schema of samples.parquet for embeddings of `dim` numbers."""
    return pa.schema([*_place(district, value), *((name, pa.float32()) for name in embedding_columns(dim))])


def _place(district: bool, value: bool) -> list[tuple[str, Any]]:
    return [*_PLACE, *([_DISTRICT] if district else []), *([_VALUE] if value else [])]


def counted(number: int, noun: str) -> str:
    """'1 group', '2 groups'."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def pixel_hash(seed: int, epsg: NDArray[Any], x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.uint64]:
    """A number per pixel that depends on the seed and its place on Earth only: not on order, tiles or shards.

    Args:
        seed: any non-negative integer.
        epsg: (N,) zone of each pixel.
        x: (N,) easting in metres of any point of the pixel.
        y: (N,) northing, likewise.
    """
    state = np.full(np.shape(x), seed, dtype=np.uint64)
    column = np.floor(np.asarray(x) / PIXEL_SIZE).astype(np.int64)
    row = np.floor(np.asarray(y) / PIXEL_SIZE).astype(np.int64)
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is meant
        for part in (np.asarray(epsg, dtype=np.int64), column, row):
            state = mix64((state ^ part.astype(np.uint64)) + np.uint64(GOLDEN))
    return state


def keep_per_group(group_n: NDArray[Any], hash_n: NDArray[np.uint64], limit: int) -> NDArray[np.bool_]:
    """Which rows belong to the `limit` smallest hashes of their group.

    Args:
        group_n: (N,) group of each row.
        hash_n: (N,) see `pixel_hash`.
        limit: rows kept a group.
    """
    order = np.lexsort((hash_n, group_n))
    sorted_groups = group_n[order]
    starts = np.flatnonzero(np.r_[True, sorted_groups[1:] != sorted_groups[:-1]]) if len(order) else np.empty(0, int)
    lengths = np.diff(np.r_[starts, len(order)])
    rank = np.arange(len(order)) - np.repeat(starts, lengths)
    kept = np.zeros(len(order), dtype=bool)
    kept[order[rank < limit]] = True
    return kept


@dataclass(frozen=True)
class Source:
    """A run that samples are of."""

    name: str
    """What to call it: "this run", or its folder's name."""
    embedded: Embedded | None
    """None in tables of older versions."""
    digest: str
    """SHA-256 over the table's checksums."""
    value: str | None = None
    """The attribute with the number to be learned; None where classes are."""


@dataclass(frozen=True)
class Samples:
    """The labelled pixels in memory (N rows, C embedding numbers, K classes)."""

    tile_n: NDArray[Any]
    row_n: NDArray[np.int32]
    col_n: NDArray[np.int32]
    x_n: NDArray[np.float64]
    """Easting of the pixel's centre in metres, in zone `epsg_n`."""
    y_n: NDArray[np.float64]
    epsg_n: NDArray[np.int32]
    code_n: NDArray[np.int32]
    group_n: NDArray[Any]
    """Name of the group (parcel, farm ...)."""
    feature_n: NDArray[np.int64]
    """Number of the feature in the labels' file."""
    district_n: NDArray[Any]
    """Name of the district; empty where the labels have none."""
    run_n: NDArray[np.int16]
    """Index of the run in `sources` that the row is of."""
    value_n: NDArray[np.float64]
    """The number to be learned; NaN where classes are."""
    values_nc: NDArray[np.float32]
    legend: Mapping[int, str]
    """Code -> class name, by ascending code."""
    sources: tuple[Source, ...]
    """The runs that the rows are of."""

    def __len__(self) -> int:
        return len(self.code_n)

    def take(self, where: NDArray[Any]) -> Samples:
        """The rows that a mask or an index selects; the legend and the sources stay whole."""
        return replace(self, **{name: values[where] for name, values in self.arrays().items()})

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Every column by the name of its field."""
        values = {part.name: getattr(self, part.name) for part in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}

    @property
    def trained_on(self) -> tuple[TrainedOn, ...]:
        """The runs that its rows are of, as models state them."""
        found = []
        for index, source in enumerate(self.sources):
            here = self.run_n == index
            if source.embedded is not None and here.any():
                found.append(TrainedOn(int(here.sum()), len(np.unique(self.group_n[here])), source.embedded))
        return tuple(found)

    def hashes(self, seed: int) -> NDArray[np.uint64]:
        """`pixel_hash` of every row."""
        return pixel_hash(seed, self.epsg_n, self.x_n, self.y_n)


def read_samples(run: Run, called: str = "this run") -> Samples:
    """Read RUN/samples.parquet after its manifest has been verified.

    Args:
        run: the run.
        called: its name, where there are several.

    Raises:
        FormatError: if it is missing, damaged or not a table of samples.
    """
    about = SamplesManifest.read(run).verify(run)
    legend, dim = {entry.code: entry.name for entry in sorted(about.classes, key=lambda entry: entry.code)}, about.dim
    try:
        table = pq.read_table(run.samples)
    except (pa.ArrowInvalid, OSError) as error:
        raise FormatError(f"{run.samples}: not readable as Parquet ({error}): {_REMEDY}") from error
    extra = {"district": _DISTRICT[0] in table.schema.names, "value": about.value is not None}
    expected = schema(dim, **extra)
    if table.schema.names != expected.names:
        raise FormatError(f"{run.samples}: its columns are not those of samples: {_REMEDY}")
    odd = next((f for f, kind in zip(table.schema, expected, strict=True) if f.type != kind.type), None)
    if odd is not None:
        raise FormatError(f"{run.samples}: its column {odd.name} is of type {odd.type}: {_REMEDY}")
    gap = next((name for name in table.schema.names if table.column(name).null_count), None)
    if gap is not None:
        raise FormatError(f"{run.samples}: its column {gap} has gaps: {_REMEDY}")
    values_nc = np.empty((table.num_rows, dim), dtype=np.float32)
    for index, name in enumerate(embedding_columns(dim)):
        values_nc[:, index] = table.column(name).to_numpy()
    columns = {name: table.column(name).to_numpy() for name in ("row", "col", "x", "y", "epsg", "code")}
    unknown = sorted(set(np.unique(columns["code"]).tolist()) - legend.keys())
    if unknown:
        raise FormatError(
            f"{run.samples}: has codes that {run.samples_manifest.name} does not know ({unknown[:5]}): {_REMEDY}"
        )
    if extra["value"] and not np.isfinite(table.column("value").to_numpy()).all():
        raise FormatError(f"{run.samples}: its column value holds what is no number: {_REMEDY}")
    gappy = about.embedded is not None and has_gaps(about.embedded.model.family)
    odd_values = np.isinf(values_nc) if gappy else ~np.isfinite(values_nc)
    if odd_values.any() or not (np.isfinite(columns["x"]).all() and np.isfinite(columns["y"]).all()):
        raise FormatError(f"{run.samples}: holds numbers that are not finite: {_REMEDY}")
    return Samples(
        tile_n=_strings(table, "tile"),
        row_n=columns["row"],
        col_n=columns["col"],
        x_n=columns["x"],
        y_n=columns["y"],
        epsg_n=columns["epsg"],
        code_n=columns["code"],
        group_n=_strings(table, "group"),
        feature_n=table.column("feature").to_numpy(),
        district_n=_strings(table, "district") if "district" in expected.names else np.full(table.num_rows, ""),
        run_n=np.zeros(table.num_rows, dtype=np.int16),
        value_n=table.column("value").to_numpy() if extra["value"] else np.full(table.num_rows, np.nan),
        values_nc=values_nc,
        legend=legend,
        sources=(Source(called, about.embedded, about.files_fingerprint, about.value),),
    )


def _strings(table: pa.Table, name: str) -> NDArray[Any]:
    return np.array(table.column(name).to_pylist(), dtype=np.str_)


class SampleWriter:
    """Writes rows tile by tile, so that memory does not grow with the number of samples."""

    def __init__(self, path: Path, dim: int, *, district: bool = False, value: bool = False) -> None:
        self._place = _place(district, value)
        self._schema = schema(dim, district=district, value=value)
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")

    def write(self, place: Mapping[str, Sequence[Any] | NDArray[Any]], values_nc: NDArray[np.float32]) -> None:
        """Append rows: `place` has the columns before the embedding, each of length N; `values_nc` is (N, C)."""
        arrays = [pa.array(place[name], type=kind) for name, kind in self._place]
        arrays += [pa.array(np.ascontiguousarray(column)) for column in values_nc.T]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))

    def close(self) -> None:
        """Write the footer."""
        self._writer.close()
