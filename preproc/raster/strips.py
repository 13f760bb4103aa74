"""The embeddings of a sheet, strip by strip from its tiles, as numbers or codes: what mosaic and map are made from."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from infer.contract import Embedding, FormatError, PlannedTile, Run, read_embedding
from infer.contract.embedding import dequantise
from preproc.raster.observations import BANDS, NODATA, observation_values
from preproc.raster.provenance import RunProvenance
from preproc.raster.zones import Overlap, Sheet

_OTHER_FILES = 256
"""That a process may have open beside the embeddings: outputs, libraries, progress."""
ROWS = 128
"""Of a strip: whole chunks of every array, and whole blocks of a GeoTIFF of 128 codes a pixel."""
_LARGEST = 127
CODES_NODATA = -128
"""Code of nodata pixels in a GeoTIFF; in a tile and in the store it is 0, told by the scale."""


@dataclass
class Strip:
    """Some rows of a sheet, from its left to its right edge."""

    top: int
    """First row."""
    codes_hwc: NDArray[np.int8] | None
    """(h, W, C) where asked for; 0 where there is no embedding."""
    scales_hw: NDArray[np.float32]
    """(h, W): finite where there is an embedding, NaN where its tile says that there is none, inf outside of tiles."""
    values_hwc: NDArray[np.float32] | None
    """(h, W, C) NaN = nodata or a missing month, where asked for: not the codes' values, if the embeddings are kept as
    float32."""
    observed_hwc: NDArray[np.uint8]
    """(h, W, 4) as in `preproc.raster.observations`."""

    def put(self, part: Overlap, tile: _OpenTile, *, over: bool, gaps: bool) -> None:
        """Put what a tile has of it.

        Args:
            part: where it overlaps the strip.
            tile: which.
            over: another tile may have been there before it; its valid pixels stay.
            gaps: of single numbers of a pixel are left as they are.
        """
        height, width = part.rows.stop - part.rows.start, part.columns.stop - part.columns.start
        place = slice(part.top, part.top + height), slice(part.left, part.left + width)
        wanted_hw: NDArray[np.bool_] | slice = ~np.isfinite(self.scales_hw[place]) if over else slice(None)
        if self.codes_hwc is not None:
            codes_hwc, scales_hw = to_codes(tile.embedding, part.rows, part.columns)
            self.codes_hwc[place][wanted_hw] = codes_hwc[wanted_hw]
        else:
            there_hw = tile.embedding.embedded(part.rows, part.columns)
            scales_hw = np.where(there_hw, np.float32(1), np.float32(np.nan))
        self.scales_hw[place][wanted_hw] = scales_hw[wanted_hw]
        if self.values_hwc is not None:
            self.values_hwc[place][wanted_hw] = tile.embedding.window(part.rows, part.columns, gaps=gaps)[wanted_hw]
        self.observed_hwc[place][wanted_hw] = tile.observed_hwc[part.rows, part.columns][wanted_hw]

    def valid_values(self, start: int, stop: int) -> NDArray[np.float32]:
        """(N, C) values of the valid ones among the strip's pixels `start` to `stop`, counted row by row."""
        valid_n = np.isfinite(self.scales_hw.reshape(-1)[start:stop])
        if self.values_hwc is not None:
            return self.values_hwc.reshape(-1, self.values_hwc.shape[2])[start:stop][valid_n]
        assert self.codes_hwc is not None, "a strip without codes has values"
        codes_nc = self.codes_hwc.reshape(-1, self.codes_hwc.shape[2])[start:stop][valid_n]
        return dequantise(codes_nc, self.scales_hw.reshape(-1)[start:stop][valid_n])


@dataclass
class _OpenTile:
    embedding: Embedding

    @cached_property
    def observed_hwc(self) -> NDArray[np.uint8]:
        return observation_values(self.embedding)


def strips(
    run: Run, sheet: Sheet, facts: RunProvenance, *, codes: bool, values: bool, gaps: bool = True
) -> Iterator[Strip]:
    """The rows of a sheet from north to south; each tile is verified when it is first needed.

    Args:
        run: the run directory.
        sheet: which.
        facts: about its embeddings; of tiles that are missing nothing is there, as outside of tiles.
        codes: with int8 codes, those that are there or made from float32 values.
        values: with float32 values.
        gaps: missing months of these stay NaN, for what knows what to do with them; otherwise they are filled.

    Raises:
        SmaltiError: if an embedding is damaged, or not as the plan says.
    """
    grid = sheet.grid
    opened: dict[str, _OpenTile] = {}
    present = facts.present(grid.tiles)
    if present:
        size = present[0].size
        _allow_files(2 * 3 * (ROWS // size + 2) * (grid.width // size + 2))  # while the next strip's are opened
    for top in range(0, grid.height, ROWS):
        height = min(ROWS, grid.height - top)
        shape_hwc = height, grid.width, facts.dim
        codes_hwc = np.zeros(shape_hwc, dtype=np.int8) if codes else None
        scales_hw = np.full((height, grid.width), np.inf, dtype=np.float32)
        values_hwc = np.full(shape_hwc, np.nan, dtype=np.float32) if values else None
        observed_hwc = np.full((height, grid.width, len(BANDS)), NODATA, dtype=np.uint8)
        strip = Strip(top, codes_hwc, scales_hw, values_hwc, observed_hwc)
        needed: dict[str, _OpenTile] = {}
        for tile in present:
            part = _within(grid.overlap(tile), top, height)
            if part is not None:
                needed[tile.name] = opened.get(tile.name) or _OpenTile(open_embedding(run, tile))
                strip.put(part, needed[tile.name], over=grid.mixed, gaps=gaps)
        opened = needed
        yield strip


def _allow_files(count: int) -> None:
    """Let this process have so many files open, as far as it may: of tiles of 16 pixels a strip has thousands."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + _OTHER_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _within(part: Overlap | None, top: int, height: int) -> Overlap | None:
    """What of a tile's overlap with a sheet lies in a strip of it, seen from the strip."""
    if part is None:
        return None
    first = max(part.top, top)
    last = min(part.top + part.rows.stop - part.rows.start, top + height)
    if first >= last:
        return None
    start = part.rows.start + first - part.top
    return Overlap(slice(start, start + last - first), part.columns, first - top, part.left)


def open_embedding(run: Run, tile: PlannedTile, *, dim: int | None = None, checksums: bool = True) -> Embedding:
    """The embedding of a planned tile, verified.

    Args:
        run: the run directory.
        tile: which.
        dim: numbers a pixel, where those of the other tiles are known.
        checksums: whether every byte of it is read, or its files are looked at only.

    Raises:
        FormatError: if it is damaged, or of another size.
    """
    embedding = read_embedding(run.embeddings, tile.name, checksums=checksums)
    height, width, numbers = embedding.shape_hwc
    if (height, width, numbers) != (tile.size, tile.size, numbers if dim is None else dim):
        other = "" if dim in (None, numbers) else f", the other tiles have {dim} numbers a pixel and not {numbers}"
        raise FormatError(
            f"{run.embeddings / tile.name}.npy: {height} x {width} pixels, the plan says {tile.size} x {tile.size}"
            f"{other}: run `smalti infer {run.quoted}` again"
        )
    return embedding


def to_codes(embedding: Embedding, rows: slice, columns: slice) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes (h, W, C) and scales (h, W), NaN = nodata, of a window of a tile; codes that are there already are kept.

    Args:
        embedding: float32 or int8.
        rows: of the window.
        columns: of the window.
    """
    if embedding.scales_hw is not None:
        return np.asarray(embedding.values_hwc[rows, columns]), np.asarray(embedding.scales_hw[rows, columns])
    values_hwc = embedding.window(rows, columns)
    scales_hw = (np.abs(values_hwc).max(axis=2) / np.float32(_LARGEST)).astype(np.float32)
    return _divide(values_hwc, scales_hw), scales_hw


def without_nodata(
    codes_hwc: NDArray[np.int8], scales_hw: NDArray[np.float32]
) -> tuple[NDArray[np.int8], NDArray[np.float32], int]:
    """The same as a GeoTIFF has them, where a code of its own means nodata.

    Returns:
        Codes, CODES_NODATA where there is no embedding; scales, NaN there; and how many codes of valid pixels were
        CODES_NODATA and became the nearest other one (v1.x uses -128).
    """
    valid_hw = np.isfinite(scales_hw)
    codes_hwc = codes_hwc.copy()
    clash_hwc = codes_hwc == CODES_NODATA
    clash_hwc &= valid_hw[..., None]
    codes_hwc[clash_hwc] = CODES_NODATA + 1
    codes_hwc[~valid_hw] = CODES_NODATA
    return codes_hwc, np.where(valid_hw, scales_hw, np.float32(np.nan)), int(np.count_nonzero(clash_hwc))


def _divide(values_hwc: NDArray[np.float32], scales_hw: NDArray[np.float32]) -> NDArray[np.int8]:
    quotient = np.zeros_like(values_hwc)
    np.divide(values_hwc, scales_hw[..., None], out=quotient, where=scales_hw[..., None] > 0)
    codes = np.clip(np.rint(quotient), -_LARGEST, _LARGEST)
    result: NDArray[np.int8] = codes.astype(np.int8)
    return result
