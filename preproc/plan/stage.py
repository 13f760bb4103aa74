"""The plan stage: region -> tiles, one search, its items saved, and what the run will cost. See docs/plan.md."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

from infer.contract import (
    Inputs,
    Plan,
    PlannedTile,
    Run,
    SmaltiError,
    State,
    read_model_job,
    sha256_file,
    write_model_job,
)
from infer.contract.errors import FormatError
from infer.contract.plan import FoundScenes, LeftOut, PlannedRegion, SampledTiles, SceneCount
from infer.contract.registry import registered_model
from preproc.catalogue.items import (
    ParsedItems,
    SceneIndex,
    count_reasons,
    index_scenes,
    parse_items,
    save_items,
    search_scenes,
)
from preproc.catalogue.offset import contradicts_date
from preproc.catalogue.sources import Item
from preproc.plan.estimate import SeasonCounts, Work, count_season, estimate
from preproc.plan.text import render_plan
from preproc.reader.hrefs import is_url, portable
from preproc.region.grid import by_neighbourhood, interleaved, plan_tiles, utm_zones, zone_part
from preproc.region.region import Region, load_region, outline_fingerprint
from preproc.run.config import Config
from preproc.run.profile import load_profile
from preproc.run.progress import say
from preproc.run.stage import Session, Unit, one_by_one
from preproc.run.task_count import choose_tasks
from preproc.run.waves import disk_of

SAMPLED_TILES = 400
"""Tiles, evenly spread over the plan, whose scenes are counted for the estimate and the warnings."""
FEW_S2_DAYS = 12
"""A tile with fewer Sentinel-2 dates is warned about: after clouds, little is left for a season."""
LONG_GAP_DAYS = 45
"""So many days without a Sentinel-2 scene are warned about."""


@dataclass(frozen=True, kw_only=True)
class _ModelUnit(Unit):
    """RUN/model.json: current when it says what run.toml says."""

    run: Run
    config: Config

    def state(self, *, checksums: bool = False) -> State:
        del checksums  # a file of one kilobyte is compared as a whole
        if not self.manifest.exists():
            return State("missing", f"{self.manifest} is not there")
        try:
            current = read_model_job(self.run) == self.config.model.job()
        except FormatError as error:
            return State("broken", str(error))
        return State("complete") if current else State("stale", "[model] of run.toml has changed")


class PlanStage:
    """Makes plan.json, items/ and model.json."""

    name = "plan"
    noun = "files"
    sharded = False
    apart = False

    def open(self, run: Run, config: Config) -> Session:
        """The plan and the model job.

        Raises:
            SmaltiError: if the region cannot be read.
        """
        outline = outline_fingerprint(run, config.region)
        units = [
            Unit("plan.json", run.plan, "plan", plan_inputs(run, config, outline)),
            _ModelUnit("model.json", run.model_job, "model-job", {}, in_passing=True, run=run, config=config),
        ]

        def make(unit: Unit) -> None:
            if isinstance(unit, _ModelUnit):
                run.model_job.unlink(missing_ok=True)  # one that cannot be read must not be compared
                write_model_job(run, config.model.job())
            else:
                _write_plan(run, config, unit)

        return Session(units, lambda due: one_by_one(due.units, make))


def plan_inputs(run: Run, config: Config, outline: str) -> Inputs:
    """What the plan depends on. The items found are not part of it: a search is repeated when it is asked for.

    A local item collection counts with its contents, so that a changed archive is searched again, and a copy of the run
    elsewhere still has the same one. Where it is no longer there, the plan made from it stays valid.
    """
    archive = config.archive
    href = None if archive.href is None else portable(archive.href, run.root, run.root)
    inputs: dict[str, Any] = {
        "region": outline,
        "window": [config.region.start.isoformat(), config.region.end.isoformat()],
        "archive": {"source": archive.source, "href": href, "url": archive.url, "as": archive.data_source},
        "tile_size": config.tiles.size,
    }
    if archive.also:
        inputs["archive"]["also"] = [portable(str(path), run.root, run.root) for path in archive.also]
    if archive.href is not None and not is_url(archive.href):
        path, known = Path(archive.href), _archive_of(run)
        if path.is_file():
            inputs["archive"]["sha256"] = sha256_file(path)
            if inputs["archive"]["sha256"] == known.get("sha256"):
                inputs["archive"]["href"] = known.get("href")
        elif known.get("href") == href and "sha256" in known:
            inputs["archive"]["sha256"] = known["sha256"]
    return inputs


def _archive_of(run: Run) -> dict[str, Any]:
    try:
        archive = Plan.read(run).inputs.get("archive")
    except SmaltiError:
        return {}
    return archive if isinstance(archive, dict) else {}


def _tasks(tiles: int, config: Config, folder: Path) -> int:
    """How many shards `smalti submit` will choose: for so many, each shard is a patch of neighbours."""
    profile = load_profile(config.site.profile, folder.absolute(), config.site)
    jobs = [profile.kind(kind) for kind in ("fetch", "infer")]
    return choose_tasks(tiles, config.tiles.size, [job for job in jobs if job.where == "batch"], profile.limits)


def make_plan(config: Config, region: Region, folder: Path) -> tuple[list[Item], ParsedItems, Plan]:
    """Cut the region, search the archive and reckon; writes nothing.

    Args:
        config: the settings.
        region: what [region] names.
        folder: the run directory, for a site profile that lies there.

    Returns:
        The items found, what became of them, and the plan.

    Raises:
        SmaltiError: if nothing usable is found.
    """
    tiles = plan_tiles(region, config.tiles.size)
    sampled = _sample(tiles)
    shards = _tasks(len(tiles), config, folder)
    order = interleaved(by_neighbourhood(tiles), shards)
    planned = tuple(tiles[index] for index in order)
    del tiles, order  # there may be a million
    items = search_scenes(config, region)
    yielded = parse_items(items, config)
    _check_scenes(yielded, config)
    index = SceneIndex(yielded.scenes)
    season = count_season({tile.name: index.for_tile(tile) for tile in sampled})
    pixels = max(1, round(sum(zone_part(region, epsg).area for epsg in utm_zones(region)) / 100))
    work = Work(len(planned), config.tiles.size, pixels, season, parameters_of(config), config.site.workers or _cpus())
    plan = Plan(
        tile_size=config.tiles.size,
        tiles=planned,
        zones=dict(sorted(Counter(str(tile.epsg) for tile in planned).items())),
        region=PlannedRegion(region.name, region.fingerprint, _rounded(region.bounds), pixels, region.read_from),
        window=(config.region.start, config.region.end),
        source=config.archive.source,
        scenes=_found_scenes(yielded),
        season=SampledTiles(
            tiles_sampled=len(sampled),
            s2_days=round(season.s2_days, 1),
            s1_days=round(season.s1_days, 1),
            least_s2_days=season.least_s2_days,
            least_tile=season.least_tile,
        ),
        neighbours_in_shards_of=shards,
        estimate=estimate(work, config),
        warnings=tuple(_warnings(yielded, season, config)),
    )
    return items, yielded, plan


def _rounded(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    west, south, east, north = (round(value, 6) for value in box)
    return west, south, east, north


def dry_run(run: Run, config: Config) -> tuple[str, Plan]:
    """What `smalti plan` would find and what the run would cost, as text and as a plan; writes nothing."""
    _, _, plan = make_plan(config, load_region(config.region), run.root)
    return render_plan(plan, disk_of(plan, config)), plan


def _write_plan(run: Run, config: Config, unit: Unit) -> None:
    region = load_region(config.region)
    items, found, plan = make_plan(config, region, run.root)
    run.plan.unlink(missing_ok=True)  # from here on the old plan no longer fits its items
    files = save_items(run, items)
    inputs = {**unit.inputs, "region": region.fingerprint}
    plan.write(run.plan, inputs=inputs, files=[*files, *index_scenes(run, items, found)])
    say(render_plan(plan))


def _check_scenes(found: ParsedItems, config: Config) -> None:
    if any(scene.modality == "s2" for scene in found.scenes):
        return
    origin = config.archive.href or config.archive.url or config.archive.source
    reasons = "; ".join(f"{count} of them: {reason}" for reason, count in count_reasons(found.rejected)[:4])
    if found.scenes:
        raise SmaltiError(
            f"{origin}: {len(found.scenes)} Sentinel-1 scenes but no Sentinel-2 scene over the region in the window: "
            f"TESSERA needs Sentinel-2{f' ({reasons})' if reasons else ''}"
        )
    raise SmaltiError(f"{origin}: {len(found.rejected)} items found, none of use: {reasons}")


def _sample(tiles: Sequence[PlannedTile]) -> list[PlannedTile]:
    step = max(1, len(tiles) // SAMPLED_TILES)
    return list(tiles[::step])


def _cpus() -> int:
    return len(os.sched_getaffinity(0))


def parameters_of(config: Config) -> int:
    """Of the model: as registered, or else as its file's size tells."""
    path = config.model.checkpoint
    if config.model.name is not None:
        known = registered_model(config.model.name).parameters
        if known is not None:
            return known
    return path.stat().st_size // 4 if path is not None and path.is_file() else 1_000_000


def _found_scenes(found: ParsedItems) -> FoundScenes:
    groups: dict[str, Counter[str]] = {"s2": Counter(), "s1_ascending": Counter(), "s1_descending": Counter()}
    for scene in found.scenes:
        groups["s2" if scene.modality == "s2" else f"s1_{scene.orbit}"][scene.day.isoformat()] += 1
    return FoundScenes(
        **{name: SceneCount(days.total(), dict(sorted(days.items()))) for name, days in groups.items()},
        duplicates=len(found.duplicates),
        rejected=tuple(
            LeftOut(reason, count, tuple([name for name, why in found.rejected.items() if why == reason][:3]))
            for reason, count in count_reasons(found.rejected)
        ),
    )


def _warnings(found: ParsedItems, season: SeasonCounts, config: Config) -> list[str]:
    texts = []
    orbits = {scene.orbit for scene in found.scenes if scene.modality == "s1"}
    if not orbits:
        texts.append("no Sentinel-1 scene was found: embeddings from Sentinel-2 alone are poorer and not comparable")
    if season.unseen:
        texts.append(
            f"{season.unseen} of {season.tiles} tiles looked at have no Sentinel-2 scene at all, for example "
            f"{season.least_tile}: the archive does not reach as far as the region"
        )
    elif season.least_s2_days < FEW_S2_DAYS:
        dates = "1 Sentinel-2 date" if season.least_s2_days == 1 else f"{season.least_s2_days} Sentinel-2 dates"
        texts.append(
            f"tile {season.least_tile} has {dates} before clouds are counted: expect gaps, or widen the window"
        )
    start, end = config.region.start, config.region.end
    if (end.year, end.month, end.day) >= (start.year + 1, start.month, start.day):
        texts.append(
            f"the window ({start} to {end}) is longer than a year: models know an observation's day of year and not "
            "its year, and monthly medians are over both years' months, so what changed from one to the other is "
            "mixed: make a run for each season"
        )
    days = sorted({scene.day for scene in found.scenes if scene.modality == "s2"})
    gap, first = _longest_gap([start, *days, end])
    if gap > LONG_GAP_DAYS:
        texts.append(f"no Sentinel-2 scene for {gap} days from {first}")
    incomplete = [scene.id for scene in found.scenes if scene.modality == "s2" and len(scene.assets) < 11]
    if incomplete:
        texts.append(
            f"{len(incomplete)} Sentinel-2 items lack a band and will be left out, for example {incomplete[0]}"
        )
    doubtful = [scene for scene in found.scenes if contradicts_date(scene)]
    if doubtful:
        texts.append(
            f"{len(doubtful)} Sentinel-2 items state a processing baseline that their date contradicts (reprocessed, "
            f"say), for example {doubtful[0].id} of {doubtful[0].day}: the baseline decides about the offset"
        )
    return texts


def _longest_gap(days: Sequence[date]) -> tuple[int, date]:
    return max((((later - earlier).days, earlier) for earlier, later in pairwise(days)), key=lambda pair: pair[0])
