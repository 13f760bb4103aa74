"""Job scripts: the text for every site against stored files, and what the shell in them does."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from infer.contract import SmaltiError
from preproc.cluster.sbatch import Script, directives, render, render_script
from preproc.run.container import Container
from preproc.run.profile import JOBS, Profile, load_profile, merge
from preproc.run.resources import SITES, SLURM

EXPECTED = Path(__file__).parent / "expected" / "sbatch"
UPDATE = "SMALTI_UPDATE_EXPECTED"
"""Set this variable to write the stored files anew; then read the difference."""


def profile(name: str) -> Profile:
    changes = {"job": {"account": "project_465000001"}, "jobs": {"infer": {}}}
    if name == "generic":
        changes["jobs"] = {"infer": {"partition": "gpu"}}
    return Profile.model_validate(merge(load_profile(name, Path()).model_dump(exclude_unset=True), changes))


def script(kind: str, site: Profile) -> Script:
    array = "0-2,7" if kind in ("fetch", "infer") else None
    return Script(
        kind=kind,
        run=Path("/scratch/me/a season"),
        python=Path("/home/me/smalti/.venv/bin/python"),
        logs=Path("/scratch/me/a season/logs/slurm"),
        tasks=8,
        array=array,
        container=Container(
            Path("/scratch/me/smalti.sif"),
            "singularity" if site.runtime.program == "singularity" else "apptainer",
            site.runtime.gpu_flag.replace("auto", ""),
            (*site.runtime.binds, "/home/me/.cache/smalti/weights", "/scratch/me/a season"),
        ),
        weights=Path("/home/me/.cache/smalti/weights"),
        stages=("sample", "train", "predict", "validate", "report"),
        scratch="$TMPDIR/smalti",
        pass_on_failed=kind == "fetch",
    )


@pytest.mark.parametrize("kind", JOBS)
@pytest.mark.parametrize("name", sorted(file.stem for file in SITES.glob("*.toml")))
def test_text_of_every_site(name: str, kind: str) -> None:
    site = profile(name)
    template = (SLURM / f"{kind}.sbatch").read_text()
    text = render(template, "# (slurm/common.sh stands here)\n", site, script(kind, site))
    stored = EXPECTED / f"{name}-{kind}.sbatch"
    if os.environ.get(UPDATE):
        stored.parent.mkdir(parents=True, exist_ok=True)
        stored.write_text(text)
    assert text == stored.read_text()


@pytest.mark.parametrize("kind", JOBS)
def test_templates_and_scripts_are_valid_shell(kind: str, tmp_path: Path) -> None:
    rendered = tmp_path / "job"
    rendered.write_text(render_script(profile("lumi-node"), script(kind, profile("lumi-node"))))
    for path in (SLURM / f"{kind}.sbatch", rendered):
        subprocess.run(["bash", "-n", str(path)], check=True)


@pytest.mark.parametrize(
    ("kind", "memory"), [("stitch-sheets", "32G"), ("sample-tiles", "64G"), ("predict-sheets", "64G")]
)
def test_tasks_of_sheets_run_a_shard_of_their_stage_with_its_resources(kind: str, memory: str, tmp_path: Path) -> None:
    site = profile("betzy")
    stage = kind.partition("-")[0]
    text = render_script(site, replace(script(kind, site), array="0-3", tasks=4, stages=(stage,)))
    assert f"STAGE={stage}\n" in text
    assert '"$STAGE" "$RUN" --shard "$INDEX/$TASKS"' in text
    assert "TASKS=4\n" in text
    assert f"#SBATCH --job-name=smalti-{kind}\n" in text
    assert f"{kind}-%A_%a.log" in text
    assert memory in text
    (tmp_path / "job").write_text(text)
    for path in (SLURM / "sheets.sbatch", tmp_path / "job"):
        subprocess.run(["bash", "-n", str(path)], check=True)


@pytest.mark.parametrize(("kind", "shown"), [("train-trials", "STAGE=train\n"), ("train-networks", "GPUS=8\n")])
def test_arrays_that_train_take_a_share_each(kind: str, shown: str, tmp_path: Path) -> None:
    site = profile("lumi-node")
    text = render_script(site, replace(script(kind, site), array="0-4", tasks=5, stages=("train",)))
    assert shown in text
    assert "TASKS=5\n" in text
    assert '--shard "$INDEX/$TASKS"' in text
    assert f"#SBATCH --job-name=smalti-{kind}\n" in text
    assert ("gpus" in text) == (kind == "train-networks")
    (tmp_path / "job").write_text(text)
    for path in (SLURM / "segment.sbatch", tmp_path / "job"):
        subprocess.run(["bash", "-n", str(path)], check=True)


@pytest.mark.parametrize(
    ("folder", "option"),
    [
        ("/a/season", "/a/season/fetch-%A_%a.log"),
        ("/a season/100%", '"/a season/100%%/fetch-%A_%a.log"'),
        ("/it's", r"/it\'s/fetch-%A_%a.log"),
        ('/a "b" #1', r'"/a \"b\" \#1/fetch-%A_%a.log"'),
    ],
)
def test_logs_are_named_as_slurm_reads_options(folder: str, option: str) -> None:
    site = profile("generic")
    assert f"--output={option}" in directives(
        site.kind("fetch"), site, replace(script("fetch", site), logs=Path(folder))
    )


@pytest.mark.parametrize("folder", ["/back\\slash", "/new\nline"])
def test_a_folder_that_slurm_writes_no_logs_to_is_refused(folder: str) -> None:
    site = profile("generic")
    with pytest.raises(SmaltiError, match="rename it"):
        directives(site.kind("fetch"), site, replace(script("fetch", site), logs=Path(folder)))


def test_rendering_is_pure_and_leaves_no_template_behind() -> None:
    site = profile("saga")
    text = render_script(site, script("infer", site))
    assert text == render_script(site, script("infer", site))
    assert ">>> settings" not in text
    assert "source " not in text
    assert text.count("#SBATCH --job-name") == 1


@pytest.mark.parametrize("name", ["lumi", "lumi-node"])
def test_never_rocm_on_lumi(name: str) -> None:
    site = profile(name)
    assert "--rocm" not in render_script(site, script("infer", site))


# The shell itself, run with a stand-in for Python: no Slurm is needed for that.


def run_script(
    tmp_path: Path,
    body: str,
    *,
    kind: str = "fetch",
    requeues: int = 1,
    env: dict[str, str] | None = None,
    scratch: str | None = None,
) -> tuple[subprocess.Popen[str], Path]:
    """Start a rendered script whose Python is a shell script with `body`; scontrol writes what it is told."""
    tools = tmp_path / "tools"
    tools.mkdir()
    python = tools / "python"
    python.write_text(f"#!/bin/bash\n{body}\n")
    told = tmp_path / "told"
    (tools / "scontrol").write_text(f'#!/bin/bash\necho "$@" >>{told}\nkill -KILL $PPID\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    site = Profile.model_validate({"name": "test", "limits": {"requeues": requeues}})
    chosen = Script(kind, tmp_path, python, tmp_path, tasks=3, array="0-2", scratch=scratch)
    (tmp_path / "job").write_text(render_script(site, chosen))
    environment = {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "SLURM_ARRAY_TASK_ID": "2",
        **(env or {}),
    }
    command = ["bash", str(tmp_path / "job")]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True), told


def outcome(process: subprocess.Popen[str]) -> tuple[int, str]:
    text, _ = process.communicate(timeout=60)
    return process.returncode, text


def test_the_step_gets_its_shard_and_a_clean_environment(tmp_path: Path) -> None:
    hostile = {"PYTHONPATH": "/x", "PROJ_DATA": "/x", "GDAL_DATA": "/x", "OMP_NUM_THREADS": "64"}
    process, _ = run_script(tmp_path, 'echo "args $@"; env | sort', env=hostile)
    code, text = outcome(process)
    assert code == 0
    assert f"args -s -m preproc.cli fetch {tmp_path} --shard 2/3" in text
    assert not [line for line in text.splitlines() if line.startswith(("PYTHONPATH=", "PROJ_", "GDAL_"))]
    assert f"OMP_NUM_THREADS={len(os.sched_getaffinity(0))}" in text
    assert "smalti-task: end code=0 stopped=no" in text


def test_the_engine_is_told_of_the_nodes_own_disk(tmp_path: Path) -> None:
    """Filled in on the node, where the container's clean environment would not know the variable."""
    process, _ = run_script(
        tmp_path,
        'echo "args $@"',
        kind="infer",
        scratch="${NODE_DISK}/a b/$SLURM_JOB_ID",
        env={"NODE_DISK": f"{tmp_path}/disk"},
    )
    code, text = outcome(process)
    assert code == 0, text
    assert f"args -s -m infer {tmp_path} --shard 2/3 --scratch {tmp_path}/disk/a b/7\n" in text
    assert (tmp_path / "disk" / "a b" / "7").is_dir()


def test_a_node_without_that_disk_says_so(tmp_path: Path) -> None:
    process, _ = run_script(tmp_path, "echo never", kind="infer", scratch="$NODE_DISK/x")
    code, text = outcome(process)
    assert code != 0
    assert "NODE_DISK: [site] scratch names it, and it is not set on this node" in text
    assert "never" not in text


@pytest.mark.parametrize("code", [1, 2, 3])
def test_failures_keep_their_code_and_are_not_tried_again(tmp_path: Path, code: int) -> None:
    process, told = run_script(tmp_path, f"exit {code}")
    assert outcome(process)[0] == code
    assert not told.exists()


def test_try_again_puts_the_task_back_into_the_queue(tmp_path: Path) -> None:
    process, told = run_script(tmp_path, "exit 75")
    text = outcome(process)[1]
    assert told.read_text() == "requeue 7\n"
    assert "end code=75" in text


def test_requeueing_has_a_cap(tmp_path: Path) -> None:
    process, told = run_script(tmp_path, "exit 75", requeues=2, env={"SLURM_RESTART_COUNT": "2"})
    code, text = outcome(process)
    assert code == 75
    assert "giving up" in text
    assert not told.exists()


WAITS = "trap 'echo finishing; sleep 0.3; exit 75' TERM; echo ready; while true; do sleep 0.05; done"


@pytest.mark.parametrize(("sent", "requeued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_signals_reach_the_step_and_its_answer_is_awaited(tmp_path: Path, sent: int, requeued: bool) -> None:
    process, told = run_script(tmp_path, WAITS)
    assert process.stdout is not None
    seen = ""
    while "ready" not in seen:
        seen += process.stdout.readline()
    process.send_signal(sent)
    _, text = outcome(process)
    assert text.index("finishing") < text.index("smalti-task: end code=75")
    assert told.exists() == requeued


def test_a_step_that_dies_of_the_signal_counts_as_try_again(tmp_path: Path) -> None:
    process, told = run_script(tmp_path, "echo ready; exec sleep 60")
    assert process.stdout is not None
    seen = ""
    while "ready" not in seen:
        seen += process.stdout.readline()
    time.sleep(0.2)
    process.send_signal(signal.SIGUSR1)
    assert "end code=75" in outcome(process)[1]
    assert told.exists()


def test_failed_tiles_are_passed_on_where_another_array_waits(tmp_path: Path) -> None:
    process, _ = run_script(tmp_path, "exit 1")
    text = (tmp_path / "job").read_text()
    process.wait(timeout=60)
    assert process.stdout is not None
    process.stdout.close()
    (tmp_path / "job").write_text(text.replace("PASS_ON_FAILED=''", "PASS_ON_FAILED=1"))
    done = subprocess.run(["bash", str(tmp_path / "job")], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0
    assert "passed on" in done.stdout
    assert "end code=1" in done.stdout  # the log keeps the truth


def test_templates_work_by_hand_from_the_checkout(tmp_path: Path) -> None:
    tool = tmp_path / "python"
    tool.write_text('#!/bin/bash\necho "args $@"\n')
    tool.chmod(0o755)
    env = {
        "PATH": os.environ["PATH"],
        "RUN": "/r",
        "PYBIN_PREPROC": str(tool),
        "TASKS": "4",
        "SLURM_ARRAY_TASK_ID": "3",
    }
    command = ["bash", str(SLURM / "fetch.sbatch")]
    done = subprocess.run(command, cwd=SLURM.parent, env=env, capture_output=True, text=True, check=False)
    assert "args -s -m preproc.cli fetch /r --shard 3/4" in done.stdout
    del env["RUN"]
    refused = subprocess.run(command, cwd=SLURM.parent, env=env, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "export RUN=the run directory" in refused.stderr


def test_processes_of_one_task_divide_its_tiles(tmp_path: Path) -> None:
    """Two processes: `srun` is stood in for by a loop over SLURM_LOCALID."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "srun").write_text(
        "#!/bin/bash\nwhile [ $# -gt 1 ]; do shift; done\n"
        'for id in 0 1; do SLURM_LOCALID=$id bash -c "$1" || exit; done\n'
    )
    (tools / "apptainer").write_text('#!/bin/bash\necho "$ROCR_VISIBLE_DEVICES ${HIP_VISIBLE_DEVICES-unset} $@"\nenv\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    site = Profile.model_validate(
        {
            "name": "test",
            "runtime": {"visible_devices": "rocr"},
            "jobs": {"infer": {"gpus": 2, "whole_nodes": True, "env": {"CACHE": "/tmp/x-$SLURM_LOCALID"}}},
        }
    )
    chosen = Script(
        "infer",
        tmp_path,
        Path("/p"),
        tmp_path,
        tasks=5,
        array="0-4",
        container=Container(Path("/i.sif"), "apptainer", binds=(str(tmp_path),)),
    )
    (tmp_path / "job").write_text(render_script(site, chosen))
    env = {"PATH": f"{tools}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": "3", "HIP_VISIBLE_DEVICES": "0,1"}
    done = subprocess.run(["bash", str(tmp_path / "job")], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    calls = [line for line in done.stdout.splitlines() if "--shard" in line]
    assert [line.split()[-1] for line in calls] == ["3/10", "8/10"]  # 3 and 8 modulo 10 are 3 modulo 5
    assert [line.split()[:2] for line in calls] == [["0", "unset"], ["1", "unset"]]
    assert "APPTAINERENV_CACHE=/tmp/x-1" in done.stdout
    assert all("--cleanenv" in line for line in calls)


def test_shellcheck_has_nothing_to_say() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    for path in sorted(SLURM.glob("*.sbatch")):
        subprocess.run(["shellcheck", "--severity=warning", "--exclude=SC1091", str(path)], check=True)
