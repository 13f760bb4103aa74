"""The search for CatBoost's parameters: Optuna's TPE on grouped folds, repeatable and resumable trial by trial."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from preproc.classify.accuracy import count_matrix, macro_f1
from preproc.classify.boost import Parameters, out_of_fold
from preproc.classify.folds import Folds
from preproc.classify.table import Samples, keep_per_group
from preproc.classify.trials import Journal, Trial
from preproc.run.progress import progress

TUNING_ROWS = 4000
"""Rows that trials are run on: as many of each group as fit. The final model is trained on all."""
_BOOTSTRAPS = 200

_SPACE: dict[str, BaseDistribution] = {
    "iterations": IntDistribution(60, 300, step=20),
    "depth": IntDistribution(3, 6),
    "learning_rate": FloatDistribution(0.03, 0.3, log=True),
    "l2_leaf_reg": FloatDistribution(1.0, 30.0, log=True),
    "class_weights": CategoricalDistribution(["None", "SqrtBalanced", "Balanced"]),
}


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


def propose(history: Sequence[Trial], number: int, seed: int) -> Parameters:
    """The parameters of trial `number`, given those before it; the first is the defaults.

    The sampler is seeded by the trial's number and is told the history, so that a resumed study goes the same way.
    """
    if number == 0:
        return Parameters()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed + number, n_startup_trials=6)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.add_trials(
        [optuna.trial.create_trial(params=dict(t.values), distributions=_SPACE, value=t.score) for t in history]
    )
    return Parameters(**study.ask(_SPACE).params)


def search(samples: Samples, split: Folds, *, trials: int, seed: int, workers: int, journal: Journal) -> None:
    """Run the trials that the journal lacks.

    Args:
        samples: tuning rows, of the classes that are trained.
        split: the folds.
        trials: number of trials in all.
        seed: of sampler and CatBoost.
        workers: folds fitted side by side.
        journal: what is done; receives the rest.
    """
    codes_k = np.unique(samples.code_n)
    with progress("train: tuning", trials, "trials") as bar:
        bar.advance(len(journal.trials))
        for number in range(len(journal.trials), trials):
            chosen = propose(journal.trials, number, seed)
            values_nk = out_of_fold(
                samples.values_nc, samples.code_n, codes_k, split, chosen, seed=seed, workers=workers
            )
            predicted = values_nk.argmax(axis=1)
            score = macro_f1(count_matrix(codes_k[predicted], samples.code_n, codes_k))
            journal.append(Trial(number, asdict(chosen), score, predicted.astype(np.uint8)))
            bar.advance(note=f"best macro-F1 {best(journal.trials).score:.3f}")


def best(trials: Sequence[Trial]) -> Trial:
    """The trial with the highest score; the earlier of equals."""
    return max(trials, key=lambda trial: (trial.score, -trial.number))


def tuning_optimism(trials: Sequence[Trial], code_n: NDArray[Any], group_n: NDArray[Any], seed: int) -> float:
    """How much the best trial's score flatters, because it was chosen for being the best on these labels.

    Bootstrap bias correction (Tsamardinos et al. 2018, Machine Learning 107, 1895-1922), here over groups: choose the
    best trial on groups drawn with replacement and see on the groups not drawn how far it stands above the average
    trial. What the best trial stands above the average beyond that is luck. No model is trained for it.

    Returns:
        Difference in macro-F1; 0 with fewer than two trials.
    """
    if len(trials) < 2:
        return 0.0
    codes_k, code_i = np.unique(code_n, return_inverse=True)
    _, group_i = np.unique(group_n, return_inverse=True)
    indices_k = np.arange(len(codes_k))

    def scores(weights_n: NDArray[Any]) -> NDArray[np.float64]:
        return np.array([macro_f1(count_matrix(t.predicted_n, code_i, indices_k, weights_n)) for t in trials])

    generator = np.random.default_rng(seed)
    groups = int(group_i.max()) + 1
    leads = []
    for _ in range(_BOOTSTRAPS):
        drawn_n = np.bincount(generator.integers(0, groups, groups), minlength=groups)[group_i]
        if (drawn_n > 0).all():
            continue
        elsewhere = scores((drawn_n == 0).astype(float))
        leads.append(elsewhere[scores(drawn_n.astype(float)).argmax()] - elsewhere.mean())
    if not leads:
        return 0.0
    told = scores(np.ones(len(code_i)))
    return float(told.max() - told.mean() - np.mean(leads))
