"""Who takes part: the models that were named, each with the settings of a run of it, and what that takes."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from infer.contract import REGISTRY, Inputs, Plan, Run, SmaltiError, sha256_file
from infer.contract.registry import cached_checkpoint, joined_sha256, known_model, parts_of
from preproc.classify.methods import Method
from preproc.compare.contest import Contest
from preproc.plan.estimate import SeasonCounts, Work, estimate
from preproc.plan.stage import parameters_of
from preproc.run.config import Config, Model
from preproc.run.embedded import known_inputs
from preproc.run.text import human_time

_CURVE = 1.4
"""Fits on few groups cost that much more than those on all alone."""


@dataclass(frozen=True)
class Entrant:
    """One model."""

    name: str
    """As it was named, and its folder."""
    config: Config
    """The run's settings with this model."""
    own: bool
    """It is the run's own model, with the run's own settings of it."""

    def inputs(self) -> Inputs:
        """What its embeddings are made from besides the tiles, as far as this side knows.

        Raises:
            SmaltiError: if the weights are not here; the message says how to get them.
        """
        model = self.config.model
        names = [] if model.name is None else [part.name for part in parts_of(model.name)]
        paths = [cached_checkpoint(name) for name in names] if names else [Path(str(model.checkpoint))]
        if not paths[0].is_file():
            raise SmaltiError(f"{paths[0]}: no such checkpoint")
        return {**known_inputs(self.config), "checkpoint": joined_sha256([sha256_file(path) for path in paths])}

    def embeddings(self, folder: Path) -> Path:
        """Where its numbers are."""
        return folder / "embeddings" / self.name

    def scores(self, folder: Path) -> Path:
        """Manifest of its scores; what it said lies beside it."""
        return folder / "scores" / f"{self.name}.json"


def entrants(config: Config, names: Sequence[str]) -> list[Entrant]:
    """The models that take part, in the order in which they were named.

    Args:
        config: settings of the run whose labels decide.
        names: registered models or checkpoint files; none are the run's own model and monthly medians.

    Raises:
        SmaltiError: for a name that is neither, or one that comes twice.
    """
    own = config.model.name or str(config.model.checkpoint)
    wanted = list(names) or list(dict.fromkeys([own, "monthly" if own != "monthly" else "demo"]))
    found: list[Entrant] = []
    for text in wanted:
        one = _entrant(config, text)
        if any(other.name == one.name for other in found):
            raise SmaltiError(f"--models: {one.name} is named twice: name each model once")
        found.append(one)
    return found


def _entrant(config: Config, text: str) -> Entrant:
    path = Path(text).expanduser().absolute()
    known = known_model(text)  # a file of that name is ./demo
    if known is None and not path.is_file():
        raise SmaltiError(
            f"--models: {text!r} is no model and no file: choose of {', '.join(REGISTRY)}, or several: demo+monthly"
        )
    own = config.model.checkpoint == path if known is None else config.model.name == text
    name = text if known is not None else re.sub(r"[^A-Za-z0-9._-]", "-", path.name).lstrip(".-") or "checkpoint"
    if own:
        return Entrant(name, config, True)
    asked = {"checkpoint": str(path)} if known is None else {"name": text}
    common = {
        "precision": config.model.precision,
        "allow_source_mismatch": config.model.allow_source_mismatch,
        "min_clear_s2": config.model.min_clear_s2,
    }
    if known is not None and known.weightless:
        del common["precision"]  # nothing is computed in another
    try:
        model = Model.model_validate({**asked, **common})
    except ValidationError as error:
        raise SmaltiError(f"--models: {text}: {error.errors()[0]['msg']}") from error
    if known is None:
        model = model.model_copy(update={"dim": 0})  # all that it gives: a file need not give the usual 128
    return Entrant(name, config.model_copy(update={"model": model}), False)


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
