"""The search for a method's parameters: Optuna's TPE on the folds, in waves, pruned, repeatable trial by trial."""

from __future__ import annotations

import bisect
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from preproc.classify.accuracy import count_matrix, macro_f1
from preproc.classify.folds import Folds
from preproc.classify.methods import Chosen, Method, fold_probabilities, parameters
from preproc.classify.table import Samples, keep_per_group
from preproc.classify.trials import WAVE, Study, Trial
from preproc.run.progress import progress

TUNING_ROWS = 4000
"""Rows that trials are run on: as many of each group as fit. The final model is trained on all."""
_PATIENCE = 0.2
"""Seconds between looks at what other processes are doing."""
_BOOTSTRAPS = 200

_SPACE: dict[str, BaseDistribution] = {
    "iterations": IntDistribution(60, 300, step=20),
    "depth": IntDistribution(3, 6),
    "learning_rate": FloatDistribution(0.03, 0.3, log=True),
    "l2_leaf_reg": FloatDistribution(1.0, 30.0, log=True),
    "class_weights": CategoricalDistribution(["None", "SqrtBalanced", "Balanced"]),
}
_EVEN = CategoricalDistribution(["None", "Balanced"])
_SPACES: Mapping[Method, dict[str, BaseDistribution]] = {
    "catboost": _SPACE,
    "linear": {"c": FloatDistribution(1e-4, 10.0, log=True), "class_weights": _EVEN},
    "knn": {"neighbours": IntDistribution(1, 31, step=2), "class_weights": _EVEN},
    "mlp": {
        "hidden": IntDistribution(16, 128, step=16),
        "alpha": FloatDistribution(1e-4, 1.0, log=True),
        "iterations": IntDistribution(20, 100, step=20),
    },
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


def propose(method: Method, history: Sequence[Trial], number: int, seed: int) -> Chosen:
    """The parameters of trial `number`, given those of the waves before it; the first is the defaults.

    The sampler is seeded by the trial's number and is told the history, so that a resumed study goes the same way.
    """
    if number == 0:
        return parameters(method)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed + number, n_startup_trials=6)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    space = _SPACES[method]
    study.add_trials([_told(trial, space) for trial in history])
    return parameters(method, study.ask(space).params)


def _told(trial: Trial, space: dict[str, BaseDistribution]) -> optuna.trial.FrozenTrial:
    common: dict[str, Any] = {"params": dict(trial.values), "distributions": space}
    if not trial.pruned:
        return optuna.trial.create_trial(value=trial.score, **common)
    steps = dict(enumerate(trial.partial))
    return optuna.trial.create_trial(state=optuna.trial.TrialState.PRUNED, intermediate_values=steps, **common)


def search(
    samples: Samples, split: Folds, method: Method, *, trials: int, seed: int, workers: int, study: Study
) -> list[Trial]:
    """Run the trials that the study lacks, in waves: those of a wave know all trials of the waves before, and none of
    their own. So they can be run side by side, by threads and by other processes, and come out the same.

    Args:
        samples: tuning rows, of the classes that are trained.
        split: the folds.
        method: what is tuned.
        trials: number of trials in all.
        seed: of sampler and classifier.
        workers: trials run side by side by this process.
        study: what is done; receives the rest.

    Returns:
        All trials, by number.
    """
    done: list[Trial] = []
    with progress(f"train: tuning {method}", trials, "trials") as bar:
        for first in range(0, trials, WAVE):
            wave = range(first, min(first + WAVE, trials))
            done += _wave(samples, split, method, wave, list(done), seed=seed, workers=workers, study=study)
            bar.advance(len(wave), note=f"best macro-F1 {best(done).score:.3f}")
    return done


def _wave(
    samples: Samples,
    split: Folds,
    method: Method,
    wave: range,
    history: list[Trial],
    *,
    seed: int,
    workers: int,
    study: Study,
) -> list[Trial]:
    def run(number: int) -> bool:
        with study.claimed(number) as mine:
            if mine and study.read(number) is None:
                study.write(_trial(samples, split, propose(method, history, number, seed), number, history, seed))
            return mine

    while True:
        missing = [number for number in wave if study.read(number) is None]
        if missing:
            with ThreadPoolExecutor(max(1, min(workers, len(missing)))) as pool:
                if not any(pool.map(run, missing)):
                    time.sleep(_PATIENCE)  # other processes are at all of them
            continue
        found = [study.read(number) for number in wave]
        if all(trial is not None for trial in found):
            return [trial for trial in found if trial is not None]


def _trial(samples: Samples, split: Folds, chosen: Chosen, number: int, history: Sequence[Trial], seed: int) -> Trial:
    """One trial, fold by fold, given up when half of the trials before it were better by the same fold."""
    codes_k = np.unique(samples.code_n)
    whole = [trial for trial in history if not trial.pruned]
    predicted_n = np.zeros(len(samples), dtype=np.uint8)
    partial: list[float] = []
    seen = np.zeros(len(samples), dtype=bool)
    for fold in range(split.count):
        here = split.fold_n == fold
        part = fold_probabilities(samples.values_nc, samples.code_n, codes_k, here, chosen, seed)
        predicted_n[here] = part.argmax(axis=1)
        seen |= here
        partial.append(macro_f1(count_matrix(codes_k[predicted_n[seen]], samples.code_n[seen], codes_k)))
        before = [trial.partial[fold] for trial in whole if len(trial.partial) > fold]
        last = fold == split.count - 1
        if not last and len(before) >= WAVE and partial[-1] < float(np.median(before)):
            nothing = np.zeros(0, dtype=np.uint8)
            return Trial(number, asdict(chosen), partial[-1], nothing, tuple(partial), pruned=True)
    return Trial(number, asdict(chosen), partial[-1], predicted_n, tuple(partial))


def best(trials: Sequence[Trial]) -> Trial:
    """The trial with the highest score, of those that were not pruned; the earlier of equals."""
    return max((trial for trial in trials if not trial.pruned), key=lambda trial: (trial.score, -trial.number))


def tuning_optimism(trials: Sequence[Trial], code_n: NDArray[Any], group_n: NDArray[Any], seed: int) -> float:
    """How much the best trial's score flatters, because it was chosen for being the best on these labels.

    Bootstrap bias correction (Tsamardinos et al. 2018, Machine Learning 107, 1895-1922), here over groups: choose the
    best trial on groups drawn with replacement and see on the groups not drawn how far it stands above the average
    trial. What the best trial stands above the average beyond that is luck. No model is trained for it.

    Returns:
        Difference in macro-F1; 0 with fewer than two trials.
    """
    trials = [trial for trial in trials if not trial.pruned]
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
