"""Run the engine: in the container that the site names, or in this Python when torch is importable.

This side never imports torch. It hands the engine RUN/model.json and reads its exit code and manifests.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from infer.contract import (
    EXIT_BAD_INPUT,
    EXIT_OK,
    EXIT_TRY_AGAIN,
    Lazily,
    PlannedTile,
    Run,
    Shard,
    SmaltiError,
    planned_tiles,
    scratch_folder,
    write_model_job,
)
from infer.contract.imported import imported_tiles
from preproc.run.config import Config
from preproc.run.container import container_variable, device_arguments, engine_python, weights_of
from preproc.run.embedded import embedding_units
from preproc.run.profile import load_profile
from preproc.run.quality import quality_warnings
from preproc.run.stage import Built, Due, Session, StageFailedError, Unit


class InferStage:
    """Tiles -> embeddings. The engine builds a whole shard in a process of its own, and decides what is complete."""

    name = "infer"
    noun = "tiles"
    sharded = True
    apart = True

    def open(self, run: Run, config: Config) -> Session:
        """One unit per planned tile; only the part of the fingerprint that this side knows is compared."""
        embeddings = embedding_units(run, config)
        imported = imported_tiles(run)
        tiles: Sequence[PlannedTile] = planned_tiles(run)
        if imported:  # what the engine is asked for comes first: its shards are divided alike
            tiles = sorted(tiles, key=lambda tile: tile.name in imported)
        units = Lazily(tiles, lambda tile: embeddings.of(tile.name))
        return Session(units, lambda due: _run_engine(run, config, due), before=lambda: quality_warnings(run))


def engine_options(config: Config) -> list[str]:
    """What the settings ask of the engine, wherever it runs."""
    return ["--release"] if config.tiles.keep == "record" else []


def engine_command(run: Run, config: Config, shard: Shard) -> list[str]:
    """The command line that runs the engine for one shard.

    Raises:
        SmaltiError: if there is neither a container nor torch.
    """
    profile = load_profile(config.site.profile, run.root, config.site)
    return _command(
        run,
        config,
        [str(run.root.absolute()), *device_arguments(profile), "--shard", str(shard), *engine_options(config)],
    )


def embed_folder(run: Run, config: Config, tiles: Path, out: Path, timings: Path) -> int:
    """Embed a folder of tiles inside a run with a run's model, on whatever device is here.

    Args:
        run: which the container is shown.
        config: its model is what embeds, its site where.
        tiles: folder of tile folders.
        out: where embeddings go; those that are complete are left.
        timings: file to which the engine adds how long each tile took.

    Returns:
        The engine's exit code; its reasons were told.

    Raises:
        SmaltiError: if there is neither a container nor torch, or the engine refused its input or was interrupted.
    """
    model = config.model
    arguments = ["--tiles", str(tiles.absolute()), "--out", str(out.absolute()), "--timings", str(timings.absolute())]
    arguments += ["--checkpoint", str(model.name or model.checkpoint), "--dtype", model.output]
    arguments += ["--dim", str(model.dim), "--precision", model.precision, "--min-clear-s2", str(model.min_clear_s2)]
    arguments += ["--allow-source-mismatch"] if model.allow_source_mismatch else []
    return _execute(run, config, _command(run, config, arguments))


def _command(run: Run, config: Config, arguments: Sequence[str]) -> list[str]:
    arguments = ["-m", "infer", *arguments]
    scratch = scratch_folder(config.site.scratch)
    if scratch is not None:
        arguments += ["--scratch", str(scratch)]
    return engine_python(run, config, arguments, [] if scratch is None else [str(scratch)])


def _environment(config: Config, command: Sequence[str]) -> dict[str, str]:
    """Of the engine's process; a container is told where fetched weights are under a name of its own."""
    found = dict(os.environ)
    weights = weights_of(config)
    if weights is not None and command[0] != sys.executable:
        found[container_variable(command[0], "SMALTI_WEIGHTS")] = str(weights)
    return found


@contextmanager
def _passing_signals(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        process.terminate()  # the engine finishes or abandons its tile and leaves nothing half-written
        process.wait()
        raise


def _run_engine(run: Run, config: Config, due: Due) -> Generator[Built]:
    """Run the engine on a shard and tell what it left.

    Raises:
        SmaltiError: if the engine could not start, refused its input or was interrupted (exit code 75).
    """
    names = imported_tiles(run)
    imported = [unit for unit in due.units if unit.name in names]
    for unit in imported:
        state = unit.state()
        remedy = f"run `smalti import {run.quoted} SOURCE` again"
        yield Built(unit, None if state.complete else SmaltiError(f"{state.reason}: {remedy}"), anew=False)
    if len(imported) == len(due.units):
        return  # neither weights nor torch are asked for
    due = replace(due, units=[unit for unit in due.units if unit.name not in names])
    write_model_job(run, config.model.job())
    before = {unit.name: _written(unit) for unit in due.units}
    command = engine_command(run, config, due.shard) + (["--overwrite"] if due.force else [])
    code = _execute(run, config, command)
    failed = False
    for unit in due.units:
        state = unit.state()
        if state.complete:
            yield Built(unit, anew=_written(unit) != before[unit.name])
        else:
            failed = True
            missing = state.kind == "missing"
            yield Built(
                unit, SmaltiError("no embedding; the engine's reason stands above" if missing else state.reason)
            )
    if code != EXIT_OK and not failed:
        raise StageFailedError(f"{run.root}: the engine ended with code {code}, though each tile has an embedding")


def _execute(run: Run, config: Config, command: Sequence[str]) -> int:
    """The engine's exit code.

    Raises:
        SmaltiError: if it refused its input or was interrupted.
    """
    process = subprocess.Popen(command, env=_environment(config, command))
    with _passing_signals(process):
        code = process.wait()
    if code in (EXIT_BAD_INPUT, EXIT_TRY_AGAIN):
        raise SmaltiError(f"{run.root}: the engine stopped; its reason stands above", exit_code=code)
    return code


def _written(unit: Unit) -> tuple[int, int] | None:
    """What tells a manifest from one that took its place: inode and time of the last change in nanoseconds."""
    try:
        stat = unit.manifest.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns
