"""`smalti validate --map FILE --reference FILE`: the accuracy of any classified GeoTIFF, without a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Group
from rich.table import Table

from infer.contract import SmaltiError, sha256_file, write_manifest
from infer.contract.classification import AssessedMap, Estimated
from infer.contract.record import from_json, to_json
from preproc.classify.class_raster import open_map
from preproc.classify.reference import map_accuracy, read_reference, unmatched
from preproc.run.config import Validate
from preproc.run.progress import say, show

KIND = "map-accuracy"
_OPTIONS = {
    "in [validate]": "of --reference",
    "[validate] reference": "--reference",
    "[validate] class": "--class",
    "[validate] stratum, strata": "--stratum, --strata",
    "[validate] layer": "--layer",
    "[validate] encoding": "--encoding",
    "[validate.strata]": "--strata",
    "which [validate] names": "which --class (or --stratum) names",
}
"""What run.toml calls it -> what the command line does."""


@dataclass(frozen=True)
class Assessment:
    """What the command line asks for."""

    map: Path
    reference: Path
    class_: str = "class"
    design: str = "stratified"
    stratum: str | None = None
    strata: str | None = None
    """Sizes as NAME=SIZE,NAME=SIZE."""
    layer: str | None = None
    encoding: str | None = None
    legend: Path | None = None
    output: Path | None = None
    """JSON file for the figures."""


def assess(asked: Assessment) -> AssessedMap:
    """Measure, show the table and write the file if one is asked for.

    Raises:
        SmaltiError: if map, legend or reference are not what they should be.
    """
    settings = settings_of(asked)
    class_map = open_map(asked.map, asked.legend)
    try:
        reference = read_reference(settings, class_map)
        content = map_accuracy(reference, class_map, class_map.names, settings)
    except SmaltiError as error:
        raise SmaltiError(_as_options(str(error))) from error
    made = from_json(AssessedMap, content, asked.map, "this is a fault of smalti")
    odd = unmatched(made)
    if odd is not None:
        say(f"Warning: {asked.reference}: {odd}")
    for reason, count in made.dropped.items():
        if count and reason != "features read":
            say(f"{asked.reference}: {count} {reason.removeprefix('features ')}")
    if not class_map.even:
        say(
            f"Warning: {asked.map}: its pixels differ in size on the ground: the estimates hold if points were drawn "
            "by area, not by pixel"
        )
    show(table(made))
    if asked.output is not None:
        inputs = {"map": sha256_file(asked.map), "reference": sha256_file(asked.reference)}
        write_manifest(asked.output, KIND, inputs=inputs, files=[], fields=to_json(made))
        say(f"wrote {asked.output}")
    return made


def settings_of(asked: Assessment) -> Validate:
    """The same as [validate] of a run.toml would say it."""
    values: dict[str, Any] = {
        "reference": str(asked.reference.absolute()),
        "class": asked.class_,
        "design": asked.design,
        "stratum": asked.stratum,
        "strata": None if asked.strata is None else pairs(asked.strata, "--strata"),
        "layer": asked.layer,
        "encoding": asked.encoding,
    }
    try:
        return Validate.model_validate(values, context={"folder": Path.cwd()})
    except ValidationError as error:
        first = error.errors()[0]
        key = "--" + str(first["loc"][0]) + ": " if first["loc"] else ""
        raise SmaltiError(f"{key}{first['msg'].removeprefix('Value error, ')}") from error


def pairs(text: str, option: str) -> dict[str, float]:
    """NAME=NUMBER,NAME=NUMBER of an option.

    Raises:
        SmaltiError: for what is not written so, and for a name given twice.
    """
    made: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = part.rpartition("=")
        name = name.strip()
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if not name or not 0 <= value < float("inf"):
            raise SmaltiError(f"{option}: {part.strip()!r} is not NAME=NUMBER: write {option} 'wheat=120,forest=80'")
        if name in made:
            raise SmaltiError(f"{option}: names {name!r} twice")
        made[name] = value
    return made


def _as_options(text: str) -> str:
    for key, option in _OPTIONS.items():
        text = text.replace(key, option)
    return text


def table(made: AssessedMap) -> Group:
    """The estimates for a terminal: a row a class, 95 % confidence intervals as plus or minus."""
    shown = Table(title=f"{made.n} reference points, {made.estimator}", title_justify="left", box=None, pad_edge=False)
    shown.add_column("class")
    for column in ("mapped", "reference", "user's", "producer's", "mapped ha", "area ha"):
        shown.add_column(column, justify="right")
    for entry in made.per_class:
        shown.add_row(
            entry.name,
            str(entry.n_mapped),
            str(entry.n_reference),
            share(entry.users_accuracy),
            share(entry.producers_accuracy),
            f"{entry.mapped_ha:,.0f}",
            _around(entry.area_ha, 0),
        )
    return Group(shown, f"overall accuracy {share(made.overall_accuracy)}; ± is half of a 95 % confidence interval")


def share(figure: Estimated | None) -> str:
    """A share with its margin to three digits, or a dash."""
    return "-" if figure is None else _around(figure, 3)


def _around(figure: Estimated, digits: int) -> str:
    error = figure.standard_error
    margin = "?" if error is None else f"{1.96 * error:,.{digits}f}"
    return f"{figure.value:,.{digits}f} ± {margin}"
