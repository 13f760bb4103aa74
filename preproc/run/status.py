"""What a run has, lacks and has broken, stage by stage. Outputs on disk are the truth; nothing is remembered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, overload

from rich.table import Table

from infer.contract import Run, SmaltiError, State, file_mark
from infer.contract.glance import Look, one_look
from preproc.run.config import Config
from preproc.run.stage import Session, Unit
from preproc.run.stages import StageEntry, before, chain, stage_named

KINDS = ("complete", "missing", "stale", "broken")
RELEASED = "released"
"""Units whose files were let go once they had served; a column of its own where there are any."""


@dataclass(frozen=True)
class StageStatus:
    """Where one stage stands."""

    stage: str
    noun: str
    counts: dict[str, int] = field(default_factory=dict)
    """Units by state: complete, released, missing, stale, broken."""
    problems: dict[str, str] = field(default_factory=dict)
    """Stale and broken units with the reason."""
    waiting: str = ""
    """Why the stage cannot be judged yet: what it builds on is not there."""
    behind: tuple[str, ...] = ()
    """Stages before it that are stale: what it has fits them, and not the settings."""

    @property
    def total(self) -> int:
        """Number of units."""
        return sum(self.counts.values())

    @property
    def complete(self) -> bool:
        """Whether all its units are complete."""
        done = self.counts.get("complete", 0) + self.counts.get(RELEASED, 0)
        return not self.waiting and not self.behind and done == self.total


@dataclass(frozen=True)
class Looked(Sequence[tuple[Unit, State]]):
    """The units of a stage and their states. Units are made when they are asked for: of a country most never are."""

    units: Sequence[Unit]
    states: Sequence[State]
    """Of each."""

    def __len__(self) -> int:
        return len(self.states)

    @overload
    def __getitem__(self, index: int) -> tuple[Unit, State]: ...
    @overload
    def __getitem__(self, index: slice) -> Looked: ...
    def __getitem__(self, index: int | slice) -> tuple[Unit, State] | Looked:
        if isinstance(index, slice):
            return Looked(self.units[index], self.states[index])
        return self.units[index], self.states[index]

    def __iter__(self) -> Iterator[tuple[Unit, State]]:
        return zip(self.units, self.states, strict=True)

    def that_are(self, *kinds: str) -> list[tuple[Unit, State]]:
        """Those whose state is of some kinds."""
        return [self[index] for index, state in enumerate(self.states) if state.kind in kinds]


_Marks = dict[str, tuple[State, tuple[int, ...]]]
"""Unit that is complete -> its state, and the mark that it had then."""


@dataclass
class Survey:
    """The units of a run's stages and their states, each looked at once however many ask."""

    run: Run
    config: Config
    checksums: bool = False
    """Read every byte."""
    watching: bool = False
    """Others will follow this one; see `again`."""
    _seen: dict[str, Looked | SmaltiError] = field(default_factory=dict)
    _released: set[str] = field(default_factory=set)
    """Names of tiles that are: their embeddings are known to be complete."""
    _earlier: Mapping[str, _Marks] = field(default_factory=dict)
    """Stage -> what was complete in the last survey."""
    _marks: dict[str, _Marks] = field(default_factory=dict)
    _changed: set[str] = field(default_factory=set)
    """Names of units that an earlier survey does not answer for."""
    _look: Look = field(default_factory=Look)
    """Embeddings that were looked at."""

    def again(self) -> Survey:
        """Another look, at what something was done to since: a tile that was complete and is untouched still is.

        Only a first look sees that somebody took away a file from beside its manifest.
        """
        earlier = self._marks if self._plan == file_mark(self.run.plan) else {}
        return Survey(self.run, self.config, self.checksums, watching=True, _earlier=earlier)

    def __post_init__(self) -> None:
        self._plan = file_mark(self.run.plan)

    def of(self, stage: str) -> Looked:
        """Every unit of a stage with its state, in order.

        Raises:
            SmaltiError: if what the stage builds on is not there.
        """
        if stage not in self._seen:
            self._seen[stage] = self._found(stage)
        found = self._seen[stage]
        if isinstance(found, SmaltiError):
            raise found
        return found

    def _found(self, stage: str) -> Looked | SmaltiError:
        with one_look(self._look):
            try:
                session = stage_named(stage).load().open(self.run, self.config)
                if self.watching and not stage_named(stage).gathers and stage != "plan":
                    return self._watched(stage, session)
                return self._states(stage, session)
            except SmaltiError as error:
                return error

    def _states(self, stage: str, session: Session) -> Looked:
        known = {}
        if stage == "infer" and not self.checksums:
            known = dict.fromkeys(self._released, State("complete"))
        states = []
        for unit, state in session.states(checksums=self.checksums, known=known):
            states.append(state)
            if state.kind == RELEASED:
                self._released.add(unit.name)
        return Looked(session.units, states)

    def _watched(self, stage: str, session: Session) -> Looked:
        earlier = self._earlier.get(stage, {})
        units = list(session.units)
        marks = {unit.name: unit.mark() for unit in units}  # before the look: what happens during it is seen
        known = {
            name: state
            for name, (state, mark) in earlier.items()
            if name not in self._changed and mark == marks.get(name)
        }
        fresh = [unit for unit in units if unit.name not in known]
        self._changed.update(unit.name for unit in fresh)  # what is made of it is looked at as well
        session.ahead(fresh)
        states = [known.get(unit.name) or unit.state(checksums=self.checksums) for unit in units]
        pairs = zip(units, states, strict=True)
        self._marks[stage] = {unit.name: (state, marks[unit.name]) for unit, state in pairs if state.complete}
        return Looked(session.units, states)


@dataclass(frozen=True)
class Stale:
    """A stage whose outputs were made from something else than what is asked for now."""

    stage: str
    unit: str
    """Its first stale output."""
    reason: str
    units: int
    """How many are stale."""

    def told(self) -> str:
        """For people."""
        more = f" and {self.units - 1} more" if self.units > 1 else ""
        return f"{self.stage} is stale ({self.unit}{more}: {self.reason})"


def stale_before(entry: StageEntry, survey: Survey, *, cheaply: bool = False) -> list[Stale]:
    """The stages before one that are stale, in order. What is missing or broken is for the stage itself to find.

    Args:
        entry: the stage.
        survey: of the run.
        cheaply: leave out stages that ask more of every tile than shards do, for each of many shards would ask it.
    """
    found = []
    for other in before(entry, survey.config):
        if cheaply and not other.cheap:
            continue
        try:
            units = survey.of(other.name)
        except SmaltiError:
            continue
        stale = [(unit, state) for unit, state in units.that_are("stale") if not unit.in_passing]
        if stale:
            unit, state = stale[0]
            found.append(Stale(other.name, unit.name, state.reason, len(stale)))
    return found


def stage_status(entry: StageEntry, survey: Survey) -> StageStatus:
    """Where one stage stands."""
    stage = entry.load()
    try:
        units = survey.of(entry.name)
    except SmaltiError as error:
        return StageStatus(stage.name, stage.noun, waiting=str(error).splitlines()[0])
    counts = Counter(state.kind for state in units.states)
    problems = {unit.name: f"{state.kind}: {state.reason}" for unit, state in units.that_are("stale", "broken")}
    behind = tuple(stale.stage for stale in stale_before(entry, survey))
    by_kind = {str(kind): count for kind, count in counts.items()}
    return StageStatus(stage.name, stage.noun, by_kind, problems, behind=behind)


def run_status(survey: Survey) -> list[StageStatus]:
    """Every stage of this run's chain, in order."""
    return [stage_status(entry, survey) for entry in chain(survey.config)]


def as_json(statuses: list[StageStatus]) -> list[dict[str, Any]]:
    """The same for machines."""
    return [{**asdict(status), "total": status.total, "complete": status.complete} for status in statuses]


def as_table(statuses: list[StageStatus]) -> Table:
    """The same for people."""
    table = Table(box=None, pad_edge=False)
    table.add_column("stage")
    released = any(status.counts.get(RELEASED) for status in statuses)
    kinds = ("complete", RELEASED, *KINDS[1:]) if released else KINDS
    for kind in kinds:
        table.add_column(kind, justify="right")
    table.add_column("of")
    table.add_column("", overflow="fold")
    for status in statuses:
        cells = [str(status.counts.get(kind, 0) or "·") for kind in kinds]
        note = "done" if status.complete else ""
        if status.waiting:
            note = f"waiting: {status.waiting}"
        elif status.behind:
            note = f"out of date: {', '.join(status.behind)} stale"
        total = f"{status.total} {status.noun}" if not status.waiting else ""
        table.add_row(status.stage, *cells, total, note)
    return table
