"""What a run has, lacks and has broken, stage by stage. Outputs on disk are the truth; nothing is remembered."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

from infer.contract import Run, SmaltiError
from preproc.config import Config
from preproc.stages import StageEntry, chain

KINDS = ("complete", "missing", "stale", "broken")


@dataclass(frozen=True)
class StageStatus:
    """Where one stage stands."""

    stage: str
    noun: str
    counts: dict[str, int] = field(default_factory=dict)
    """Units by state: complete, missing, stale, broken."""
    problems: dict[str, str] = field(default_factory=dict)
    """Stale and broken units with the reason."""
    waiting: str = ""
    """Why the stage cannot be judged yet: what it builds on is not there."""

    @property
    def total(self) -> int:
        """Number of units."""
        return sum(self.counts.values())

    @property
    def complete(self) -> bool:
        """Whether all its units are complete."""
        return not self.waiting and self.counts.get("complete", 0) == self.total


def stage_status(entry: StageEntry, run: Run, config: Config, *, checksums: bool = False) -> StageStatus:
    """Look at one stage's outputs.

    Args:
        entry: the stage.
        run: the run directory.
        config: its settings.
        checksums: read every byte.
    """
    stage = entry.load()
    try:
        units = stage.units(run, config)
    except SmaltiError as error:
        return StageStatus(stage.name, stage.noun, waiting=str(error).splitlines()[0])
    counts: Counter[str] = Counter()
    problems: dict[str, str] = {}
    for unit in units:
        state = unit.state(checksums=checksums)
        counts[state.kind] += 1
        if state.kind in ("stale", "broken"):
            problems[unit.name] = f"{state.kind}: {state.reason}"
    return StageStatus(stage.name, stage.noun, dict(counts), problems)


def run_status(run: Run, config: Config, *, checksums: bool = False) -> list[StageStatus]:
    """Every stage of this run's chain, in order."""
    return [stage_status(entry, run, config, checksums=checksums) for entry in chain(config)]


def as_json(statuses: list[StageStatus]) -> list[dict[str, Any]]:
    """The same for machines."""
    return [{**asdict(status), "total": status.total, "complete": status.complete} for status in statuses]


def as_table(run: Run, statuses: list[StageStatus]) -> Table:
    """The same for people."""
    table = Table(title=str(run.root), title_justify="left", box=None, pad_edge=False)
    table.add_column("stage")
    for kind in KINDS:
        table.add_column(kind, justify="right")
    table.add_column("of")
    table.add_column("", overflow="fold")
    for status in statuses:
        cells = [str(status.counts.get(kind, 0) or "·") for kind in KINDS]
        note = f"waiting: {status.waiting}" if status.waiting else ("done" if status.complete else "")
        total = f"{status.total} {status.noun}" if not status.waiting else ""
        table.add_row(status.stage, *cells, total, note)
    return table
