"""Scores of a feature table: two fixed classifiers, folds that keep parcels whole, and label-efficiency curves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from preproc.classify.boost import Parameters, fit
from preproc.classify.folds import assign_folds
from preproc.classify.probe.features import Floats, filled

Classifier = Literal["linear", "catboost"]
CLASSIFIERS: tuple[Classifier, ...] = ("linear", "catboost")
_BOOST = Parameters(class_weights="None")
"""Nothing is tuned on what is scored."""


def predict(kind: Classifier, train_nc: Floats, code_n: NDArray[Any], test_nc: Floats, seed: int) -> NDArray[np.int64]:
    """Codes of the test rows; with a single class in training, that one."""
    known = np.unique(code_n)
    if len(known) == 1:
        return np.full(len(test_nc), known[0], np.int64)
    if kind == "linear":
        train_nc, test_nc = filled(train_nc, test_nc)
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.02, tol=1e-3, max_iter=3000))
        model.fit(train_nc, code_n)
        return np.asarray(model.predict(test_nc), np.int64)
    boosted = fit(train_nc, code_n, _BOOST, seed)
    return np.asarray(boosted.predict(test_nc, thread_count=1), np.int64).ravel()


@dataclass(frozen=True)
class Score:
    """F1 of one classifier on one feature table, averaged over deals of the folds."""

    macro: float
    """Mean over classes."""
    spread: float
    """Standard deviation of the macro-F1 over the deals."""
    by_class: dict[int, float]
    """Code -> F1."""


def deal_predictions(
    kind: Classifier, x_nc: Floats, code_n: NDArray[Any], group_n: NDArray[Any], *, folds: int, deals: int, seed: int
) -> NDArray[np.int64]:
    """(D, N) codes that each deal of the folds says of every row, from classifiers that saw none of its group."""
    found_dn = np.empty((deals, len(code_n)), np.int64)
    for deal in range(deals):
        dealt = assign_folds(code_n, group_n, folds, seed + deal)
        for fold in range(dealt.count):
            test = dealt.fold_n == fold
            found_dn[deal, test] = predict(kind, x_nc[~test], code_n[~test], x_nc[test], seed)
    return found_dn


def cross_validated(
    kind: Classifier, x_nc: Floats, code_n: NDArray[Any], group_n: NDArray[Any], *, folds: int, deals: int, seed: int
) -> Score:
    """Out-of-fold F1 with all pixels of a group on one side.

    Args:
        kind: classifier.
        x_nc: (N, C) features.
        code_n: (N,) class codes.
        group_n: (N,) parcels.
        folds: number of folds.
        deals: how often the groups are dealt out anew; small samples make a single deal a lottery.
        seed: of the first deal.
    """
    codes = np.unique(code_n)
    found_dn = deal_predictions(kind, x_nc, code_n, group_n, folds=folds, deals=deals, seed=seed)
    scores = np.array([f1_score(code_n, found, labels=codes, average=None, zero_division=0) for found in found_dn])
    macro = scores.mean(axis=1)
    by_class = {int(code): float(value) for code, value in zip(codes, scores.mean(axis=0), strict=True)}
    return Score(float(macro.mean()), float(macro.std()), by_class)


def draw_groups(
    code_n: NDArray[Any], group_n: NDArray[Any], count: int, rng: np.random.Generator
) -> NDArray[np.bool_] | None:
    """Rows of `count` groups of every class drawn at random, or None if a class would have none left to test."""
    train = np.zeros(len(code_n), dtype=bool)
    for code in np.unique(code_n):
        groups = np.unique(group_n[code_n == code])
        if len(groups) <= count:
            return None
        train |= np.isin(group_n, rng.choice(groups, count, replace=False)) & (code_n == code)
    # A parcel that is training material of one class is not test material of another.
    return train


@dataclass(frozen=True)
class CurvePoint:
    """Macro-F1 with few labels."""

    groups: int
    """Training parcels of each class."""
    macro: float
    spread: float
    """Standard deviation over the draws."""


def efficiency(
    kind: Classifier,
    x_nc: Floats,
    code_n: NDArray[Any],
    group_n: NDArray[Any],
    *,
    counts: tuple[int, ...],
    draws: int,
    seed: int,
) -> list[CurvePoint]:
    """The label-efficiency curve: train on a few parcels of each class, test on all others; equal draws for all."""
    points = []
    for count in counts:
        scores = []
        for draw in range(draws):
            train = draw_groups(code_n, group_n, count, np.random.default_rng([seed, count, draw]))
            if train is None:
                break
            test = ~np.isin(group_n, np.unique(group_n[train]))
            found = predict(kind, x_nc[train], code_n[train], x_nc[test], seed)
            labels = np.unique(code_n[test])
            scores.append(f1_score(code_n[test], found, labels=labels, average="macro", zero_division=0))
        if scores:
            points.append(CurvePoint(count, float(np.mean(scores)), float(np.std(scores))))
    return points
