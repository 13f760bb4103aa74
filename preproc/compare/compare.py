"""`smalti compare`: embed the labelled pixels with each model, score all alike, and put them side by side."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infer.contract import (
    EXIT_TRY_AGAIN,
    TILE_MANIFEST,
    Inputs,
    Run,
    SmaltiError,
    atomic_file,
    output_state,
    read_embedding,
    remove_stale_temporaries,
    sha256_file,
    sha256_json,
    stage_lock,
    write_npy,
)
from infer.contract.compared import ComparedClass, ComparedModel, Comparison
from infer.contract.embedding import OBSERVED, embedding_paths
from preproc.classify.folds import groups_per_class
from preproc.classify.methods import METHODS, Method
from preproc.classify.sample import draw_samples, places_of
from preproc.classify.split import Split, hold_out, split_of
from preproc.classify.table import Samples
from preproc.classify.training_set import trainable, tuning_rows
from preproc.compare.contest import Contest, verdict
from preproc.compare.entrants import Entrant, cost_text, entrants
from preproc.compare.page import Speed, page_and_table
from preproc.compare.pixels import Cut, cut, cuts_of, values_of
from preproc.run.classifier import maps_number
from preproc.run.config import Classify, Config
from preproc.run.engine import embed_folder
from preproc.run.progress import Bar, progress, say
from preproc.run.stage import Outcome, StageFailedError, failure_table

_RECIPE = 1
"""Raised when scoring changes in a way that changes its results."""


@dataclass(frozen=True)
class Wishes:
    """What is compared, and how."""

    models: tuple[str, ...] = ()
    """None: the run's own and monthly medians."""
    methods: tuple[str, ...] = ()
    """None: logistic regression and the run's own."""
    against: str | None = None
    """None: monthly medians if they take part, else the first."""
    deals: int = 5
    pixels: int = 10_000
    """At most; of every group an equal share."""


@dataclass(frozen=True)
class Field:
    """Where the contest takes place."""

    samples: Samples
    split: Split
    left_out: tuple[str, ...]
    cuts: tuple[Cut, ...]


def compare(run: Run, config: Config, wishes: Wishes) -> str:
    """Compare models on the labelled pixels of a run; RUN/compare has the result.

    Returns:
        What it came to, for people.

    Raises:
        StageFailedError: after all models were tried, if some failed; the message lists them.
        SmaltiError: if there is nothing to compare on.
        BusyError: if another process compares in this run.
    """
    taking_part, methods = _taking_part(config, wishes), _methods(config, wishes)
    folder = Comparison.path(run).parent
    failed: dict[str, str] = {}
    with stage_lock(run, "compare"):
        for inside in (folder, folder / "pixels", folder / "scores"):
            if inside.is_dir():
                remove_stale_temporaries(inside)
        field = field_of(run, config, wishes)
        say(_about(field, taking_part))
        cut(run, field.cuts, folder / "pixels")
        numbers = {one.name: found for one in taking_part if (found := _embedded(run, one, field, failed)) is not None}
        present = [one for one in taking_part if one.name in numbers]
        made = _scored(run, present, numbers, field, (methods, wishes), failed) if present else None
        text = "" if made is None else _write(run, made)
    if failed:
        say(text)
        raise StageFailedError(failure_table(Outcome("compare", "models", failed=failed)))
    return text


def dry_run(run: Run, config: Config, wishes: Wishes) -> str:
    """What a comparison would take; nothing is written, no tile is read."""
    taking_part, methods = _taking_part(config, wishes), _methods(config, wishes)
    field = field_of(run, config, wishes)
    contest = Contest.of(field.samples, field.split, _settings(config), methods, wishes.deals, 1)
    return cost_text(run, contest, taking_part, tiles=len(set(field.samples.tile_n)))


def _taking_part(config: Config, wishes: Wishes) -> list[Entrant]:
    found = entrants(config, wishes.models)
    if wishes.against is not None and wishes.against not in [one.name for one in found]:
        names = ", ".join(one.name for one in found)
        raise SmaltiError(f"--against: {wishes.against!r} does not take part: name one of {names}")
    return found


def _methods(config: Config, wishes: Wishes) -> tuple[Method, ...]:
    own = config.classify.method if config.classify.method in METHODS else "catboost"
    wanted = tuple(dict.fromkeys(wishes.methods or ("linear", own)))
    methods = tuple(method for method in METHODS if method in wanted)
    unknown = [method for method in wanted if method not in METHODS]
    if unknown:
        raise SmaltiError(f"--methods: no {unknown[0]!r}: choose of {', '.join(METHODS)}")
    return methods


def field_of(run: Run, config: Config, wishes: Wishes) -> Field:
    """The labelled pixels that everybody is tried on; held-out labels are not among them, as this is a choice."""
    if maps_number(config):
        raise SmaltiError(
            f"{run.config}: [labels] value: models are compared by how they tell classes apart: set class"
        )
    drawn = places_of(draw_samples(run, config, embedded_only=False))
    settings = _settings(config)
    if settings != config.classify:
        say(
            f'compare: [classify] split = "{config.classify.split}" takes several runs, and this is one: split by '
            "group, and nothing is held out"
        )
    split = split_of(drawn, settings)
    held, _ = hold_out(drawn, split, settings)
    kept, left_out = trainable(drawn, ~held, settings.min_groups, "compare")
    few = np.flatnonzero(kept)[tuning_rows(drawn.take(kept), settings.seed, wishes.pixels)]
    samples = drawn.take(few)
    return Field(samples, split.take(few), tuple(entry.name for entry in left_out), tuple(cuts_of(samples)))


def _settings(config: Config) -> Classify:
    """[classify]; years and regions take several runs: labels of one are divided by group, and hold_out names none."""
    settings = config.classify
    if settings.split not in ("year", "region"):
        return settings
    return settings.model_copy(update={"split": "group", "hold_out": 0.0})


def _about(field: Field, taking_part: Sequence[Entrant]) -> str:
    samples = field.samples
    return (
        f"compare: {', '.join(one.name for one in taking_part)} on {len(samples):,} labelled pixels of "
        f"{len(set(samples.group_n)):,} groups in {len(set(samples.tile_n))} tiles"
    )


def _embedded(run: Run, one: Entrant, field: Field, failed: dict[str, str]) -> NDArray[np.float32] | None:
    """A model's numbers of all pixels; None if it failed, which the others do not mind."""
    folder = Comparison.path(run).parent
    try:
        inputs = one.inputs()
        timings = run.logs / "compare" / f"{one.name}.jsonl"
        timings.parent.mkdir(parents=True, exist_ok=True)
        if not all(_complete(folder, one, cut, inputs) for cut in field.cuts):
            embed_folder(run, one.config, folder / "pixels", one.embeddings(folder), timings)
            lacking = [cut.name for cut in field.cuts if not _complete(folder, one, cut, inputs)]
            if lacking:  # what lies there is of other pixels, weights or settings
                raise SmaltiError(
                    f"{len(lacking)} of {len(field.cuts)} tiles of pixels could not be embedded (the first is "
                    f"{lacking[0]}); the engine's reason stands above"
                )
        return values_of(one.embeddings(folder), field.cuts, len(field.samples))
    except SmaltiError as error:
        if error.exit_code == EXIT_TRY_AGAIN:
            raise
        failed[one.name] = str(error)
        say(f"compare: {one.name} failed: {error}")
        return None


def _complete(folder: Path, one: Entrant, cut: Cut, inputs: Inputs) -> bool:
    """Whether the engine has nothing to do for a tile of pixels, as far as this side knows."""
    wanted = {**inputs, "tile": sha256_file(folder / "pixels" / cut.name / TILE_MANIFEST)}
    manifest = embedding_paths(one.embeddings(folder), cut.name)[2]
    return output_state(manifest, "embedding", wanted, partial=True).complete


def _scored(
    run: Run,
    taking_part: Sequence[Entrant],
    numbers: Mapping[str, NDArray[np.float32]],
    field: Field,
    how: tuple[tuple[Method, ...], Wishes],
    failed: dict[str, str],
) -> Comparison | None:
    """All scores, those that are there already being left; None if no model could be scored."""
    methods, wishes = how
    seen_n = np.logical_and.reduce([~np.isnan(values_nc).all(axis=1) for values_nc in numbers.values()])
    if not seen_n.any():
        raise SmaltiError("no labelled pixel has numbers of every model: compare fewer models")
    config, samples = taking_part[0].config, field.samples.take(seen_n)
    workers = config.site.workers or len(os.sched_getaffinity(0))
    contest = Contest.of(samples, field.split.take(seen_n), _settings(config), methods, wishes.deals, workers)
    folder = Comparison.path(run).parent
    made: list[ComparedModel] = []
    with progress("compare: scores", len(taking_part) * contest.steps, "deals") as bar:
        for one in taking_part:
            try:
                inputs = _score_inputs(folder, one, field, contest)
                if output_state(one.scores(folder), ComparedModel.kind, inputs).complete:
                    bar.advance(contest.steps, note=one.name)
                else:
                    _score(folder, one, field, contest, numbers[one.name][seen_n], inputs, bar)
                made.append(ComparedModel.read_file(one.scores(folder), run))
            except SmaltiError as error:
                failed[one.name] = str(error)
                say(f"compare: {one.name} failed: {error}")
    return _comparison(folder, contest, made, field, int((~seen_n).sum()), wishes, failed) if made else None


def _comparison(
    folder: Path,
    contest: Contest,
    made: Sequence[ComparedModel],
    field: Field,
    unseen: int,
    wishes: Wishes,
    failed: Mapping[str, str],
) -> Comparison:
    samples, against = contest.samples, _against(wishes, made)
    said = {model.name: np.load(folder / "scores" / f"{model.name}.npy", allow_pickle=False) for model in made}
    counts = groups_per_class(samples.code_n, samples.group_n)
    return Comparison(
        models=tuple(made),
        failed=dict(sorted(failed.items())),
        against=against,
        differences=tuple(
            contest.difference(method, (model.name, against), said)
            for method in contest.methods
            for model in made
            if model.name != against
        ),
        verdicts={method: _verdict(contest, method, made, said) for method in contest.methods},
        classes=tuple(
            ComparedClass(samples.legend[code], int((samples.code_n == code).sum()), counts[code])
            for code in contest.codes_k.tolist()
        ),
        left_out=field.left_out,
        pixels=len(samples),
        groups=len(set(samples.group_n)),
        unseen=unseen,
        methods=contest.methods,
        split=field.split.by,
        folds=contest.deals[0].count,
        deals=len(contest.deals),
        seed=contest.seed,
    )


def _against(wishes: Wishes, made: Sequence[ComparedModel]) -> str:
    names = [model.name for model in made]
    if wishes.against is not None and wishes.against in names:
        return wishes.against
    return "monthly" if "monthly" in names else next(iter(names), "")


def _verdict(
    contest: Contest, method: Method, made: Sequence[ComparedModel], said: Mapping[str, NDArray[np.int16]]
) -> str:
    index = contest.methods.index(method)
    ranked = sorted(made, key=lambda model: -model.scores[index].macro_f1.value)
    closest = contest.difference(method, (ranked[0].name, ranked[1].name), said) if len(ranked) > 1 else None
    return verdict(ranked[0], method, closest)


def _score_inputs(folder: Path, one: Entrant, field: Field, contest: Contest) -> Inputs:
    """What a model's scores are made from: its numbers, the pixels with their labels, and how they are divided."""
    samples = contest.samples
    table = [samples.tile_n, samples.row_n, samples.col_n, samples.code_n, samples.group_n]
    return {
        "embeddings": {
            cut.name: sha256_file(embedding_paths(one.embeddings(folder), cut.name)[2]) for cut in field.cuts
        },
        "samples": sha256_json([column.tolist() for column in table]),
        "legend": {str(code): samples.legend[code] for code in contest.codes_k.tolist()},
        "folds": sha256_json([folds.fold_n.tolist() for folds in contest.deals]),
        "methods": list(contest.methods),
        "seed": contest.seed,
        "recipe": _RECIPE,
    }


def _score(
    folder: Path,
    one: Entrant,
    field: Field,
    contest: Contest,
    values_nc: NDArray[np.float32],
    inputs: Inputs,
    bar: Bar,
) -> None:
    figures, said_mdn = contest.score(values_nc, lambda method: bar.advance(note=f"{one.name}, {method}"))
    first = read_embedding(one.embeddings(folder), field.cuts[0].name)
    model = first.manifest.model
    scales = 0 if first.scales_hw is None else first.scales_hw.itemsize
    manifest = one.scores(folder)
    manifest.unlink(missing_ok=True)
    with atomic_file(manifest.with_suffix(".npy")) as temporary:
        write_npy(temporary, said_mdn)
    ComparedModel(
        name=one.name,
        label=model.label,
        trained=model.trained,
        family=model.family,
        checkpoint=str(first.manifest.inputs.get("checkpoint")),
        dim=values_nc.shape[1],
        embeddings_as="float32" if first.scales_hw is None else "int8",
        bytes_per_pixel=values_nc.shape[1] * first.values_hwc.itemsize + scales + len(OBSERVED),
        scores=figures,
    ).write(manifest, inputs=inputs, files=[manifest.with_suffix(".npy")])


def _write(run: Run, made: Comparison) -> str:
    """compare.json, and the page and table for people; what is measured in seconds is in those two alone."""
    path = Comparison.path(run)
    scores = [path.parent / "scores" / f"{model.name}.json" for model in made.models]
    inputs = {"scores": {score.stem: sha256_file(score) for score in scores}, "against": made.against}
    path.unlink(missing_ok=True)
    made.write(path, inputs=inputs, files=scores)
    speeds = {model.name: _speed(run.logs / "compare" / f"{model.name}.jsonl") for model in made.models}
    return page_and_table(path.parent, replace(made, inputs=inputs), speeds)


def _speed(timings: Path) -> Speed | None:
    """How fast a model was when its pixels were embedded, of whatever part was embedded last; None if nobody knows."""
    try:
        lines = [json.loads(line) for line in timings.read_text().splitlines()]
        last = {line["tile"]: line for line in lines}.values()
        pixels, seconds = sum(line["pixels"] for line in last), sum(line["seconds"] for line in last)
        return Speed(seconds / pixels, str(lines[-1]["device"]), int(lines[-1]["cores"])) if pixels else None
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return None
