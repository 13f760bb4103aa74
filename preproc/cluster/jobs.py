"""The jobs of a chain, what each waits for and what they may cost. Pure: nothing is read and nothing is queued."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from preproc.cluster.sbatch import Script
from preproc.cluster.slurm import compress, expand
from preproc.run.profile import Profile
from preproc.run.task_count import tile_minutes

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

    @property
    def length(self) -> int:
        """Number of tasks."""
        return 1 if self.script.array is None else len(expand(self.script.array))


def build_chain(profile: Profile, common: Script, due: Due, tile_size: int) -> list[Step]:
    """The jobs and what each waits for. Pure.

    fetch[i] -> infer[i] by aftercorr; tasks of infer whose tiles are there already wait for nothing and are an array
    of their own; what gathers waits by afterany, and looks at the manifests itself.
    """
    steps: list[Step] = []

    def array(name: str, kind: str, indices: Sequence[int], **more: object) -> None:
        job = profile.kind(kind)
        share = due.tiles / due.tasks * len(indices)
        hours = share * tile_minutes(job, tile_size) * max(1, job.gpus) / 60
        script = replace(common, kind=kind, array=compress(indices), **more)  # type: ignore[arg-type]  # fields of Script
        after = (("aftercorr", "fetch"),) if name == "infer" and "fetch" in [step.name for step in steps] else ()
        steps.append(Step(name, script, after, hours))

    fetching, inferring = set(due.shards["fetch"]), due.shards["infer"]
    paired = [index for index in inferring if index in fetching]
    ready = [index for index in inferring if index not in fetching]
    if fetching:
        array("fetch", "fetch", sorted(fetching), pass_on_failed=bool(paired))
    if paired:
        array("infer", "infer", paired)
    if ready:
        array("infer-ready" if paired else "infer", "infer", ready)
    before = tuple(("afterany", step.name) for step in steps if step.script.kind == "infer")
    before = before or tuple(("afterany", step.name) for step in steps)
    classify = tuple(stage for stage in due.gathers if stage != "stitch")
    if "stitch" in due.gathers:
        steps.append(Step("stitch", replace(common, kind="stitch"), before))
        before = (("afterany", "stitch"),)
    if classify:
        steps.append(Step("classify", replace(common, kind="classify", stages=classify), before))
    if "infer-ready" in [step.name for step in steps]:
        return _unpaired_first(steps)
    return steps


def _unpaired_first(steps: list[Step]) -> list[Step]:
    """Tasks that wait for nothing are queued first, so that they are not behind those that wait."""
    return sorted(steps, key=lambda step: step.name != "infer-ready")


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
