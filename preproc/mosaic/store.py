"""The mosaic as a Zarr v3 store, in the layout that geotessera publishes and reads: docs/outputs.md.

A sheet is a shard, a file an array, written here from north to south in memory that does not grow with it: zarr's own
writer wants a whole shard at once, two gigabytes of codes. What describes the arrays is written by zarr itself, once,
when all shards are there.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import google_crc32c
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from infer.contract import PIXEL_SIZE, SOFTWARE, atomic_file, write_bytes
from infer.contract.embedding import MOST_OBSERVED
from infer.contract.registry import known_model
from preproc.raster.observations import BANDS, NODATA, ORIGINS, REASONS
from preproc.raster.provenance import RunProvenance
from preproc.raster.zones import FALSE_NORTHING, Sheet, ZoneGrid

if TYPE_CHECKING:
    import zarr

OBSERVATIONS = "observations"
"""Array of what `preproc.raster.observations` says of each pixel; not geotessera's, whose readers pass it by."""
STORE = "embeddings.zarr"
"""Its folder in RUN/mosaic."""
SHALLOW = (4, 16)
"""Depths that have arrays of their own, where a prefix of an embedding is one."""
MATRYOSHKA = ("v2-student",)
"""Families whose embeddings are trained so that a prefix is an embedding."""
_CHUNK_BYTES = 128 << 10
"""A chunk of codes has at most that many."""
_SCALES_CHUNK = 32
_LEVEL = 3
"""Of zstd in blosc."""
_ABSENT = np.iinfo(np.uint64).max
"""Place and length of a chunk that holds nothing but the fill value."""
_GEOEMB = {
    "uuid": "61c12cc5-0e28-4056-999a-480cf3fb7e4c",
    "name": "geoemb:",
    "description": "Geoembeddings convention for geospatial embedding arrays with model provenance",
    "spec_url": "https://github.com/geo-embeddings/embeddings-zarr-convention/blob/v1/README.md",
    "schema_url": "https://raw.githubusercontent.com/geo-embeddings/embeddings-zarr-convention/refs/tags/v1/schema.json",
}
_SENTINELS = [f"https://sentinel.esa.int/web/sentinel/missions/sentinel-{number}" for number in (1, 2)]


@dataclass(frozen=True)
class StoreArray:
    """One array of a zone's group, over time, (band,) y and x."""

    name: str
    bands: int
    """0: it has no such dimension."""
    chunk: int
    """Side of a chunk in pixels."""
    dtype: str
    fill: float

    @property
    def band_dimension(self) -> str:
        """Of its own for each depth: readers refuse one dimension of several lengths."""
        if self.name == OBSERVATIONS:
            return "observation"
        return "band" if self.name == "embeddings" else f"band{self.name.removeprefix('embeddings')}"

    @property
    def dimensions(self) -> list[str]:
        """Names of its dimensions."""
        return ["time", *([self.band_dimension] if self.bands else []), "y", "x"]

    def sized(self, y: int, x: int) -> tuple[int, ...]:
        """A shape over one time and all bands."""
        return (1, *([self.bands] if self.bands else []), y, x)

    def file(self, sheet: Sheet) -> str:
        """Of a sheet's shard, in the store."""
        band = "0/" if self.bands else ""
        return f"{group_of(sheet.grid)}/{self.name}/c/0/{band}{sheet.row}/{sheet.column}"


def depths_of(facts: RunProvenance) -> tuple[int, ...]:
    """The shallow depths of a run's store."""
    return tuple(depth for depth in SHALLOW if depth < facts.dim) if facts.family in MATRYOSHKA else ()


def arrays_of(facts: RunProvenance) -> list[StoreArray]:
    """In the order in which shards are put in their places: that of `embeddings` is the mark that all are there."""
    shallow = [StoreArray(f"embeddings_d{depth}", depth, chunk_side(depth), "int8", 0) for depth in depths_of(facts)]
    scales = StoreArray("scales", 0, _SCALES_CHUNK, "float32", np.inf)
    observed = StoreArray(OBSERVATIONS, len(BANDS), chunk_side(len(BANDS)), "uint8", NODATA)
    return [*shallow, scales, observed, StoreArray("embeddings", facts.dim, chunk_side(facts.dim), "int8", 0)]


def chunk_side(bands: int) -> int:
    """The largest power of two of pixels whose codes are no more than a chunk's bytes; 32 to 128."""
    side = 32
    while side < 128 and bands * (2 * side) ** 2 <= _CHUNK_BYTES:
        side *= 2
    return side


def group_of(grid: ZoneGrid) -> str:
    """Of a zone; tiles of both hemispheres share it."""
    return f"utm{grid.epsg % 100:02d}"


class ShardWriter:
    """Takes the rows of a shard from north to south and writes its chunks; chunks of nothing take no space."""

    def __init__(self, stream: IO[bytes], array: StoreArray, side: int, pool: ThreadPoolExecutor) -> None:
        self._stream, self._array, self._pool = stream, array, pool
        self._index = np.full((side // array.chunk, side // array.chunk, 2), _ABSENT, dtype="<u8")
        self._end = 0

    def write(self, top: int, values_hwc: NDArray[Any]) -> None:
        """Put rows into the shard.

        Args:
            top: first row; a multiple of the chunk's side.
            values_hwc: (h, W, C) with the array's bands or more, of which the first are taken; h is a multiple of the
                chunk's side, or these are the last rows.
        """
        side = self._array.chunk
        for start in range(0, values_hwc.shape[0], side):
            rows_hwc = values_hwc[start : start + side]
            pieces = [rows_hwc[:, left : left + side] for left in range(0, values_hwc.shape[1], side)]
            for column, chunk in enumerate(self._pool.map(self._encode, pieces)):
                if chunk is not None:
                    self._stream.write(chunk)
                    self._index[(top + start) // side, column] = self._end, len(chunk)
                    self._end += len(chunk)

    def finish(self) -> None:
        """Write the index, the last part of a shard."""
        index = self._index.tobytes()
        self._stream.write(index + google_crc32c.value(index).to_bytes(4, "little"))

    def _encode(self, values_hwc: NDArray[Any]) -> bytes | None:
        side, bands = self._array.chunk, max(self._array.bands, 1)
        values_hwc = values_hwc[..., :bands]
        if (values_hwc == self._array.fill).all():
            return None
        if values_hwc.shape[:2] != (side, side):  # at the right and lower edge
            whole = np.full((side, side, bands), self._array.fill, dtype=self._array.dtype)
            whole[: values_hwc.shape[0], : values_hwc.shape[1]] = values_hwc
            values_hwc = whole
        chunk_cn = np.ascontiguousarray(values_hwc.reshape(side * side, bands).T)
        shuffle = blosc.BITSHUFFLE if chunk_cn.itemsize == 1 else blosc.SHUFFLE  # as zarr's codec chooses
        packed: bytes = blosc.compress(chunk_cn, b"zstd", _LEVEL, shuffle, 0, chunk_cn.itemsize)
        return packed


@contextmanager
def shard_writers(
    folder: Path, sheet: Sheet, arrays: Sequence[StoreArray], side: int, threads: int
) -> Iterator[Callable[[int, NDArray[np.int8], NDArray[np.float32], NDArray[np.uint8]], None]]:
    """Write the shards of a sheet; they appear, whole and in order, when the block ends well.

    Args:
        folder: of the store.
        sheet: which.
        arrays: of its zone, see `arrays_of`.
        side: of a shard in pixels.
        threads: that compress.

    Yields:
        A function that takes a row, the codes (h, W, C), the scales (h, W) and the observations (h, W, 4) that begin
        there.
    """
    (folder / arrays[-1].file(sheet)).unlink(missing_ok=True)  # what is half replaced has no mark
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(threads))
        writers: list[ShardWriter] = []
        for array in reversed(arrays):  # what is entered last gets its name first
            temporary = stack.enter_context(atomic_file(folder / array.file(sheet)))
            stream = stack.enter_context(temporary.open("wb"))
            writers.append(ShardWriter(stream, array, side, pool))

        def write(
            top: int, codes_hwc: NDArray[np.int8], scales_hw: NDArray[np.float32], observed_hwc: NDArray[np.uint8]
        ) -> None:
            zero_hw = scales_hw == 0  # all its numbers are 0; a scale of 0 is not believed
            if zero_hw.any():
                codes_hwc, scales_hw = codes_hwc.copy(), scales_hw.copy()
                codes_hwc[zero_hw], scales_hw[zero_hw] = 0, 1
            others: dict[str, NDArray[Any]] = {"scales": scales_hw[..., None], OBSERVATIONS: observed_hwc}
            for array, writer in zip(reversed(arrays), writers, strict=True):
                writer.write(top, others.get(array.name, codes_hwc))

        yield write
        for writer in writers:
            writer.finish()


def write_metadata(folder: Path, zones: Sequence[ZoneGrid], facts: RunProvenance, side: int) -> list[Path]:
    """Write what describes the arrays, and their coordinates; readers then see the store.

    Args:
        folder: of the store.
        zones: of the run.
        facts: about it.
        side: of a shard in pixels.

    Returns:
        The files.
    """
    import zarr  # here: tasks that make shards need nothing of it
    from zarr.errors import ZarrUserWarning
    from zarr.storage import MemoryStore

    content: dict[str, Any] = {}
    root = zarr.create_group(MemoryStore(content), zarr_format=3, attributes=_root_attributes(facts))
    for grid in zones:
        _add_zone(root, grid, facts, side)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ZarrUserWarning)  # that not every reader knows consolidated metadata
        zarr.consolidate_metadata(root.store, zarr_format=3)
    paths = []
    for key in sorted(content, key=lambda key: (key.count("/") == 0, key)):  # the root last
        paths.append(folder / key)
        write_bytes(paths[-1], content[key].to_bytes())
    return paths


def _add_zone(root: zarr.Group, grid: ZoneGrid, facts: RunProvenance, side: int) -> None:
    from zarr.codecs import BloscCodec
    from zarr_cm import create_many, proj, spatial

    west, south, east, north = grid.bounds
    shift = FALSE_NORTHING if grid.epsg > 32700 else 0
    south, north = south - shift, north - shift
    conventions: dict[Any, Any] = {
        "spatial": spatial.create(
            revision="r3",
            dimensions=["y", "x"],
            bbox=[float(value) for value in (west, south, east, north)],
            transform_type="affine",
            transform=[float(PIXEL_SIZE), 0.0, float(west), 0.0, -float(PIXEL_SIZE), float(north)],
            shape=[grid.height, grid.width],
            registration="pixel",
        ),
        "proj": proj.create(revision="r3", code=f"EPSG:{32600 + grid.epsg % 100}"),
    }
    attributes = {
        **create_many(conventions),
        "geotessera:mask_source": "source_nodata",  # a scale of NaN is a pixel that nothing saw, not water
        "smalti:window": list(facts.window),
    }
    group = root.create_group(group_of(grid), attributes=attributes)
    arrays = arrays_of(facts)
    for array in arrays:
        group.create_array(
            array.name,
            shape=array.sized(grid.height, grid.width),
            chunks=array.sized(array.chunk, array.chunk),
            shards=array.sized(side, side),
            dtype=array.dtype,
            fill_value=array.fill,
            compressors=BloscCodec(cname="zstd", clevel=_LEVEL),
            dimension_names=array.dimensions,
            attributes=_observed_attributes() if array.name == OBSERVATIONS else None,
        )
    coordinates: dict[str, NDArray[Any]] = {
        "time": np.array([int(facts.window[1][:4])], dtype=np.int32),
        "x": west + (np.arange(grid.width) + 0.5) * PIXEL_SIZE,
        "y": north - (np.arange(grid.height) + 0.5) * PIXEL_SIZE,
        **{array.band_dimension: np.arange(array.bands, dtype=np.int32) for array in arrays if array.bands},
    }
    for name, values in coordinates.items():
        group.create_array(
            name,
            data=values,
            chunks=values.shape,
            fill_value=0,
            compressors=BloscCodec(cname="zstd", clevel=_LEVEL),
            dimension_names=[name],
        )


def _observed_attributes() -> dict[str, Any]:
    """What the numbers of the array of observations are."""
    meanings = {"reason": REASONS, "origin": ORIGINS}
    return {
        "smalti:layers": list(BANDS),
        "smalti:meanings": {
            name: {str(code): text for code, text in table.items()} for name, table in meanings.items()
        },
        "smalti:about": f"counts end at {MOST_OBSERVED}: so many or more; {NODATA}: no tile, or not known",
    }


def _model_address(facts: RunProvenance) -> str:
    """Where a published model is; of others their checksum."""
    known = known_model(facts.model)
    return known.page if known is not None and known.page else f"urn:sha256:{facts.checkpoint}"


def _root_attributes(facts: RunProvenance) -> dict[str, Any]:
    encoder = facts.encoder
    attributes: dict[str, Any] = {
        "zarr_conventions": [_GEOEMB],
        "geoemb:type": "pixel",
        "geoemb:dimensions": facts.dim,
        "geoemb:model": _model_address(facts),
        "geoemb:source_data": _SENTINELS,
        "geoemb:data_type": "int8",
        "geoemb:gsd": float(PIXEL_SIZE),
        "geoemb:spatial_layout": "utm_zones",
        "geoemb:build_version": SOFTWARE,
        "geoemb:quantization": {
            "method": "per_pixel_scale",
            "original_dtype": "float32",
            "quantized_dtype": "int8",
            "scale": {"type": "array", "array_name": "scales", "nodata": "+inf"},
        },
        "smalti:model": {key: getattr(encoder, key) for key in ("name", "label", "trained", "licence", "citation")},
        "smalti:checkpoint": facts.checkpoint,
        "smalti:window": list(facts.window),
        "smalti:data_sources": list(facts.data_sources),
    }
    depths = depths_of(facts)
    if depths:
        entries = [array for array in arrays_of(facts) if array.name.startswith("embeddings")]
        attributes["geoemb:depths"] = [{"dimensions": array.bands, "array": array.name} for array in entries]
    return attributes
