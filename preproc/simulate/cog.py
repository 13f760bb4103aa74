"""Cloud-optimised GeoTIFFs of the archive: tiled, deflated, with overviews when they are large."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.io import MemoryFile
from rasterio.transform import Affine

from infer.contract import writing
from preproc.simulate.grid import Grid


def write_cog(
    path: Path,
    values: NDArray[Any],
    grid: Grid,
    *,
    nodata: float | None,
    colours: Mapping[int, tuple[int, int, int]] | None = None,
    average: bool = True,
) -> None:
    """Write one band.

    Args:
        path: a path in a folder that is already temporary.
        values: (H, W) at 10 or 20 m; the pixel size follows from the grid.
        grid: where it lies.
        nodata: value of missing pixels.
        colours: colour table of a class map.
        average: overviews are means (False: nearest neighbours, for classes).

    Raises:
        SmaltiError: if the file system refuses.
    """
    height, width = values.shape
    pixel = grid.width * 10 // width
    large = max(height, width) > 512
    profile: dict[str, Any] = {
        "driver": "COG",
        "dtype": values.dtype.name,
        "count": 1,
        "height": height,
        "width": width,
        "crs": f"EPSG:{grid.epsg}",
        "transform": Affine(*grid.transform(pixel)),
        "compress": "DEFLATE",
        "predictor": "FLOATING_POINT" if values.dtype == np.float32 else "STANDARD",
        "blocksize": 512 if large else 128,
        "overviews": "AUTO" if large else "NONE",
        "overview_resampling": "AVERAGE" if average else "NEAREST",
        "num_threads": 1,
    }
    if nodata is not None:
        profile["nodata"] = nodata
    with MemoryFile() as memory:  # GDAL would report a full disk in its own words, and not always
        with memory.open(**profile) as target:
            if colours:
                target.write_colormap(1, {code: (*colour, 255) for code, colour in colours.items()})
            target.write(values, 1)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(memory.read())
