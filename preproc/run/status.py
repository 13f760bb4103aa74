"""What a run has, lacks and has broken, stage by stage. Outputs on disk are the truth; nothing is remembered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

from infer.contract import Run, SmaltiError, State
from preproc.run.config import Config
from preproc.run.stage import Session, Unit, file_mark
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
    _seen: dict[str, list[tuple[Unit, State]] | SmaltiError] = field(default_factory=dict)
    _earlier: Mapping[str, _Marks] = field(default_factory=dict)
    """Stage -> what was complete in the last survey."""
    _marks: dict[str, _Marks] = field(default_factory=dict)
    _changed: set[str] = field(default_factory=set)
    """Names of units that an earlier survey does not answer for."""

    def again(self) -> Survey:
        """Another look, at what something was done to since: a tile that was complete and is untouched still is.

        Only a first look sees that somebody took away a file from beside its manifest.
        """
        earlier = self._marks if self._plan == file_mark(self.run.plan) else {}
        return Survey(self.run, self.config, self.checksums, watching=True, _earlier=earlier)

    def __post_init__(self) -> None:
        self._plan = file_mark(self.run.plan)

    def of(self, stage: str) -> list[tuple[Unit, State]]:
        """Every unit of a stage with its state, in order.

        Raises:
            SmaltiError: if what the stage builds on is not there.
        """
        if stage not in self._seen:
            try:
                session = stage_named(stage).load().open(self.run, self.config)
                if self.watching and not stage_named(stage).gathers and stage != "plan":
                    self._seen[stage] = self._watched(stage, session)
                else:
                    self._seen[stage] = self._states(stage, session)
            except SmaltiError as error:
                self._seen[stage] = error
        found = self._seen[stage]
        if isinstance(found, SmaltiError):
            raise found
        return found

    def _states(self, stage: str, session: Session) -> list[tuple[Unit, State]]:
        """Of a released tile it is known already that its embedding is complete."""
        tiles = self._seen.get("fetch")
        if stage != "infer" or self.checksums or not isinstance(tiles, list):
            return list(session.states(checksums=self.checksums))
        known = {unit.name for unit, state in tiles if state.kind == RELEASED}
        complete = State("complete")
        return [(unit, complete if unit.name in known else unit.state()) for unit in session.units]

    def _watched(self, stage: str, session: Session) -> list[tuple[Unit, State]]:
        earlier = self._earlier.get(stage, {})
        marks = {unit.name: unit.mark() for unit in session.units}  # before the look: what happens during it is seen
        known = {
            name: state
            for name, (state, mark) in earlier.items()
            if name not in self._changed and mark == marks.get(name)
        }
        fresh = [unit for unit in session.units if unit.name not in known]
        self._changed.update(unit.name for unit in fresh)  # what is made of it is looked at as well
        session.ahead(fresh)
        states = [(unit, known.get(unit.name) or unit.state(checksums=self.checksums)) for unit in session.units]
        self._marks[stage] = {unit.name: (state, marks[unit.name]) for unit, state in states if state.complete}
        return states


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
        stale = [(unit, state) for unit, state in units if state.kind == "stale" and not unit.in_passing]
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
    counts = Counter(state.kind for _, state in units)
    problems = {
        unit.name: f"{state.kind}: {state.reason}" for unit, state in units if state.kind in ("stale", "broken")
    }
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
