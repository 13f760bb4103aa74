"""Job scripts as text: pure functions from a profile and a run to a script, by way of the templates in slurm/.

A template works as it stands, with settings from exported variables. Rendering replaces its `#SBATCH` lines, the lines
between `>>> settings` and `<<< settings`, and copies common.sh in, so that a queued script does not change when the
checkout does.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from infer.contract import SmaltiError
from preproc.run.container import Container, device_arguments
from preproc.run.profile import Job, Profile
from preproc.run.resources import SLURM

_SETTINGS = re.compile(r"# >>> settings\n.*?# <<< settings\n", re.DOTALL)
_SOURCE = re.compile(r"^source .*/common\.sh\"\n", re.MULTILINE)
_DIRECTIVES = re.compile(r"(?:^#SBATCH .*\n)+", re.MULTILINE)
_USAGE = re.compile(r" `smalti submit` fills in the.*?(?=^#SBATCH)", re.DOTALL | re.MULTILINE)


SHARED = {
    "stitch-sheets": "stitch",
    "sample-tiles": "classify",
    "train-networks": "infer",
    "train-trials": "classify",
    "predict-sheets": "classify",
}
"""Arrays whose tasks share a stage's work before a job ends it: sheets, parts of the tiles, networks of a head, trials
of a study -> whose resources they ask for. Their names begin with the stage's."""
FIRST = ("sample", "train")
"""Stages of classify that end in a job of their own, named after the last in it, where an array comes after them."""


@dataclass(frozen=True)
class Script:
    """What a job script is rendered from, besides the profile."""

    kind: str
    """fetch, infer, stitch, classify, or one of SHARED and FIRST: names job and log."""
    run: Path
    """The run directory, absolute."""
    python: Path
    """Python of the environment that smalti is installed in."""
    logs: Path
    """Folder of the log files; it must exist when the job starts, or the job fails without a word."""
    tasks: int = 1
    """Number of shards that the tiles are divided into (not the length of `array`)."""
    array: str | None = None
    """Task numbers to run, compressed, without a throttle; None for a single job."""
    container: Container | None = None
    """For the engine; None runs it in `python`."""
    weights: Path | None = None
    """Folder of fetched checkpoints, for registered models."""
    stages: tuple[str, ...] = ()
    """classify, sample and train: the stages, in order; of what is shared the one."""
    command: tuple[str, ...] = ()
    """fetch and infer: what Python runs instead, for a probe that sees exactly what a task sees."""
    scratch: str | None = None
    """infer: folder on the node's own disk, with variables that are filled in there."""
    engine_options: tuple[str, ...] = ()
    """infer: see `preproc.run.engine.engine_options`."""
    pass_on_failed: bool = False
    """Another array's tasks wait for this one's: a task some of whose tiles failed lets them go on with the others."""

    @property
    def resources(self) -> str:
        """The profile's kind of job whose resources it asks for."""
        return {**SHARED, **dict.fromkeys(FIRST, "classify")}.get(self.kind, self.kind)

    @property
    def template(self) -> str:
        """Name of its template."""
        if self.kind == "train-networks":
            return "segment"
        return "sheets" if self.kind in SHARED else self.resources


def directives(job: Job, profile: Profile, script: Script) -> list[str]:
    """The options of `sbatch`, in a fixed order."""
    lines = [f"--job-name=smalti-{script.kind}"]
    for option in ("partition", "account", "qos"):
        value = getattr(job, option)
        if value:
            lines.append(f"--{option}={value}")
    lines.append(f"--time={job.time}")
    processes = max(1, job.gpus)
    lines += [f"--nodes={job.nodes or 1}", f"--ntasks-per-node={processes}", f"--cpus-per-task={job.cpus}"]
    if job.whole_nodes:
        lines.append("--exclusive")
    if job.memory and job.memory_style != "none":
        lines.append(f"--{job.memory_style}={job.memory}")
    if job.gpus and job.gpu_style != "none":
        kind = f"{job.gpu_type}:" if job.gpu_type else ""
        lines.append(
            f"--gres=gpu:{kind}{job.gpus}" if job.gpu_style == "gres" else f"--{job.gpu_style}={kind}{job.gpus}"
        )
    if script.array is not None:
        lines.append(f"--array={script.array}" + (f"%{job.throttle}" if job.throttle else ""))
    pattern = f"{script.kind}-%A_%a.log" if script.array is not None else f"{script.kind}-%j.log"
    lines += [
        f"--output={_output(script.logs, pattern)}",
        "--open-mode=append",
        f"--signal=B:USR1@{profile.limits.signal_seconds}",
        "--requeue",
        *job.directives,
    ]
    return lines


def _output(folder: Path, pattern: str) -> str:
    """A log's path as Slurm reads it: a per cent sign of the folder is doubled, blanks need quotes, and quotes and `#`
    a backslash; one of the folder's own would leave the numbers of jobs out of the name.

    Raises:
        SmaltiError: if no option of `sbatch` can name it.
    """
    if "\\" in str(folder) or not str(folder).isprintable():
        raise SmaltiError(
            f"{str(folder)!r}: Slurm writes no logs where a path has a backslash, a line break or the like: rename it"
        )
    path = re.sub(r"([\"'#])", r"\\\1", f"{str(folder).replace('%', '%%')}/{pattern}")
    return f'"{path}"' if " " in path else path


def _array(name: str, values: Sequence[str]) -> str:
    return f"{name}=({' '.join(shlex.quote(value) for value in values)})"


def _scratch(text: str) -> str:
    """The folder as shell fills it in on the node; a variable that is not set there ends the job and says so.

    It stands in site_environment, after what modules and the profile set. Not SCRATCH: many sites set that themselves.
    """
    if text == "~" or text.startswith("~/"):
        text = f"$HOME{text[1:]}"
    unset = "[site] scratch names it, and it is not set on this node"
    return 'SMALTI_SCRATCH="' + re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda m: f"${{{m[1] or m[2]}:?{unset}}}", text) + '"'


def _modules(job: Job) -> list[str]:
    if not job.modules:
        return ["site_modules() { :; }"]
    return ["site_modules() {", *(f"    module {line}" for line in job.modules), "}"]


def _environment(job: Job, last: Sequence[str]) -> list[str]:
    lines = [f'    export {name}="{value}"' for name, value in job.env.items()]
    if job.internet == "proxy":
        lines.append("    export " + " ".join(f"{name}={shlex.quote(job.proxy)}" for name in _PROXY_NAMES))
    lines += last
    return ["site_environment() {", *lines, "}"] if lines else ["site_environment() { :; }"]


_COMMANDS = {"fetch": ("-m", "preproc.cli", "fetch"), "infer": ("-m", "infer")}
_PROXY_NAMES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")


def settings(job: Job, profile: Profile, script: Script) -> list[str]:
    """The lines of shell that stand in for a template's settings."""
    values: dict[str, str] = {
        "RUN": str(script.run),
        "PYBIN_PREPROC": str(script.python),
        "TASKS": str(script.tasks),
        "REQUEUES": str(profile.limits.requeues),
        "PASS_ON_FAILED": "1" if script.pass_on_failed else "",
    }
    lines: list[str] = []
    if script.kind == "infer":
        values |= {
            "PYTORCH_SIF": "" if script.container is None else str(script.container.image),
            "PROCESSES": str(max(1, job.gpus)),
            "VISIBLE_DEVICES": profile.runtime.visible_devices,
            "CPU_BIND": job.cpu_bind,
        }
        passed = list(job.env)
        if script.weights is not None:
            lines.append(f"export SMALTI_WEIGHTS={shlex.quote(str(script.weights))}")
            passed.append("SMALTI_WEIGHTS")
        options = [] if script.container is None else script.container.options()
        lines += [_array("CONTAINER", options), _array("PASSED", passed)]
        lines.append(_array("DEVICE", () if script.command else device_arguments(profile)))
    if script.kind in _COMMANDS:
        more = script.engine_options if script.kind == "infer" else ()
        lines.append(_array("COMMAND", script.command or (*_COMMANDS[script.kind], *more)))
    if script.template == "classify":
        values["STAGES"] = " ".join(script.stages)
    if script.template == "sheets":
        values["STAGE"] = script.stages[0]
    if script.template == "segment":
        values["GPUS"] = str(max(1, job.gpus))
    assigned = [f"{name}={shlex.quote(value)}" for name, value in values.items()]
    last = [f"    {_scratch('' if script.command else script.scratch or '')}"] if script.kind == "infer" else []
    return [*assigned, *lines, *_modules(job), *_environment(job, last)]


def render(template: str, common: str, profile: Profile, script: Script) -> str:
    """The job script.

    Args:
        template: text of slurm/<template>.sbatch.
        common: text of slurm/common.sh.
        profile: the site.
        script: the rest.
    """
    job = profile.kind(script.resources)
    options = "".join(f"#SBATCH {line}\n" for line in directives(job, profile, script))
    chosen = "\n".join(settings(job, profile, script))
    text = _USAGE.sub(f" Written by `smalti submit` for {profile.name}.\n", template, count=1)
    text = _DIRECTIVES.sub(lambda _: options, text, count=1)
    text = _SETTINGS.sub(lambda _: f"{chosen}\n", text, count=1)
    return _SOURCE.sub(lambda _: common, text, count=1)


def render_script(profile: Profile, script: Script) -> str:
    """`render` with the templates that come with smalti."""
    template = (SLURM / f"{script.template}.sbatch").read_text(encoding="utf-8")
    return render(template, (SLURM / "common.sh").read_text(encoding="utf-8"), profile, script)
