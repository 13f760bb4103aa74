"""What each step sees, as a pure function of recipe, step and process: nothing to save but the step's number."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from infer.contract import Tile
from infer.pretrain.options import Recipe
from infer.pretrain.tiles import Reader, draw_pairs, together
from infer.pretrain.views import NO_NOISE, Chance, View, draw_view

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
    """One step's input, on the training's device."""

    view: View
    """First views, then second views (with a teacher: first views only), tile by tile."""
    prefix: int
    """Length of the Matryoshka prefix of this step."""
    target: torch.Tensor | None
    """With a teacher (P, E), its embeddings; else (2P, 144), what the pixels' months were like, or None."""


def chance_of(seed: int, step: int, device: torch.device) -> torch.Generator:
    """The device's source of chance for one step."""
    number = int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.Generator(device).manual_seed(number)


def make_batch(reader: Reader, recipe: Recipe, step: int, place: Place, teacher: Target | None = None) -> Batch:
    """Draw one process's share of a step: whole groups (tiles), so that shares together are what one process draws."""
    shared = np.random.default_rng([recipe.seed, step])
    s2, s1 = (int(n) for n in shared.integers(recipe.shortest, recipe.longest + 1, 2))
    shorter = recipe.prefixes[:-1] or recipe.prefixes
    prefix = int(shared.choice(shorter))
    mine = recipe.groups // place.world
    pixels = recipe.batch // recipe.groups
    first = place.rank * mine
    chance = Chance(
        chance_of(recipe.seed, step, reader.device), slice(first * pixels, (first + mine) * pixels), recipe.batch
    )
    reach = 0 if teacher is not None else recipe.reach
    drawn = [
        draw_pairs(reader.tiles, pixels, reach, np.random.default_rng([recipe.seed, step, group]))
        for group in range(first, first + mine)
    ]
    ones = together([reader.take(pairs.number, pairs.one) for pairs in drawn])
    views = [draw_view(ones, (s2, s1), recipe.noise, chance)]
    if teacher is not None:
        targets = [teacher(reader.tiles.tiles[pairs.number], pairs.one) for pairs in drawn]
        return Batch(views[0], prefix, torch.cat(targets).to(reader.device))
    twos = together([reader.take(pairs.number, pairs.two) for pairs in drawn]) if reach else ones
    views.append(draw_view(twos, (s2, s1), recipe.noise, chance))
    months = [part.monthly_pf for part in (ones, twos) if part.monthly_pf is not None]
    return Batch(joined(views), prefix, torch.cat(months) if months else None)


def joined(views: list[View]) -> View:
    """Views one after the other."""
    return View(*(torch.cat([getattr(view, name) for view in views]) for name in View.__dataclass_fields__))


def stream(
    reader: Reader, recipe: Recipe, first: int, place: Place, teacher: Target | None = None
) -> Iterator[tuple[int, Batch]]:
    """Steps from `first` to the end; on a CPU the next batch is prepared while one is trained on."""
    if reader.device.type != "cpu":  # its kernels queue up behind the step's anyway
        for step in range(first, recipe.steps):
            yield step, make_batch(reader, recipe, step, place, teacher)
        return
    with ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(make_batch, reader, recipe, first, place, teacher)
        for step in range(first, recipe.steps):
            batch = coming.result()
            if step + 1 < recipe.steps:
                coming = ahead.submit(make_batch, reader, recipe, step + 1, place, teacher)
            yield step, batch


def watched_views(reader: Reader, recipe: Recipe, pixels: int = 512, groups: int = 8) -> tuple[View, View]:
    """Two noiseless views of fixed pixels from many tiles; in the second a third of the observations is missing."""
    taken = []
    for group in range(groups):
        rng = np.random.default_rng([recipe.seed, _WATCH_STEP, group])
        number = int(rng.choice(len(reader.tiles.tiles), p=reader.tiles.chance))
        usable = reader.tiles.usable[number]
        share = pixels // groups
        taken.append(reader.take(number, np.asarray(rng.choice(usable, share, replace=len(usable) < share), np.int64)))
    seen = together(taken)
    chance = Chance(chance_of(recipe.seed, _WATCH_STEP, reader.device), slice(0, pixels), pixels)
    lengths = (recipe.longest, recipe.longest)
    return (
        draw_view(seen, lengths, NO_NOISE, chance),
        draw_view(seen.thinned(1 / 3, chance), lengths, NO_NOISE, chance),
    )
