"""Reading training pixels: tiles stay on disk as memory maps, and a batch is one gather a tile."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from infer.contract import BANDS, FormatError, SmaltiError, Tile, is_tile_folder, read_tile
from infer.contract.monthly import MONTHLY_DIM, monthly_composites, without_gaps
from infer.contract.tile import TileManifest
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


def months_of(tile: Tile, position_p: NDArray[np.int64]) -> NDArray[np.float32]:
    """(P, 144) medians of calendar months (`infer.contract.monthly`), missing ones filled along the year.

    Not of the season's months: all that a network knows is the day of year.
    """
    row, column = np.divmod(position_p, tile.shape_hw[1])
    return without_gaps(monthly_composites(replace(tile, manifest=TileManifest()), row, column))


def gather(
    tile: Tile, position_p: NDArray[np.int64], dates: tuple[int, int] | None = None, *, monthly: bool = False
) -> Pixels:
    """All observations of pixels at flat positions: one gather from each memory map.

    Args:
        tile: that holds them.
        position_p: (P,) row * W + column.
        dates: pad the dates of Sentinel-2 and of Sentinel-1 to these numbers.
        monthly: add what the pixels' months were like.
    """
    bands = _flat(tile.bands_thwb)[:, position_p].astype(np.float32)
    clear = _flat(tile.masks_thw)[:, position_p] == 1
    radar = np.concatenate([_flat(stack)[:, position_p] for stack in (tile.sar_asc_thwp, tile.sar_desc_thwp)])
    doys = np.concatenate([tile.sar_asc_doys_t, tile.sar_desc_doys_t])
    up = np.arange(len(doys)) < len(tile.sar_asc_doys_t)
    optical, microwave = dates or (len(bands), len(radar))

    def padded(array_tp: NDArray[Any], length: int) -> torch.Tensor:
        whole = np.zeros((len(position_p), length, *array_tp.shape[2:]), array_tp.dtype)
        whole[:, : len(array_tp)] = array_tp.swapaxes(0, 1)
        return torch.from_numpy(whole)

    def everywhere(array_t: NDArray[Any]) -> NDArray[Any]:
        return np.broadcast_to(array_t[:, None], (len(array_t), len(position_p)))

    return Pixels(
        padded(bands, optical),
        padded(clear, optical),
        padded(everywhere(tile.doys_t.astype(np.int64)), optical),
        padded(radar.astype(np.float32), microwave),
        padded((radar != 0).any(axis=-1), microwave),
        padded(everywhere(doys.astype(np.int64)), microwave),
        padded(everywhere(up), microwave),
        torch.from_numpy(months_of(tile, position_p)) if monthly else None,
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
    """P pixels of one tile and, place by place, the pixels that should look alike."""

    number: int
    """Of the tile."""
    one: NDArray[np.int64]
    """(P,) flat positions of the first ones."""
    two: NDArray[np.int64]
    """(P,) of the others."""


def draw_pairs(tiles: TileSet, pixels: int, reach: int, rng: np.random.Generator) -> Pairs:
    """Draw a tile and pixels in it; partners are the pixels themselves (reach 0) or near ones.

    Args:
        tiles: to draw from.
        pixels: how many (with replacement when the tile has fewer).
        reach: how far a partner may lie, in pixels.
        rng: the only source of chance.
    """
    number = int(rng.choice(len(tiles.tiles), p=tiles.chance))
    usable = tiles.usable[number]
    position = np.asarray(rng.choice(usable, pixels, replace=len(usable) < pixels), np.int64)
    if reach == 0:
        return Pairs(number, position, position)
    partner = neighbours(tiles.tiles[number], position, reach, rng)
    found = usable[np.minimum(np.searchsorted(usable, partner), len(usable) - 1)]
    return Pairs(number, position, np.where(found == partner, partner, position))


class Reader:
    """Pixels of a set of tiles on a device.

    On an accelerator that has the memory whole tiles lie there, and a batch is a few gathers on the device; elsewhere
    pixels come from the memory maps. Both give the same numbers.
    """

    def __init__(self, tiles: TileSet, device: torch.device, *, monthly: bool) -> None:
        """Read pixels of `tiles`, with their months if `monthly`."""
        self.tiles, self.device, self.monthly = tiles, device, monthly
        self.dates = (
            max(len(tile.doys_t) for tile in tiles.tiles),
            max(len(tile.sar_asc_doys_t) + len(tile.sar_desc_doys_t) for tile in tiles.tiles),
        )
        """Dates of the longest season: all are padded to it, so that chance is dealt alike however work is shared."""
        self._resident: list[Pixels] = []
        if self._fits():
            with ThreadPoolExecutor(max(1, (os.cpu_count() or 2) // 2)) as pool:
                self._resident = list(pool.map(self._whole, tiles.tiles))

    def _fits(self) -> bool:
        if self.device.type != "cuda":
            return False
        pixels = sum(tile.shape_hw[0] * tile.shape_hw[1] for tile in self.tiles.tiles)
        optical, microwave = self.dates
        size = pixels * (optical * (2 * len(BANDS) + 1) + microwave * 5 + 4 * MONTHLY_DIM)
        return size < 0.4 * torch.cuda.mem_get_info(self.device)[0]

    def _whole(self, tile: Tile) -> Pixels:
        """All pixels of a tile on the device, whole numbers as int16 (few kernels know uint16), days once a tile."""
        count = tile.shape_hw[0] * tile.shape_hw[1]

        def moved(array: NDArray[Any]) -> torch.Tensor:
            return torch.from_numpy(np.array(array)).to(self.device)

        def padded(value_tp: torch.Tensor, length: int) -> torch.Tensor:
            whole = value_tp.new_zeros(value_tp.shape[1], length, *value_tp.shape[2:])
            whole[:, : len(value_tp)] = value_tp.transpose(0, 1)
            return whole

        optical, microwave = self.dates
        radar = moved(np.concatenate([_flat(stack) for stack in (tile.sar_asc_thwp, tile.sar_desc_thwp)]))
        sar_doys = np.concatenate([tile.sar_asc_doys_t, tile.sar_desc_doys_t]).astype(np.int64)
        up = np.arange(len(sar_doys)) < len(tile.sar_asc_doys_t)
        return Pixels(
            padded(moved(_flat(tile.bands_thwb).view(np.int16)), optical),
            padded(moved(_flat(tile.masks_thw)) == 1, optical),
            padded(moved(tile.doys_t.astype(np.int64))[:, None], optical),
            padded(radar, microwave),
            padded((radar != 0).any(dim=-1), microwave),
            padded(moved(sar_doys)[:, None], microwave),
            padded(moved(up)[:, None], microwave),
            moved(months_of(tile, np.arange(count))) if self.monthly else None,
        )

    def take(self, number: int, position_p: NDArray[np.int64]) -> Pixels:
        """Pixels of a tile at flat positions."""
        if not self._resident:
            found = gather(self.tiles.tiles[number], position_p, self.dates, monthly=self.monthly)
            return _each(found, lambda value: value.to(self.device))
        index = torch.from_numpy(position_p).to(self.device)

        def taken(value: torch.Tensor) -> torch.Tensor:
            return value.index_select(0, index) if len(value) > 1 else value.expand(len(index), *value.shape[1:])

        found = _each(self._resident[number], taken)
        bands = (found.bands_ptb.to(torch.int32) & 0xFFFF).float()
        return replace(found, bands_ptb=bands, sar_pup=found.sar_pup.float())


def _each(pixels: Pixels, one: Callable[[torch.Tensor], torch.Tensor]) -> Pixels:
    values: dict[str, Any] = {item.name: getattr(pixels, item.name) for item in fields(pixels)}
    changed: dict[str, Any] = {name: None if value is None else one(value) for name, value in values.items()}
    return Pixels(**changed)


def together(parts: Sequence[Pixels]) -> Pixels:
    """Pixels of several tiles, read to the same length, one after the other."""
    joined: dict[str, list[Any]] = {item.name: [getattr(part, item.name) for part in parts] for item in fields(Pixels)}
    whole: dict[str, Any] = {name: None if values[0] is None else torch.cat(values) for name, values in joined.items()}
    return Pixels(**whole)
