"""`smalti clean`: free what can be rebuilt of a run, or is left of an earlier plan, and say what rebuilding costs."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from infer.contract import (
    FormatError,
    Plan,
    Run,
    SmaltiError,
    array_paths,
    embedding_paths,
    is_released,
    planned_tiles,
    read_back,
    release_tile,
    stage_lock,
    writing,
)
from infer.contract.embedding import observations_path
from preproc.run.config import Config
from preproc.run.progress import progress, say
from preproc.run.stages import stage_named
from preproc.run.text import human_bytes, human_time

What = Literal["fetch", "stitch", "predict", "leftovers"]
"""What can be freed: arrays of tiles that are embedded; the mosaic; the map; what is of no tile of the plan."""


@dataclass(frozen=True)
class Freed:
    """What was freed of one kind, or would be."""

    what: str
    """In words."""
    files: int
    bytes: int
    cost: str
    """Of having it again."""

    def line(self, *, dry_run: bool) -> str:
        """For people."""
        if not self.files:
            return f"{self.what}: nothing to free"
        done = "would free" if dry_run else "freed"
        return f"{self.what}: {done} {human_bytes(self.bytes)} in {self.files:,} files; {self.cost}"


def clean(run: Run, config: Config, stages: Sequence[str] = (), *, dry_run: bool = False) -> list[Freed]:
    """Free what can be rebuilt.

    Args:
        run: the run directory, planned.
        config: its settings.
        stages: what; by default the arrays of tiles whose embeddings are complete and can be read back.
        dry_run: remove nothing.

    Raises:
        BusyError: if a stage that writes or reads it is at work.
        SmaltiError: if there is no plan, or a stage is none of these.
    """
    for stage in stages:
        if stage not in get_args(What):
            raise SmaltiError(f"--stage {stage}: can be freed are {', '.join(get_args(What))}")
    plan = Plan.read(run)
    ways: dict[str, Callable[[Run, Config, Plan, bool], Freed]] = {
        "fetch": _arrays,
        "stitch": lambda run, _, plan, dry: _folder(run.mosaic, run.mosaic_manifest, "stitch", plan, dry_run=dry),
        "predict": lambda run, _, plan, dry: _folder(run.map, run.map_manifest, "predict", plan, dry_run=dry),
        "leftovers": _leftovers,
    }
    with ExitStack() as stack:
        for name in () if dry_run else ("run", "fetch", "infer", "stitch", "sample", "predict", "validate"):
            stack.enter_context(stage_lock(run, name))
        return [ways[stage](run, config, plan, dry_run) for stage in dict.fromkeys(stages or ("fetch",))]


def _sizes(paths: Iterable[Path]) -> list[int]:
    return [path.lstat().st_size for path in paths if path.is_symlink() or path.is_file()]


def _arrays(run: Run, config: Config, plan: Plan, dry_run: bool) -> Freed:
    """Arrays of tiles whose embeddings are complete: each is read back before its tile is released."""
    units = stage_named("infer").load().open(run, config).units
    ready = [unit for unit in units if _holds_arrays(run.tiles / unit.name) and unit.state().complete]
    freed, files, tiles = 0, 0, 0
    with progress("clean", len(ready), "tiles") as bar:
        for unit in ready:
            folder = run.tiles / unit.name
            sizes = _sizes(array_paths(folder))
            try:
                if not dry_run:
                    if not is_released(folder):
                        read_back(run.embeddings, unit.name)
                    release_tile(folder)
                freed, files, tiles = freed + sum(sizes), files + len(sizes), tiles + 1
            except FormatError as error:
                say(f"clean: {unit.name} is kept: {error}")
            bar.advance(note=unit.name)
    share = tiles / max(1, len(plan.tiles))
    cost = f"fetching them again would take {_share_of(plan, 'fetch', share)}"
    return Freed(f"arrays of {tiles:,} embedded tiles", files, freed, cost)


def _holds_arrays(folder: Path) -> bool:
    return any(path.is_file() for path in array_paths(folder))


def _share_of(plan: Plan, stage: str, share: float = 1.0) -> str:
    cost = plan.estimate.get(stage)
    if cost is None:
        return f"a run of `smalti {stage}`"
    return f"about {human_time(cost.seconds * share)} and {human_bytes(cost.read_bytes * share)} of reading"


def _folder(folder: Path, manifest: Path, stage: str, plan: Plan, *, dry_run: bool) -> Freed:
    sizes = _sizes(folder.rglob("*"))
    if not dry_run and folder.is_dir():
        with writing(folder):
            manifest.unlink(missing_ok=True)  # first: what a kill leaves is then no whole output
            shutil.rmtree(folder)
    name = f"{folder.name}/"
    return Freed(name, len(sizes), sum(sizes), f"`smalti {stage}` makes it again: {_share_of(plan, stage)}")


def _leftovers(run: Run, _config: Config, _plan: Plan, dry_run: bool) -> Freed:
    left = leftovers(run)
    sizes: list[int] = []
    for name in left.get("tiles", ()):
        sizes += _sizes((run.tiles / name).rglob("*"))
        if not dry_run:
            with writing(run.tiles / name):
                shutil.rmtree(run.tiles / name)
    for name in left.get("embeddings", ()):
        values, scales, manifest = embedding_paths(run.embeddings, name)
        paths = [manifest, values, scales, observations_path(run.embeddings, name)]
        sizes += _sizes(paths)
        for path in () if dry_run else paths:
            with writing(path):
                path.unlink(missing_ok=True)
    count = sum(map(len, left.values()))
    what = f"{count:,} tiles and embeddings that are not in the plan"
    return Freed(what, len(sizes), sum(sizes), "nothing of this plan needs them")


_NAMED = 4


def leftovers(run: Run) -> dict[str, list[str]]:
    """Folder of the run -> names of tiles in it that are not in the plan, sorted; folders without any are left out.

    Raises:
        FormatError: if there is no plan.
    """
    planned = {tile.name for tile in planned_tiles(run)}
    tiles = [entry.name for entry in _others(run.tiles, planned) if entry.is_dir(follow_symlinks=False)]
    embeddings = [entry.name.removesuffix(".json") for entry in _others(run.embeddings, planned, ".json")]
    left = {"tiles": sorted(tiles), "embeddings": sorted(embeddings)}
    return {folder: names for folder, names in left.items() if names}


def _others(folder: Path, planned: Collection[str], suffix: str = "") -> Iterator[os.DirEntry[str]]:
    """What ends so and is of none of the tiles, nor being written; one by one, for a country's are many."""
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.endswith(suffix) and not name.startswith(".") and name.removesuffix(suffix) not in planned:
                yield entry


def leftover_lines(run: Run, left: dict[str, list[str]]) -> list[str]:
    """The same for people: how many, and how to be rid of them. Pure."""
    lines = []
    for folder, names in left.items():
        place = shlex.quote(str(run.root / folder))
        files = " ".join(
            shlex.quote(name) if folder == "tiles" else f"{shlex.quote(name)}[._]*" for name in names[:_NAMED]
        )
        more = f"; all are listed by `smalti status {run.quoted} --json`" if len(names) > _NAMED else ""
        count = f"{len(names):,} tile{'s are' if len(names) > 1 else ' is'} not in the plan"
        lines.append(f"{folder}/: {count}, and nothing reads what is left: `cd {place} && rm -r {files}`{more}")
    return lines
