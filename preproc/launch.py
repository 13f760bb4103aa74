"""Run the engine: in the container that the site names, or in this Python when torch is importable.

This side never imports torch. It hands the engine RUN/model.json and reads its exit code and manifests.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from infer.contract import (
    EXIT_BAD_INPUT,
    EXIT_FAILED,
    EXIT_OK,
    EXIT_TRY_AGAIN,
    TILE_MANIFEST,
    Run,
    Shard,
    SmaltiError,
    embedding_paths,
    planned_tiles,
    sha256_file,
    write_model_job,
)
from preproc.config import Config
from preproc.progress import say
from preproc.stage import Outcome, StageFailedError, Unit, failure_table

_PACKAGE_ROOT = Path(importlib.util.find_spec("infer.contract").origin or "").parents[2]  # type: ignore[union-attr]  # imported above, so its spec exists
"""Folder that holds infer/."""


class InferStage:
    """Tiles -> embeddings. The engine builds a whole shard in a process of its own: see `run_engine`."""

    name = "infer"
    noun = "tiles"
    sharded = True

    def units(self, run: Run, config: Config) -> list[Unit]:
        """One per planned tile; only the part of the fingerprint that this side knows is compared."""
        known = {"output": config.model.output, "dim": config.model.dim}
        return [self._unit(run, tile.name, known) for tile in planned_tiles(run)]

    @staticmethod
    def _unit(run: Run, name: str, known: Mapping[str, Any]) -> Unit:
        source = run.tiles / name / TILE_MANIFEST
        inputs = {**known, "tile": sha256_file(source) if source.is_file() else "not fetched"}
        return Unit(name, embedding_paths(run.embeddings, name)[2], "embedding", inputs, partial=True)


def engine_command(run: Run, config: Config, shard: Shard) -> list[str]:
    """The command line that runs the engine for one shard.

    Raises:
        SmaltiError: if there is neither a container nor torch.
    """
    arguments = [str(run.root.absolute()), "--shard", str(shard)]
    container = config.site.container
    if container is None:
        if importlib.util.find_spec("torch") is None:
            raise SmaltiError(
                "torch is not installed here and no container is named: `pip install 'smalti[local]'`, "
                "or set [site] container in run.toml"
            )
        return [sys.executable, "-m", "infer", *arguments]
    if not container.exists():
        raise SmaltiError(f"{container}: no such container image ([site] container in run.toml)")
    runtime = shutil.which("apptainer") or shutil.which("singularity")
    if runtime is None:
        raise SmaltiError("neither apptainer nor singularity is on the PATH, and [site] container names an image")
    binds = {str(run.root.absolute()), str(_PACKAGE_ROOT)}
    if config.model.checkpoint is not None:
        binds.add(str(config.model.checkpoint.parent))
    command = [runtime, "exec", "--cleanenv", "--env", f"PYTHONPATH={_PACKAGE_ROOT},PYTHONNOUSERSITE=1"]
    for bind in sorted(binds):
        command += ["--bind", bind]
    return [*command, str(container), "python3", "-s", "-m", "infer", *arguments]


@contextmanager
def _passing_signals(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        process.terminate()  # the engine finishes or abandons its tile and leaves nothing half-written
        process.wait()
        raise


def run_engine(run: Run, config: Config, shard: Shard, *, overwrite: bool = False) -> Outcome:
    """Run the engine on one shard and report what it left.

    Raises:
        StageFailedError: if tiles failed; the message lists them with the engine's reasons shown above it.
        SmaltiError: if the engine could not start, refused its input or was interrupted (exit code 75).
    """
    write_model_job(run, config.model.job())
    stage = InferStage()
    units = shard.take(stage.units(run, config))
    before = {unit.name for unit in units if unit.state().complete}
    command = engine_command(run, config, shard) + (["--overwrite"] if overwrite else [])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(_PACKAGE_ROOT), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(command, env=environment)
    with _passing_signals(process):
        code = process.wait()
    if code in (EXIT_BAD_INPUT, EXIT_TRY_AGAIN):
        raise SmaltiError(f"{run.root}: the engine stopped; its reason stands above", exit_code=code)
    outcome = Outcome(stage.name, stage.noun, complete_before=len(before))
    for unit in units:
        state = unit.state()
        if state.kind == "missing":
            outcome.failed[unit.name] = "no embedding; the engine's reason stands above"
        elif not state.complete:
            outcome.failed[unit.name] = state.reason
        elif unit.name not in before:
            outcome.built += 1
    say(outcome.message())
    if outcome.failed:
        raise StageFailedError(failure_table(outcome))
    if code != EXIT_OK:
        raise SmaltiError(
            f"{run.root}: the engine ended with code {code} though all tiles stand", exit_code=EXIT_FAILED
        )
    return outcome
