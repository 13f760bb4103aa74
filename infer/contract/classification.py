"""samples.json, model/model.json and accuracy.json: the labelled pixels, the classifier, and how good it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from infer.contract.atomic import sha256_json
from infer.contract.names import brief_name
from infer.contract.provenance import Embedded
from infer.contract.record import Record, to_json
from infer.contract.regular import JsonObject
from infer.contract.run import Run

Interval = tuple[float, float]
"""95 % confidence interval."""
MethodName = Literal["catboost", "linear", "knn", "mlp", "segment"]
Counts = tuple[tuple[int, ...], ...]
"""(K, K); rows are what was mapped or predicted, columns the reference."""


@dataclass(frozen=True)
class ClassEntry:
    """One class of the legend."""

    code: int
    """1..255, as in the map; 0 is nodata."""
    name: str
    color: str
    """'#rrggbb'."""

    def __post_init__(self) -> None:
        if not 1 <= self.code <= 255 or not re.fullmatch(r"#[0-9a-f]{6}", self.color):
            raise ValueError(f"class {brief_name(self.name)} has code {self.code}, colour {brief_name(self.color)}")

    @property
    def rgb(self) -> tuple[int, int, int]:
        """Red, green, blue, 0..255."""
        return int(self.color[1:3], 16), int(self.color[3:5], 16), int(self.color[5:7], 16)


@dataclass(frozen=True)
class SampledClass:
    """A class and its labelled pixels."""

    code: int
    name: str
    pixels: int
    groups: int


@dataclass(frozen=True, kw_only=True)
class SamplesPart(Record):
    """logs/samples/part-00000.json: the labelled pixels of some tiles, before they are joined."""

    kind = "samples-part"
    stage = "sample"

    dim: int
    """Numbers of an embedding; 0 where no tile has a labelled pixel."""
    counts: Mapping[str, int]
    """What was dropped, by reason."""


@dataclass(frozen=True, kw_only=True)
class SamplesManifest(Record):
    """samples.json."""

    kind = "samples"
    stage = "sample"

    rows: int
    dim: int
    """Numbers of an embedding."""
    classes: tuple[SampledClass, ...]
    """By ascending code."""
    counts: Mapping[str, int]
    """What was read and what was dropped, by reason."""
    embedded: Embedded | None = None
    """What the embeddings are; None in tables of older versions."""
    value: str | None = None
    """Attribute with a number that is learned instead of classes; the one class is then called so."""

    @classmethod
    def path(cls, run: Run) -> Path:
        """RUN/samples.json."""
        return run.samples_manifest


@dataclass(frozen=True)
class AbsentClasses:
    """Classes that a fold does not test."""

    fold: int
    codes: tuple[int, ...]


@dataclass(frozen=True)
class FoldsUsed:
    """How the groups were divided."""

    count: int
    wanted: int
    """[classify] folds."""
    absent: tuple[AbsentClasses, ...]
    by: str = "group"
    """What is on one side of a fold: group, block, district, year or region."""
    names: tuple[str, ...] = ()
    """What each fold tests, where it has a name."""
    block_m: float | None = None
    """Side of the squares, of folds by block."""


@dataclass(frozen=True)
class LeftOutClass:
    """A class with too few groups to be trained on: the map never shows it."""

    code: int
    name: str
    groups: int
    pixels: int


@dataclass(frozen=True)
class Tuning:
    """The search for parameters; without trials there was none."""

    trials: int
    rows: int
    note: str
    best_trial: int | None = None
    macro_f1: float | None = None
    optimism: float | None = None
    """What choosing the best adds to its score, or takes off its loss."""
    loss: float | None = None
    """Where a number is learned: the best trial's mean pinball loss, in the number's unit."""


@dataclass(frozen=True)
class TrainedOn:
    """Samples of one run that a classifier was trained on."""

    rows: int
    groups: int
    embedded: Embedded


@dataclass(frozen=True)
class Distances:
    """From test samples to the nearest one trained on, in metres."""

    minimum: float
    p05: float
    median: float
    p95: float
    below_m: tuple[float, ...] = ()
    """Upper ends of the bars of a histogram; the first begins at 0."""
    counts: tuple[int, ...] = ()
    """Test samples in each."""


@dataclass(frozen=True)
class Figure:
    """A score."""

    value: float
    ci95: Interval | None
    """None where it does not exist."""


@dataclass(frozen=True)
class Elsewhere:
    """A year or region that was tested with a model trained on the others."""

    by: Literal["year", "region"]
    tests: str
    trained_on: tuple[str, ...]
    distance_m: Distances
    """0: the same ground in another year."""


@dataclass(frozen=True)
class Transfer(Elsewhere):
    """The same of a classifier."""

    n: int
    n_groups: int
    overall_accuracy: Figure
    macro_f1: Figure
    """Over the classes that it has."""
    absent_codes: tuple[int, ...]
    """Not tested: it has none."""
    untrained_codes: tuple[int, ...]
    """Only it has them."""


@dataclass(frozen=True)
class MethodScore:
    """A method on the folds that are reported."""

    method: MethodName
    chosen: bool
    """It was trained in the end, for its score while tuning was the highest, or because it was asked for."""
    trials: int
    tuning_macro_f1: float | None
    """Of its best trial, on the folds of the tuning; None where it was not tuned and not compared."""
    macro_f1: Figure
    overall_accuracy: Figure


@dataclass(frozen=True)
class LearningPoint:
    """What so many groups of each class are worth."""

    groups: int
    """Of each class at most, on the training side of a fold."""
    rows: int
    """Trained on, the mean of the folds."""
    macro_f1: Figure
    overall_accuracy: Figure


@dataclass(frozen=True)
class HeldOut:
    """What the classifier saw in no choice and no training."""

    parts: tuple[str, ...]
    """Their names; empty for a share of groups or squares."""
    rows: int
    groups: int


@dataclass(frozen=True, kw_only=True)
class ClassifierManifest(Record):
    """model/model.json."""

    kind = "classifier"
    stage = "train"
    instead = MappingProxyType(
        {"regressor": "a model of numbers ([labels] value), and this is for classifiers: see `smalti model show`"}
    )

    classes: tuple[ClassEntry, ...]
    """By ascending code."""
    dim: int
    """Embedding numbers it was trained on."""
    parameters: JsonObject
    """Of the method."""
    tuning: Tuning
    folds: FoldsUsed
    left_out: tuple[LeftOutClass, ...]
    rows: int
    """Samples it was trained on."""
    trained_on: tuple[TrainedOn, ...] = ()
    """Where they come from; empty in models of older versions, which map their own run only."""
    method: MethodName = "catboost"
    """What was trained; all but CatBoost are arrays, in classifier.npz."""
    methods: tuple[MethodScore, ...] = ()
    """Every method that was tried, on the same folds."""
    learning: tuple[LearningPoint, ...] = ()
    """How the chosen method does with fewer groups."""
    rows_beyond: int = 0
    """Samples that were left out because of [classify] max_rows."""
    transfers: tuple[Transfer, ...] = ()
    """Years and regions that others were tested on; none where all samples are of one."""
    held_out: HeldOut | None = None

    @classmethod
    def path(cls, run: Run) -> Path:
        """RUN/model/model.json."""
        return run.model_manifest

    @property
    def fingerprint(self) -> str:
        """SHA-256 over its files and legend: what a map depends on."""
        return sha256_json([self.files, to_json(self.classes), self.dim])


@dataclass(frozen=True)
class Estimated(Figure):
    """A share, or an area in hectares, estimated from a probability sample."""

    standard_error: float | None


@dataclass(frozen=True)
class ClassFigures:
    """Of one class; None for what does not exist."""

    code: int
    name: str
    users_accuracy: float | None
    producers_accuracy: float | None
    f1: float | None
    n: int
    n_predicted: int
    n_groups: int


@dataclass(frozen=True)
class Figures:
    """Scores of held-out pixels, or of held-out groups."""

    count_matrix: Counts
    n: int
    n_groups: int
    overall_accuracy: Figure
    macro_f1: Figure
    weighted_f1: Figure
    per_class: tuple[ClassFigures, ...]

    def __post_init__(self) -> None:
        _check_square(self.count_matrix, len(self.per_class))


@dataclass(frozen=True)
class FoldFigures:
    """What a fold tested and how well."""

    fold: int
    n: int
    n_groups: int
    overall_accuracy: float
    macro_f1: float
    absent_codes: tuple[int, ...]
    untrained_codes: tuple[int, ...]
    tests: str = ""
    """The year, region or district that it tests; empty where it has no name."""


@dataclass(frozen=True)
class HeldOutFigures:
    """The finished classifier on what it has never seen."""

    what: str
    parts: tuple[str, ...]
    pixels: Figures
    distance_m: Distances


@dataclass(frozen=True)
class Baseline:
    """What plain features of the same pixels are worth to the same classifier on the same folds."""

    features: str
    macro_f1: Figure
    overall_accuracy: Figure
    adds_macro_f1: Figure
    """Of the embedding less that of the features, on the same drawn groups."""
    adds_overall_accuracy: Figure


@dataclass(frozen=True)
class Performance:
    """How well the classifier tells labelled groups apart that it has not seen."""

    what: str
    classes: tuple[ClassEntry, ...]
    pixels: Figures
    groups: Figures
    folds: tuple[FoldFigures, ...]
    distance_m: Distances
    left_out: tuple[LeftOutClass, ...]
    tuning: Tuning
    tuning_note: str
    split: str = "group"
    """What is on one side of a fold."""
    block_m: float | None = None
    """Side of the squares, of folds by block."""
    methods: tuple[MethodScore, ...] = ()
    """Every method that was tried, on the same folds."""
    learning: tuple[LearningPoint, ...] = ()
    """How the chosen method does with fewer groups a class; the last has all."""
    learning_note: str = ""
    """Whether more labels would help, in words."""
    transfers: tuple[Transfer, ...] = ()
    """Trained on some years or regions, tested on another."""
    held_out: HeldOutFigures | None = None
    """Of what no choice and no training has seen; None where nothing was held out."""
    baseline: Baseline | None = None
    """None where it was not made: `baseline_note` says why."""
    baseline_note: str = ""
    """What the embedding adds to it, in words."""

    def __post_init__(self) -> None:
        for figures in (self.pixels, self.groups):
            _check_square(figures.count_matrix, len(self.classes))


@dataclass(frozen=True)
class AssessedClass:
    """A class of the map against the reference; None for what does not exist."""

    name: str
    users_accuracy: Estimated | None
    producers_accuracy: Estimated | None
    f1: float | None
    n_mapped: int
    n_reference: int
    mapped_ha: float
    area_ha: Estimated


@dataclass(frozen=True)
class AssessedMap:
    """The accuracy of the map, estimated from a probability sample."""

    what: str
    design: str
    estimator: str
    n: int
    """Reference points."""
    dropped: Mapping[str, int]
    """By reason."""
    classes_not_on_the_map: tuple[str, ...]
    class_names: tuple[str, ...]
    count_matrix: Counts
    area_share_matrix: tuple[tuple[float, ...], ...]
    overall_accuracy: Estimated
    per_class: tuple[AssessedClass, ...]
    mapped_ha: float

    def __post_init__(self) -> None:
        _check_square(self.count_matrix, len(self.class_names))


@dataclass(frozen=True, kw_only=True)
class AccuracyManifest(Record):
    """accuracy.json."""

    kind = "accuracy"
    stage = "validate"

    performance: Performance
    map_accuracy: AssessedMap | None
    """None without a reference sample."""
    map_accuracy_note: str
    headline: str
    cleaned_accuracy: AssessedMap | None = None
    """Of the map after [clean], by the same sample."""

    @classmethod
    def path(cls, run: Run) -> Path:
        """RUN/accuracy.json."""
        return run.accuracy


def _check_square(matrix: Counts, classes: int) -> None:
    if [len(row) for row in matrix] != [classes] * classes:
        raise ValueError(f"its count_matrix is not of {classes} x {classes} classes")


@dataclass(frozen=True)
class ValueFigures:
    """How well numbers are predicted, in their own unit; None where a figure does not exist."""

    n: int
    n_groups: int
    rmse: Figure
    bias: Figure
    """Mean of predicted less true."""
    mae: float
    r2: float | None
    coverage: float
    """Share of true numbers within the interval, which is to be 0.9."""


@dataclass(frozen=True)
class ValueFold:
    """What a fold tested."""

    fold: int
    tests: str
    """Its name, if it has one."""
    figures: ValueFigures


@dataclass(frozen=True)
class ValueTransfer(Elsewhere):
    """The same of a model of a number."""

    figures: ValueFigures


@dataclass(frozen=True, kw_only=True)
class RegressorManifest(Record):
    """model/model.json of a run that learns a number."""

    kind = "regressor"
    stage = "train"

    value: str
    """The attribute."""
    dim: int
    """Embedding numbers it was trained on."""
    parameters: JsonObject
    folds: FoldsUsed
    rows: int
    range: tuple[float, float]
    """Least and greatest number trained on: trees never predict beyond them."""
    widening: float
    """Added to both sides of the quantiles' interval, so that it holds 90 % of what was not trained on."""
    trained_on: tuple[TrainedOn, ...]
    held_out: HeldOut | None = None
    tuning: Tuning | None = None
    """None in models of older versions, which were not tuned."""
    rows_beyond: int = 0
    """Samples that were left out because of [classify] max_rows."""
    transfers: tuple[ValueTransfer, ...] = ()

    @classmethod
    def path(cls, run: Run) -> Path:
        """RUN/model/model.json."""
        return run.model_manifest

    @property
    def fingerprint(self) -> str:
        """SHA-256 over its files: what a map depends on."""
        return sha256_json([self.files, self.value, self.dim])


@dataclass(frozen=True)
class ValueHeldOut:
    """The finished model on what it has never seen."""

    parts: tuple[str, ...]
    """Their names; empty for a share of groups or squares."""
    figures: ValueFigures
    distance_m: Distances


@dataclass(frozen=True, kw_only=True)
class ValueAccuracyManifest(Record):
    """accuracy.json of a run that learns a number."""

    kind = "value-accuracy"
    stage = "validate"

    value: str
    what: str
    split: str
    pixels: ValueFigures
    groups: ValueFigures
    """Of the groups' means."""
    folds: tuple[ValueFold, ...]
    distance_m: Distances
    headline: str
    held_out: ValueHeldOut | None = None
    """Of what no choice and no training has seen; None where nothing was held out."""
    tuning: Tuning | None = None
    tuning_note: str = ""
    transfers: tuple[ValueTransfer, ...] = ()

    @classmethod
    def path(cls, run: Run) -> Path:
        """RUN/accuracy.json."""
        return run.accuracy
