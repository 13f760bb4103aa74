"""The part of a raster that some tiles need, as a GeoTIFF of its own with the same pixels in the same places.

The copy has the raster's whole grid, and only the blocks that the tiles touch; the others are left out of the file.
That is why tiles made from it are bit-identical: not one coordinate is computed anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.windows import Window

from infer.contract import FormatError, PlannedTile, open_regular, writing
from preproc.reader.placement import RasterGrid, SourceWindow, UnusableError, project
from preproc.reader.ranges import MissingDataError, RangeClient, is_remote
from preproc.reader.read import BandKind, fetched, grid_of, has_mask, local_name, opened
from preproc.reader.sparse_file import RemoteFile
from preproc.reader.whereabouts import Whereabouts, check_place

MARGIN = 4
"""Pixels of the raster around each tile: more than any interpolation looks at, and than the outline may be off."""
_EDGE_POINTS = 33
"""Along each edge of a tile: between them no edge bends by a pixel."""
_PIECE = 8 << 20
"""Bytes of one request when a file is copied as a whole."""


def needed_window(grid: RasterGrid, tile: PlannedTile) -> SourceWindow | None:
    """The part of a raster from which a tile's pixels can come, a little more at most; None if there is none."""
    west, south, east, north = tile.bounds
    steps = np.linspace(0, 1, _EDGE_POINTS)
    x = np.concatenate([west + steps * (east - west)] * 2 + [np.full(_EDGE_POINTS, e) for e in (west, east)])
    y = np.concatenate([np.full(_EDGE_POINTS, e) for e in (south, north)] + [south + steps * (north - south)] * 2)
    x, y = project(x, y, f"EPSG:{tile.epsg}", grid.crs)
    a, b, c, d, e, f = grid.transform
    determinant = a * e - b * d
    columns, rows = (e * (x - c) - b * (y - f)) / determinant, (a * (y - f) - d * (x - c)) / determinant
    if not (np.isfinite(columns).all() and np.isfinite(rows).all()):
        return SourceWindow(0, 0, grid.height, grid.width)  # the tile leaves the projection: all of it, to be sure
    spans = []
    for values, size in ((rows, grid.height), (columns, grid.width)):
        first, last = int(np.floor(values.min())) - MARGIN, int(np.ceil(values.max())) + MARGIN
        spans.append((max(first, 0), min(last, size)))
    (row, row_end), (column, column_end) = spans
    if row >= row_end or column >= column_end:
        return None
    return SourceWindow(row, column, row_end - row, column_end - column)


def needed_blocks(
    grid: RasterGrid, tiles: Sequence[PlannedTile], block: tuple[int, int]
) -> list[tuple[SourceWindow, list[SourceWindow]]]:
    """The blocks (height, width) that tiles need: for each row of blocks its needed part, and the blocks in it."""
    height, width = block
    found: dict[int, set[int]] = {}
    for tile in tiles:
        window = needed_window(grid, tile)
        if window is not None:
            columns = range(window.column // width, (window.column + window.width - 1) // width + 1)
            for row in range(window.row // height, (window.row + window.height - 1) // height + 1):
                found.setdefault(row, set()).update(columns)
    strips = []
    for row in sorted(found):
        top, tall = row * height, min(height, grid.height - row * height)
        blocks = [SourceWindow(top, c * width, tall, min(width, grid.width - c * width)) for c in sorted(found[row])]
        left, right = blocks[0].column, blocks[-1].column + blocks[-1].width
        strips.append((SourceWindow(top, left, tall, right - left), blocks))
    return strips


def copy_needed(
    client: RangeClient,
    href: str,
    tiles: Sequence[PlannedTile],
    kind: BandKind,
    path: Path,
    said: Whereabouts | None = None,
) -> None:
    """Write what some tiles need of a raster; equal input gives equal bytes.

    Args:
        client: for remote files.
        href: unsigned path or URL.
        tiles: which.
        kind: what the raster must be; one that is something else is refused here rather than on the cluster.
        path: a temporary file to write.
        said: where its item says that it lies.

    Raises:
        MissingDataError: if the file is missing or not what it should be, for good.
        UnreachableError: if its server does not deliver within the retry budget.
    """
    if is_remote(href):
        fetched(client, href, lambda remote: _copy(remote.path, remote, tiles, kind, path, said))
        return
    try:
        _copy(local_name(href), None, tiles, kind, path, said)
    except UnusableError as error:
        raise MissingDataError(f"{href}: {error}") from error


def _copy(
    name: str,
    remote: RemoteFile | None,
    tiles: Sequence[PlannedTile],
    kind: BandKind,
    path: Path,
    said: Whereabouts | None,
) -> None:
    layout = None if remote is None else remote.layout()
    with opened(name) as dataset:
        grid = grid_of(dataset, kind)
        if said is not None:
            check_place(grid, said)
        if has_mask(dataset):
            raise UnusableError("has a mask inside, which windows of it would lose: mirror whole files with --whole")
        strips = needed_blocks(grid, tiles, dataset.block_shapes[0])
    if remote is not None and layout is not None:
        remote.ensure([part for _, blocks in strips for window in blocks for part in layout.ranges(window)])
    with opened(name) as source, writing(path), rasterio.open(path, "w", **_profile(source)) as target:
        for _, blocks in strips:
            for block in blocks:
                window = Window(block.column, block.row, block.width, block.height)
                target.write(source.read(1, window=window), 1, window=window)
    with opened(str(path)) as written:
        if grid_of(written, kind) != grid:
            raise UnusableError("its grid cannot be written exactly: mirror whole files with --whole")


def _profile(source: Any) -> dict[str, Any]:
    tall, wide = source.block_shapes[0]
    tiled = tall % 16 == 0 and wide % 16 == 0 and wide < source.width + 16
    return {
        "driver": "GTiff",
        "dtype": source.dtypes[0],
        "count": 1,
        "height": source.height,
        "width": source.width,
        "crs": source.crs,
        "transform": source.transform,
        "nodata": source.nodata,
        "compress": "deflate",
        "predictor": 3 if np.dtype(source.dtypes[0]).kind == "f" else 2,
        "sparse_ok": True,
        "bigtiff": "IF_SAFER",
        **({"tiled": True, "blockxsize": wide, "blockysize": tall} if tiled else {"tiled": False, "blockysize": tall}),
    }


def copy_whole(client: RangeClient, href: str, path: Path) -> None:
    """Copy a file as it is.

    Raises:
        MissingDataError: if it is missing for good.
        UnreachableError: if its server does not deliver within the retry budget.
    """
    if not is_remote(href):
        try:
            content = open_regular(Path(local_name(href)))
        except (OSError, UnusableError, FormatError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise MissingDataError(f"{href}: cannot be read: {reason}") from error
        with content, writing(path), path.open("wb") as stream:
            while piece := content.read(_PIECE):
                stream.write(piece)
        return
    with writing(path), path.open("wb") as stream:
        for piece, _ in client.pieces(href):
            stream.write(piece)
