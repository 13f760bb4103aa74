"""Embeddings on disk: `<tile>.npy` (float32, or int8 with `<tile>_scales.npy`) and the manifest `<tile>.json`.

float32: NaN where neither modality has an observation. int8: value = code * scale, code in -127..127 (v1.x: from -128);
nodata has code 0 and scale NaN. Of the family `monthly`, alone or beside others (demo+monthly), single numbers may be
NaN, too: months without an observation.
`<tile>_observations.npy` says how many observations each pixel had: it outlives the time series, which may be released
once they are embedded.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from infer.contract.atomic import atomic_file, write_npy
from infer.contract.errors import FormatError
from infer.contract.manifest import Inputs, verify_files
from infer.contract.monthly import MONTHLY_DIM, MONTHLY_FAMILY, without_gaps
from infer.contract.names import brief_name, child, child_name
from infer.contract.provenance import TileGrid, Window
from infer.contract.record import Record
from infer.contract.regular import open_npy

OBSERVED: tuple[Literal["s2", "s1"], ...] = ("s2", "s1")
"""Last axis of `<tile>_observations.npy`: clear Sentinel-2 observations, and Sentinel-1's of both orbits."""
MOST_OBSERVED = 254
"""Counts end there: it means so many or more, and leaves rasters a value for nodata."""
_REMEDY = "run `smalti infer` again for this tile"


@dataclass(frozen=True)
class ModelPart:
    """One of several models side by side."""

    name: str
    family: str
    numbers: int
    """Of a pixel's numbers, those that it gives; they stand behind those of the parts before it."""
    checkpoint: str
    """SHA-256 of its file."""


@dataclass(frozen=True)
class EmbeddingModel:
    """The model that made an embedding; see `infer.contract.provenance.Encoder`."""

    name: str
    label: str
    trained: bool
    family: str
    data_source: str | None
    """The archive that it was trained on; None for any."""
    normalisation: str
    """Key of its normalisation statistics."""
    parts: tuple[ModelPart, ...] | None = None
    """Of several models side by side."""


@dataclass(frozen=True)
class EngineUsed:
    """How an embedding was computed."""

    device: str
    precision: str
    torch: str
    """Its version."""
    compiled: bool
    tokens_per_batch: int
    out_of_memory_halvings: int


@dataclass(frozen=True)
class Origin:
    """Where an imported embedding came from, and which pixels of the tile have none there."""

    source: str
    dataset: str
    year: int
    parts: tuple[str, ...]
    """Published patches that gave pixels."""
    placement: Literal["whole pixels", "nearest pixels"]
    largest_shift_m: float
    """Largest distance between the centre of a pixel and that of the published one it was given."""
    pixels_absent: int
    pixels_without_data: int
    pixels_damaged: int = 0
    pixels_too_thinly_observed: int = 0


@dataclass(frozen=True, kw_only=True)
class EmbeddingSource(Record):
    """Of `<tile>.json` what mosaics and maps have to state: of a country's tiles no more is read."""

    kind = "embedding"
    stage = "infer"

    model: EmbeddingModel
    data_source: str | None = None
    """The archive that the tile's scenes belong to."""
    min_clear_s2: int | None = None
    """Pixels with fewer clear Sentinel-2 observations have no embedding; None: all that were seen have one."""
    origin: Origin | None = None
    """None where it was computed in this run."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingManifest(EmbeddingSource):
    """`<tile>.json`."""

    tile: str | None = None
    """Name of the tile."""
    dimensions: int | None = None
    """Numbers a pixel."""
    engine: EngineUsed | None = None
    """None where it was imported."""
    observations: Mapping[str, Mapping[str, float]] | None = None
    """Sensor (s2, s1) -> min, median and max number of observations over the pixels that have any of either."""
    nodata_pixels: int | None = None
    draw: str | None = None
    """How v1.0's observations were drawn."""
    grid: TileGrid | None = None
    window: Window | None = None
    """The season."""

    @classmethod
    def of_tile(cls, folder: Path, name: str) -> Self:
        """That of a tile's embedding; its files are not looked at.

        Raises:
            FormatError: if it is missing or not what it should be.
        """
        return cls.read_at(embedding_manifest(folder, name), _REMEDY, f"delete it, then {_REMEDY}")


@dataclass(frozen=True)
class Embedding:
    """One tile's embedding (memory-mapped, read-only).

    `values_hwc` is float32 (then `scales_hw` is None) or int8 codes with float32 `scales_hw`.
    """

    name: str
    values_hwc: NDArray[Any]
    """(H, W, C) float32, or int8 codes."""
    scales_hw: NDArray[np.float32] | None
    """(H, W) float32 scale of int8 codes, NaN = nodata."""
    manifest: EmbeddingManifest
    observations_hwm: NDArray[np.uint8] | None = None
    """(H, W, 2) observations a pixel, in the order of OBSERVED; None where that was not kept."""

    @property
    def shape_hwc(self) -> tuple[int, int, int]:
        """Height, width, dimensions."""
        height, width, channels = self.values_hwc.shape
        return int(height), int(width), int(channels)

    @property
    def gappy(self) -> bool:
        """Whether single numbers of a pixel may be missing."""
        return self._months is not None

    @property
    def _months(self) -> slice | None:
        """Which numbers are monthly medians, of which some may be missing."""
        model, dim, start = self.manifest.model, self.values_hwc.shape[2], 0
        if self.scales_hw is not None:
            return None
        parts = [(model.family, dim)] if model.parts is None else [(part.family, part.numbers) for part in model.parts]
        for family, numbers in parts:
            if not 0 < numbers <= dim - start:
                return None
            if family == MONTHLY_FAMILY and numbers == MONTHLY_DIM:
                return slice(start, start + numbers)
            start += numbers
        return None

    def embedded(self, rows: slice, columns: slice) -> NDArray[np.bool_]:
        """(h, w) where a window's pixels have an embedding."""
        if self.scales_hw is not None:
            lacking: NDArray[np.bool_] = np.isnan(self.scales_hw[rows, columns])
        elif self.gappy:
            lacking = np.isnan(self.values_hwc[rows, columns]).all(axis=-1)
        else:
            lacking = np.isnan(self.values_hwc[rows, columns, 0])
        return ~lacking

    def window(self, rows: slice, columns: slice, *, gaps: bool = False) -> NDArray[np.float32]:
        """float32 values of a window (h, w, C), NaN = nodata, dequantised where needed.

        Args:
            rows: of the window.
            columns: of the window.
            gaps: leave numbers that are missing as NaN, for classifiers that know what to do with them; otherwise they
                are filled as `infer.contract.monthly` says.
        """
        values = np.asarray(self.values_hwc[rows, columns])
        if self.scales_hw is not None:
            return dequantise(values, np.asarray(self.scales_hw[rows, columns]))
        return self._floats(values, gaps)

    def points(
        self, rows_n: NDArray[np.integer[Any]], columns_n: NDArray[np.integer[Any]], *, gaps: bool = True
    ) -> NDArray[np.float32]:
        """(N, C) float32 values of single pixels, as `window` gives them, by default with gaps; only these are read."""
        values_nc = np.asarray(self.values_hwc[rows_n, columns_n])
        if self.scales_hw is None:
            return self._floats(values_nc, gaps)
        return dequantise(values_nc, np.asarray(self.scales_hw[rows_n, columns_n]))

    def _floats(self, values: NDArray[Any], gaps: bool) -> NDArray[np.float32]:
        values = values.astype(np.float32, copy=False)
        months = self._months
        if months is None or gaps:
            return values
        filled = np.array(values)
        filled[..., months] = without_gaps(values[..., months])
        return filled


def dequantise(codes_hwc: NDArray[Any], scales_hw: NDArray[np.float32]) -> NDArray[np.float32]:
    """(H, W, C) float32 values of codes; NaN where the scale is."""
    values: NDArray[np.float32] = codes_hwc.astype(np.float32) * scales_hw[..., None]
    return values


def embedding_paths(folder: Path, name: str) -> tuple[Path, Path, Path]:
    """Paths of values, scales and manifest of a tile's embedding."""
    stem = child(folder, name)
    return Path(f"{stem}.npy"), Path(f"{stem}_scales.npy"), Path(f"{stem}.json")


def embedding_manifest(folder: Path, name: str) -> Path:
    """Path of the last of them alone."""
    return folder / f"{child_name(folder, name)}.json"


def observations_path(folder: Path, name: str) -> Path:
    """Path of the counts of a tile's observations."""
    return child(folder, name).with_name(f"{name}_observations.npy")


def write_embedding(
    folder: Path,
    name: str,
    values_hwc: NDArray[Any],
    scales_hw: NDArray[np.float32] | None,
    *,
    observations_hwm: NDArray[np.uint8] | None = None,
    inputs: Inputs,
    about: EmbeddingManifest,
) -> None:
    """Write one tile's embedding atomically, manifest last; an older one is invalid from the first touch on.

    Args:
        folder: where to; made if needed.
        name: the tile's name.
        values_hwc: (H, W, C) float32, or int8 codes together with `scales_hw`.
        scales_hw: (H, W) float32 or None.
        observations_hwm: (H, W, 2) uint8 in the order of OBSERVED, at most MOST_OBSERVED; None where it is not known.
        inputs: fingerprint: tile, checkpoint, output, dimensions, precision.
        about: what the manifest says besides.
    """
    expected = np.float32 if scales_hw is None else np.int8
    if values_hwc.ndim != 3 or values_hwc.dtype != expected:
        raise ValueError(f"embedding of {name}: {values_hwc.dtype} {values_hwc.shape}, expected (H, W, C) {expected}")
    values_path, scales_path, manifest_path = embedding_paths(folder, name)
    manifest_path.unlink(missing_ok=True)
    with atomic_file(values_path) as temporary:
        write_npy(temporary, values_hwc)
    files = [values_path]
    if scales_hw is None:
        scales_path.unlink(missing_ok=True)
    else:
        if scales_hw.dtype != np.float32 or scales_hw.shape != values_hwc.shape[:2]:
            raise ValueError(f"scales of {name}: {scales_hw.dtype} {scales_hw.shape}, expected float32 (H, W)")
        with atomic_file(scales_path) as temporary:
            write_npy(temporary, scales_hw)
        files.append(scales_path)
    counts_path = observations_path(folder, name)
    if observations_hwm is None:
        counts_path.unlink(missing_ok=True)
    else:
        if observations_hwm.dtype != np.uint8 or observations_hwm.shape != (*values_hwc.shape[:2], len(OBSERVED)):
            found = f"{observations_hwm.dtype} {observations_hwm.shape}"
            raise ValueError(f"observations of {name}: {found}, expected uint8 (H, W, {len(OBSERVED)})")
        with atomic_file(counts_path) as temporary:
            write_npy(temporary, observations_hwm)
        files.append(counts_path)
    replace(about, tile=name).write(manifest_path, inputs=inputs, files=files)


def read_back(folder: Path, name: str) -> None:
    """Verify a tile's embedding by reading every byte of it, from the disk and not from memory where that can be asked.

    Raises:
        FormatError: one line that names the file and what is wrong with it.
    """
    values, scales, _ = embedding_paths(folder, name)
    for path in (values, scales, observations_path(folder, name)):
        with suppress(FileNotFoundError), path.open("rb") as stream:
            if hasattr(os, "posix_fadvise"):  # not everywhere; elsewhere memory may answer
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    read_embedding(folder, name, checksums=True)


def read_embedding(folder: Path, name: str, *, checksums: bool = True) -> Embedding:
    """Open a tile's embedding after its manifest has been verified.

    Raises:
        FormatError: one line that names the file and what is wrong with it.
    """
    values_path, scales_path, manifest_path = embedding_paths(folder, name)
    manifest = EmbeddingManifest.of_tile(folder, name)
    verify_files(manifest_path, manifest.files, checksums=checksums, remedy=_REMEDY)
    if manifest.tile not in (None, name):
        raise FormatError(
            f"{manifest_path}: the embedding of {brief_name(manifest.tile)} under this tile's name: {_REMEDY}"
        )
    if values_path.name not in manifest.files:
        raise FormatError(f"{manifest_path}: does not list {values_path.name}: {_REMEDY}")
    values = open_npy(values_path, _REMEDY)
    scales = open_npy(scales_path, _REMEDY) if scales_path.name in manifest.files else None
    if values.ndim != 3 or values.dtype != (np.float32 if scales is None else np.int8):
        raise FormatError(f"{values_path}: {values.dtype} {values.shape} is not an embedding: {_REMEDY}")
    if scales is not None and (scales.dtype != np.float32 or scales.shape != values.shape[:2]):
        raise FormatError(f"{scales_path}: {scales.dtype} {scales.shape} does not fit the codes: {_REMEDY}")
    if scales is not None and checksums and np.isinf(scales).any():
        raise FormatError(f"{scales_path}: holds infinite scales (NaN is nodata): {_REMEDY}")
    counts_path = observations_path(folder, name)
    counts = open_npy(counts_path, _REMEDY) if counts_path.name in manifest.files else None
    if counts is not None and (counts.dtype != np.uint8 or counts.shape != (*values.shape[:2], len(OBSERVED))):
        raise FormatError(f"{counts_path}: {counts.dtype} {counts.shape} does not fit the embedding: {_REMEDY}")
    return Embedding(name, values, scales, manifest, counts)
