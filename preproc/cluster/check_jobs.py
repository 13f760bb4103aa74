"""Short jobs that look at the nodes from inside: the same job scripts as the real ones, with another command."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from infer.contract import Run, SmaltiError, parse_json
from preproc.cluster import slurm
from preproc.cluster.check_on_node import MARK
from preproc.cluster.sbatch import render_script
from preproc.cluster.submit import common_script
from preproc.cluster.submitted import slurm_folder
from preproc.cluster.tasks import read_log
from preproc.run.checks import Finding, error_text, failed, finding_from, warning
from preproc.run.config import Config
from preproc.run.profile import Profile, merge
from preproc.run.progress import say
from preproc.run.resources import SLURM

WAIT_S = 900
"""How long a probe job may wait and run before doctor stops waiting (the job stays queued)."""
_POLL_S = 2.0
_LIMIT = "00:10:00"
_WHERE = {"fetch": "node", "infer": "container"}


def probe_profile(profile: Profile) -> Profile:
    """The site with short time limits, so that the probe starts soon; and what the probe must know."""
    infer = profile.kind("infer")
    facts = {"SMALTI_GPUS": str(infer.gpus), "SMALTI_GPU_ARCHS": " ".join(profile.runtime.gpu_archs)}
    short = {"time": _LIMIT, "throttle": 0}
    changes = {"jobs": {"fetch": short, "infer": {**short, "env": facts}}, "limits": {"requeues": 0}}
    return Profile.model_validate(merge(profile.model_dump(exclude_unset=True), changes))


def _submit(run: Run, config: Config, profile: Profile, kind: str) -> int:
    script = common_script(run, config, profile, 1, kind=kind)
    folder = slurm_folder(run)
    if kind == "infer":
        script = replace(script, command=(str(SLURM / "probe.py"),))
        if script.container is not None:
            binds = (*script.container.binds, str(SLURM))
            script = replace(script, container=replace(script.container, binds=binds))
    else:
        script = replace(script, command=("-m", "preproc.cluster.check_on_node"))
    path = folder / "scripts" / f"probe-{kind}.sbatch"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render_script(profile, script), encoding="utf-8")
    return slurm.sbatch(path)


def parse_findings(text: str, where: str) -> list[Finding]:
    """The findings in a probe's log. Pure."""
    lines = (line[len(MARK) :] for line in text.splitlines() if line.startswith(MARK))
    try:
        return [finding_from(parse_json(line), where) for line in lines]
    except (ValueError, KeyError, AttributeError) as error:
        return [replace(failed("probe", f"its log cannot be understood ({error})", "look at the log"), where=where)]


def _outcome(log: Path, job: int, kind: str) -> list[Finding]:
    if not log.is_file():
        text = f"job {job} left no log"
        return [replace(failed("probe", text, f"look with `sacct -j {job}`"), where=_WHERE[kind])]
    found = parse_findings(log.read_text(encoding="utf-8", errors="replace"), _WHERE[kind])
    facts = read_log(log)
    if facts is None or facts.code != 0:
        said = facts.last if facts is not None else ""
        found.append(replace(failed("probe", f"job {job} failed: {said}", f"look at {log}"), where=_WHERE[kind]))
    return found


def probe_nodes(run: Run, config: Config, profile: Profile, wait_s: float = WAIT_S) -> list[Finding]:
    """Queue one short job for fetch's nodes and one for the engine's, wait, and report what they saw."""
    short = probe_profile(profile)
    kinds = [kind for kind in ("fetch", "infer") if profile.kind(kind).where == "batch"]
    found: list[Finding] = []
    jobs: dict[str, int] = {}
    for kind in kinds:
        try:
            jobs[kind] = _submit(run, config, short, kind)
        except SmaltiError as error:
            found.append(replace(failed("probe", *error_text(error)), where=_WHERE[kind]))
    say(f"probe: jobs {', '.join(str(job) for job in jobs.values())} queued, waiting for at most {wait_s / 60:.0f} min")
    return [*found, *_collect(run, jobs, wait_s)]


def _collect(run: Run, jobs: Mapping[str, int], wait_s: float) -> list[Finding]:
    found: list[Finding] = []
    waiting = dict(jobs)
    deadline = time.monotonic() + wait_s
    while waiting and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        queue = slurm.queued(waiting.values())
        for kind, job in list(waiting.items()):
            if slurm.TaskId(job) not in queue:
                found += _outcome(slurm_folder(run) / f"{kind}-{job}.log", job, kind)
                del waiting[kind]
    for kind, job in waiting.items():
        text = f"job {job} has not ended after {wait_s / 60:.0f} min"
        found.append(replace(warning("probe", text, "its log is in logs/slurm when it has run"), where=_WHERE[kind]))
    return found
