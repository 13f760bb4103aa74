"""The comparison for people: a page in the style of the report, a table (CSV), and the same as text."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from infer.contract import SOFTWARE, write_bytes
from infer.contract.classification import Figure
from infer.contract.compared import ComparedModel, Comparison, MethodFigures
from preproc.report.figures import score_with_interval
from preproc.report.stage import page_template
from preproc.run.text import human_time

_WIDTH, _HEIGHT = 430.0, 300.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 36.0, 108.0, 14.0, 34.0
_COLOURS = ("#3b6ea5", "#b8642b", "#4d8b57", "#8a5a9e", "#a8852a", "#3d9090", "#b0506a", "#6f7680")
_LINE = 13.0
"""Height of a label."""


@dataclass(frozen=True)
class Speed:
    """How fast a model was on the machine where its pixels were embedded."""

    seconds: float
    """A pixel."""
    device: str
    cores: int
    """Of a CPU; 0 for an accelerator."""

    @property
    def where(self) -> str:
        """The device in words."""
        return f"{self.device}, {self.cores} {'core' if self.cores == 1 else 'cores'}" if self.cores else self.device


@dataclass(frozen=True)
class Dot:
    """A point of a curve with its interval."""

    x: float
    y: float
    low: float
    high: float
    text: str


@dataclass(frozen=True)
class Curve:
    """A model's learning curve, as geometry."""

    name: str
    color: str
    dots: Sequence[Dot]
    label_y: float

    @property
    def points(self) -> str:
        """Of an SVG polyline."""
        return " ".join(f"{dot.x},{dot.y}" for dot in self.dots)


@dataclass(frozen=True)
class Panel:
    """The curves of one method."""

    method: str
    curves: Sequence[Curve]
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]


def page_and_table(folder: Path, made: Comparison, speeds: Mapping[str, Speed | None]) -> str:
    """Write index.html and compare.csv into a folder.

    Returns:
        The table and what it comes to, as text.
    """
    write_bytes(folder / "compare.csv", table_csv(made, speeds).encode())
    known = [speed for speed in speeds.values() if speed is not None]
    values = {
        "made": made,
        "ranked": ranked(made),
        "rows": [_row(made, model, speeds[model.name]) for model in ranked(made)],
        "panels": [panel(made, method) for method in made.methods],
        "size": (_WIDTH, _HEIGHT),
        "plot": (_LEFT, _TOP, _WIDTH - _RIGHT, _HEIGHT - _BOTTOM),
        "devices": sorted({speed.where for speed in known}),
        "software": SOFTWARE,
    }
    write_bytes(folder / "index.html", page_template("preproc.compare", "compare.html.j2").render(values).encode())
    return f"{as_text(made, speeds)}\n\n{folder / 'index.html'} shows it; {folder / 'compare.csv'} is the table"


def ranked(made: Comparison) -> list[ComparedModel]:
    """The best first, by the mean of the methods."""
    return sorted(made.models, key=lambda model: -sum(score.macro_f1.value for score in model.scores))


def signed(figure: Figure) -> str:
    """For example +0.03 (+0.01 to +0.05)."""
    around = "" if figure.ci95 is None else f" ({figure.ci95[0]:+.2f} to {figure.ci95[1]:+.2f})"
    return f"{figure.value:+.2f}{around}"


def _row(made: Comparison, model: ComparedModel, speed: Speed | None) -> dict[str, object]:
    return {
        "model": model,
        "million": "not known" if speed is None else human_time(speed.seconds * 1e6),
        "cells": [
            {
                "score": score_with_interval(score.macro_f1),
                "difference": _difference(made, model.name, score.method),
                "apart": _clear(made, model.name, score.method),
            }
            for score in model.scores
        ],
    }


def _difference(made: Comparison, model: str, method: str) -> str:
    found = _found(made, model, method)
    return "" if found is None else signed(found)


def _clear(made: Comparison, model: str, method: str) -> bool:
    """Whether the interval of the difference leaves zero out."""
    found = _found(made, model, method)
    return found is not None and found.ci95 is not None and not found.ci95[0] <= 0 <= found.ci95[1]


def _found(made: Comparison, model: str, method: str) -> Figure | None:
    return next((one.macro_f1 for one in made.differences if (one.model, one.method) == (model, method)), None)


def as_text(made: Comparison, speeds: Mapping[str, Speed | None]) -> str:
    """The table for a terminal."""
    lines = []
    for index, method in enumerate(made.methods):
        lines += [f"{method:<22} {'macro-F1':<18} {'against ' + made.against:<24} numbers  bytes  a million pixels"]
        for row in sorted(made.models, key=lambda model: -model.scores[index].macro_f1.value):
            score, speed = row.scores[index], speeds[row.name]
            million = "" if speed is None else human_time(speed.seconds * 1e6)
            lines.append(
                f"  {row.name:<20} {score_with_interval(score.macro_f1):<18} "
                f"{_difference(made, row.name, method):<24} {row.dim:>7} {row.bytes_per_pixel:>6}  {million}"
            )
        lines.append(f"  {made.verdicts[method]}")
    return "\n".join(lines)


_COLUMNS = (
    *("model", "family", "numbers", "kept_as", "bytes_per_pixel", "seconds_per_pixel", "device", "method"),
    *("groups_per_class", "trained_on", "macro_f1", "macro_f1_low", "macro_f1_high", "overall_accuracy"),
    *("overall_low", "overall_high", "against", "difference", "difference_low", "difference_high"),
)


def table_csv(made: Comparison, speeds: Mapping[str, Speed | None]) -> str:
    """A row a model, method and number of groups; differences where all groups are trained on."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for model in made.models:
        speed = speeds[model.name]
        about = [model.name, model.family, model.dim, model.embeddings_as, model.bytes_per_pixel]
        about += ["", ""] if speed is None else [f"{speed.seconds:.3g}", speed.where]
        for score in model.scores:
            for point in score.curve:
                found = _found(made, model.name, score.method) if point is score.curve[-1] else None
                writer.writerow(
                    [
                        *about,
                        score.method,
                        point.groups,
                        point.rows,
                        *_three(point.macro_f1),
                        *_three(point.overall_accuracy),
                        *(["", "", "", ""] if found is None else [made.against, *_three(found)]),
                    ]
                )
    return out.getvalue()


def _three(figure: Figure) -> list[str]:
    low, high = figure.ci95 or (math.nan, math.nan)
    return [f"{value:.4f}" if math.isfinite(value) else "" for value in (figure.value, low, high)]


def panel(made: Comparison, method: str) -> Panel:
    """Learning curves of all models: groups of each class in training on a logarithmic axis, macro-F1 upwards."""
    scores = [(model, next(one for one in model.scores if one.method == method)) for model in made.models]
    values = [edge for _, score in scores for point in score.curve for edge in (*_span(point.macro_f1),)]
    low = max(0.0, math.floor(min(values) * 10) / 10)
    high = min(1.0, math.ceil(max(values) * 10 + 1e-9) / 10)
    high = high if high > low else low + 0.1
    sizes = sorted({point.groups for _, score in scores for point in score.curve})
    reach = math.log(max(sizes[-1], 2) / sizes[0])

    def across(groups: int) -> float:
        return round(_LEFT + 8 + math.log(groups / sizes[0]) / (reach or 1) * (_WIDTH - _LEFT - _RIGHT - 16), 1)

    def up(value: float) -> float:
        return round(_HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _BOTTOM - _TOP), 1)

    curves = []
    for index, (model, score) in enumerate(scores):
        shift = 2.0 * (index - (len(scores) - 1) / 2)  # intervals of models stand side by side
        dots = [
            Dot(
                round(across(point.groups) + shift, 1),
                up(point.macro_f1.value),
                up(_span(point.macro_f1)[0]),
                up(_span(point.macro_f1)[1]),
                f"{model.name}, {_of(score, point.groups)}: {score_with_interval(point.macro_f1)}",
            )
            for point in score.curve
        ]
        curves.append((model.name, _COLOURS[index % len(_COLOURS)], dots))
    label_y = _spread([dots[-1].y for _, _, dots in curves])
    steps = max(1, round((high - low) * 10))
    ticks = [low + index * (high - low) / steps for index in range(steps + 1)]
    return Panel(
        method,
        [Curve(name, color, dots, y) for (name, color, dots), y in zip(curves, label_y, strict=True)],
        [(across(size), "all" if size == sizes[-1] else str(size)) for size in sizes],
        [(up(tick), f"{tick:.1f}") for tick in ticks],
    )


def _of(score: MethodFigures, groups: int) -> str:
    if groups == score.curve[-1].groups:
        return "all groups"
    return f"{groups} {'group' if groups == 1 else 'groups'} a class"


def _span(figure: Figure) -> tuple[float, float]:
    return figure.ci95 or (figure.value, figure.value)


def _spread(wanted: Sequence[float]) -> list[float]:
    """Heights of labels near where they are wanted, none over another and none outside."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    placed = [0.0] * len(wanted)
    below = _TOP - _LINE
    for index in order:
        below = max(wanted[index], below + _LINE)
        placed[index] = below
    excess = below - (_HEIGHT - _BOTTOM)
    for index in reversed(order):  # what was pushed beyond the floor comes back up, and those above it
        if excess <= 0:
            break
        placed[index] = min(placed[index], _HEIGHT - _BOTTOM - _LINE * (len(order) - 1 - order.index(index)))
    return [round(height, 1) for height in placed]
