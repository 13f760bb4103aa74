"""The labelled pixels that a model is trained on: pooled, some of them held out, classes that are too rare left out."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from infer.contract import Run, SmaltiError
from infer.contract.classification import HeldOut, LeftOutClass
from preproc.classify.boost import refuse_missing_gpu
from preproc.classify.folds import groups_per_class
from preproc.classify.pool import pooled_samples
from preproc.classify.split import Split, divide, hold_out, split_of
from preproc.classify.table import Samples, counted, keep_per_group
from preproc.run.classifier import maps_number
from preproc.run.config import Classify, Config
from preproc.run.progress import say
from preproc.run.text import some

TUNING_ROWS = 4000
"""Rows that trials are run on: as many of each group as fit. The final model is trained on all."""
_NAMED = 12
"""Classes that are named in a line."""
_STRATA = 5
"""Where a number is learned, folds share the groups out by fifths of their means, or fewer parts of few groups."""


@dataclass(frozen=True)
class TrainingSet:
    """What is trained on, and what is not."""

    pooled: Samples
    """All samples; where a number is learned, its code is the part of all numbers that its group is in."""
    used_n: NDArray[np.bool_]
    """Of `pooled`, trained on."""
    held_n: NDArray[np.bool_]
    """Of `pooled`, held out."""
    samples: Samples
    """Those that are used."""
    split: Split
    held_out: HeldOut | None
    left_out: list[LeftOutClass]
    beyond: int
    """Samples that [classify] max_rows left out."""


def training_set(run: Run, config: Config) -> TrainingSet:
    """Read the samples of a run and of [train] runs, and say which are trained on.

    Raises:
        SmaltiError: if they cannot be trained on.
    """
    settings = config.classify
    if settings.task_type == "GPU":
        refuse_missing_gpu()
    pooled = pooled_samples(run, config)
    learns_number = maps_number(config)
    if learns_number:
        if settings.method not in ("catboost", "best") or settings.task_type == "GPU":  # known late without [labels]
            raise SmaltiError(
                f"[classify] method: numbers (the labels of [train] runs hold {pooled.legend[1]}) are learned by "
                "CatBoost, on the CPU"
            )
        pooled = replace(pooled, code_n=_parts(pooled, settings.folds))
    whole = split_of(pooled, settings)
    held, held_out = hold_out(pooled, whole, settings)
    used, left_out = (~held, []) if learns_number else trainable(pooled, ~held, settings.min_groups)
    used, beyond = _within_limit(pooled, used, settings)
    samples, split = pooled.take(used), whole.take(used)
    divide(samples, split, settings, settings.seed)  # refuses before the long search
    return TrainingSet(pooled, used, held, samples, split, held_out, left_out, beyond)


def _within_limit(pooled: Samples, used_n: NDArray[np.bool_], settings: Classify) -> tuple[NDArray[np.bool_], int]:
    """Those of the rows that [classify] max_rows allows, and how many it does not."""
    candidates = np.flatnonzero(used_n)
    kept = tuning_rows(pooled.take(used_n), settings.seed, settings.max_rows)
    beyond = int((~kept).sum())
    if not beyond:
        return used_n, 0
    say(
        f"train: {beyond} of {len(candidates)} pixels left out, of every group what is beyond an equal share: "
        f"[classify] max_rows = {settings.max_rows}"
    )
    fewer_n = np.zeros(len(pooled), dtype=bool)
    fewer_n[candidates[kept]] = True
    return fewer_n, beyond


def _parts(samples: Samples, folds: int) -> NDArray[np.int32]:
    """(N,) 1, 2, ... by the groups' mean numbers, so that folds are alike: each part has a group for every fold."""
    _, group_i = np.unique(samples.group_n, return_inverse=True)
    mean_g = np.bincount(group_i, samples.value_n) / np.bincount(group_i)
    count = min(_STRATA, max(1, len(mean_g) // folds))
    edges = np.quantile(mean_g, np.linspace(0, 1, count + 1)[1:-1])
    found: NDArray[np.int32] = (np.searchsorted(edges, mean_g, side="right") + 1)[group_i].astype(np.int32)
    return found


def trainable(
    samples: Samples, free_n: NDArray[np.bool_], min_groups: int, command: str = "train"
) -> tuple[NDArray[np.bool_], list[LeftOutClass]]:
    """Leave out classes with too few groups to be cross-validated.

    Args:
        samples: all of them.
        free_n: (N,) not held out.
        min_groups: groups that a class needs.
        command: that says what is left out.

    Returns:
        (N,) the rows to train on, and what was left out.

    Raises:
        SmaltiError: if fewer than two classes remain.
    """
    groups = groups_per_class(samples.code_n[free_n], samples.group_n[free_n])
    few = [code for code, count in groups.items() if count < min_groups]
    left_out = [
        LeftOutClass(code, samples.legend[code], groups[code], int((free_n & (samples.code_n == code)).sum()))
        for code in few
    ]
    if left_out:
        say(f"{command}: left out, for [classify] min_groups asks for {min_groups}: {named_classes(left_out)}")
    if len(groups) - len(few) < 2:
        counts = ", ".join(f"{samples.legend[code]}: {count}" for code, count in groups.items())
        raise SmaltiError(
            f"fewer than two classes have {min_groups} groups of labels ([classify] min_groups), so nothing can be "
            f"trained; groups are {counts}: add labels, or give a finer group in [labels]"
        )
    return free_n & ~np.isin(samples.code_n, few), left_out


def named_classes(left_out: Sequence[LeftOutClass]) -> str:
    """Classes in a line, with the groups that they have."""
    return some([f"{entry.name} ({counted(entry.groups, 'group')})" for entry in left_out], _NAMED)


def tuning_rows(samples: Samples, seed: int, limit: int = TUNING_ROWS) -> NDArray[np.bool_]:
    """Which rows trials are run on: the largest equal share of every group that keeps within `limit`.

    With more groups than `limit`, one row each of some of them, of every class the same share.
    """
    if len(samples) <= limit:
        return np.ones(len(samples), dtype=bool)
    hashes = samples.hashes(seed)
    _, group_i = np.unique(samples.group_n, return_inverse=True)
    sizes = np.bincount(group_i)
    caps = range(1, int(sizes.max()) + 1)
    cap = bisect.bisect_right(caps, limit, key=lambda each: int(np.minimum(sizes, each).sum()))
    kept = keep_per_group(group_i, hashes, max(cap, 1))
    if kept.sum() > limit:
        share = limit / kept.sum()
        for code in np.unique(samples.code_n):
            rows = np.flatnonzero(kept & (samples.code_n == code))
            keep = max(2, round(share * len(rows)))
            kept[rows[np.argsort(hashes[rows])[keep:]]] = False
    return kept
