"""One tile's prediction on disk, RUN/map/tiles/<tile>.npy: (H, W, 2) uint8, class code and confidence in percent."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infer.contract import (
    FormatError,
    Run,
    atomic_file,
    child,
    open_npy,
    read_manifest,
    verify_files,
    write_manifest,
    write_npy,
)

KIND = "map-tile"
_REMEDY = "run `smalti predict` again"


def prediction_paths(run: Run, tile: str) -> tuple[Path, Path]:
    """Array and manifest of a tile."""
    stem = child(run.map / "tiles", tile)
    return stem.with_name(f"{tile}.npy"), stem.with_name(f"{tile}.json")


def combine(valid_hw: NDArray[np.bool_], codes_n: NDArray[np.uint8], shares_n: NDArray[Any]) -> NDArray[np.uint8]:
    """(H, W, 2): codes and confidence of the valid pixels (N, in order), zeros elsewhere.

    Args:
        valid_hw: where there is an embedding.
        codes_n: class codes.
        shares_n: probability of that class, 0..1; it becomes 1..100 percent, since 0 is nodata.
    """
    result = np.zeros((*valid_hw.shape, 2), dtype=np.uint8)
    result[valid_hw, 0] = codes_n
    result[valid_hw, 1] = np.clip(np.rint(shares_n * 100.0), 1, 100).astype(np.uint8)
    return result


def write_prediction(run: Run, tile: str, values_hwc: NDArray[np.uint8], inputs: Mapping[str, Any]) -> None:
    """Write one tile's prediction atomically, manifest last."""
    path, manifest = prediction_paths(run, tile)
    manifest.unlink(missing_ok=True)
    with atomic_file(path) as temporary:
        write_npy(temporary, values_hwc)
    write_manifest(manifest, KIND, inputs=inputs, files=[path], fields={"tile": tile})


def read_prediction(run: Run, tile: str, size: int) -> NDArray[np.uint8]:
    """(size, size, 2) uint8, after the manifest and the checksum have been verified.

    Raises:
        FormatError: one line that names the file and what is wrong with it.
    """
    path, manifest_path = prediction_paths(run, tile)
    manifest = read_manifest(manifest_path, KIND, remedy=_REMEDY)
    verify_files(manifest_path, manifest, remedy=_REMEDY)
    if manifest.get("tile") != tile or path.name not in manifest["files"]:
        raise FormatError(f"{manifest_path}: not the prediction of this tile: {_REMEDY}")
    values: NDArray[np.uint8] = open_npy(path, _REMEDY)
    if values.dtype != np.uint8 or values.shape != (size, size, 2):
        raise FormatError(f"{path}: {values.dtype} {values.shape}, expected uint8 {(size, size, 2)}: {_REMEDY}")
    return values
