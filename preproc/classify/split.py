"""Who is tested when: folds and the hold-out by group, by square of land, by district, by year or by region."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infer.contract import SmaltiError
from infer.contract.classification import HeldOut
from preproc.classify.folds import Folds, assign_folds, folds_of
from preproc.classify.pool import regions, same_ground, years
from preproc.classify.table import Samples
from preproc.run.config import Classify
from preproc.run.progress import say

_HOLD_OUT = 2_000_003
"""Added to the seed for the share that is held out, so that it is not one of the folds."""


@dataclass(frozen=True)
class Split:
    """How samples are divided."""

    by: str
    """group, block, district, year or region."""
    unit_n: NDArray[np.str_]
    """(N,) what each row belongs to: never on two sides of a fold."""
    block_m: float | None
    """Side of the squares."""

    def take(self, where: NDArray[Any]) -> Split:
        """Of some of the rows."""
        return replace(self, unit_n=self.unit_n[where])


def split_of(samples: Samples, settings: Classify) -> Split:
    """What the rows belong to.

    Raises:
        SmaltiError: if the samples have no such division.
    """
    by = settings.split
    if by == "block":
        side = settings.block or label_reach(samples, settings.folds, settings.seed)
        return Split(by, _blocks(samples, side), side)
    if by == "district":
        _need_districts(samples)
        unit_n = _by_group(samples, samples.district_n)
    elif by == "group":
        unit_n = same_ground(samples)
    else:
        unit_n = years(samples) if by == "year" else regions(samples)
    found = np.unique(unit_n)
    if len(found) < 2 and by != "group":
        raise SmaltiError(
            f'[classify] split = "{by}": all samples are of one ({found[0]}): '
            + (
                "name another attribute in [labels] district"
                if by == "district"
                else "name further runs in [train] runs"
            )
        )
    return Split(by, unit_n, None)


def _need_districts(samples: Samples) -> None:
    for index, source in enumerate(samples.sources):
        here = samples.district_n[samples.run_n == index]
        if not (here != "").any():
            raise SmaltiError(
                f'[classify] split = "district": the samples of {source.name} name no district: set [labels] district '
                "there and run `smalti sample` again"
            )
    if (samples.district_n == "").any():
        missing = int((samples.district_n == "").sum())
        raise SmaltiError(f'[classify] split = "district": {missing} samples have no district: fill the attribute')


def _by_group(samples: Samples, name_n: NDArray[np.str_]) -> NDArray[np.str_]:
    """A group with rows in several parts belongs as a whole to that of most of its rows."""
    names, name_i = np.unique(name_n, return_inverse=True)
    _, group_i = np.unique(samples.group_n, return_inverse=True)
    counts_gk = np.zeros((int(group_i.max()) + 1, len(names)), dtype=np.int64)
    np.add.at(counts_gk, (group_i, name_i), 1)
    found: NDArray[np.str_] = names[counts_gk.argmax(axis=1)][group_i]
    return found


def _blocks(samples: Samples, side: float) -> NDArray[np.str_]:
    """(N,) the square of land that the middle of each row's group is in."""
    ground_n = same_ground(samples)
    _, group_i = np.unique(ground_n, return_inverse=True)
    sizes_g = np.bincount(group_i)
    _, first_g = np.unique(group_i, return_index=True)
    middle_g2 = [np.bincount(group_i, values) / sizes_g for values in (samples.x_n, samples.y_n)]
    column_g, row_g = (np.floor(values / side).astype(np.int64) for values in middle_g2)
    zone_g = samples.epsg_n[first_g]
    named_g = np.array([f"{z} {c} {r}" for z, c, r in zip(zone_g, column_g, row_g, strict=True)], dtype=np.str_)
    found: NDArray[np.str_] = named_g[group_i]
    return found


def hold_out(samples: Samples, split: Split, settings: Classify) -> tuple[NDArray[np.bool_], HeldOut | None]:
    """Which rows no choice and no training may see.

    Raises:
        SmaltiError: if a part that is named does not exist, or nothing would be left.
    """
    wanted = settings.hold_out
    nothing = np.zeros(len(samples), dtype=bool)
    if not wanted:
        return nothing, None
    if isinstance(wanted, tuple):
        known = np.unique(split.unit_n)
        missing = sorted(set(wanted) - set(known.tolist()))
        if missing:
            shown = ", ".join(known.tolist()[:10])
            raise SmaltiError(f"[classify] hold_out: no {split.by} is called {missing[0]!r}: there are {shown}")
        held = np.isin(split.unit_n, wanted)
    else:
        parts = max(2, round(1 / wanted))
        held = assign_folds(samples.code_n, split.unit_n, parts, settings.seed + _HOLD_OUT).fold_n == 0
    classes, left = (len(np.unique(codes)) for codes in (samples.code_n, samples.code_n[~held]))
    if left < min(2, classes):  # few fields with numbers are of one part
        raise SmaltiError("[classify] hold_out: what is left to train on has fewer than two classes: hold out less")
    names = tuple(sorted(set(wanted))) if isinstance(wanted, tuple) else ()
    return held, HeldOut(names, int(held.sum()), len(np.unique(samples.group_n[held])))


def divide(samples: Samples, split: Split, settings: Classify, seed: int) -> Folds:
    """The folds.

    Args:
        samples: the rows to divide.
        split: what they belong to.
        settings: [classify].
        seed: of the shuffle; folds that are named parts do not depend on it.

    Raises:
        SmaltiError: if two folds cannot be made.
    """
    parts = np.unique(split.unit_n)
    if split.by in ("year", "region") or (split.by == "district" and len(parts) <= settings.folds):
        if len(parts) < 2:
            raise SmaltiError(
                f'[classify] split = "{split.by}": without what is held out all samples are of one ({parts[0]}): '
                "hold out less, or split otherwise"
            )
        return folds_of(samples.code_n, split.unit_n)
    return assign_folds(samples.code_n, split.unit_n, settings.folds, seed)


_POINTS = 1500
"""Groups looked at: their pairs are counted."""
_BARS = 24
_CHANCE = 0.1
"""Share of the likeness at no distance at all below which it is taken for chance."""
_LEAST = 100.0
"""Metres; squares smaller than fields would divide nothing from anything."""


def label_reach(samples: Samples, folds: int, seed: int) -> float:
    """Side in metres of the squares for folds by block, in steps of 10 m.

    Join counts: the share of pairs of groups at some distance that are of one class, less what chance gives. Where it
    first falls below a tenth (twice in a row) labels are no longer alike. The squares are not made so large that there
    would be fewer than four a fold.
    """
    x_g, y_g, zone_g, code_g = _groups(samples)
    order = np.random.default_rng(seed).permutation(len(x_g))[:_POINTS]
    x_g, y_g, zone_g, code_g = x_g[order], y_g[order], zone_g[order], code_g[order]
    reach = _reach(x_g, y_g, zone_g, code_g)
    area = sum(np.ptp(x_g[zone_g == zone]) * np.ptp(y_g[zone_g == zone]) for zone in np.unique(zone_g))
    most = float(np.sqrt(max(area, _LEAST**2) / (4 * folds)))
    side = max(_LEAST, min(reach, most))
    side = float(np.ceil(side / 10) * 10)
    tail = f"; not {reach:.0f} m, for there would be too few squares" if most < reach else ""
    say(f"train: labels are alike up to {reach:.0f} m: folds of squares of {side:.0f} m{tail}")
    return side


def _groups(samples: Samples) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int32], NDArray[np.int32]]:
    """Middle, zone and class of every group; one of several classes counts once for each."""
    _, group_i = np.unique(samples.group_n, return_inverse=True)
    codes, code_i = np.unique(samples.code_n, return_inverse=True)
    units, first, unit_i = np.unique(group_i * len(codes) + code_i, return_index=True, return_inverse=True)
    sizes = np.bincount(unit_i)
    x, y = np.bincount(unit_i, samples.x_n) / sizes, np.bincount(unit_i, samples.y_n) / sizes
    return x, y, samples.epsg_n[first], codes[units % len(codes)]


def _reach(
    x_g: NDArray[np.float64], y_g: NDArray[np.float64], zone_g: NDArray[np.int32], code_g: NDArray[np.int32]
) -> float:
    one, other = np.triu_indices(len(x_g), 1)
    near = zone_g[one] == zone_g[other]
    one, other = one[near], other[near]
    if not len(one):
        return _LEAST
    distance = np.hypot(x_g[one] - x_g[other], y_g[one] - y_g[other])
    alike = code_g[one] == code_g[other]
    chance = float(alike.mean())
    if chance in (0.0, 1.0):
        return _LEAST
    # Bars of equal numbers of pairs are narrow where fields are near each other, which is where likeness falls.
    edges = np.unique(np.quantile(distance, np.linspace(0, 1, _BARS + 1) ** 2))
    if len(edges) < 2:  # all pairs are equally far apart, or in one place
        return _LEAST
    bar = np.clip(np.searchsorted(edges, distance, side="right") - 1, 0, len(edges) - 2)
    counts = np.bincount(bar, minlength=len(edges) - 1)
    share = np.bincount(bar, alike, minlength=len(edges) - 1) / np.maximum(counts, 1)
    likeness = (share - chance) / (1 - chance)
    for index in range(len(likeness)):
        if (likeness[index : index + 2] < _CHANCE).all():
            return float(edges[index]) if index else float(edges[1])
    return float(edges[-1])
