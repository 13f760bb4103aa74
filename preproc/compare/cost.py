"""What a comparison takes, before anything is read: pixels, models and seconds. Rough; pure."""

from __future__ import annotations

import os
from collections.abc import Sequence

from infer.contract import Plan, Run
from preproc.classify.methods import Method
from preproc.compare.contest import Contest
from preproc.compare.entrants import Entrant
from preproc.plan.estimate import SeasonCounts, Work, estimate
from preproc.plan.stage import parameters_of
from preproc.run.text import human_time

_CURVE = 1.4
"""Fits on few groups cost that much more than those on all alone."""


def fit_seconds(method: Method, rows: int, tested: int, dim: int, classes: int) -> float:
    """Of one fit and what it says, on one core: measured on a plain one in 2026."""
    return {
        "catboost": 0.4 + 2e-4 * rows * classes,
        "linear": 0.05 + 1.5e-8 * rows * dim * classes,
        "knn": 0.02 + 7e-8 * rows * tested,
        "mlp": 0.1 + 1e-3 * rows,
    }[method]


def cost_text(run: Run, contest: Contest, taking_part: Sequence[Entrant], *, tiles: int) -> str:
    """A table for people."""
    plan, samples = Plan.read(run), contest.samples
    season = plan.season
    counts = SeasonCounts(season.s2_days, season.s2_days, season.s1_days, season.s1_days, 0, "")
    lines = [
        f"compare on {len(samples):,} labelled pixels of {len(set(samples.group_n)):,} groups and "
        f"{len(contest.codes_k)} classes, in {tiles} of {len(plan.tiles)} tiles",
        f"{contest.deals[0].count} folds, {len(contest.deals)} deals, {' and '.join(contest.methods)}; all rough:",
        "",
        f"{'model':<24} {'numbers':>8} {'embedding':>12} {'scores':>10}",
    ]
    total = 0.0
    for one in taking_part:
        config = one.config
        cores = config.site.workers or len(os.sched_getaffinity(0))
        work = Work(1, plan.tile_size, len(samples), counts, parameters_of(config), cores)
        embedding = float(estimate(work, config)["infer"].seconds) + 4  # torch is imported
        rows = len(samples) * (contest.deals[0].count - 1) // contest.deals[0].count
        fits = sum(
            fit_seconds(method, rows, len(samples) - rows, config.model.dim or 128, len(contest.codes_k))
            for method in contest.methods
        )
        scores = fits * _CURVE * len(contest.deals) * contest.deals[0].count / min(cores, contest.deals[0].count)
        total += embedding + scores
        lines.append(
            f"{one.name:<24} {config.model.dim or 'all':>8} {human_time(embedding):>12} {human_time(scores):>10}"
        )
    return "\n".join([*lines, "", f"about {human_time(total)} in all on this machine; nothing was read or written"])
