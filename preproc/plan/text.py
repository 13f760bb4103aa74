"""A plan for people: a few lines and a table, as text. Pure."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from infer.contract.plan import Plan
from preproc.run.progress import plain_console
from preproc.run.text import human_bytes, human_time
from preproc.run.waves import Space, StageDisk

WIDTH = 110


def render_plan(plan: Plan, disk: Sequence[StageDisk] = ()) -> str:
    """plan.json as text, with what it takes on disk at the peak and at the end where that is given."""
    out = plain_console(file=io.StringIO(), width=WIDTH, color_system=None)
    region, size = plan.region, plan.tile_size
    zones = ", ".join(f"{count:,} in EPSG:{epsg}" for epsg, count in list(plan.zones.items())[:4])
    zones += f" and {len(plan.zones) - 4} more zones" if len(plan.zones) > 4 else ""
    west, south, east, north = region.bbox
    out.print(f"region     {region.name}: {region.pixels / 1e4:,.2f} km² between {west:.4f}, {south:.4f} and ", end="")
    out.print(f"{east:.4f}, {north:.4f}")
    out.print(f"window     {plan.window[0]} to {plan.window[1]}")
    out.print(f"tiles      {len(plan.tiles):,} of {size} x {size} pixels ({zones})")
    _print_scenes(out, plan)
    out.print()
    out.print(_cost_table(plan))
    if disk:
        out.print(_disk_table(disk))
    shards = plan.neighbours_in_shards_of
    out.print(f"`smalti submit` will choose {shards} shard{'s' * (shards > 1)}. All rough: see docs/plan.md.")
    for warning in plan.warnings:
        out.print(f"Warning: {warning}")
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue().rstrip()


def _print_scenes(out: Console, plan: Plan) -> None:
    scenes, season = plan.scenes, plan.season
    for label, found in (
        ("Sentinel-2", scenes.s2),
        ("Sentinel-1 ascending", scenes.s1_ascending),
        ("Sentinel-1 descending", scenes.s1_descending),
    ):
        span = f", {min(found.days)} to {max(found.days)}" if found.days else ""
        out.print(f"scenes     {label}: {found.scenes:,} on {len(found.days)} days{span}")
    out.print(
        f"a tile     {season.s2_days:g} Sentinel-2 dates and {season.s1_days:g} Sentinel-1 dates in the mean; "
        f"at least {season.least_s2_days} Sentinel-2 dates"
    )
    if scenes.duplicates:
        out.print(f"left out   {scenes.duplicates} older copies of other items")
    for row in scenes.rejected:
        out.print(f"left out   {row.items} items (such as {', '.join(row.examples[:1])}): {row.reason}")


def _disk_table(disk: Sequence[StageDisk]) -> Table:
    table = Table("stage", title="What lies on disk", title_justify="left")
    for name in ("at the peak", "files", "at the end", "files"):
        table.add_column(name, justify="right")
    for stage in disk:
        cells = [f"{space.files:,.0f}" if files else human_bytes(space.bytes) for space, files in _columns(stage)]
        table.add_row(stage.stage, *cells)
    return table


def _columns(stage: StageDisk) -> list[tuple[Space, bool]]:
    return [(space, files) for space in (stage.peak, stage.end) for files in (False, True)]


def _cost_table(plan: Plan) -> Table:
    table = Table("stage", title="What it will cost", title_justify="left")
    for name in ("reads", "writes", "files", "memory", "time, this machine", "time, one GPU"):
        table.add_column(name, justify="right")
    for stage, cost in plan.estimate.items():
        gpu = "" if cost.gpu_seconds is None else human_time(cost.gpu_seconds)
        table.add_row(
            stage,
            human_bytes(cost.read_bytes),
            human_bytes(cost.written_bytes),
            f"{cost.files:,}",
            human_bytes(cost.memory_bytes),
            human_time(cost.seconds),
            gpu,
        )
    return table
