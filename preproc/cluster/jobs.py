"""The jobs of a chain, what each waits for and what they may cost. Pure: nothing is read and nothing is queued."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from preproc.cluster.sbatch import SHARED, Script
from preproc.cluster.slurm import compress, expand
from preproc.run.profile import Profile
from preproc.run.task_count import tile_minutes
from preproc.run.waves import Waves

ARRAYS = ("fetch", "infer")
"""Stages whose tasks share the tiles; what comes after them gathers, in one job or in an array of sheets and one."""


Waits = tuple[tuple[str, str], ...]
"""(afterany or aftercorr, name of a step before it)."""
_SHARE = 8
"""One in so many of the jobs that a site allows may be a task of one array of sheets or parts."""


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
    sheets: int = 1
    """That mosaic and map are divided into."""
    parts: int = 1
    """Of the tiles, that samples are picked in."""
    networks: int = 1
    """Of a segmentation head that is to be trained; 1 where no array is worth it."""
    trials: int = 1
    """Trials of a study that can be run at once; 1 where there is none."""
    waves: Waves | None = None
    """How the shards are grouped, where there is a budget for what tiles take on disk."""


@dataclass(frozen=True)
class Step:
    """One job of the chain, before it has an id."""

    name: str
    """fetch, infer, infer-ready, or as the script's kind: names the script."""
    script: Script
    after: Waits = ()
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
    of their own; what gathers waits by afterany, and looks at the manifests itself. Where sheets or parts are more than
    a job makes at a time, an array makes them, and the stage's job joins them; what comes before an array is a job too.
    The last job waits for the mosaic as well. Waves follow each other by afterany, the first after the tasks whose
    tiles are there.
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
        earlier = [("afterany", name) for name in last] if due.waves is not None else []
        array(f"fetch{end}", "fetch", members, earlier, pass_on_failed=bool(pairs))
        if pairs:
            array(f"infer{end}", "infer", pairs, [("aftercorr", f"fetch{end}")])
        last = [steps[-1].name]
    if ready:
        array("infer-ready" if paired else "infer", "infer", ready)
    before: Waits = tuple(("afterany", step.name) for step in steps if step.script.kind == "infer")
    before = before or tuple(("afterany", step.name) for step in steps)

    def job(kind: str, stages: Sequence[str], after: Waits, tasks: int = 1) -> Waits:
        script = replace(common, kind=kind, stages=tuple(stages))
        if tasks > 1:
            script = replace(script, array=compress(range(tasks)), tasks=tasks)
        steps.append(Step(kind, script, after))
        return (("afterany", kind),)

    divided, mapped = _divided(profile, due), before
    stitched: Waits = ()
    held: list[str] = []
    for stage in due.gathers:
        kind, tasks = divided.get(stage, ("", 1))
        if stage == "stitch":
            stitched = job(stage, (), job(kind, (stage,), before, tasks) if tasks > 1 else before)
            continue
        if tasks > 1:
            if held:
                mapped, held = job(held[-1], held, mapped), []
            mapped = job(kind, (stage,), mapped, tasks)
        held.append(stage)
    if held:
        job("classify", held, (mapped if mapped is not before else ()) + stitched or before)
    # tasks that wait for nothing are queued first, so that they are not behind those that wait
    return sorted(steps, key=lambda step: step.script.kind != "infer" or bool(step.after))


def _in_waves(indices: Sequence[int], waves: Waves | None) -> list[list[int]]:
    """Tasks of each wave that has any, in order."""
    if waves is None:
        return [list(indices)] if indices else []
    groups: dict[int, list[int]] = {}
    for index in indices:
        groups.setdefault(waves.of(index), []).append(index)
    return list(groups.values())


def _divided(profile: Profile, due: Due) -> dict[str, tuple[str, int]]:
    """Stage -> the array that shares its work, and its tasks; a stage whose own job does it is left out."""
    most = profile.limits.max_array
    tasks = {
        "stitch-sheets": _tasks(profile, "stitch-sheets", due.sheets),
        "sample-tiles": _tasks(profile, "sample-tiles", due.parts),
        "train-networks": min(due.networks, most),
        "train-trials": min(-(-due.trials // max(1, profile.kind("classify").cpus)), most),
        "predict-sheets": _tasks(profile, "predict-sheets", due.sheets),
    }
    return {kind.partition("-")[0]: (kind, count) for kind, count in tasks.items() if count > 1}


def _tasks(profile: Profile, kind: str, units: int) -> int:
    """Tasks of an array of sheets or parts: each makes as many at a time as it has CPUs. 1: none is worth it."""
    most = min(profile.limits.max_array, max(1, profile.limits.max_jobs // _SHARE))
    return min(-(-units // max(1, profile.kind(SHARED[kind]).cpus)), most)


def gathering_jobs(profile: Profile, sheets: int, parts: int) -> int:
    """Jobs and tasks of a whole chain after fetch and infer."""
    divided = _divided(profile, Due(1, 1, {}, (), sheets=sheets, parts=parts))
    return 3 + sum(tasks for _, tasks in divided.values())


def cost_lines(profile: Profile, steps: Sequence[Step], due: Due) -> list[str]:
    """What the chain asks for and what it may cost, for people. Pure."""
    lines = [f"{due.tiles} tiles in {due.tasks} shards on {profile.name}"]
    units = 0.0
    for step in steps:
        job = profile.kind(step.script.resources)
        limit = step.length * job.seconds / 3600
        gpus, cpus = limit * job.gpus, limit * job.cpus * max(1, job.gpus)
        units += gpus * profile.billing.gpu_hour + (0.0 if job.gpus else cpus * profile.billing.cpu_hour)
        asked = f"{step.length} task{'s' if step.length > 1 else ''} x {job.time}, {job.cpus} CPUs"
        if job.gpus:
            asked += f", {job.gpus} GPU{'s' if job.gpus > 1 else ''}"
        what = f"at most {gpus:.1f} GPU-hours" if job.gpus else f"at most {cpus:.1f} CPU-hours"
        expected = f", about {step.hours:.1f} expected" if step.hours else ""
        place = job.partition or "the default partition"
        lines.append(f"  {step.name:<14} {place:<22} {asked}: {what}{expected}")
    if units:
        lines.append(f"  billed as at most {units:.1f} {profile.billing.unit}")
    return lines
