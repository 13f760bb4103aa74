"""Submit a run's chain of jobs: only what is missing, with dependencies, after `sbatch --test-only` agreed."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

from infer.contract import (
    BusyError,
    Plan,
    PlannedTile,
    Run,
    SmaltiError,
    planned_tiles,
    stage_lock,
    write_bytes,
    write_model_job,
)
from preproc.classify.trials import WAVE
from preproc.cluster import slurm
from preproc.cluster.jobs import ARRAYS, Due, Step, build_chain, cost_lines, gathering_jobs
from preproc.cluster.sbatch import Script, render_script
from preproc.cluster.submitted import SubmittedJob, read_submitted, slurm_folder, write_ledger
from preproc.preflight import preflight, refuse
from preproc.raster.zones import shares_of, sheets_of, zone_grids
from preproc.run.chain import run_one
from preproc.run.checks import Verdict
from preproc.run.config import Config
from preproc.run.container import container_of, weights_of
from preproc.run.engine import engine_options
from preproc.run.profile import Profile, load_profile, unmet_needs
from preproc.run.progress import say
from preproc.run.quality import quality_warnings
from preproc.run.stage import StageFailedError
from preproc.run.stages import before, chain, stage_named
from preproc.run.status import Survey, stale_before
from preproc.run.task_count import choose_tasks
from preproc.run.waves import budget, fewest_shards, waves_of


def site_of(run: Run, config: Config, site: str | None = None) -> Profile:
    """The profile of a run, or another one with run.toml's changes on top.

    Raises:
        SmaltiError: if it is not valid, or lacks what only the user can know.
    """
    profile = load_profile(site or config.site.profile, run.root.absolute(), config.site)
    unmet = unmet_needs(profile)
    if unmet:
        tables = (key.rpartition(".") for key in unmet)
        wanted = ", ".join(f"[site.{table}] {name}" for table, _, name in tables)
        raise SmaltiError(f"{run.config}: profile {profile.name} needs {wanted}")
    return profile


def _shards(missing: Sequence[bool], tasks: int) -> tuple[int, ...]:
    return tuple(sorted({index % tasks for index, lacks in enumerate(missing) if lacks}))


def what_is_due(
    survey: Survey, profile: Profile, stages: Sequence[str], tasks: int | None = None, *, here: bool = True
) -> Due:
    """Look at the outputs and list what is missing or invalid.

    Args:
        survey: of the run, planned.
        profile: the site.
        stages: stages wanted.
        tasks: number of shards of jobs that are queued already; None chooses it.
        here: whether fetch, where the site does it on the login node, has been done or will have been.
    """
    run, config = survey.run, survey.config
    tiles = planned_tiles(run)
    if not tiles:
        raise SmaltiError(f"{run.plan}: the plan has no tiles: look at the region in {run.config}")
    sheets = sum(len(sheets_of(grid, config.stitch.sheet)) for grid in zone_grids(tiles))
    parts = len(shares_of(tiles, config.stitch.sheet))
    tasks = tasks or _tasks(run, config, profile, tiles, gathering_jobs(profile, sheets, parts))
    fetch = _missing(survey, "fetch")
    infer = _missing(survey, "infer")  # imported ones are last, and are not fetched
    lacking = [first or second for first, second in zip_longest(fetch, infer, fillvalue=False)]
    by_batch = profile.kind("fetch").where == "batch" or not here
    shards = {
        "fetch": _shards(fetch, tasks) if "fetch" in stages and by_batch else (),
        "infer": _shards(lacking, tasks) if "infer" in stages else (),
    }
    names = [entry.name for entry in chain(config) if entry.gathers and entry.name in stages]
    gathers: list[str] = []
    for name in names:
        anew = any(other.name in gathers for other in before(stage_named(name), config))
        if anew or any(lacking) or any(_unfinished(survey, name)):
            gathers.append(name)
    waves = None if budget(config) is None else waves_of(Plan.read(run), config, tasks)
    networks, trials = _trained_together(config) if "train" in gathers else (1, 1)
    return Due(tasks, len(tiles), shards, tuple(gathers), sheets, parts, networks, trials, waves)


def _trained_together(config: Config) -> tuple[int, int]:
    """Networks, and trials of a study, that can be trained at once."""
    settings = config.classify
    if settings.method == "segment":
        return settings.folds + 1, 1
    return 1, WAVE if settings.trials > WAVE else 1  # few are not worth the queue


def _tasks(run: Run, config: Config, profile: Profile, tiles: Sequence[PlannedTile], gathering: int) -> int:
    """Shards to divide the tiles among: one of them has to fit into the room that tiles may take."""
    jobs = [job for job in map(profile.kind, ARRAYS) if job.where == "batch"]
    tasks = choose_tasks(len(tiles), tiles[0].size, jobs, profile.limits, gathering)
    if budget(config) is None:
        return tasks
    season = Plan.read(run).season
    fewest = fewest_shards(config, len(tiles), season.s2_days, season.s1_days)
    if fewest > profile.limits.max_array:
        raise SmaltiError(
            f"{run.config}: [site] tile_space, tile_files: {fewest} waves are needed, and an array may have "
            f"{profile.limits.max_array} tasks ([site.limits] max_array): allow more room"
        )
    return max(tasks, fewest)


def _missing(survey: Survey, stage: str) -> list[bool]:
    return [not state.complete for state in survey.of(stage).states]


def _unfinished(survey: Survey, stage: str) -> list[bool]:
    try:
        return _missing(survey, stage)
    except SmaltiError:
        return [True]  # what it builds on is not there yet


def common_script(
    run: Run, config: Config, profile: Profile, tasks: int, *, kind: str = "", array: str | None = None
) -> Script:
    """What all scripts of a run have in common; `kind` and `array` make it one of them."""
    root = run.root.absolute()
    return Script(
        kind=kind,
        array=array,
        run=root,
        python=Path(sys.executable),
        logs=slurm_folder(Run(root)),
        tasks=tasks,
        container=container_of(run, config, profile),
        weights=weights_of(config),
        scratch=config.site.scratch,
        engine_options=tuple(engine_options(config)),
    )


def _check_inputs(run: Run, config: Config, profile: Profile, due: Due, common: Script) -> None:
    fetch = profile.kind("fetch")
    online = config.archive.source != "static" or "://" in (config.archive.href or "")
    if due.shards["fetch"] and online and fetch.internet == "none":
        raise SmaltiError(
            f"profile {profile.name}: fetch jobs have no internet there ([site.jobs.fetch] internet): "
            'set where = "here" to fetch on this node, or name a transfer partition with internet = "direct", '
            "or mirror the archive"
        )
    if not due.shards["infer"] and due.networks == 1:
        return
    if common.container is not None and not common.container.image.exists():
        image = common.container.image
        raise SmaltiError(f"{image}: no such container image ([site] container): `smalti container build`")
    if common.container is None and profile.kind("infer").gpus:
        raise SmaltiError(f"{run.config}: [site] container: missing: GPU jobs run the engine in an image")


def _check_number(profile: Profile, steps: Sequence[Step], active: int = 0) -> None:
    tasks = sum(step.length for step in steps)
    if active + tasks > profile.limits.max_jobs:
        queued = f" beside the {active} that are queued" if active else ""
        raise SmaltiError(
            f"profile {profile.name}: {tasks} tasks{queued} are more than limits.max_jobs "
            f"({profile.limits.max_jobs}): set [site.limits] tasks lower"
        )


def _select(config: Config, wanted: str | None) -> list[str]:
    names = [entry.name for entry in chain(config) if entry.name != "plan"]
    if wanted is None:
        return names
    chosen = [name for name in re.split(r"[,\s]+", wanted) if name]
    unknown = [name for name in chosen if name not in names]
    if unknown or not chosen:
        raise SmaltiError(f"--stages {wanted}: not a stage of this run: choose among {', '.join(names)}")
    return [name for name in names if name in chosen]


def _refuse_stale(survey: Survey, stages: Sequence[str]) -> None:
    """What is stale and not among the stages that are asked for would make their jobs fail.

    Raises:
        SmaltiError: if something is; the plan does not count, which is made anew before anything is queued.
    """
    for name in stages:
        for stale in stale_before(stage_named(name), survey):
            if stale.stage != "plan" and stale.stage not in stages:
                raise SmaltiError(
                    f"{survey.run.root}: {stale.told()}: add {stale.stage} to --stages {','.join(stages)}"
                )


def _fetch_here(run: Run, config: Config, profile: Profile, stages: Sequence[str]) -> bool:
    """Fetch on this node where the site says so; whether it did."""
    if "fetch" not in stages or profile.kind("fetch").where != "here":
        return False
    say(f"fetch: on this node, because {profile.name} says so ([site.jobs.fetch] where)")
    try:
        run_one(stage_named("fetch"), run, config)
    except StageFailedError as error:
        say(str(error))
    return True


def _active(jobs: Sequence[SubmittedJob]) -> dict[slurm.TaskId, slurm.Queued]:
    return slurm.queued(job.id for job in jobs)


def without_active(due: Due, jobs: Sequence[SubmittedJob], active: Mapping[slurm.TaskId, slurm.Queued]) -> Due:
    """What is due, less the tasks of arrays that Slurm is still busy with."""
    kinds = {job.id: job.kind for job in jobs}
    busy = {kind: {task.index for task in active if kinds[task.job] == kind} for kind in ARRAYS}
    shards = {kind: tuple(i for i in due.shards[kind] if i not in busy[kind]) for kind in ARRAYS}
    return replace(due, shards=shards)


@dataclass(frozen=True)
class Request:
    """What the user asked for."""

    site: str | None = None
    stages: str | None = None
    dry_run: bool = False
    again: bool = False
    """Resubmit: jobs of this run may be queued; what they will do is left to them."""


def submit(run: Run, config: Config, request: Request) -> str:
    """Submit what is missing.

    Returns:
        For people: the scripts (dry run) or the jobs.

    Raises:
        BusyError: if jobs of this run are queued and this is not a resubmission.
        SmaltiError: if something is wrong with the run, the profile or a script; nothing has been queued then.
    """
    run = Run(run.root.absolute())
    profile = site_of(run, config, request.site)
    stages = _select(config, request.stages)
    if request.dry_run:
        survey = Survey(run, config)
        _refuse_stale(survey, stages)
        return _dry_run(survey, profile, stages)
    with stage_lock(run, "submit"):
        jobs = read_submitted(run)
        active = _active(jobs)
        if active and not request.again:
            names = ", ".join(str(number) for number in sorted({task.job for task in active}))
            raise BusyError(
                f"{run.root}: jobs of this run are queued ({names}): look with `smalti status {run.quoted}`; "
                f"`smalti resubmit {run.quoted}` adds what failed, `smalti cancel {run.quoted}` ends them"
            )
        if any(not unit.state().complete for unit in stage_named("plan").load().open(run, config).units):
            run_one(stage_named("plan"), run, config)
        survey = Survey(run, config)
        _refuse_stale(survey, stages)
        refuse(run, config, Plan.read(run), elsewhere=True)
        write_model_job(run, config.model.job())
        if _fetch_here(run, config, profile, stages):
            survey = Survey(run, config)
        due = without_active(what_is_due(survey, profile, stages, tasks_in_use(jobs, active)), jobs, active)
        return _submit(run, config, profile, due, jobs, active)


def tasks_in_use(jobs: Sequence[SubmittedJob], active: Mapping[slurm.TaskId, slurm.Queued]) -> int | None:
    """How many tasks the queued arrays were divided into: new ones have to divide alike. None if none is queued."""
    arrays = {job.id: job.tasks for job in jobs if job.kind in ARRAYS}
    return next((arrays[task.job] for task in active if task.job in arrays), None)


def _dry_run(survey: Survey, profile: Profile, stages: Sequence[str]) -> str:
    run, config = survey.run, survey.config
    stale = next(iter(stale_before(stage_named("fetch"), survey)), None)
    due = what_is_due(survey, profile, stages)
    common = common_script(run, config, profile, due.tasks)
    steps = build_chain(profile, common, due, config.tiles.size)
    notes = [] if stale is None else [f"{stale.told()}: `smalti submit` searches again; this is the plan that is there"]
    parts = [f"# {step.name}\n{render_script(profile, step.script)}" for step in steps]
    notes += cost_lines(profile, steps, due)
    if "fetch" in stages and profile.kind("fetch").where == "here":
        notes.insert(1 if stale is None else 2, "  fetch        this node, before anything is queued")
    for step in steps:
        if step.after:
            notes.append(f"  {step.name} waits for {', '.join(f'{how}:{name}' for how, name in step.after)}")
    notes += quality_warnings(run) if due.shards["infer"] else []
    found = preflight(run, config, Plan.read(run), elsewhere=True).items
    notes += [f"{item.verdict}: {item.check}: {item.text}: {item.remedy}" for item in found if item.remedy]
    try:
        _check_inputs(run, config, profile, due, common)
        _check_number(profile, steps)
    except SmaltiError as error:
        notes.append(f"{Verdict.FAILED}: `smalti submit` would refuse this: {error}")
    return "\n".join([*parts, *notes] if steps else [*notes, "nothing is missing"])


def _submit(
    run: Run,
    config: Config,
    profile: Profile,
    due: Due,
    jobs: list[SubmittedJob],
    active: Mapping[slurm.TaskId, slurm.Queued],
) -> str:
    common = common_script(run, config, profile, due.tasks)
    _check_inputs(run, config, profile, due, common)
    steps = build_chain(profile, common, due, config.tiles.size)
    queued_gathers = [job for job in jobs if job.kind not in ARRAYS and any(task.job == job.id for task in active)]
    begun = {task.job for task, entry in active.items() if entry.state != "PENDING"}
    running = [job for job in queued_gathers if job.id in begun]
    if not steps or (all(step.script.kind not in ARRAYS for step in steps) and (queued_gathers or active)):
        return "nothing is missing" if not active else "nothing to add: what is missing is queued"
    _check_number(profile, steps, len(active))
    warnings = quality_warnings(run) if due.shards["infer"] else []
    scripts = _write_scripts(run, profile, steps, len(jobs))
    for path in scripts.values():
        slurm.test_only(path)
    waiting = [job.id for job in queued_gathers if job not in running]
    slurm.scancel(waiting)  # they would gather before what is submitted now has run
    unfinished = sorted({task.job for task in active} - set(waiting))
    lines = []
    ids: dict[str, int] = {}
    for step in steps:
        dependency = dependency_of(step, ids, unfinished)
        options = ["--kill-on-invalid-dep=yes", f"--dependency={dependency}"] if dependency else []
        try:
            ids[step.name] = slurm.sbatch(scripts[step.name], options)
        except slurm.SlurmError as error:
            raise _cut_short(run, step, ids, error) from error
        stages = step.script.stages or (step.script.kind,)
        jobs = [
            *jobs,
            SubmittedJob(ids[step.name], step.script.kind, stages, step.script.array, step.script.tasks, dependency),
        ]
        try:
            write_ledger(run, jobs)
        except BaseException:
            slurm.scancel([ids[step.name]])  # a job that nobody knows of could be neither watched nor cancelled
            raise
        number = f" [{step.script.array}]" if step.script.array is not None else ""
        lines.append(f"{step.name:<14} job {ids[step.name]}{number}{f'  {dependency}' if dependency else ''}")
    lines += [*cost_lines(profile, steps, due), *warnings, f"look with `smalti status {run.quoted}`"]
    return "\n".join(lines)


def _cut_short(run: Run, step: Step, ids: Mapping[str, int], error: slurm.SlurmError) -> SmaltiError:
    """What to say when Slurm takes some jobs of a chain and not the next, as at a limit of jobs."""
    if not ids:
        return error
    queued = ", ".join(f"{name} {number}" for name, number in ids.items())
    return SmaltiError(
        f"{step.name} was not queued: {error}; queued are {queued}: `smalti resubmit {run.quoted}` adds the rest once "
        f"the cause is mended, `smalti cancel {run.quoted}` ends these",
        exit_code=error.exit_code,
    )


def dependency_of(step: Step, ids: Mapping[str, int], unfinished: Sequence[int]) -> str:
    """A step's --dependency: after its predecessors; what gathers, and a first wave, after every unfinished job too."""
    parts = [f"{how}:{ids[name]}" for how, name in step.after]
    if step.behind or step.script.kind not in ARRAYS:
        parts += [f"afterany:{number}" for number in unfinished]
    return ",".join(parts)


def _write_scripts(run: Run, profile: Profile, steps: Sequence[Step], number: int) -> dict[str, Path]:
    folder = slurm_folder(run) / "scripts"
    folder.mkdir(parents=True, exist_ok=True)  # and with it the folder of the logs
    paths = {}
    for step in steps:
        path = folder / f"{number:04d}-{step.name}.sbatch"
        write_bytes(path, render_script(profile, step.script).encode())
        path.chmod(0o755)
        paths[step.name] = path
    return paths


def cancel(run: Run) -> str:
    """Cancel every queued job of a run. What is complete stays; `smalti submit` goes on from there.

    Raises:
        SmaltiError: if Slurm does not answer.
    """
    jobs = sorted({task.job for task in _active(read_submitted(Run(run.root.absolute())))})
    slurm.scancel(jobs)
    if not jobs:
        return "no job of this run is queued"
    return f"cancelled {', '.join(str(job) for job in jobs)}; `smalti submit {run.quoted}` goes on with what is missing"
