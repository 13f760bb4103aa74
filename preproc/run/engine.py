"""Run the engine: in the container that the site names, or in this Python when torch is importable.

This side never imports torch. It hands the engine RUN/model.json and reads its exit code and manifests.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from infer.contract import (
    EXIT_BAD_INPUT,
    EXIT_OK,
    EXIT_TRY_AGAIN,
    TILE_MANIFEST,
    Run,
    Shard,
    SmaltiError,
    embedding_paths,
    planned_tiles,
    scratch_folder,
    sha256_file,
    write_model_job,
)
from infer.contract.imported import imported_tiles
from infer.contract.registry import cache_path
from preproc.run.config import Config
from preproc.run.container import container_of, container_variable, device_arguments, weights_of
from preproc.run.profile import load_profile
from preproc.run.progress import say
from preproc.run.quality import quality_warnings
from preproc.run.stage import Built, Due, Session, StageFailedError, Unit

_HASHED_BYTES = 2**30
"""Checkpoints up to this size are hashed to tell whether embeddings are current; the teacher's 8 GB would take long."""


class InferStage:
    """Tiles -> embeddings. The engine builds a whole shard in a process of its own, and decides what is complete."""

    name = "infer"
    noun = "tiles"
    sharded = True
    apart = True

    def open(self, run: Run, config: Config) -> Session:
        """One unit per planned tile; only the part of the fingerprint that this side knows is compared."""
        known, imported = _known_inputs(config), imported_tiles(run)
        units = [_unit(run, tile.name, known, imported) for tile in planned_tiles(run)]
        return Session(units, lambda due: _run_engine(run, config, due), before=lambda: quality_warnings(run))


def _unit(run: Run, name: str, known: Mapping[str, Any], imported: Mapping[str, str]) -> Unit:
    if name in imported:
        return _imported_unit(run, name, imported[name], known)
    source = run.tiles / name / TILE_MANIFEST
    # people remove the time series once the embeddings are made: those are none the worse for it
    inputs = {**known, "tile": sha256_file(source)} if source.is_file() else known
    return Unit(name, embedding_paths(run.embeddings, name)[2], "embedding", inputs, partial=True)


def _imported_unit(run: Run, name: str, identity: str, known: Mapping[str, Any]) -> Unit:
    """A tile whose embedding `smalti import` took from others: neither scenes nor weights make it stale."""
    inputs = {"import": identity, **{key: known[key] for key in ("output", "dim", "min_clear_s2")}}
    return Unit(name, embedding_paths(run.embeddings, name)[2], "embedding", inputs, partial=True)


def _known_inputs(config: Config) -> dict[str, Any]:
    """What run.toml says of an embedding's fingerprint; "auto" and weights that are not here: the engine knows."""
    model = config.model
    known: dict[str, Any] = {"output": model.output, "dim": model.dim, "min_clear_s2": model.min_clear_s2 or None}
    if model.precision != "auto":
        known["precision"] = model.precision
    path = model.checkpoint if model.name is None else cache_path(model.name)
    if path is not None and path.is_file():
        stat = path.stat()
        if stat.st_size <= _HASHED_BYTES:
            known["checkpoint"] = _checkpoint_digest(path, stat.st_size, stat.st_mtime_ns)
    return known


@functools.lru_cache(maxsize=8)
def _checkpoint_digest(path: Path, size: int, changed_ns: int) -> str:
    del size, changed_ns  # part of the key: a file that was replaced is read again
    return sha256_file(path)


def engine_command(run: Run, config: Config, shard: Shard) -> list[str]:
    """The command line that runs the engine for one shard.

    Raises:
        SmaltiError: if there is neither a container nor torch.
    """
    profile = load_profile(config.site.profile, run.root, config.site)
    arguments = ["-m", "infer", str(run.root.absolute()), *device_arguments(profile), "--shard", str(shard)]
    scratch = scratch_folder(config.site.scratch)
    if scratch is not None:
        arguments += ["--scratch", str(scratch)]
    container = container_of(run, config, profile)
    if container is None:
        if importlib.util.find_spec("torch") is None:
            raise SmaltiError(
                "torch is not installed here and no container is named: `pip install 'smalti[local]'`, "
                "or set [site] container in run.toml"
            )
        return [sys.executable, *arguments]
    if not container.image.exists():
        raise SmaltiError(f"{container.image}: no such container image ([site] container in run.toml)")
    if shutil.which(container.program) is None:
        raise SmaltiError(f"{container.program} is not on the PATH, and [site] container names an image")
    if container.gpu_flag:
        say(f"infer: {container.image.name} is run with {container.gpu_flag}")
    return container.command(arguments, [] if scratch is None else [str(scratch)])


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
    imported = [unit for unit in due.units if "import" in unit.inputs]
    for unit in imported:
        state = unit.state()
        remedy = f"run `smalti import {run.quoted} SOURCE` again"
        yield Built(unit, None if state.complete else SmaltiError(f"{state.reason}: {remedy}"), anew=False)
    if len(imported) == len(due.units):
        return  # neither weights nor torch are asked for
    due = replace(due, units=[unit for unit in due.units if "import" not in unit.inputs])
    write_model_job(run, config.model.job())
    before = {unit.name: _written(unit) for unit in due.units}
    command = engine_command(run, config, due.shard) + (["--overwrite"] if due.force else [])
    process = subprocess.Popen(command, env=_environment(config, command))
    with _passing_signals(process):
        code = process.wait()
    if code in (EXIT_BAD_INPUT, EXIT_TRY_AGAIN):
        raise SmaltiError(f"{run.root}: the engine stopped; its reason stands above", exit_code=code)
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


def _written(unit: Unit) -> tuple[int, int] | None:
    """What tells a manifest from one that took its place: inode and time of the last change in nanoseconds."""
    try:
        stat = unit.manifest.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns
