"""What every stage is: a list of units, each with a manifest that tells whether it is complete, and a way to build one.

The runner here gives all stages the same manners: complete units are skipped, one failure does not stop the others,
failures are listed at the end and end the command with a non-zero exit code, and a second process is kept off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from infer.contract import (
    EXIT_FAILED,
    Run,
    Shard,
    SmaltiError,
    State,
    output_state,
    remove_stale_temporaries,
    stage_lock,
)
from preproc.run.config import Config
from preproc.run.progress import progress, say


@dataclass(frozen=True)
class Unit:
    """One output of a stage: the smallest thing that is complete or not."""

    name: str
    manifest: Path
    """Its completion marker."""
    kind: str
    """Kind of the manifest, for example "tile"."""
    inputs: Mapping[str, Any]
    """Fingerprint of what it must be made from; see infer.contract.manifest."""
    partial: bool = False
    """`inputs` is only a part of the fingerprint: the engine writes it, and knows more than this side."""

    def state(self, *, checksums: bool = False) -> State:
        """Complete, missing, stale or broken."""
        return output_state(self.manifest, self.kind, self.inputs, checksums=checksums, partial=self.partial)


class Listing(Protocol):
    """What status needs of a stage: its units, whoever builds them."""

    name: str
    """The command's name."""
    noun: str
    """What its units are, in the plural."""
    sharded: bool
    """Whether `--shard I/N` makes sense."""

    def units(self, run: Run, config: Config) -> list[Unit]:
        """All units, in a fixed order.

        Raises:
            SmaltiError: if what the stage builds on is not there; the message says which command makes it.
        """


class Stage(Listing, Protocol):
    """A stage that builds its units in this process, one by one."""

    def builder(self, run: Run, config: Config) -> AbstractContextManager[Callable[[Unit], None]]:
        """A function that builds one unit, with whatever it needs held open for as long as the context lasts."""


@runtime_checkable
class LooksAhead(Protocol):
    """A stage that builds neighbouring units together, and so wants to know which are due."""

    def announce(self, due: Sequence[Unit]) -> None:
        """Called before `builder`, with the units that it will be asked for, in order."""


class StageFailedError(SmaltiError):
    """Some units of a stage failed; the others are complete."""

    exit_code = EXIT_FAILED


@dataclass
class Outcome:
    """What running a stage came to."""

    stage: str
    noun: str
    built: int = 0
    complete_before: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    """Unit -> reason."""

    def message(self) -> str:
        """One line."""
        parts = [f"{self.built} built"] if self.built else []
        if self.complete_before:
            parts.append(f"{self.complete_before} already complete")
        if self.failed:
            parts.append(f"{len(self.failed)} FAILED")
        return f"{self.stage}: {', '.join(parts) or 'nothing to do'} ({self.noun})"


def failure_table(outcome: Outcome, limit: int = 40) -> str:
    """The list of what failed and why, for the end of a run."""
    lines = [f"{outcome.stage}: {len(outcome.failed)} of the {outcome.noun} failed; the others are complete:"]
    lines += [f"  {name}: {reason}" for name, reason in list(outcome.failed.items())[:limit]]
    if len(outcome.failed) > limit:
        lines.append(f"  ... and {len(outcome.failed) - limit} more")
    return "\n".join(lines)


def run_stage(stage: Stage, run: Run, config: Config, *, shard: Shard | None = None, force: bool = False) -> Outcome:
    """Bring a stage's units (of one shard) up to date.

    Args:
        stage: what to run.
        run: the run directory.
        config: its validated settings.
        shard: every N-th unit only.
        force: build complete units again.

    Raises:
        StageFailedError: after all units were tried, if some failed; the message lists them.
        BusyError: if another process works on the same.
    """
    shard = shard or Shard()
    if not shard.whole and not stage.sharded:
        raise SmaltiError(f"smalti {stage.name}: works on the whole run; leave out --shard")
    with stage_lock(run, stage.name, shard):
        units = shard.take(stage.units(run, config))
        check_folders(run, units)
        _tidy(run, units)
        due = [unit for unit in units if force or not unit.state().complete]
        outcome = Outcome(stage.name, stage.noun, complete_before=len(units) - len(due))
        if due:
            _build(stage, run, config, due, outcome)
    say(outcome.message())
    if outcome.failed:
        raise StageFailedError(failure_table(outcome))
    return outcome


def check_folders(run: Run, units: Sequence[Unit]) -> None:
    """Make sure that no file stands where a stage needs a folder, and no folder where its manifest goes.

    Raises:
        SmaltiError: naming the file or folder that is in the way.
    """
    for unit in units:
        if unit.manifest.is_dir():
            raise SmaltiError(f"{unit.manifest}: is a folder where a file is needed: remove or rename it")
    for folder in sorted({parent for unit in units for parent in unit.manifest.parents}):
        if folder.is_relative_to(run.root) and folder.exists() and not folder.is_dir():
            raise SmaltiError(f"{folder}: is a file where a folder is needed: remove or rename it")


def _tidy(run: Run, units: Sequence[Unit]) -> None:
    """Remove what killed processes left where this stage writes; a tile is a folder, so its parent counts too."""
    folders = {run.root, *(unit.manifest.parent for unit in units), *(unit.manifest.parent.parent for unit in units)}
    for folder in folders:
        if folder.is_relative_to(run.root):
            remove_stale_temporaries(folder)


def _build(stage: Stage, run: Run, config: Config, due: Sequence[Unit], outcome: Outcome) -> None:
    if isinstance(stage, LooksAhead):
        stage.announce(due)
    with stage.builder(run, config) as build, progress(stage.name, len(due), stage.noun) as bar:
        for unit in due:
            try:
                build(unit)
            except SmaltiError as error:
                if not stage.sharded:
                    raise  # its units belong together: the first failure is the answer
                outcome.failed[unit.name] = str(error)
                say(f"{stage.name}: {unit.name} failed: {error}")
            else:
                outcome.built += 1
            bar.advance(note=unit.name)
