"""Cross-validation folds that keep a group (parcel, farm) on one side and share each class out evenly. Pure."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infer.contract import SmaltiError


@dataclass(frozen=True)
class Folds:
    """Which fold tests each row."""

    fold_n: NDArray[np.int32]
    """(N,) 0 .. count-1."""
    count: int
    absent: Mapping[int, list[int]]
    """Fold -> class codes that none of its test rows has."""
    names: tuple[str, ...] = ()
    """What each fold tests, where it has a name: a year, a region, a district."""


def groups_per_class(code_n: NDArray[Any], group_n: NDArray[Any]) -> dict[int, int]:
    """Number of distinct groups of each class, by code."""
    pairs = {(int(code), group) for code, group in zip(code_n.tolist(), group_n.tolist(), strict=True)}
    codes, counts = np.unique([code for code, _ in pairs], return_counts=True)
    return dict(zip(codes.tolist(), counts.tolist(), strict=True))


def main_classes(code_n: NDArray[Any], group_i: NDArray[np.intp]) -> NDArray[np.int64]:
    """Most frequent class of each group (the smaller code of equals).

    Args:
        code_n: (N,) class codes.
        group_i: (N,) group numbers 0 .. G-1.

    Returns:
        (G,) class codes.
    """
    codes, code_i = np.unique(code_n, return_inverse=True)
    counts_gk = np.zeros((int(group_i.max()) + 1, len(codes)), dtype=np.int64)
    np.add.at(counts_gk, (group_i, code_i), 1)
    main: NDArray[np.int64] = codes[counts_gk.argmax(axis=1)].astype(np.int64)
    return main


def assign_folds(code_n: NDArray[Any], group_n: NDArray[Any], count: int, seed: int) -> Folds:
    """Share the groups out over folds, stratified by their main class; the order of rows does not matter.

    A class with fewer groups than folds is tested in as many folds as it has groups. When no class has `count` groups
    the number of folds falls to what the best-furnished class has.

    Args:
        code_n: (N,) class codes.
        group_n: (N,) group of each row.
        count: folds wanted, 2 or more.
        seed: of the shuffle.

    Raises:
        SmaltiError: if every class has a single group.
    """
    _, group_i = np.unique(group_n, return_inverse=True)
    main_g = main_classes(code_n, group_i)
    _, sizes = np.unique(main_g, return_counts=True)
    count = min(count, int(sizes.max()))
    if count < 2:
        raise SmaltiError(
            "each class has a single group of labels: cross-validation needs two or more of a class "
            "(more parcels, or a finer group in [labels])"
        )
    order = np.arange(len(main_g))
    fold_g = np.empty(len(main_g), dtype=np.int32)
    for fold, (_, test) in enumerate(_split(order, main_g, count, seed)):
        fold_g[test] = fold
    fold_n = fold_g[group_i]
    return Folds(fold_n, count, _absent(code_n, fold_n, count))


def folds_of(code_n: NDArray[Any], part_n: NDArray[Any]) -> Folds:
    """One fold a part, in the order of their names.

    Args:
        code_n: (N,) class codes.
        part_n: (N,) name of the year, region or district of each row.
    """
    names, fold_n = np.unique(part_n, return_inverse=True)
    return Folds(
        fold_n.astype(np.int32), len(names), _absent(code_n, fold_n, len(names)), tuple(str(name) for name in names)
    )


def _absent(code_n: NDArray[Any], fold_n: NDArray[Any], count: int) -> dict[int, list[int]]:
    everywhere = set(np.unique(code_n).tolist())
    absent = {fold: sorted(everywhere - set(code_n[fold_n == fold].tolist())) for fold in range(count)}
    return {fold: codes for fold, codes in absent.items() if codes}


def _split(order: NDArray[Any], main_g: NDArray[Any], count: int, seed: int) -> Any:
    from sklearn.model_selection import StratifiedKFold  # here: who maps with a classifier divides nothing

    # scikit-learn warns of classes with fewer members than folds; they are reported in `Folds.absent` instead.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        return list(StratifiedKFold(count, shuffle=True, random_state=seed).split(order, main_g))
