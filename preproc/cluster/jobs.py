"""The jobs of a chain, what each waits for and what they may cost. Pure: nothing is read and nothing is queued."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from preproc.cluster.sbatch import Script
from preproc.cluster.slurm import compress, expand
from preproc.run.profile import Profile
from preproc.run.task_count import tile_minutes
from preproc.run.waves import Waves

ARRAYS = ("fetch", "infer")
"""Stages that are arrays; the others are one job each."""


@dataclass(frozen=True)
class Due:
    """What a run still needs, and how its tiles are divided."""

    tasks: int
    """Shards."""
    tiles: int
    shards: Mapping[str, tuple[int, ...]]
    """fetch and infer -> task numbers with something missing."""
    gathers: tuple[str, ...]
    """Stages after infer that are wanted, in order."""
    waves: Waves | None = None
    """How the shards are grouped, where there is a budget for what tiles take on disk."""


@dataclass(frozen=True)
class Step:
    """One job of the chain, before it has an id."""

    name: str
    """fetch, infer, infer-ready, stitch or classify: names script and log."""
    script: Script
    after: tuple[tuple[str, str], ...] = ()
    """(afterany or aftercorr, name of a step before it)."""
    hours: float = 0.0
    """Expected hours of one process, all tasks together."""
    behind: bool = False
    """It waits for every job of the run that is not over yet, too."""

    @property
    def length(self) -> int:
        """Number of tasks."""
        return 1 if self.script.array is None else len(expand(self.script.array))


def build_chain(profile: Profile, common: Script, due: Due, tile_size: int) -> list[Step]:
    """The jobs and what each waits for. Pure.

    fetch[i] -> infer[i] by aftercorr; tasks of infer whose tiles are there already wait for nothing and are an array
    of their own; what gathers waits by afterany, and looks at the manifests itself. Waves follow each other by
    afterany, the first after the tasks whose tiles are there.
    """
    steps: list[Step] = []

    def array(
        name: str, kind: str, indices: Sequence[int], after: Sequence[tuple[str, str]] = (), **more: object
    ) -> None:
        job = profile.kind(kind)
        share = due.tiles / due.tasks * len(indices)
        hours = share * tile_minutes(job, tile_size) * max(1, job.gpus) / 60
        script = replace(common, kind=kind, array=compress(indices), **more)  # type: ignore[arg-type]  # fields of Script
        behind = kind == "fetch" and due.waves is not None and "fetch" not in {step.script.kind for step in steps}
        steps.append(Step(name, script, tuple(after), hours, behind))

    fetching, inferring = set(due.shards["fetch"]), due.shards["infer"]
    paired = [index for index in inferring if index in fetching]
    ready = [index for index in inferring if index not in fetching]
    last = ["infer-ready" if paired else "infer"] if ready and due.waves is not None else []
    groups = _in_waves(sorted(fetching), due.waves)
    for number, members in enumerate(groups, start=1):
        end = f"-{number}" if len(groups) > 1 else ""
        pairs = [index for index in paired if index in members]
        before = [("afterany", name) for name in last] if due.waves is not None else []
        array(f"fetch{end}", "fetch", members, before, pass_on_failed=bool(pairs))
        if pairs:
            array(f"infer{end}", "infer", pairs, [("aftercorr", f"fetch{end}")])
        last = [steps[-1].name]
    if ready:
        array("infer-ready" if paired else "infer", "infer", ready)
    before_gathers = tuple(("afterany", step.name) for step in steps if step.script.kind == "infer")
    before_gathers = before_gathers or tuple(("afterany", step.name) for step in steps)
    classify = tuple(stage for stage in due.gathers if stage != "stitch")
    if "stitch" in due.gathers:
        steps.append(Step("stitch", replace(common, kind="stitch"), before_gathers))
        before_gathers = (("afterany", "stitch"),)
    if classify:
        steps.append(Step("classify", replace(common, kind="classify", stages=classify), before_gathers))
    first = [step for step in steps if step.name == "infer-ready" or (step.script.kind == "infer" and not step.after)]
    return first + [step for step in steps if step not in first]


def _in_waves(indices: Sequence[int], waves: Waves | None) -> list[list[int]]:
    """Tasks of each wave that has any, in order."""
    if waves is None:
        return [list(indices)] if indices else []
    groups: dict[int, list[int]] = {}
    for index in indices:
        groups.setdefault(waves.of(index), []).append(index)
    return list(groups.values())


def cost_lines(profile: Profile, steps: Sequence[Step], due: Due) -> list[str]:
    """What the chain asks for and what it may cost, for people. Pure."""
    lines = [f"{due.tiles} tiles in {due.tasks} shards on {profile.name}"]
    units = 0.0
    for step in steps:
        job = profile.kind(step.script.kind)
        limit = step.length * job.seconds / 3600
        gpus, cpus = limit * job.gpus, limit * job.cpus * max(1, job.gpus)
        units += gpus * profile.billing.gpu_hour + (0.0 if job.gpus else cpus * profile.billing.cpu_hour)
        asked = f"{step.length} task{'s' if step.length > 1 else ''} x {job.time}, {job.cpus} CPUs"
        if job.gpus:
            asked += f", {job.gpus} GPU{'s' if job.gpus > 1 else ''}"
        what = f"at most {gpus:.1f} GPU-hours" if job.gpus else f"at most {cpus:.1f} CPU-hours"
        expected = f", about {step.hours:.1f} expected" if step.hours else ""
        place = job.partition or "the default partition"
        lines.append(f"  {step.name:<12} {place:<22} {asked}: {what}{expected}")
    if units:
        lines.append(f"  at most {units:.1f} {profile.billing.unit}")
    return lines
