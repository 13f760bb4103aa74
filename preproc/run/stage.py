"""What every stage is: opened on a run it has units, each with a manifest that tells whether it is complete, and builds
those that are due.

The runner here gives all stages the same manners: complete units are skipped, one failure does not stop the others,
failures are listed at the end and end the command with a non-zero exit code, and a second process is kept off.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from infer.contract import (
    EXIT_FAILED,
    Inputs,
    Run,
    Shard,
    SmaltiError,
    State,
    file_mark,
    output_state,
    remove_stale_temporaries,
    stage_lock,
)
from preproc.run.config import Config
from preproc.run.progress import progress, say

_TOGETHER = 1 << 13
"""Units that are made and looked at together: of a country all of them take much memory."""


class LateInputs(Inputs):
    """A fingerprint that is reckoned when somebody first looks at it: a task then reads what its own units need."""

    def __init__(self, reckon: Callable[[], Inputs]) -> None:
        """A fingerprint that `reckon` gives: for whoever only compares it, or, as a mapping, once and for good."""
        self.reckon = reckon

    @cached_property
    def _content(self) -> Inputs:
        return self.reckon()

    def __getitem__(self, key: str) -> Any:
        return self._content[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)  # another process is told what was reckoned


@dataclass(frozen=True)
class Unit:
    """One output of a stage: the smallest thing that is complete or not."""

    name: str
    manifest: Path
    """Its completion marker."""
    kind: str
    """Kind of the manifest, for example "tile"."""
    inputs: Inputs
    """Fingerprint of what it must be made from; see infer.contract.manifest."""
    partial: bool = False
    """`inputs` is only a part of the fingerprint: the engine writes it, and knows more than this side."""
    in_passing: bool = False
    """Whoever reads it renews it, so that a stale one is in nobody's way."""

    def state(self, *, checksums: bool = False) -> State:
        """Complete, missing, stale or broken; missing too if what it is made from is not there."""
        try:
            inputs = self.wanted()
        except SmaltiError as error:
            return State("missing", str(error))
        return output_state(self.manifest, self.kind, inputs, checksums=checksums, partial=self.partial)

    def wanted(self) -> Inputs:
        """`inputs`, which are not kept if they are reckoned: of a country's units nearly all are only looked at.

        Raises:
            SmaltiError: if what they are reckoned from is not there.
        """
        return self.inputs.reckon() if isinstance(self.inputs, LateInputs) else dict(self.inputs)

    def mark(self) -> tuple[int, ...]:
        """What tells whether anything was done to the output since: empty where there is none."""
        folder = self.manifest.parent
        own = file_mark(folder) if folder.name == self.name else ()  # files come and go in it
        return (*file_mark(self.manifest), *own)


@dataclass(frozen=True)
class Due:
    """What a stage is asked to build."""

    units: Sequence[Unit]
    """In the stage's order."""
    shard: Shard
    """The part of the stage that they are of."""
    force: bool
    """They are to be built even if they are complete."""


@dataclass(frozen=True)
class Built:
    """What became of a unit."""

    unit: Unit
    error: SmaltiError | None = None
    """Why it failed."""
    anew: bool | None = True
    """False: it turned out to be complete already; None: it is left to another stage."""


def _no_lines() -> Sequence[str]:
    return ()


def _nothing(_units: Sequence[Unit]) -> None:
    pass


@dataclass(frozen=True)
class Session:
    """A stage opened on a run: whatever its units are reckoned from is read once."""

    units: Sequence[Unit]
    """All of them, in a fixed order: the order that shards divide."""
    build: Callable[[Due], Generator[Built]]
    """Builds what is due and tells of each unit when it is over; holds open what it needs until it is closed."""
    before: Callable[[], Sequence[str]] = _no_lines
    """What to tell people before the whole stage (not a shard of it) is run."""
    after: Callable[[], Sequence[str]] = _no_lines
    """And when it is over, though units failed."""
    ahead: Callable[[Sequence[Unit]], None] = _nothing
    """Told which units will be asked for their state, so that what they depend on can be looked up together."""
    noun: str | None = None
    """What its units are, in the plural, where that depends on settings."""

    def states(
        self, *, checksums: bool = False, known: Mapping[str, State] = MappingProxyType({})
    ) -> Iterator[tuple[Unit, State]]:
        """Every unit and where it stands; one whose state is known by its name is not looked at."""
        left = iter(self.units)
        while units := list(islice(left, _TOGETHER)):
            self.ahead([unit for unit in units if unit.name not in known])
            for unit in units:
                yield unit, known.get(unit.name) or unit.state(checksums=checksums)


class Stage(Protocol):
    """A link of the chain."""

    name: str
    """The command's name."""
    noun: str
    """What its units are, in the plural."""
    sharded: bool
    """Whether `--shard I/N` makes sense."""
    apart: bool
    """A process of its own builds the units: it locks, shows progress, and knows of stale units that look complete."""

    def open(self, run: Run, config: Config) -> Session:
        """Its units, and the way to build them.

        Raises:
            SmaltiError: if what the stage builds on is not there; the message says which command makes it.
        """


def one_by_one(units: Sequence[Unit], make: Callable[[Unit], None]) -> Generator[Built]:
    """Build units by a function that makes one; see `Session.build`."""
    for unit in units:
        try:
            make(unit)
        except SmaltiError as error:
            yield Built(unit, error)
        else:
            yield Built(unit)


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
    with nullcontext() if stage.apart else stage_lock(run, stage.name, shard):
        session = stage.open(run, config)
        units = shard.take(session.units)
        _check_folders(run, units)
        _tidy(run, units)
        if units and not stage.apart:
            session.ahead(units)
        due = [unit for unit in units if force or stage.apart or not unit.state().complete]
        outcome = Outcome(stage.name, session.noun or stage.noun, complete_before=len(units) - len(due))
        if shard.whole:  # a task of an array says nothing: `smalti submit` has
            _say_all(session.before())
        if due:
            _build(stage, session, Due(due, shard, force), outcome)
    say(outcome.message())
    if shard.whole:
        _say_all(session.after())
    if outcome.failed:
        raise StageFailedError(failure_table(outcome))
    return outcome


def _say_all(lines: Sequence[str]) -> None:
    for line in lines:
        say(line)


def _check_folders(run: Run, units: Sequence[Unit]) -> None:
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


def _build(stage: Stage, session: Session, due: Due, outcome: Outcome) -> None:
    shown = nullcontext() if stage.apart else progress(stage.name, len(due.units), outcome.noun)
    with closing(session.build(due)) as results, shown as bar:
        for built in results:
            name = built.unit.name
            if built.error is not None:
                if not stage.sharded:
                    raise built.error  # its units belong together: the first failure is the answer
                outcome.failed[name] = str(built.error)
                if not stage.apart:
                    say(f"{stage.name}: {name} failed: {built.error}")
            else:
                outcome.built += built.anew is True
                outcome.complete_before += built.anew is False
            if bar is not None:
                bar.advance(note=name)
