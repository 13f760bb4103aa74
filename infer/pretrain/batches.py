"""What each step sees, as a pure function of recipe, step and process: nothing to save but the step's number."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from infer.contract import Tile
from infer.pretrain.options import Recipe
from infer.pretrain.tiles import TileSet, draw_pairs, gather
from infer.pretrain.views import NO_NOISE, View, draw_view

Target = Callable[[Tile, "np.ndarray[tuple[int], np.dtype[np.int64]]"], torch.Tensor]
"""A teacher: embeddings (P, E) of pixels at flat positions of a tile."""
_WATCH_STEP = 2**31
"""Stands for the step in the seed of the pixels that are watched."""


@dataclass(frozen=True)
class Place:
    """Which process of how many."""

    rank: int = 0
    world: int = 1


@dataclass(frozen=True)
class Batch:
    """One step's input."""

    view: View
    """First views, then second views (with a teacher: first views only), tile by tile."""
    prefix: int
    """Length of the Matryoshka prefix of this step."""
    target: torch.Tensor | None
    """(P, E) the teacher's embeddings."""

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        view = View(*(getattr(self.view, name).to(device) for name in View.__dataclass_fields__))
        return Batch(view, self.prefix, None if self.target is None else self.target.to(device))


def generators(seed: int, step: int, group: int) -> tuple[np.random.Generator, torch.Generator]:
    """The two sources of chance for one group of one step."""
    sequence = np.random.SeedSequence([seed, step, group])
    number = int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))
    return np.random.default_rng(sequence), torch.Generator().manual_seed(number)


def joined(views: list[View]) -> View:
    """Views one after the other."""
    return View(*(torch.cat([getattr(view, name) for view in views]) for name in View.__dataclass_fields__))


def make_batch(tiles: TileSet, recipe: Recipe, step: int, place: Place, teacher: Target | None = None) -> Batch:
    """Draw one process's share of a step: whole groups (tiles), so that shares together are what one process draws."""
    shared = np.random.default_rng([recipe.seed, step])
    lengths = tuple(int(n) for n in shared.integers(recipe.shortest, recipe.longest + 1, 2))
    shorter = recipe.prefixes[:-1] or recipe.prefixes
    prefix = int(shared.choice(shorter))
    mine = recipe.groups // place.world
    pixels = recipe.batch // recipe.groups
    ones, twos, targets = [], [], []
    for group in range(place.rank * mine, (place.rank + 1) * mine):
        rng, chance = generators(recipe.seed, step, group)
        pairs = draw_pairs(tiles, pixels, 0 if teacher is not None else recipe.reach, rng)
        ones.append(draw_view(pairs.one, (lengths[0], lengths[1]), recipe.noise, chance))
        if teacher is not None:
            targets.append(teacher(pairs.tile, pairs.position))
        else:
            twos.append(draw_view(pairs.two, (lengths[0], lengths[1]), recipe.noise, chance))
    return Batch(joined(ones + twos), prefix, torch.cat(targets) if targets else None)


def stream(
    tiles: TileSet, recipe: Recipe, first: int, place: Place, teacher: Target | None = None
) -> Iterator[tuple[int, Batch]]:
    """Steps from `first` to the end; the next batch is prepared while one is trained on."""
    with ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(make_batch, tiles, recipe, first, place, teacher)
        for step in range(first, recipe.steps):
            batch = coming.result()
            if step + 1 < recipe.steps:
                coming = ahead.submit(make_batch, tiles, recipe, step + 1, place, teacher)
            yield step, batch


def watched_views(tiles: TileSet, recipe: Recipe, pixels: int = 512) -> tuple[View, View]:
    """Two noiseless views of fixed pixels from many tiles; in the second a third of the observations is missing."""
    whole, part = [], []
    groups = 8
    for group in range(groups):
        rng, chance = generators(recipe.seed, _WATCH_STEP, group)
        number = int(rng.choice(len(tiles.tiles), p=tiles.chance))
        usable = tiles.usable[number]
        seen = gather(tiles.tiles[number], rng.choice(usable, pixels // groups, replace=len(usable) < pixels // groups))
        whole.append(draw_view(seen, (recipe.longest, recipe.longest), NO_NOISE, chance))
        part.append(draw_view(seen.thinned(1 / 3, chance), (recipe.longest, recipe.longest), NO_NOISE, chance))
    return joined(whole), joined(part)
