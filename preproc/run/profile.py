"""What a site is like: slurm/sites/*.toml, people's own files, and what run.toml's [site] puts on top.

Every table has a default for every key, so that a profile states only what differs and run.toml only what differs from
the profile. Unknown keys are refused wherever they stand. Nothing here talks to Slurm.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from infer.contract import SmaltiError, TomlTable, parse_toml, read_toml
from preproc.run.resources import SITES
from preproc.run.text import problem_lines

JOBS = ("fetch", "infer", "stitch", "classify")
"""The kinds of jobs that a chain consists of."""

Internet = Literal["direct", "proxy", "none"]
_TIME = re.compile(r"(?:(\d+)-)?(\d{1,2}):(\d{2}):(\d{2})")
_MEMORY = re.compile(r"(\d+)([MGT])")
UNSAFE = re.compile(r"[`\"\\\n]|\$\(")


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


Lines = Annotated[tuple[str, ...], BeforeValidator(_tuple)]


class Section(BaseModel):
    """A table of a profile."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def parse_time(text: str) -> int:
    """Seconds of a Slurm time, [D-]HH:MM:SS.

    Raises:
        ValueError: if it is written in another way.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a time: write HH:MM:SS or D-HH:MM:SS")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def parse_memory(text: str) -> int:
    """Megabytes of a Slurm memory size such as 500M, 8G or 1T.

    Raises:
        ValueError: if it is written in another way.
    """
    match = _MEMORY.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a memory size: write 500M, 8G or 1T")
    return int(match[1]) * {"M": 1, "G": 1024, "T": 1024 * 1024}[match[2]]


class Job(Section):
    """What one kind of job asks Slurm for, and what its nodes are like."""

    where: Literal["batch", "here"] = "batch"
    """here: `smalti submit` runs the stage itself, on the login node, before it submits the rest."""
    partition: str = ""
    """--partition; empty: the site's default."""
    account: str = ""
    """--account, the project that pays."""
    qos: str = ""
    """--qos."""
    time: str = "02:00:00"
    """Limit, [D-]HH:MM:SS."""
    cpus: Annotated[int, Field(ge=1)] = 1
    """CPUs of a task; with several GPUs in a task, of each GPU's process."""
    memory: str = ""
    """For the unit that memory_style names: 500M, 8G ...; empty asks for nothing."""
    memory_style: Literal["mem", "mem-per-cpu", "mem-per-gpu", "none"] = "mem"
    """Which option of Slurm asks for it; none: the site decides."""
    gpus: Annotated[int, Field(ge=0, le=64)] = 0
    """GPUs of a task. Each gets one process that works until the task ends."""
    gpu_style: Literal["gpus", "gres", "gpus-per-node", "none"] = "gpus-per-node"
    """Which option of Slurm asks for GPUs; none: the partition gives them."""
    gpu_type: str = ""
    """Name before the number, for example a100 in --gres=gpu:a100:1."""
    whole_nodes: bool = False
    """A task has its node for itself: CPU masks and device numbers hold only then."""
    cpu_bind: str = ""
    """For srun, for example mask_cpu:0xfe,0xfe00; used on whole nodes only."""
    nodes: Annotated[int, Field(ge=0)] = 0
    """--nodes; 0 says nothing, unless whole_nodes (then 1)."""
    throttle: Annotated[int, Field(ge=0)] = 0
    """At most this many tasks of the array at once (%K); 0: no limit."""
    tile_minutes: Annotated[float, Field(gt=0)] = 5.0
    """Expected minutes for a tile of 512 x 512 pixels and one process: decides how many tiles a task takes."""
    internet: Internet = "direct"
    """How a job's node reaches the archive; none: `smalti mirror` copies what is needed first."""
    proxy: str = ""
    """http://host:port, with internet = "proxy"."""
    modules: Lines = ()
    """`use PATH` and `load NAME`, in order."""
    env: dict[str, str] = {}
    """Set in every process; $NAME and ${NAME} are filled in there. The engine's container gets them too."""
    directives: Lines = ()
    """Further `#SBATCH` options, for example --constraint=rome."""

    @field_validator("time")
    @classmethod
    def _time(cls, value: str) -> str:
        parse_time(value)
        return value

    @field_validator("memory")
    @classmethod
    def _memory(cls, value: str) -> str:
        if value:
            parse_memory(value)
        return value

    @field_validator("tile_minutes", mode="before")
    @classmethod
    def _float(cls, value: Any) -> Any:
        return float(value) if type(value) is int else value

    @field_validator("modules")
    @classmethod
    def _modules(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for line in value:
            if not re.fullmatch(r"(use|load) [\w./+${}-]+", line):
                raise ValueError(f"{line!r}: write `use PATH` or `load NAME`")
        return value

    @field_validator("env")
    @classmethod
    def _env(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if not re.fullmatch(r"[A-Za-z_]\w*", name):
                raise ValueError(f"{name!r} is not a variable's name")
            if UNSAFE.search(text):
                raise ValueError(f"{name}: quotes, backslashes and command substitution have no place in a value")
        return value

    @field_validator("directives")
    @classmethod
    def _directives(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for line in value:
            if not re.fullmatch(r"--[a-z][a-z-]*(=[^\s].*)?", line):
                raise ValueError(f"{line!r}: write --option=value")
        return value

    @property
    def seconds(self) -> int:
        """The time limit in seconds."""
        return parse_time(self.time)


class Runtime(Section):
    """How the engine's image is run."""

    program: Literal["auto", "apptainer", "singularity"] = "auto"
    """auto: whichever of them is there."""
    gpu_flag: Literal["", "--nv", "--rocm", "auto"] = ""
    """Empty on LUMI: --rocm binds host libraries there, and the devices are visible anyway. auto: as devices are."""
    refused_gpu_flags: Lines = ()
    """Those that fail at this site: `smalti doctor` says so should run.toml set one."""
    binds: Lines = ()
    """Paths that the container must see besides the run directory and the checkpoint's folder."""
    engine: Literal["image", "checkout"] = "image"
    """Whose infer/ runs: the image's own, or this checkout's bound in (a site's own PyTorch image has none)."""
    image: str = ""
    """Image to use where run.toml names none."""
    visible_devices: Literal["none", "cuda", "rocr"] = "none"
    """Which variable tells each of several processes its GPU; rocr only on whole nodes."""
    gpu_archs: Lines = ()
    """What PyTorch must have been built for: sm_80, gfx90a ..."""


class Limits(Section):
    """What the site allows, and how work is packed into it."""

    max_array: Annotated[int, Field(ge=1)] = 1000
    """Largest number of tasks in an array (Slurm's MaxArraySize less one)."""
    max_jobs: Annotated[int, Field(ge=1)] = 1000
    """Jobs that one may have queued, each task counting as one."""
    tasks: Annotated[int, Field(ge=0)] = 0
    """Tasks to divide the tiles among; 0: from tile_minutes and pack_minutes."""
    pack_minutes: Annotated[int, Field(ge=1)] = 30
    """A task takes at least this long, if there are tiles enough."""
    requeues: Annotated[int, Field(ge=0, le=100)] = 5
    """How often a task puts itself back into the queue at its time limit."""
    signal_seconds: Annotated[int, Field(ge=10, le=3600)] = 180
    """How long before its limit a task is told to stop, and leaves the tile at hand. Slurm may be up to 60 s early."""


class Storage(Section):
    """Where files live."""

    scratch: str = ""
    """For people to read, and for doctor's look at quotas: {account} and $USER are filled in."""
    purge_days: Annotated[int, Field(ge=0)] = 0
    """Untouched files are removed after this many days; 0: never."""
    quota: str = ""
    """Command that shows quotas, for example lumi-quota; $USER is filled in."""
    quota_format: Literal["text", "lfs", "used/max"] = "text"
    """How doctor reads what it says: lfs quota's table; rows of a path with used/max of bytes and of files, as
    lumi-quota's; or not at all, for people to read."""


class Billing(Section):
    """What an hour costs; 0 where it is not known."""

    unit: str = "billing units"
    """What the site counts in."""
    gpu_hour: Annotated[float, Field(ge=0)] = 0.0
    """Units for an hour of a GPU."""
    cpu_hour: Annotated[float, Field(ge=0)] = 0.0
    """Units for an hour of a CPU."""

    @field_validator("gpu_hour", "cpu_hour", mode="before")
    @classmethod
    def _float(cls, value: Any) -> Any:
        return float(value) if type(value) is int else value


class Jobs(Section):
    """What differs from [job] for each kind of job."""

    fetch: Job = Job()
    infer: Job = Job()
    stitch: Job = Job()
    classify: Job = Job()
    """sample, train, predict, validate and report, one after another."""


class SiteSettings(Section):
    """The tables that a profile and run.toml's [site] share."""

    runtime: Runtime = Runtime()
    job: Job = Job()
    """What holds for all jobs."""
    jobs: Jobs = Jobs()
    limits: Limits = Limits()
    storage: Storage = Storage()
    billing: Billing = Billing()


class Profile(SiteSettings):
    """A whole profile file."""

    name: Annotated[str, Field(min_length=1)]
    description: str = ""
    base: str = ""
    """Another profile that this one builds on."""
    needs: Lines = ()
    """Keys of [site] that have no useful default: people must set them (for example job.account)."""

    def kind(self, job: str) -> Job:
        """One kind of job with what holds for all of them."""
        common = self.job.model_dump(exclude_unset=True)
        return Job.model_validate(merge(common, getattr(self.jobs, job).model_dump(exclude_unset=True)))


def merge(below: TomlTable, above: TomlTable) -> dict[str, Any]:
    """Tables merged key by key; anything else of `above` replaces what is below."""
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        merged[key] = merge(under, value) if isinstance(under, Mapping) and isinstance(value, Mapping) else value
    return merged


def profile_path(name: str, folder: Path) -> Path:
    """Where a profile stands: a file (relative to `folder`) when the name ends in .toml, else one of smalti's own.

    Raises:
        SmaltiError: if it is not there.
    """
    own = name.endswith(".toml")
    path = folder / Path(name).expanduser() if own else SITES / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in SITES.glob("*.toml")))
        raise SmaltiError(f"{path}: no such site profile: use one of {known}, or the path of a .toml file of your own")
    return path


def _read(name: str, folder: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    path = profile_path(name, folder)
    if path.resolve() in seen:
        raise SmaltiError(f"{path}: its base leads back to itself")
    try:
        content = parse_toml(read_toml(path))
    except ValueError as error:
        raise SmaltiError(f"{path}: not valid TOML: {error}") from error
    except OSError as error:
        raise SmaltiError(f"{path}: cannot be read: {error.strerror}") from error
    base = content.get("base")
    _validated(content, path)
    return (
        merge(_read(base, path.parent, (*seen, path.resolve())), content) if isinstance(base, str) and base else content
    )


def _validated(content: TomlTable, where: Path | str) -> Profile:
    try:
        return Profile.model_validate(content)
    except ValidationError as error:
        problems = []
        for item in error.errors(include_url=False):
            key = ".".join(str(part) for part in item["loc"]) or "the file"
            text = (
                "unknown key" if item["type"] == "extra_forbidden" else str(item["msg"]).removeprefix("Value error, ")
            )
            problems.append(f"{key}: {text[0].lower()}{text[1:]}")
        raise SmaltiError(problem_lines(where, problems)) from error


def load_profile(name: str, folder: Path, overrides: SiteSettings | None = None) -> Profile:
    """A site's profile with what run.toml changes.

    Args:
        name: `lumi`, `saga` ..., or the path of a .toml file.
        folder: what such a path is relative to: the run directory.
        overrides: [site] of run.toml; only keys that were written there count.

    Raises:
        SmaltiError: naming the file and the key.
    """
    changes = (
        {} if overrides is None else overrides.model_dump(exclude_unset=True, include=set(SiteSettings.model_fields))
    )
    profile = _validated(merge(_read(name, folder), changes), f"profile {name} with [site] of run.toml")
    for kind in JOBS:
        problem = _contradiction(profile.kind(kind))
        if problem:
            raise SmaltiError(f"profile {name} with [site] of run.toml: jobs.{kind}: {problem}")
    return profile


def _contradiction(job: Job) -> str:
    if job.internet == "proxy" and not job.proxy:
        return 'internet = "proxy" needs proxy = "http://host:port"'
    if job.memory and job.memory_style == "mem-per-gpu" and job.gpus == 0:
        return 'memory_style = "mem-per-gpu" without GPUs: use "mem"'
    if job.cpu_bind and not job.whole_nodes:
        return "cpu_bind holds on whole nodes only: set whole_nodes = true, or leave it empty"
    return ""


def unmet_needs(profile: Profile) -> list[str]:
    """Keys that people must set and have not."""
    content = profile.model_dump()
    unmet = []
    for key in profile.needs:
        value: Any = content
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if not value:
            unmet.append(key)
    return unmet
