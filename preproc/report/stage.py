"""The `report` stage: reads what the others wrote, lays it out, writes RUN/report/index.html."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from infer.contract import SOFTWARE, Run, SmaltiError, read_toml, sha256_file, write_bytes, write_manifest
from infer.contract.rasters import CleanedMap
from preproc.report import figures, numbers
from preproc.report.cautions import cautions
from preproc.report.inputs import Sources, fingerprint, observe, read_sources
from preproc.report.pictures import class_pictures, confidence_gradient, confidence_pictures, embedding_pictures
from preproc.report.truth import compare, truth_fingerprint
from preproc.run.classifier import maps_number
from preproc.run.config import Config
from preproc.run.stage import Session, Unit, one_by_one

if TYPE_CHECKING:
    from jinja2 import Template

KIND = "report"
LAYOUT = 3
"""Of the page; a new one makes reports anew."""
_UNTITLED = ("region", "bbox")
"""Names that a region has when nobody gave it one."""


class ReportStage:
    """`smalti report`."""

    name = "report"
    noun = "pages"
    sharded = False
    apart = False

    def open(self, run: Run, config: Config) -> Session:
        """The one page, and what it is made from."""
        if not config.maps:
            raise SmaltiError(f"{run.config}: [labels]: missing: a report is about a map, and a map needs labels")
        if maps_number(config):
            stated = {**numbers.fingerprint(run, config), "layout": LAYOUT}
            unit = Unit("index.html", run.report / "report.json", KIND, stated)
            return Session([unit], lambda due: one_by_one(due.units, lambda unit: _write_numbers(run, config, unit)))
        inputs: dict[str, Any] = {
            **fingerprint(run, config),
            "confidence": config.classify.confidence,
            "layout": LAYOUT,
        }
        if config.clean.steps:
            inputs["cleaned"] = sha256_file(CleanedMap.read(run).path(run))
        if config.report.truth is not None:
            inputs["truth"] = truth_fingerprint(config.report.truth)
        unit = Unit("index.html", run.report / "report.json", KIND, inputs)
        return Session([unit], lambda due: one_by_one(due.units, lambda unit: _write(run, config, unit)))


def _write(run: Run, config: Config, unit: Unit) -> None:
    _keep(run, render(context(run, config, read_sources(run, config))), unit)


def _write_numbers(run: Run, config: Config, unit: Unit) -> None:
    values = numbers.context(run, config)
    window, region = values["made"].window, values["plan"].region
    about = {"window": (window.start.isoformat(), window.end.isoformat()), "bbox": _place(region.bbox)}
    template = page_template("preproc.report", "numbers.html.j2")
    _keep(run, template.render({**values, **about, "settings": shown_settings(run)}), unit)


def _keep(run: Run, html: str, unit: Unit) -> None:
    page = run.report / "index.html"
    unit.manifest.unlink(missing_ok=True)
    write_bytes(page, html.encode())
    write_manifest(unit.manifest, KIND, inputs=unit.inputs, files=[page])


def render(values: Mapping[str, object]) -> str:
    """The page. A name that the template uses and `values` lacks is an error, never a blank."""
    return page_template("preproc.report", "report.html.j2").render(values)


def page_template(package: str, name: str) -> Template:
    """A template of a package that may use the report's style, with the report's ways to show figures."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined  # here: whoever looks lays out no page

    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, "."), PackageLoader("preproc.report", ".")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=figures.percent,
        interval=figures.percent_with_interval,
        around=figures.interval,
        score=figures.score_with_interval,
        whole=figures.whole,
        hectares=figures.hectares,
        hectares_interval=figures.hectares_with_interval,
    )
    return environment.get_template(name)


def context(run: Run, config: Config, sources: Sources) -> dict[str, Any]:
    """Everything that the template shows."""
    made = sources.map
    window = (made.window.start.isoformat(), made.window.end.isoformat())
    seen = observe(run, window)
    region = sources.plan.region
    name = region.name
    truth = config.report.truth
    return {
        "title": "Class map" if name in _UNTITLED else f"Class map of {name.replace('_', ' ')}",
        "window": window,
        "bbox": _place(region.bbox),
        "cautions": cautions(sources, seen, truth_known=truth is not None),
        "map": made,
        "cleaned": CleanedMap.read(run) if config.clean.steps else None,
        "cleaned_assessed": sources.accuracy.cleaned_accuracy,
        "plan": sources.plan,
        "mosaic": sources.mosaic,
        "classifier": sources.model,
        "samples": sources.samples,
        "pictures": class_pictures(run, made),
        "confidence_pictures": confidence_pictures(run, made),
        "confidence_gradient": confidence_gradient(),
        "previews": embedding_pictures(run, sources.mosaic),
        "threshold": config.classify.confidence,
        "areas": figures.class_areas(made.classes, config.classify.confidence),
        "uncertain": figures.uncertain_share(made.classes, config.classify.confidence),
        "seen": seen,
        "chart": figures.dates_chart(seen),
        "chart_size": (figures.CHART_WIDTH, figures.CHART_HEIGHT),
        "truth": None if truth is None else compare(run, made, truth),
        "settings": shown_settings(run),
        "software": SOFTWARE,
        **_accuracy(sources),
    }


def _accuracy(sources: Sources) -> dict[str, Any]:
    performance = sources.accuracy.performance
    names = [entry.name for entry in performance.classes]
    by_pixel = figures.matrix_cells(performance.pixels.count_matrix)
    by_group = figures.matrix_cells(performance.groups.count_matrix)
    assessed = sources.accuracy.map_accuracy
    return {
        "performance": performance,
        "names": names,
        "study": figures.study_chart(sources.trials),
        "distance_bars": figures.distance_bars(performance.distance_m),
        "colors": {entry.name: entry.color for entry in performance.classes},
        "by_pixel": by_pixel,
        "by_group": by_group,
        "mix_ups": figures.worst_mix_ups(names, by_pixel),
        "assessed": assessed,
        "assessed_cells": None if assessed is None else figures.matrix_cells(assessed.count_matrix),
    }


def _place(bbox: tuple[float, float, float, float]) -> str:
    west, south, east, north = bbox
    return f"{_degrees(south, 'S', 'N')} to {_degrees(north, 'S', 'N')}, {_degrees(west, 'W', 'E')} to " + _degrees(
        east, "W", "E"
    )


def _degrees(value: float, negative: str, positive: str) -> str:
    return f"{abs(value):.3f}° {negative if value < 0 else positive}"


def shown_settings(run: Run) -> str:
    """run.toml as it stands, but for the queries of addresses, which may hold keys."""
    text = read_toml(run.config)
    return re.sub(r"(https?://[^\s\"'?]*)\?[^\s\"']*", r"\1?(query not shown)", text)
