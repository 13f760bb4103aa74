"""Drawing pixels of a class map at random, stratum by stratum.

A draw is a sequence: more points of the same seed begin with those that were drawn before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infer.contract import SmaltiError
from preproc.classify.class_raster import ClassMap
from preproc.run.progress import progress

_SHUFFLED = 1 << 17
"""Strata up to that size are shuffled whole; larger ones are drawn number by number."""


@dataclass(frozen=True)
class Units:
    """Sample units (N), in the order in which they are numbered."""

    id_n: NDArray[np.int64]
    """From 1 on, in random order: the number tells nothing of the stratum."""
    code_n: NDArray[np.int32]
    """Stratum: the class on the map."""
    pixel_n3: NDArray[np.int64]
    """(N, 3) file, row and column."""
    place_n2: NDArray[np.float64]
    """(N, 2) longitude and latitude of the pixel's centre."""

    def __len__(self) -> int:
        return len(self.id_n)


def ranks(pixels: int, count: int, seed: int, code: int) -> NDArray[np.int64]:
    """(count,) different numbers of 0..pixels-1, each set equally likely; fewer of a seed are the first of more."""
    rng = np.random.Generator(np.random.PCG64([seed, code]))
    if pixels <= _SHUFFLED:
        return rng.permutation(pixels)[:count]
    taken: dict[int, None] = {}
    while len(taken) < count:
        taken.setdefault(int(rng.integers(0, pixels)))
    return np.fromiter(taken, dtype=np.int64, count=count)


def draw(class_map: ClassMap, sizes: Mapping[int, int], seed: int, have: Mapping[int, int] | None = None) -> Units:
    """Draw a simple random sample without replacement in each stratum.

    Args:
        class_map: what is sampled.
        sizes: code -> points.
        seed: another seed is another sample.
        have: code -> points drawn before with this seed, which are left out; their ids come first.

    Raises:
        SmaltiError: if a stratum has too few pixels.
    """
    before = dict(have or {})
    wanted: dict[int, NDArray[np.int64]] = {}
    for code, count in sizes.items():
        pixels, all_of_it = class_map.pixels.get(code, 0), count + before.get(code, 0)
        if all_of_it > pixels or (pixels > _SHUFFLED and all_of_it > pixels // 2):
            raise SmaltiError(
                f"{class_map.files[0]}: class {class_map.names[code]!r} has {pixels} pixels: {all_of_it} points cannot "
                "be drawn from it: ask for fewer"
            )
        wanted[code] = ranks(pixels, all_of_it, seed, code)[before.get(code, 0) :]
    codes, pixels_n3 = _locate(class_map, wanted)
    order = np.random.Generator(np.random.PCG64([seed, 1 << 20, sum(before.values())])).permutation(len(codes))
    codes, pixels_n3 = codes[order], pixels_n3[order]
    places = np.empty((len(codes), 2))
    for index in range(len(class_map.files)):
        here = pixels_n3[:, 0] == index
        places[here] = class_map.centres(index, pixels_n3[here, 1], pixels_n3[here, 2])
    return Units(np.arange(len(codes)) + 1 + sum(before.values()), codes, pixels_n3, places)


def draw_rounds(class_map: ClassMap, rounds: Sequence[Mapping[int, int]], seed: int) -> Units:
    """A sample that grew: the first round's units, then those that each further round added, numbered on."""
    have: dict[int, int] = {}
    drawn = []
    for sizes in rounds:
        drawn.append(draw(class_map, sizes, seed, {**dict.fromkeys(sizes, 0), **have}))
        have = {code: have.get(code, 0) + sizes.get(code, 0) for code in {*have, *sizes}}
    return Units(*(np.concatenate([getattr(one, name) for one in drawn]) for name in vars(drawn[0])))


def _locate(
    class_map: ClassMap, wanted: Mapping[int, NDArray[np.int64]]
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The pixels that have these numbers among those of their class, in the order of the strips; then as drawn."""
    ordered = {code: np.argsort(numbers, kind="stable") for code, numbers in wanted.items()}
    found = {code: np.full((len(numbers), 3), -1, dtype=np.int64) for code, numbers in wanted.items()}
    seen = dict.fromkeys(wanted, 0)
    with progress("draw", None, "strips") as bar:
        for index, top, codes_hw in class_map.strips():
            counts_c = np.bincount(codes_hw[codes_hw >= 0], minlength=max(wanted, default=0) + 1)
            for code, numbers in wanted.items():
                count = int(counts_c[code])
                first, last = np.searchsorted(numbers[ordered[code]], [seen[code], seen[code] + count])
                if last > first:
                    which = ordered[code][first:last]
                    flat = np.flatnonzero(codes_hw == code)[numbers[which] - seen[code]]
                    rows, columns = np.unravel_index(flat, codes_hw.shape)
                    found[code][which] = np.column_stack([np.full(len(which), index), rows + top, columns])
                seen[code] += count
            bar.advance()
    codes = np.concatenate([np.full(len(found[code]), code, dtype=np.int32) for code in wanted])
    return codes, np.concatenate(list(found.values()))
