"""Reading training pixels: tiles stay on disk as memory maps, and a batch is one gather a tile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from infer.contract import FormatError, SmaltiError, Tile, is_tile_folder, read_tile
from infer.pretrain.views import Pixels


@dataclass(frozen=True)
class TileSet:
    """The tiles that a training reads, and how likely each is drawn."""

    tiles: tuple[Tile, ...]
    usable: tuple[NDArray[np.int64], ...]
    """Of each tile the flat positions (row * W + column) of pixels with enough observations."""
    chance: NDArray[np.float64]
    """(number of tiles,) sums to 1."""


def tile_folders(roots: Sequence[Path]) -> list[Path]:
    """The tiles named by `roots`: tiles themselves or folders that hold tiles, in order of their names.

    Raises:
        SmaltiError: if a root holds none.
    """
    found: list[Path] = []
    for root in roots:
        if is_tile_folder(root):
            found.append(root)
            continue
        inside = sorted(child for child in root.iterdir() if is_tile_folder(child)) if root.is_dir() else []
        if not inside:
            raise SmaltiError(f"{root}: no tiles here: name a tile's folder or a folder of tiles")
        found.extend(inside)
    return found


def _usable(tile: Tile, minimum: int) -> NDArray[np.int64]:
    optical = np.zeros(tile.shape_hw, dtype=np.int64)
    for mask in tile.masks_thw:
        optical += mask
    radar = np.zeros(tile.shape_hw, dtype=np.int64)
    for stack in (tile.sar_asc_thwp, tile.sar_desc_thwp):
        for values in stack:
            radar += (values != 0).any(axis=-1)
    return np.flatnonzero(((optical >= minimum) | (radar >= minimum)).ravel())


def open_tiles(roots: Sequence[Path], weights: Sequence[float], minimum: int = 4) -> TileSet:
    """Open and check all tiles.

    Args:
        roots: tiles or folders of tiles.
        weights: of each root: how often its tiles are drawn, all together, relative to the other roots.
        minimum: observations of either modality that a pixel needs.

    Raises:
        SmaltiError: if there is nothing to train on, or a tile is not what it should be.
    """
    tiles: list[Tile] = []
    usable: list[NDArray[np.int64]] = []
    chance: list[float] = []
    for root, weight in zip(roots, weights, strict=True):
        opened = [read_tile(folder, need_manifest=False, checksums=False) for folder in tile_folders([root])]
        pixels = [_usable(tile, minimum) for tile in opened]
        total = sum(map(len, pixels))
        if total == 0:
            raise FormatError(f"{root}: no pixel has {minimum} observations: leave it out, or fetch a longer season")
        tiles += opened
        usable += pixels
        chance += [weight * len(some) / total for some in pixels]
    scale = np.array(chance) / sum(chance)
    return TileSet(tuple(tiles), tuple(usable), scale)


def neighbours(tile: Tile, position_p: NDArray[np.int64], reach: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """For each pixel another at most `reach` rows and columns away, inside the tile (it may be the pixel itself)."""
    height, width = tile.shape_hw
    row, column = np.divmod(position_p, width)
    row = np.clip(row + rng.integers(-reach, reach + 1, len(row)), 0, height - 1)
    column = np.clip(column + rng.integers(-reach, reach + 1, len(column)), 0, width - 1)
    return np.asarray(row * width + column, np.int64)


def _flat(array: NDArray[Any]) -> NDArray[Any]:
    dates, height, width, *rest = array.shape
    return array.reshape(dates, height * width, *rest)


def gather(tile: Tile, position_p: NDArray[np.int64]) -> Pixels:
    """All observations of pixels at flat positions: one gather from each memory map."""
    bands = _flat(tile.bands_thwb)[:, position_p].astype(np.float32)
    clear = _flat(tile.masks_thw)[:, position_p] == 1
    radar = np.concatenate([_flat(stack)[:, position_p] for stack in (tile.sar_asc_thwp, tile.sar_desc_thwp)])
    doys = np.concatenate([tile.sar_asc_doys_t, tile.sar_desc_doys_t]).astype(np.int64)
    return Pixels(
        torch.from_numpy(np.ascontiguousarray(bands.swapaxes(0, 1))),
        torch.from_numpy(np.ascontiguousarray(clear.T)),
        torch.from_numpy(tile.doys_t.astype(np.int64)),
        torch.from_numpy(np.ascontiguousarray(radar.swapaxes(0, 1)).astype(np.float32)),
        torch.from_numpy(np.ascontiguousarray((radar != 0).any(axis=-1).T)),
        torch.from_numpy(doys),
        len(tile.sar_asc_doys_t),
    )


def cut(tile: Tile, position_p: NDArray[np.int64]) -> Tile:
    """A tile of one row that holds the pixels at flat positions."""
    stacks = {
        name: np.ascontiguousarray(_flat(getattr(tile, name))[:, position_p])[:, None]
        for name in ("bands_thwb", "masks_thw", "sar_asc_thwp", "sar_desc_thwp")
    }
    return replace(
        tile,
        bands_thwb=stacks["bands_thwb"],
        masks_thw=stacks["masks_thw"],
        sar_asc_thwp=stacks["sar_asc_thwp"],
        sar_desc_thwp=stacks["sar_desc_thwp"],
    )


@dataclass(frozen=True)
class Pairs:
    """P pixels of one tile and, row by row, the pixels that should look alike."""

    tile: Tile
    position: NDArray[np.int64]
    """(P,) flat positions of the first ones."""
    one: Pixels
    two: Pixels


def draw_pairs(tiles: TileSet, pixels: int, reach: int, rng: np.random.Generator) -> Pairs:
    """Draw a tile and pixels in it; partners are the pixels themselves (reach 0) or near ones.

    Args:
        tiles: to draw from.
        pixels: how many (with replacement when the tile has fewer).
        reach: how far a partner may lie, in pixels.
        rng: the only source of chance.
    """
    number = int(rng.choice(len(tiles.tiles), p=tiles.chance))
    tile, usable = tiles.tiles[number], tiles.usable[number]
    position = np.asarray(rng.choice(usable, pixels, replace=len(usable) < pixels), np.int64)
    one = gather(tile, position)
    if reach == 0:
        return Pairs(tile, position, one, one)
    partner = neighbours(tile, position, reach, rng)
    partner = np.where(np.isin(partner, usable), partner, position)
    return Pairs(tile, position, one, gather(tile, partner))
