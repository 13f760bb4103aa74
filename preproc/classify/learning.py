"""How much labels are worth: the learning curve of the chosen method, and what it says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from infer.contract.classification import Figure, LearningPoint
from preproc.classify.accuracy import count_matrix, macro_f1, overall
from preproc.classify.folds import Folds, groups_per_class, main_classes
from preproc.classify.methods import Chosen, fold_probabilities
from preproc.classify.performance import bootstrap
from preproc.classify.table import Samples

SIZES = (1, 3, 10, 30)
"""Groups a class; all of them are the folds that are reported anyway."""
_WORTH = 0.02
"""Macro-F1 that the last step has to bring for more labels to be worth a word."""


def figures_of(
    predicted_n: NDArray[np.int32], samples: Samples, codes_k: NDArray[np.int32], seed: int
) -> dict[str, Figure]:
    """Macro-F1 and overall accuracy with their intervals."""
    matrix_kk = count_matrix(predicted_n, samples.code_n, codes_k)
    group_i = np.unique(samples.group_n, return_inverse=True)[1]
    intervals = bootstrap(predicted_n, samples.code_n, group_i, codes_k, seed)
    found = {"macro_f1": macro_f1(matrix_kk), "overall_accuracy": overall(matrix_kk)}
    return {name: Figure(value, _pair(intervals[name])) for name, value in found.items()}


def _pair(interval: Sequence[float] | None) -> tuple[float, float] | None:
    return None if interval is None else (interval[0], interval[1])


def learning_curve(
    samples: Samples,
    codes_k: NDArray[np.int32],
    folds: Folds,
    chosen: Chosen,
    whole: dict[str, Figure],
    *,
    seed: int,
    workers: int,
) -> list[LearningPoint]:
    """Cross-validation with few groups of each class on the training side; the test side is always whole.

    Args:
        samples: (N) rows.
        codes_k: (K,) all codes, ascending.
        folds: those that are reported.
        chosen: parameters.
        whole: the figures with all groups.
        seed: of the draw: the groups of a smaller size are among those of the next.
        workers: fits side by side; it does not change the result.

    Returns:
        A point a size of which some class has more, and one of all.
    """
    most = max(groups_per_class(samples.code_n, samples.group_n).values())
    points = []
    given = samples.values_nc, samples, codes_k, folds, chosen
    for size, predicted_n, mean_rows in few_groups(*given, seed=seed, workers=workers):
        found = figures_of(predicted_n, samples, codes_k, seed)
        points.append(LearningPoint(size, round(mean_rows), **found))
    rows = [int((folds.fold_n != fold).sum()) for fold in range(folds.count)]
    points.append(LearningPoint(most, round(float(np.mean(rows))), **whole))
    return points


def few_groups(
    values_nc: NDArray[np.float32],
    samples: Samples,
    codes_k: NDArray[np.int32],
    folds: Folds,
    chosen: Chosen,
    *,
    seed: int,
    workers: int,
) -> Iterator[tuple[int, NDArray[np.int32], float]]:
    """What is said of every row with few groups of each class on the training side; the test side is always whole.

    Args:
        values_nc: (N, C) numbers to learn from; those of `samples` are not looked at.
        samples: (N) rows.
        codes_k: (K,) all codes, ascending.
        folds: who tests when.
        chosen: parameters.
        seed: of the draw: the groups of a smaller size are among those of the next.
        workers: fits side by side; it does not change the result.

    Yields:
        A size of which some class has more groups, (N,) codes, and the rows trained on, the mean of the folds.
    """
    most = max(groups_per_class(samples.code_n, samples.group_n).values())
    rank_n = _rank(samples, seed)
    for size in (size for size in SIZES if size * folds.count < most * (folds.count - 1)):
        predicted_n = np.zeros(len(samples), dtype=np.int32)
        rows = []

        def one(fold: int, size: int = size) -> tuple[NDArray[np.bool_], NDArray[np.float32], int]:
            test = folds.fold_n == fold
            train = ~test & (_dense(rank_n, ~test, samples) < size)
            values = fold_probabilities(values_nc, samples.code_n, codes_k, test, chosen, seed, train)
            return test, values, int(train.sum())

        with ThreadPoolExecutor(max(1, min(workers, folds.count))) as pool:
            for test, values, used in pool.map(one, range(folds.count)):
                predicted_n[test] = codes_k[values.argmax(axis=1)]
                rows.append(used)
        yield size, predicted_n, float(np.mean(rows))


def _rank(samples: Samples, seed: int) -> NDArray[np.float64]:
    """(N,) a random number a group, by which groups are drawn."""
    groups, group_i = np.unique(samples.group_n, return_inverse=True)
    found: NDArray[np.float64] = np.random.default_rng(seed).random(len(groups))[group_i]
    return found


def _dense(rank_n: NDArray[np.float64], train_n: NDArray[np.bool_], samples: Samples) -> NDArray[np.int64]:
    """(N,) place of each row's group among those of its main class that are trained on: 0, 1, ..."""
    place_n = np.full(len(rank_n), np.iinfo(np.int64).max)
    _, group_i = np.unique(samples.group_n[train_n], return_inverse=True)
    main_g = main_classes(samples.code_n[train_n], group_i)
    rank_g = np.zeros(len(main_g))
    rank_g[group_i] = rank_n[train_n]
    place_g = np.zeros(len(main_g), dtype=np.int64)
    for code in np.unique(main_g):
        here = np.flatnonzero(main_g == code)
        place_g[here[np.argsort(rank_g[here])]] = np.arange(len(here))
    place_n[train_n] = place_g[group_i]
    return place_n


def told(points: Sequence[LearningPoint]) -> str:
    """What the curve says."""
    if len(points) < 2:
        return "too few groups for a learning curve"
    before, last = points[-2], points[-1]
    gain = last.macro_f1.value - before.macro_f1.value
    step = f"from {before.groups} to {last.groups} groups a class macro-F1 went from {before.macro_f1.value:.2f} to "
    step += f"{last.macro_f1.value:.2f}"
    if gain >= _WORTH:
        return f"{step}: more labels would help"
    return f"{step}: more labels of the same kind would help little; other places, years or classes may"
