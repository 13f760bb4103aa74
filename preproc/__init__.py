"""smalti's venv side: everything before and after the GPU. Never imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import xarray


def open_mosaic(run: str | Path, zone: str | None = None, chunk: int = 512) -> xarray.DataArray:
    """The embeddings' mosaic of a run as a lazy xarray (band, y, x): see `preproc.cluster.interactive.open_mosaic`."""
    from preproc.cluster import interactive

    return interactive.open_mosaic(run, zone, chunk)
