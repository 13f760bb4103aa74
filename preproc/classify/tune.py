"""The search for a method's parameters: Optuna's TPE on the folds, in waves, pruned, repeatable trial by trial."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from infer.contract.classification import Tuning
from preproc.classify.folds import Folds
from preproc.classify.questions import Question, Space
from preproc.classify.trials import WAVE, Study, Trial
from preproc.run.progress import progress, say

if TYPE_CHECKING:
    import optuna

_PATIENCE = 0.2
"""Seconds between looks at what other processes are doing."""
_BOOTSTRAPS = 200


def propose(question: Question, history: Sequence[Trial], number: int, seed: int) -> Any:
    """The parameters of trial `number`, given those of the waves before it; the first is the defaults.

    The sampler is seeded by the trial's number and is told the history, so that a resumed study goes the same way.
    """
    if number == 0:
        return question.parameters()
    import optuna  # as in preproc.classify.questions

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed + number, n_startup_trials=6)
    study = optuna.create_study(direction="maximize" if question.better > 0 else "minimize", sampler=sampler)
    study.add_trials([_told(trial, question.space) for trial in history])
    return question.parameters(study.ask(question.space).params)


def _told(trial: Trial, space: Space) -> optuna.trial.FrozenTrial:
    import optuna

    common: dict[str, Any] = {"params": dict(trial.values), "distributions": space}
    if not trial.pruned:
        return optuna.trial.create_trial(value=trial.score, **common)
    steps = dict(enumerate(trial.partial))
    return optuna.trial.create_trial(state=optuna.trial.TrialState.PRUNED, intermediate_values=steps, **common)


def search(question: Question, split: Folds, *, trials: int, seed: int, workers: int, study: Study) -> list[Trial]:
    """Run the trials that the study lacks, in waves: those of a wave know all trials of the waves before, and none of
    their own. So they can be run side by side, by threads and by other processes, and come out the same.

    Args:
        question: what is tuned, on which rows, and how it is scored.
        split: the folds of those rows.
        trials: number of trials in all.
        seed: of sampler and model.
        workers: trials run side by side by this process.
        study: what is done; receives the rest.

    Returns:
        All trials, by number.
    """
    done: list[Trial] = []
    with progress(f"train: tuning {question.method}", trials, "trials") as bar:
        for first in range(0, trials, WAVE):
            wave = range(first, min(first + WAVE, trials))
            done += _wave(question, split, wave, list(done), seed=seed, workers=workers, study=study)
            bar.advance(len(wave), note=f"best {question.measure} {best(question, done).score:.3g}")
    return done


def _wave(
    question: Question, split: Folds, wave: range, history: list[Trial], *, seed: int, workers: int, study: Study
) -> list[Trial]:
    def read(number: int) -> Trial | None:
        trial = study.read(number)
        if trial is None or _fits(question, split, trial):
            return trial
        say(f"train: {study.path(number)}: not a trial of these rows and parameters: it is made again")
        return None

    def run(number: int) -> bool:
        with study.claimed(number) as mine:
            if mine and read(number) is None:
                study.write(_trial(question, split, propose(question, history, number, seed), number, history, seed))
            return mine

    while True:
        missing = [number for number in wave if read(number) is None]
        if missing:
            with ThreadPoolExecutor(max(1, min(workers, len(missing)))) as pool:
                if not any(pool.map(run, missing)):
                    time.sleep(_PATIENCE)  # other processes are at all of them
            continue
        found = [read(number) for number in wave]
        if all(trial is not None for trial in found):
            return [trial for trial in found if trial is not None]


def _fits(question: Question, split: Folds, trial: Trial) -> bool:
    """Whether a trial that was read can be one of this study: files of it are edited, and copied to and fro."""
    rows = 0 if trial.pruned else len(question.samples)
    whole = trial.pruned or len(trial.partial) == split.count
    if not np.isfinite([trial.score, *trial.partial]).all() or len(trial.told_n) != rows or not whole:
        return False
    try:
        question.parameters(trial.values)
        _told(trial, question.space)
    except (TypeError, ValueError, KeyError):
        return False
    return question.plausible(trial.told_n)


def _trial(question: Question, split: Folds, chosen: Any, number: int, history: Sequence[Trial], seed: int) -> Trial:
    """One trial, fold by fold, given up when half of the trials before it were better by the same fold."""
    whole = [trial for trial in history if not trial.pruned]
    told_n = np.zeros(len(question.samples), dtype=question.dtype)
    partial: list[float] = []
    seen = np.zeros(len(question.samples), dtype=bool)
    for fold in range(split.count):
        here = split.fold_n == fold
        told_n[here] = question.tell(here, chosen, seed)
        seen |= here
        partial.append(question.score(told_n, seen.astype(float)))
        before = [trial.partial[fold] for trial in whole if len(trial.partial) > fold]
        last = fold == split.count - 1
        behind = len(before) >= WAVE and question.better * (partial[-1] - float(np.median(before))) < 0
        if behind and not last:
            return Trial(number, asdict(chosen), partial[-1], told_n[:0], tuple(partial), pruned=True)
    return Trial(number, asdict(chosen), partial[-1], told_n, tuple(partial))


def best(question: Question, trials: Sequence[Trial]) -> Trial:
    """The best trial, of those that were not pruned; the earlier of equals."""
    whole = (trial for trial in trials if not trial.pruned)
    return max(whole, key=lambda trial: (question.better * trial.score, -trial.number))


def tuning_optimism(question: Question, trials: Sequence[Trial], seed: int) -> float:
    """How much the best trial's score flatters, because it was chosen for being the best on these labels.

    Bootstrap bias correction (Tsamardinos et al. 2018, Machine Learning 107, 1895-1922), here over groups: choose the
    best trial on groups drawn with replacement and see on the groups not drawn how far it stands above the average
    trial. What the best trial stands above the average beyond that is luck. No model is trained for it.

    Returns:
        Difference in score, positive where it flatters; 0 with fewer than two trials.
    """
    trials = [trial for trial in trials if not trial.pruned]
    if len(trials) < 2:
        return 0.0
    _, group_i = np.unique(question.samples.group_n, return_inverse=True)

    def scores(weights_n: NDArray[Any]) -> NDArray[np.float64]:
        """The greater the better."""
        return question.better * np.array([question.score(trial.told_n, weights_n) for trial in trials])

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
    told = scores(np.ones(len(group_i)))
    return float(told.max() - told.mean() - np.mean(leads))


def summary(question: Question, trials: Sequence[Trial], seed: int) -> Tuning:
    """What a model says of the search for its parameters."""
    rows = len(question.samples)
    if not trials:
        return Tuning(0, rows, "not tuned: the default parameters")
    top = best(question, trials)
    return Tuning(
        trials=len(trials),
        rows=rows,
        note="grouped cross-validation of the best trial; its optimism is what choosing the best adds",
        best_trial=top.number,
        macro_f1=top.score if question.better > 0 else None,
        optimism=tuning_optimism(question, trials, seed),
        loss=top.score if question.better < 0 else None,
    )
