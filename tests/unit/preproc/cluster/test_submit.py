"""The chain of jobs: how tiles are divided, which tasks are due, what waits for what. No Slurm is needed."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.embedded import TOML, tiled_run
from support.runs import make_run

from infer.contract import Run, Shard, SmaltiError
from preproc.cluster.interactive import cluster_options
from preproc.cluster.jobs import Due, Step, build_chain, cost_lines, gathering_jobs
from preproc.cluster.sbatch import Script
from preproc.cluster.slurm import Queued, TaskId, compress, expand
from preproc.cluster.submit import Request, dependency_of, submit, tasks_in_use, without_active
from preproc.cluster.submitted import SubmittedJob, read_submitted
from preproc.plan.stage import PlanStage
from preproc.run.config import load_config, parse_config
from preproc.run.profile import Job, Limits, Profile, load_profile, merge
from preproc.run.stage import run_stage
from preproc.run.task_count import choose_tasks
from preproc.run.waves import Space, Waves

COMMON = Script("", Path("/r"), Path("/p"), Path("/r/logs/slurm"), tasks=4)
LOCAL = load_profile("local", Path())
ALL = ("stitch", "sample", "train", "predict", "validate", "report")


def due(fetch: tuple[int, ...], infer: tuple[int, ...], gathers: tuple[str, ...] = ALL) -> Due:
    return Due(tasks=4, tiles=40, shards={"fetch": fetch, "infer": infer}, gathers=gathers)


def by_name(steps: list[Step]) -> dict[str, Step]:
    return {step.name: step for step in steps}


def test_everything_is_due() -> None:
    steps = build_chain(LOCAL, COMMON, due((0, 1, 2, 3), (0, 1, 2, 3)), 512)
    assert [step.name for step in steps] == ["fetch", "infer", "stitch", "classify"]
    chain = by_name(steps)
    assert chain["infer"].after == (("aftercorr", "fetch"),)
    assert chain["infer"].script.array == chain["fetch"].script.array == "0-3"
    assert chain["fetch"].script.pass_on_failed  # one bad tile must not keep its shard's others from the engine
    assert not chain["infer"].script.pass_on_failed
    assert chain["stitch"].after == (("afterany", "infer"),)
    assert chain["classify"].after == (("afterany", "stitch"),)
    assert chain["classify"].script.stages == ("sample", "train", "predict", "validate", "report")


def test_many_sheets_are_arrays_between_what_comes_before_and_what_joins_them() -> None:
    site = Profile.model_validate(merge(LOCAL.model_dump(exclude_unset=True), {"job": {"cpus": 2}}))
    wanted = replace(due((0, 1, 2, 3), (0, 1, 2, 3)), sheets=5, parts=3)
    chain = by_name(build_chain(site, COMMON, wanted, 512))
    assert {name: [other for _, other in step.after] for name, step in chain.items()} == {
        "fetch": [],
        "infer": ["fetch"],
        "stitch-sheets": ["infer"],
        "stitch": ["stitch-sheets"],
        "sample-tiles": ["infer"],
        "train": ["sample-tiles"],
        "predict-sheets": ["train"],
        "classify": ["predict-sheets", "stitch"],
    }
    sheets, parts = chain["predict-sheets"].script, chain["sample-tiles"].script
    assert (sheets.array, sheets.tasks, sheets.stages, sheets.resources) == ("0-2", 3, ("predict",), "classify")
    assert (parts.array, parts.tasks, parts.stages, parts.resources) == ("0-1", 2, ("sample",), "classify")
    assert chain["train"].script.stages == ("sample", "train")
    assert chain["classify"].script.stages == ("predict", "validate", "report")
    few = by_name(build_chain(site, COMMON, replace(wanted, sheets=2, parts=2), 512))
    assert list(few) == ["fetch", "infer", "stitch", "classify"], "as many as the job has CPUs are no array"
    only_map = build_chain(site, COMMON, replace(due((), (), ("predict", "report")), sheets=5), 512)
    assert [step.name for step in only_map] == ["predict-sheets", "classify"]
    narrow = site.model_copy(update={"limits": Limits(max_array=2)})
    assert by_name(build_chain(narrow, COMMON, wanted, 512))["stitch-sheets"].script.array == "0-1"
    assert gathering_jobs(site, 5, 3) == 3 + 3 + 2 + 3
    assert gathering_jobs(site, 1, 1) == 3


def test_what_can_be_trained_side_by_side_is_an_array_before_the_job_that_ends_it() -> None:
    site = Profile.model_validate(merge(LOCAL.model_dump(exclude_unset=True), {"job": {"cpus": 3}}))
    wanted = replace(due((), (), ("sample", "train", "predict", "report")), trials=4)
    chain = by_name(build_chain(site, COMMON, wanted, 512))
    assert list(chain) == ["sample", "train-trials", "classify"]
    assert chain["sample"].script.stages == ("sample",)
    trials = chain["train-trials"].script
    assert (trials.array, trials.tasks, trials.stages, trials.resources) == ("0-1", 2, ("train",), "classify")
    assert chain["train-trials"].after == (("afterany", "sample"),)
    assert chain["classify"].after == (("afterany", "train-trials"),)
    assert chain["classify"].script.stages == ("train", "predict", "report")
    roomy = Profile.model_validate(merge(LOCAL.model_dump(exclude_unset=True), {"job": {"cpus": 4}}))
    assert [step.name for step in build_chain(roomy, COMMON, wanted, 512)] == ["classify"]
    heads = by_name(
        build_chain(roomy, COMMON, replace(wanted, networks=5, trials=1, gathers=("train", "predict")), 512)
    )
    assert list(heads) == ["train-networks", "classify"]
    networks = heads["train-networks"].script
    assert (networks.array, networks.tasks, networks.resources) == ("0-4", 5, "infer")
    many = by_name(build_chain(site, COMMON, replace(wanted, sheets=7, parts=4), 512))
    assert list(many) == ["sample-tiles", "sample", "train-trials", "train", "predict-sheets", "classify"]
    assert many["sample"].script.stages == ("sample",)
    assert many["train"].script.stages == ("train",)


def test_tasks_whose_tiles_are_there_wait_for_nothing() -> None:
    chain = by_name(build_chain(LOCAL, COMMON, due((1, 3), (0, 1, 3)), 512))
    assert chain["fetch"].script.array == "1,3"
    assert chain["infer"].script.array == "1,3"
    assert chain["infer"].after == (("aftercorr", "fetch"),)
    assert chain["infer-ready"].script.array == "0"
    assert chain["infer-ready"].after == ()
    assert set(chain["stitch"].after) == {("afterany", "infer"), ("afterany", "infer-ready")}


def test_waves_follow_each_other() -> None:
    waves = Waves(Space(1e9, 1e3), shards=6, together=2)
    asked = Due(6, 60, {"fetch": (0, 1, 2, 5), "infer": (0, 1, 2, 4, 5)}, ALL, waves=waves)
    chain = by_name(build_chain(LOCAL, COMMON, asked, 512))
    shown = {name: (step.script.array, step.after) for name, step in chain.items() if step.script.array}
    assert shown == {
        "infer-ready": ("4", ()),
        "fetch-1": ("0-1", (("afterany", "infer-ready"),)),
        "infer-1": ("0-1", (("aftercorr", "fetch-1"),)),
        "fetch-2": ("2", (("afterany", "infer-1"),)),
        "infer-2": ("2", (("aftercorr", "fetch-2"),)),
        "fetch-3": ("5", (("afterany", "infer-2"),)),
        "infer-3": ("5", (("aftercorr", "fetch-3"),)),
    }
    assert next(iter(chain)) == "infer-ready"
    assert {name for _, name in chain["stitch"].after} == {"infer-ready", "infer-1", "infer-2", "infer-3"}
    alone = build_chain(LOCAL, COMMON, replace(asked, shards={"fetch": (0, 1), "infer": (0, 1)}), 512)
    assert [step.name for step in alone[:2]] == ["fetch", "infer"]
    assert dependency_of(alone[0], {}, [7, 8]) == "afterany:7,afterany:8", "queued waves go first"
    assert dependency_of(alone[1], {"fetch": 9}, [7, 8]) == "aftercorr:9"


def test_only_what_is_missing() -> None:
    assert build_chain(LOCAL, COMMON, due((), (), ()), 512) == []
    chain = build_chain(LOCAL, COMMON, due((), (), ("predict", "report")), 512)
    assert [(step.name, step.script.stages, step.after) for step in chain] == [("classify", ("predict", "report"), ())]
    only_fetch = build_chain(LOCAL, COMMON, due((2,), (), ()), 512)
    assert [step.name for step in only_fetch] == ["fetch"]
    assert not only_fetch[0].script.pass_on_failed  # nobody waits: Slurm may see the failure


@given(st.sets(st.integers(0, 3000)))
def test_lists_of_tasks_survive_compression(numbers: set[int]) -> None:
    if numbers:
        assert expand(compress(numbers)) == sorted(numbers)
        assert expand(compress(numbers) + "%8") == sorted(numbers)


def test_lists_of_tasks_read_like_slurms() -> None:
    assert compress([3, 7, 12, 13, 14, 15]) == "3,7,12-15"
    assert compress([0, 4, 8]) == "0-8:4"
    assert compress(range(10_000)) == "0-9999"
    assert compress([5]) == "5"
    for text in ("", "a", "3-", "1;2"):
        with pytest.raises(SmaltiError, match="not a list of task numbers"):
            expand(text)


@given(tiles=st.integers(1, 20_000), tasks=st.integers(1, 300), gpus=st.integers(1, 8))
def test_tasks_of_fetch_and_infer_pair(tiles: int, tasks: int, gpus: int) -> None:
    """Process r of infer task i does shard (i + r n) / (n g): together exactly what fetch task i wrote."""
    index = tasks // 2
    units = range(tiles)
    fetched = Shard(index, tasks).take(units)
    inferred = [unit for rank in range(gpus) for unit in Shard(index + rank * tasks, tasks * gpus).take(units)]
    assert sorted(inferred) == fetched


def test_number_of_tasks() -> None:
    job = Job(time="02:00:00", tile_minutes=3)
    assert choose_tasks(1000, 512, [job], Limits(pack_minutes=30)) == 100
    assert choose_tasks(1000, 256, [job], Limits(pack_minutes=30)) == 25  # a quarter of the pixels
    assert choose_tasks(1000, 512, [job], Limits(pack_minutes=30, max_array=50)) == 50
    assert choose_tasks(1000, 512, [job], Limits(pack_minutes=30, max_jobs=40)) == 38
    assert choose_tasks(1000, 512, [job, job], Limits(pack_minutes=30, max_jobs=200)) == 99  # LUMI: two arrays wait
    assert choose_tasks(5, 512, [job], Limits(tasks=9)) == 5  # never an empty task
    assert choose_tasks(5, 512, [job], Limits()) == 1
    assert choose_tasks(1000, 512, [job], Limits(pack_minutes=6000)) == 32  # they must fit their time limit
    node = Job(time="02:00:00", tile_minutes=3, gpus=8)
    assert choose_tasks(1000, 512, [node], Limits(pack_minutes=30)) == 13
    slow = Job(time="02:00:00", tile_minutes=8)
    assert choose_tasks(1000, 512, [slow, job], Limits(pack_minutes=30)) == 100  # both take 30 minutes or more


@given(st.integers(1, 50_000), st.sampled_from([64, 128, 256, 512, 1024]), st.integers(0, 500), st.integers(1, 2000))
def test_number_of_tasks_keeps_to_the_limits(tiles: int, size: int, wanted: int, most: int) -> None:
    tasks = choose_tasks(tiles, size, [Job(), Job(gpus=1)], Limits(tasks=wanted, max_array=most))
    assert 1 <= tasks <= min(tiles, most)


def queued(*tasks: TaskId) -> dict[TaskId, Queued]:
    return {task: Queued(task, "PENDING", "Priority", 0) for task in tasks}


def test_what_is_queued_is_not_queued_again() -> None:
    jobs = [SubmittedJob(7, "fetch", ("fetch",), "0-3", 4), SubmittedJob(8, "infer", ("infer",), "0-3", 4)]
    active = queued(TaskId(7, 2), TaskId(8, 2), TaskId(8, 3))
    left = without_active(due((1, 2), (0, 1, 2, 3)), jobs, active)
    assert left.shards == {"fetch": (1,), "infer": (0, 1)}
    assert tasks_in_use(jobs, active) == 4
    assert tasks_in_use(jobs, {}) is None
    sheets = SubmittedJob(9, "stitch-sheets", ("stitch",), "0-1", 2)
    assert tasks_in_use([*jobs, sheets], queued(TaskId(9, 1))) is None, "its tasks divide sheets, not tiles"


def test_what_gathers_waits_for_older_jobs_too() -> None:
    stitch = Step("stitch", replace(COMMON, kind="stitch"), (("afterany", "infer"),))
    assert dependency_of(stitch, {"infer": 9}, [5, 6]) == "afterany:9,afterany:5,afterany:6"
    infer = Step("infer", replace(COMMON, kind="infer", array="0"), (("aftercorr", "fetch"),))
    assert dependency_of(infer, {"fetch": 3}, [5, 6]) == "aftercorr:3"


def test_cost_is_said_in_the_sites_units() -> None:
    lumi = Profile.model_validate({**load_profile("lumi", Path()).model_dump(), "name": "lumi"})
    lines = cost_lines(lumi, build_chain(lumi, COMMON, due((0, 1, 2, 3), (0, 1, 2, 3)), 512), due((), ()))
    text = "\n".join(lines)
    assert "at most 32.0 GPU-hours, about 2.0 expected" in text  # 4 tasks x 8 h; 40 tiles x 3 min
    assert "billed as at most 16.0 GPU-hours" in lines[-1]  # LUMI bills half an hour for an hour of a GCD


def test_workers_of_a_notebook_ask_for_memory_in_the_sites_way(tmp_path: Path) -> None:
    """dask-jobqueue asks by --mem unless told to skip it, which Slurm refuses beside --mem-per-cpu."""
    run = tiled_run(tmp_path / "run", across=1, down=1)
    site = '[site]\nprofile = "{}"\njob.account = "nn1"\njob.modules = ["load Python/3.11"]\n'
    run.config.write_text(TOML + site.format("saga"))
    saga = cluster_options(run.root)
    assert (saga["memory"], saga["job_directives_skip"]) == ("65536MiB", ["--mem="])  # 16 CPUs of 4 GB
    assert saga["job_extra_directives"] == ["--mem-per-cpu=4G"]
    assert "module load Python/3.11" in saga["job_script_prologue"]
    run.config.write_text(TOML + site.format("lumi"))
    lumi = cluster_options(run.root)
    assert (lumi["memory"], lumi["job_directives_skip"], lumi["job_extra_directives"]) == ("65536MiB", [], [])


SBATCH = """#!/bin/sh
case "$1" in --test-only) exit 0 ;; esac
echo x >>{folder}/count
number=$(wc -l <{folder}/count)
if [ "$number" = {refused} ]; then echo "sbatch: error: AssocMaxSubmitJobLimit" >&2; exit 1; fi
if [ "$number" = {last} ]; then rm -r {jobs}; mkdir {jobs}; fi
echo $((100 + number))
"""


@pytest.fixture
def planned(archive: Path, tmp_path: Path) -> Run:
    run = Run(make_run(tmp_path / "run", archive))
    run_stage(PlanStage(), run, load_config(run))
    return run


def slurm_here(folder: Path, monkeypatch: pytest.MonkeyPatch, run: Run, *, refused: int = 0, last: int = 0) -> None:
    """Programs of Slurm that take jobs 101, 102 ..., refuse one, or lose the place where jobs are written down."""
    folder.mkdir()
    jobs = run.logs / "slurm" / "jobs.json"
    programs = {
        "sbatch": SBATCH.format(folder=folder, refused=refused, last=last, jobs=jobs),
        "squeue": "#!/bin/sh\n",
        "scancel": f'#!/bin/sh\necho "$@" >>{folder}/cancelled\n',
    }
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_a_chain_that_slurm_takes_in_part_is_told(
    planned: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm_here(tmp_path / "bin", monkeypatch, planned, refused=3)
    with pytest.raises(SmaltiError) as caught:
        submit(planned, load_config(planned), Request())
    assert "stitch was not queued: sbatch: AssocMaxSubmitJobLimit; queued are fetch 101, infer 102" in str(caught.value)
    assert "`smalti resubmit" in str(caught.value)
    assert [job.id for job in read_submitted(planned)] == [101, 102]


def test_no_job_is_left_that_nobody_knows_of(planned: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm_here(tmp_path / "bin", monkeypatch, planned, last=2)
    with pytest.raises((SmaltiError, OSError), match=r"jobs\.json"):
        submit(planned, load_config(planned), Request())
    assert (tmp_path / "bin" / "cancelled").read_text().split() == ["--quiet", "102"]


def test_a_dry_run_says_what_would_be_refused(tmp_path: Path) -> None:
    run = tiled_run(tmp_path / "run", across=2, down=1)
    site = f'[site]\nprofile = "lumi"\ncontainer = "{tmp_path}/none.sif"\njob.account = "project_1"\n'
    config = parse_config(TOML + site, run.config)
    told = submit(run, config, Request(dry_run=True)).splitlines()
    assert "#SBATCH --partition=small-g" in told
    assert f"would refuse this: {tmp_path}/none.sif: no such container image" in told[-1]
    (tmp_path / "none.sif").write_bytes(b"")
    assert not any("would refuse" in line for line in submit(run, config, Request(dry_run=True)).splitlines())
    few = parse_config(f"{TOML}{site}limits.max_jobs = 2\n", run.config)
    assert "3 tasks are more than limits.max_jobs (2)" in submit(run, few, Request(dry_run=True)).splitlines()[-1]
