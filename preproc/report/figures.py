"""Figures as the page shows them: percentages with intervals, shaded matrices, bars. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from infer.contract.classification import Distances, Figure
from infer.contract.rasters import MappedClass
from preproc.report.inputs import Observations

CHART_WIDTH, CHART_HEIGHT = 760, 230
"""Of the chart of dates, in the units of its own coordinates."""
_LEFT, _BOTTOM, _TOP = 34, 42, 10


def percent(value: float | None) -> str:
    """For example 74 % (with a space that does not break), or a dash for what does not exist."""
    return "–" if value is None else f"{100 * value:.0f}\u00a0%"


def interval(estimate: Figure | None) -> str:
    """The 95 % interval of a share, for example 67–81 %; empty if there is none."""
    if estimate is None or estimate.ci95 is None:
        return ""
    low, high = estimate.ci95
    return f"{100 * low:.0f}–{100 * high:.0f}\u00a0%"


def percent_with_interval(estimate: Figure | None) -> str:
    """For example 74 % (67–81 %)."""
    if estimate is None:
        return "–"
    around = interval(estimate)
    return percent(estimate.value) + (f" ({around})" if around else "")


def score_with_interval(estimate: Figure) -> str:
    """For example 0.65 (0.58–0.71)."""
    around = estimate.ci95
    return f"{estimate.value:.2f}" + ("" if around is None else f" ({around[0]:.2f}–{around[1]:.2f})")


def whole(value: float) -> str:
    """With commas between thousands."""
    return f"{value:,.0f}"


def hectares(value: float) -> str:
    """Whole from 100 on, with one decimal below."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.1f}"


def hectares_with_interval(estimate: Figure) -> str:
    """For example 1,200 (1,050–1,350)."""
    interval = estimate.ci95
    tail = "" if interval is None else f" ({hectares(interval[0])}–{hectares(interval[1])})"
    return hectares(estimate.value) + tail


@dataclass(frozen=True)
class Cell:
    """One cell of a matrix."""

    count: int
    share: float | None
    """Of the reference class (the column); None where the class has no reference."""
    right: bool
    """On the diagonal."""

    @property
    def shade(self) -> int:
        """0..100, how strongly to colour it."""
        return 0 if self.share is None else round(100 * self.share)


def matrix_cells(matrix: Sequence[Sequence[int]]) -> list[list[Cell]]:
    """Rows (mapped or predicted) of cells, shaded by the share of their column (reference)."""
    totals = [sum(row[column] for row in matrix) for column in range(len(matrix))]
    return [
        [
            Cell(count, count / totals[column] if totals[column] else None, row == column)
            for column, count in enumerate(line)
        ]
        for row, line in enumerate(matrix)
    ]


@dataclass(frozen=True)
class MixUp:
    """Two classes that are confused."""

    reference: str
    mapped: str
    share: float
    """Of the reference class."""


def worst_mix_ups(names: Sequence[str], cells: Sequence[Sequence[Cell]], least: float = 0.1) -> list[MixUp]:
    """The three largest confusions that concern at least that share of a class."""
    found = [
        MixUp(names[column], names[row], cell.share)
        for row, line in enumerate(cells)
        for column, cell in enumerate(line)
        if not cell.right and cell.share is not None and cell.share >= least
    ]
    return sorted(found, key=lambda mix_up: (-mix_up.share, mix_up.reference, mix_up.mapped))[:3]


def class_areas(classes: Sequence[MappedClass], threshold: float) -> list[dict[str, Any]]:
    """Rows of the table of areas, largest first.

    Args:
        classes: of map.json.
        threshold: confidence (0..1) below which a pixel counts as uncertain.
    """
    total = sum(entry.pixels for entry in classes)
    limit = threshold * 100
    rows = []
    for entry in sorted(classes, key=lambda entry: (-entry.pixels, entry.code)):
        counts = entry.pixels_by_confidence
        uncertain = sum(count for level, count in enumerate(counts) if level < limit)
        rows.append(
            {
                "name": entry.name,
                "color": entry.color,
                "pixels": entry.pixels,
                "hectares": entry.hectares,
                "share": entry.pixels / total if total else None,
                "uncertain": uncertain / entry.pixels if entry.pixels else None,
            }
        )
    return rows


def uncertain_share(classes: Sequence[MappedClass], threshold: float) -> float | None:
    """Share of all mapped pixels below the confidence threshold."""
    total = sum(entry.pixels for entry in classes)
    below = sum(
        count for entry in classes for level, count in enumerate(entry.pixels_by_confidence) if level < threshold * 100
    )
    return below / total if total else None


@dataclass(frozen=True)
class Bar:
    """One bar of the chart."""

    stack: str
    x: float
    y: float
    width: float
    height: float
    text: str


@dataclass(frozen=True)
class Chart:
    """Dates kept in each month, as geometry."""

    bars: Sequence[Bar]
    months: Sequence[tuple[float, str, str]]
    """Middle, month's short name, year where it begins (or empty)."""
    ticks: Sequence[tuple[float, int]]
    """Height and number."""


def distance_bars(distance: Distances) -> list[Bar]:
    """Bars of the histogram of distances from test to training, the whole chart wide."""
    most, total = max(distance.counts, default=0), sum(distance.counts)
    if not most:
        return []
    step = (CHART_WIDTH - _LEFT - _TOP) / len(distance.counts)
    bars = []
    for index, (below, count) in enumerate(zip(distance.below_m, distance.counts, strict=False)):
        height = 105 * count / most
        text = f"{count:,} of {total:,} below {below:,.0f} m" + (f" and not below {below / 2:,.0f} m" if index else "")
        stack = f"{below:.0f}" if below < 1000 else f"{below / 1000:.3g}k"
        bars.append(Bar(stack, _LEFT + index * step + 2, 120 - height, step - 4, height, text))
    return bars


@dataclass(frozen=True)
class Dot:
    """A trial."""

    x: float
    y: float
    color: str
    pruned: bool
    text: str


@dataclass(frozen=True)
class StudyChart:
    """The trials of the search for parameters, as geometry."""

    dots: Sequence[Dot]
    ticks: Sequence[tuple[float, str]]
    methods: Sequence[tuple[str, str]]
    """Name and colour."""
    measure: str
    less: bool
    """Less of it is better."""


_METHOD_COLOURS = ("#3b6ea5", "#b8642b", "#4d8b57", "#8a5a9e")


def study_chart(lines: Sequence[str], measure: str = "Mean F1", *, less: bool = False) -> StudyChart | None:
    """The lines of trials.jsonl drawn; None without trials.

    Args:
        lines: as they are.
        measure: what their scores are.
        less: less of it is better: it has a scale of its own, where F1 ends at 1.
    """
    label, exact = (".3g", ".4g") if less else (".2f", ".3f")
    trials = [json.loads(line) for line in lines]
    if not trials:
        return None
    names = list(dict.fromkeys(trial.get("method", "catboost") for trial in trials))
    colours = dict(zip(names, _METHOD_COLOURS, strict=False))
    scores = [float(trial["score"]) for trial in trials]
    low, high = min(scores), max(scores)
    span = max(high - low, 0.01 * high if less else 0.01) or 1.0
    most = max(trial["number"] for trial in trials) or 1

    def height(score: float) -> float:
        return 165.0 - 145 * (score - low) / span

    dots = [
        Dot(
            x=round(_LEFT + 12 + trial["number"] / most * (CHART_WIDTH - _LEFT - 34), 1),
            y=round(height(trial["score"]), 1),
            color=colours[trial.get("method", "catboost")],
            pruned=bool(trial.get("pruned", False)),
            text=f"trial {trial['number']}: {trial['score']:{exact}}; "
            + ", ".join(f"{key} {_short(value)}" for key, value in sorted(trial["params"].items())),
        )
        for trial in trials
    ]
    ticks = [(round(height(value), 1), f"{value:{label}}") for value in (low, low + span / 2, low + span)]
    return StudyChart(dots, ticks, [(name, colours[name]) for name in names], measure, less)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def dates_chart(seen: Observations) -> Chart:
    """Bars for each month, one per stack."""
    names = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
    most = max((count for counts in seen.per_month.values() for count in counts), default=0)
    step = next((s for s in (1, 2, 5, 10, 20, 50, 100) if most / s <= 5), 200)
    top = max(step, -(-most // step) * step)
    floor, usable = CHART_HEIGHT - _BOTTOM, CHART_HEIGHT - _BOTTOM - _TOP
    slot = (CHART_WIDTH - _LEFT) / len(seen.months)
    width = slot * 0.8 / len(seen.per_month)
    bars = [
        Bar(
            stack,
            round(_LEFT + index * slot + slot * 0.1 + order * width, 2),
            round(floor - usable * count / top, 2),
            round(width * 0.92, 2),
            round(usable * count / top, 2),
            f"{month}, {seen.stacks[stack].label}: {count} dates",
        )
        for order, (stack, counts) in enumerate(seen.per_month.items())
        for index, (month, count) in enumerate(zip(seen.months, counts, strict=True))
    ]
    labels = [
        (
            round(_LEFT + (index + 0.5) * slot, 2),
            names[int(month[5:]) - 1],
            month[:4] if index == 0 or month.endswith("-01") else "",
        )
        for index, month in enumerate(seen.months)
    ]
    ticks = [(round(floor - usable * value / top, 2), value) for value in range(0, top + 1, step)]
    return Chart(bars, labels, ticks)
