"""Learning a number (yield, height, biomass): CatBoost's quantiles, trained, cross-validated, saved and measured.

One model gives the median and the ends of a 90 % interval, which is widened by as much as out-of-fold numbers lie
outside of it (conformalised quantile regression, Romano et al. 2019, NeurIPS): quantiles alone hold far fewer fields
than they say, for pixels of one field share its number. Trees never predict beyond the numbers that they were trained
on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from infer.contract import FormatError, Inputs, Run, atomic_dir, verify_files, write_bytes
from infer.contract.classification import (
    Distances,
    Figure,
    FoldsUsed,
    RegressorManifest,
    Tuning,
    ValueAccuracyManifest,
    ValueFigures,
    ValueFold,
    ValueHeldOut,
    ValueTransfer,
)
from infer.contract.record import from_json, to_json
from preproc.classify.boost import fit_catboost
from preproc.classify.elsewhere import described, tested
from preproc.classify.folds import Folds
from preproc.classify.model import OUT_OF_FOLD, TRIALS
from preproc.classify.out_of_fold import HELD_OUT
from preproc.classify.performance import nearest_m, points_of, summary, tested_parts
from preproc.classify.table import Samples, counted
from preproc.classify.training_set import TrainingSet
from preproc.run.classifier import MANIFEST, file_of, read_regressor
from preproc.run.config import Config
from preproc.run.progress import progress, say

if TYPE_CHECKING:
    from catboost import CatBoostRegressor

REGRESSOR, CARD_TEXT, SCATTER = "regressor.cbm", "card.md", "scatter.png"
INTERVAL = (0.05, 0.95)
_LEVELS = (INTERVAL[0], 0.5, INTERVAL[1])
_COLUMNS = 24
_BOOTSTRAPS = 1000
_REMEDY = "run `smalti train` again"
_FAULT = "this is a fault of smalti"
WHAT = (
    "cross-validation on labelled groups that the model had not seen, in the number's own unit: not the accuracy of "
    "the map, for which a probability sample is needed"
)


@dataclass(frozen=True)
class NumberParameters:
    """What is tuned; the defaults, few trees and slow ones, do well on few fields: docs/classify.md has the figures."""

    iterations: int = 120
    """Trees."""
    depth: int = 5
    learning_rate: float = 0.02
    l2_leaf_reg: float = 3.0


@dataclass(frozen=True)
class Regressor:
    """A trained model of a number."""

    value: str
    dim: int
    model: CatBoostRegressor
    widening: float = 0.0
    """Added to both sides of the quantiles' interval."""

    def predict(self, x_nc: NDArray[np.float32], *, threads: int | None = None) -> NDArray[np.float32]:
        """(N, 3) float32: the number (the median), and the lower and upper end of its 90 % interval.

        Raises:
            ValueError: for another number of columns.
        """
        if x_nc.ndim != 2 or x_nc.shape[1] != self.dim:
            raise ValueError(f"embeddings {x_nc.shape}, the model was trained on (N, {self.dim})")
        if not len(x_nc):
            return np.empty((0, 3), dtype=np.float32)
        cores = threads or len(os.sched_getaffinity(0))
        found = np.asarray(self.model.predict(np.ascontiguousarray(x_nc), thread_count=cores))
        ordered = np.sort(found, axis=1)  # quantiles are fitted apart and may cross
        return widened(ordered[:, [1, 0, 2]], self.widening).astype(np.float32)


def widened(values_n3: NDArray[Any], by: float) -> NDArray[Any]:
    """The number and its interval, wider by so much on both sides; the number stays inside."""
    middle_n = values_n3[:, 0]
    low_n, high_n = np.minimum(values_n3[:, 1] - by, middle_n), np.maximum(values_n3[:, 2] + by, middle_n)
    return np.column_stack([middle_n, low_n, high_n])


def widening(values_n3: NDArray[Any], true_n: NDArray[np.float64]) -> float:
    """By how much the interval has to be wider for 90 % of these numbers, none of them trained on, to lie in it."""
    outside_n = np.maximum(values_n3[:, 1] - true_n, true_n - values_n3[:, 2])
    wanted = min(1.0, np.ceil((len(true_n) + 1) * (INTERVAL[1] - INTERVAL[0])) / len(true_n))
    return float(np.quantile(outside_n, wanted, method="higher"))


def pinball(values_n3: NDArray[Any], true_n: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) mean loss of the three quantiles of each row, in the number's unit: a proper score of number and interval.

    Args:
        values_n3: as `Regressor.predict` gives them.
        true_n: what is true.
    """
    total_n = np.zeros(len(true_n))
    for column, level in enumerate((0.5, *INTERVAL)):
        under_n = true_n - values_n3[:, column]
        total_n += np.maximum(level * under_n, (level - 1) * under_n)
    return total_n / len(_LEVELS)


def unseen(
    x_nc: NDArray[np.float32],
    value_n: NDArray[np.float64],
    test_n: NDArray[np.bool_],
    chosen: NumberParameters,
    seed: int,
) -> NDArray[np.float32]:
    """(M, 3) what a model of all other rows says of the M rows of `test_n`; see `Regressor.predict`."""
    model = fit(x_nc[~test_n], value_n[~test_n], chosen, seed, 1)
    return Regressor("", x_nc.shape[1], model).predict(x_nc[test_n], threads=1)


def fit(
    x_nc: NDArray[np.float32], value_n: NDArray[np.float64], chosen: NumberParameters, seed: int, threads: int
) -> CatBoostRegressor:
    """Fit the quantiles on rows (N, C).

    Raises:
        SmaltiError: if CatBoost refuses the rows.
    """
    levels = ",".join(map(str, _LEVELS))
    settings = {
        "loss_function": f"MultiQuantile:alpha={levels}",
        "border_count": 32,
        "rsm": min(1.0, _COLUMNS / x_nc.shape[1]),
        "boosting_type": "Plain",
        "bootstrap_type": "No",
        "random_seed": seed,
        "thread_count": threads,
        **asdict(chosen),
    }
    return cast("CatBoostRegressor", fit_catboost("CatBoostRegressor", settings, x_nc, value_n))


@dataclass(frozen=True)
class Choice:
    """Parameters, and how they were found."""

    parameters: NumberParameters
    tuning: Tuning
    trials: bytes
    """The lines of trials.jsonl."""


def build_regressor(
    run: Run,
    config: Config,
    inputs: Inputs,
    taught: TrainingSet,
    folds: Folds,
    choice: Choice,
    elsewhere: Mapping[str, Folds],
) -> None:
    """Cross-validate and train; write RUN/model.

    Args:
        run: the run directory.
        config: its settings.
        inputs: fingerprint.
        taught: what is trained on.
        folds: of its samples, those that are reported.
        choice: of parameters.
        elsewhere: a fold a year and a fold a region, by that word, where there are several.

    Raises:
        SmaltiError: if the samples cannot be trained on.
    """
    settings, chosen = config.classify, choice.parameters
    pooled, samples, split = taught.pooled, taught.samples, taught.split
    once = pooled.take(taught.held_n)
    dim = samples.values_nc.shape[1]
    workers = config.site.workers or len(os.sched_getaffinity(0))

    def crossed(division: Folds, advance: Callable[[], None]) -> NDArray[np.float32]:
        """(N, 3) what a model that was trained on all other folds says of each row."""
        tests = [division.fold_n == fold for fold in range(division.count)]
        found_n3 = np.empty((len(samples), 3), dtype=np.float32)
        with ThreadPoolExecutor(max(1, min(workers, division.count))) as pool:
            said = pool.map(lambda test: unseen(samples.values_nc, samples.value_n, test, chosen, settings.seed), tests)
            for test, found in zip(tests, said, strict=True):
                found_n3[test] = found
                advance()
        return found_n3

    divisions = {"fold": folds, **elsewhere}
    with progress("train: numbers", sum(division.count for division in divisions.values()) + 1, "fits") as bar:
        found = {by: crossed(division, bar.advance) for by, division in divisions.items()}
        model = fit(samples.values_nc, samples.value_n, chosen, settings.seed, settings.threads)
        bar.advance(note="trained on all samples")
    predicted_n3 = found["fold"]
    wider = widening(predicted_n3, samples.value_n)

    def reported(by: str) -> NDArray[np.float32]:
        """Each fold's interval widened by what the others say, or it would have seen its own numbers."""
        result_n3 = np.empty_like(predicted_n3)
        for fold in range(divisions[by].count):
            test = divisions[by].fold_n == fold
            result_n3[test] = widened(found[by][test], widening(predicted_n3[~test], samples.value_n[~test]))
        return result_n3

    reported_n3 = reported("fold")
    transfers = [
        row for by, parts in elsewhere.items() for row in _transfers(by, parts, samples, reported(by), settings.seed)
    ]
    about = RegressorManifest(
        value=samples.legend[1],
        widening=wider,
        dim=dim,
        parameters={**asdict(chosen), "loss": f"quantiles {', '.join(map(str, _LEVELS))}"},
        folds=FoldsUsed(folds.count, settings.folds, (), split.by, folds.names, split.block_m),
        rows=len(samples),
        range=(float(samples.value_n.min()), float(samples.value_n.max())),
        trained_on=samples.trained_on,
        held_out=taught.held_out,
        tuning=choice.tuning,
        rows_beyond=taught.beyond,
        transfers=tuple(transfers),
    )
    once_n3 = Regressor(about.value, dim, model, wider).predict(once.values_nc)
    with atomic_dir(run.model) as folder:
        metadata = model.get_metadata()
        metadata["train_finish_time"] = metadata["model_guid"] = ""
        model.save_model(str(folder / REGRESSOR), format="cbm")
        written = pooled.take(np.concatenate([np.flatnonzero(taught.used_n), np.flatnonzero(taught.held_n)]))
        fold_n = np.concatenate([folds.fold_n, np.full(len(once), HELD_OUT, dtype=np.int32)])
        _write_out_of_fold(folder / OUT_OF_FOLD, written, fold_n, np.concatenate([reported_n3, once_n3]))
        figures = measure(_crossed(_read_out_of_fold(folder / OUT_OF_FOLD)), settings.seed)
        write_bytes(folder / CARD_TEXT, _card(about, figures).encode())
        write_bytes(folder / SCATTER, scatter(samples.value_n, predicted_n3, about.value))
        write_bytes(folder / TRIALS, choice.trials)
        files = [folder / name for name in (REGRESSOR, OUT_OF_FOLD, CARD_TEXT, SCATTER, TRIALS)]
        about.write(folder / MANIFEST, inputs=inputs, files=files)


def _transfers(
    by: str, parts: Folds, samples: Samples, predicted_n3: NDArray[np.float32], seed: int
) -> Iterator[ValueTransfer]:
    """How a model of the same parameters, trained on all other years (or regions), does in each."""
    everything = Predicted(
        samples.x_n, samples.y_n, samples.epsg_n, samples.group_n, parts.fold_n, samples.value_n,
        predicted_n3.astype(np.float64),
    )  # fmt: skip
    for test, part in tested_parts(by, samples, parts):
        row = {**part, "figures": to_json(measure(_take(everything, test), seed))}
        yield from_json(ValueTransfer, row, Path("transfers"), _FAULT)


def load_regressor(folder: Path) -> Regressor:
    """Read a model's folder after every checksum has been verified.

    Raises:
        SmaltiError: one line that names the file and what is wrong with it.
    """
    about = read_regressor(folder)
    verify_files(file_of(folder, MANIFEST), about.files, remedy=_REMEDY)
    path = file_of(folder, REGRESSOR)
    from catboost import CatBoostError, CatBoostRegressor  # as in preproc.classify.boost

    model = CatBoostRegressor()
    try:
        model.load_model(str(path), format="cbm")
    except CatBoostError as error:
        raise FormatError(f"{path}: not a CatBoost model ({error}): {_REMEDY}") from error
    if len(model.feature_names_) != about.dim:
        raise FormatError(f"{file_of(folder, MANIFEST)}: its dimensions are not those of {REGRESSOR}: {_REMEDY}")
    return Regressor(about.value, about.dim, model, about.widening)


@dataclass(frozen=True)
class Predicted:
    """Out-of-fold predictions (N samples)."""

    x_n: NDArray[np.float64]
    y_n: NDArray[np.float64]
    epsg_n: NDArray[np.int32]
    group_n: NDArray[Any]
    fold_n: NDArray[np.int32]
    value_n: NDArray[np.float64]
    predicted_n3: NDArray[np.float64]
    """The number, and the ends of its interval."""


_COLUMNS_OF = ("x", "y", "epsg", "fold", "value", "predicted", "low", "high")


def _write_out_of_fold(
    path: Path, samples: Samples, fold_n: NDArray[np.int32], predicted_n3: NDArray[np.float32]
) -> None:
    columns = {
        "tile": pa.array(samples.tile_n.tolist(), pa.string()),
        "row": samples.row_n,
        "col": samples.col_n,
        "x": samples.x_n,
        "y": samples.y_n,
        "epsg": samples.epsg_n,
        "group": pa.array(samples.group_n.tolist(), pa.string()),
        "fold": fold_n,
        "value": samples.value_n,
        **{name: np.ascontiguousarray(predicted_n3[:, i]) for i, name in enumerate(("predicted", "low", "high"))},
    }
    pq.write_table(pa.table(columns), path, compression="zstd")


def _read_out_of_fold(path: Path) -> Predicted:
    try:
        table = pq.read_table(path, columns=[*_COLUMNS_OF, "group"])
        columns = {name: table.column(name).to_numpy() for name in _COLUMNS_OF}
    except (pa.ArrowInvalid, OSError, KeyError) as error:
        raise FormatError(f"{path}: not readable as out-of-fold predictions ({error}): {_REMEDY}") from error
    return Predicted(
        columns["x"], columns["y"], columns["epsg"], np.array(table.column("group").to_pylist(), dtype=np.str_),
        columns["fold"], columns["value"],
        np.column_stack([columns[name].astype(np.float64) for name in ("predicted", "low", "high")]),
    )  # fmt: skip


def measure(oof: Predicted, seed: int) -> ValueFigures:
    """RMSE, bias, MAE, R2 and how often the interval holds the truth; intervals from drawing whole groups anew."""
    error_n = oof.predicted_n3[:, 0] - oof.value_n
    _, group_i = np.unique(oof.group_n, return_inverse=True)
    groups = int(group_i.max()) + 1
    sums_g3 = [np.bincount(group_i, weights) for weights in (np.ones(len(error_n)), error_n, error_n**2)]
    scores: dict[str, Callable[[NDArray[Any], NDArray[Any], NDArray[Any]], float]] = {
        "rmse": lambda n, _, squares: float(np.sqrt(squares.sum() / n.sum())),
        "bias": lambda n, errors, _: float(errors.sum() / n.sum()),
    }
    generator = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {name: [] for name in scores}
    for _ in range(_BOOTSTRAPS if groups > 1 else 0):
        times_g = np.bincount(generator.integers(0, groups, groups), minlength=groups)
        for name, score in scores.items():
            drawn[name].append(score(*(part * times_g for part in sums_g3)))
    made = {}
    for name, score in scores.items():
        low, high = np.percentile(drawn[name], [2.5, 97.5]) if drawn[name] else (0.0, 0.0)
        made[name] = Figure(score(*sums_g3), (float(low), float(high)) if drawn[name] else None)
    spread = float(((oof.value_n - oof.value_n.mean()) ** 2).sum())
    inside = (oof.predicted_n3[:, 1] <= oof.value_n) & (oof.value_n <= oof.predicted_n3[:, 2])
    return ValueFigures(
        n=len(error_n),
        n_groups=groups,
        **made,
        mae=float(np.abs(error_n).mean()),
        r2=1 - float((error_n**2).sum()) / spread if spread else None,
        coverage=float(inside.mean()),
    )


def value_accuracy(folder: Path, seed: int) -> ValueAccuracyManifest:
    """Everything that accuracy.json says of a model of a number.

    Raises:
        SmaltiError: if the model is missing or damaged.
    """
    about = read_regressor(folder)
    verify_files(file_of(folder, MANIFEST), about.files, remedy=_REMEDY)
    everything = _read_out_of_fold(file_of(folder, OUT_OF_FOLD))
    oof = _crossed(everything)
    by_pixel = measure(oof, seed)
    by_group = measure(_of_groups(oof), seed)
    names = about.folds.names
    folds = []
    nearest = np.empty(len(oof.value_n))
    points = points_of(oof)
    for fold in np.unique(oof.fold_n):
        test = oof.fold_n == fold
        nearest[test] = nearest_m(points, test)
        figures = measure(_take(oof, test), seed)
        folds.append(ValueFold(int(fold) + 1, names[fold] if names else "", figures))
    r2 = "" if by_group.r2 is None else f", R2 {by_group.r2:.2f}"
    headline = (
        f"{about.value}, cross-validated by {about.folds.by} (not map accuracy): RMSE {by_pixel.rmse.value:.3g} by "
        f"pixel, {by_group.rmse.value:.3g} by group{r2}, bias {by_pixel.bias.value:+.3g}, "
        f"{100 * by_pixel.coverage:.0f} % within the 90 % interval"
    )
    return ValueAccuracyManifest(
        value=about.value,
        what=WHAT,
        split=about.folds.by,
        pixels=by_pixel,
        groups=by_group,
        folds=tuple(folds),
        distance_m=from_json(Distances, summary(nearest), Path("distances"), _FAULT),
        headline=headline,
        held_out=_held_out(everything, about, seed),
        tuning=about.tuning,
        transfers=about.transfers,
    )


def _held_out(everything: Predicted, about: RegressorManifest, seed: int) -> ValueHeldOut | None:
    once = everything.fold_n == HELD_OUT
    if about.held_out is None or not once.any():
        return None
    far = from_json(Distances, summary(nearest_m(points_of(everything), once)), Path("distances"), _FAULT)
    return ValueHeldOut(about.held_out.parts, measure(_take(everything, once), seed), far)


def _crossed(oof: Predicted) -> Predicted:
    """Without what was held out."""
    return _take(oof, oof.fold_n != HELD_OUT)


def _take(oof: Predicted, where: NDArray[Any]) -> Predicted:
    return Predicted(**{name: values[where] for name, values in vars(oof).items()})


def _of_groups(oof: Predicted) -> Predicted:
    """One row a group: the means of its pixels."""
    _, first, group_i = np.unique(oof.group_n, return_index=True, return_inverse=True)
    sizes = np.bincount(group_i)
    means = np.column_stack([np.bincount(group_i, column) / sizes for column in oof.predicted_n3.T])
    return replace(_take(oof, first), value_n=np.bincount(group_i, oof.value_n) / sizes, predicted_n3=means)


def scatter(value_n: NDArray[np.float64], predicted_n3: NDArray[np.float32], name: str) -> bytes:
    """A PNG: predicted against true numbers, with the line on which they are equal. Equal numbers give equal bytes."""
    from matplotlib.figure import Figure as Plot  # here: who maps draws none

    plot = Plot(figsize=(5, 5), dpi=120, layout="constrained")
    axes = plot.add_subplot()
    every = max(1, len(value_n) // 5000)
    axes.plot(value_n[::every], predicted_n3[::every, 0], ".", markersize=3, alpha=0.4, color="#2f6f4f")
    low, high = min(value_n.min(), predicted_n3[:, 0].min()), max(value_n.max(), predicted_n3[:, 0].max())
    axes.plot([low, high], [low, high], color="#888888", linewidth=1)
    axes.set_xlabel(f"{name}, labelled".replace("$", r"\$"))
    axes.set_ylabel("predicted without having seen the group")
    axes.set_aspect("equal")
    content = BytesIO()
    plot.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()


def _card(about: RegressorManifest, figures: ValueFigures) -> str:
    low, high = about.range
    lines = [
        f"# A model of {about.value}",
        "",
        f"The figures are of {WHAT}.",
        "",
        f"- RMSE {figures.rmse.value:.4g}, MAE {figures.mae:.4g}, bias {figures.bias.value:+.4g}; "
        f"{100 * figures.coverage:.0f} % of the labelled numbers lie within the 90 % interval",
        f"- {about.rows} pixels in {figures.n_groups} groups, from {low:g} to {high:g}: it never predicts beyond them",
        f"- embeddings of {about.dim} numbers",
        *[f"- trained on {line}" for line in described(about.trained_on)],
        *[f"- {_told(row)}" for row in about.transfers],
        *_of_search(about.tuning),
        *[f"- {key}: {value}" for key, value in sorted(about.parameters.items())],
        "",
    ]
    return "\n".join(lines)


def _told(row: ValueTransfer) -> str:
    one = row.figures
    return (
        f"{tested(row, one.n_groups)}: RMSE {one.rmse.value:.3g}, bias {one.bias.value:+.3g}, "
        f"{100 * one.coverage:.0f} % within the interval"
    )


def _of_search(tuning: Tuning | None) -> list[str]:
    if tuning is None or tuning.loss is None:
        return ["- not tuned: the default parameters"]
    best = f"the best of {tuning.trials} trials by the mean pinball loss of its quantiles ({tuning.loss:.4g})"
    return [f"- parameters: {best}"]


def show(folder: Path) -> str:
    """The card of a model of a number, after every checksum has been compared.

    Raises:
        SmaltiError: if it is damaged.
    """
    about = read_regressor(folder)
    verify_files(file_of(folder, MANIFEST), about.files, remedy=_REMEDY)
    return file_of(folder, CARD_TEXT).read_text(encoding="utf-8")


def tell(made: ValueAccuracyManifest) -> None:
    """For people."""
    say(f"validate: {made.headline}")
    for row in made.folds:
        name = row.tests or f"fold {row.fold}"
        say(f"validate: {name}: RMSE {row.figures.rmse.value:.3g}, bias {row.figures.bias.value:+.3g}")
    for moved in made.transfers:
        say(f"validate: {_told(moved)}")
    if made.held_out is not None:
        once = made.held_out.figures
        groups = counted(once.n_groups, "group")
        say(f"validate: held out and used once: RMSE {once.rmse.value:.3g}, bias {once.bias.value:+.3g} ({groups})")
