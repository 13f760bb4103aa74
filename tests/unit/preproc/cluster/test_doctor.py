"""Doctor's checks one by one, each seen red: no Slurm is needed for these."""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.embedded import plan_of, tiled_run
from support.range_server import Faults, RangeServer, serve_folder

from infer.contract import Plan, Run, SmaltiError, sha256_file, write_json
from infer.contract.plan import Cost
from preproc.cluster import doctor, machine_checks
from preproc.cluster.check_jobs import parse_findings, probe_profile
from preproc.cluster.check_on_node import MARK
from preproc.cluster.image import engine_hash, record_path
from preproc.cluster.quota import quota_of
from preproc.cluster.sbatch import Script
from preproc.cluster.slurm import parse_associations
from preproc.run.checks import Finding, Findings, Verdict, error_text, failed, finding_from, ok, warning
from preproc.run.config import parse_config
from preproc.run.container import Container
from preproc.run.profile import Profile, load_profile, merge
from preproc.run.resources import ENGINE
from preproc.run.waves import Space, disk_of

RUN_TOML = """
[region]
bbox = [4.05, 50.74, 4.12, 50.79]
start = "2024-01-01"
end = "2024-12-31"
[archive]
source = "mpc"
"""


def profile(**changes: Any) -> Profile:
    return Profile.model_validate(merge(load_profile("local", Path()).model_dump(exclude_unset=True), changes))


def check_quota(site: Profile) -> list[Finding]:
    return machine_checks.check_quota(Run(Path("/r")), parse_config(RUN_TOML, Path("/r/run.toml")), site, None)


def worst(found: list[Finding]) -> Verdict:
    return Findings(tuple(found)).worst


def test_leaks_and_silent_overrides_are_named(tmp_path: Path) -> None:
    found = machine_checks.check_environment({"PROJ_DATA": "/x", "SBATCH_PARTITION": "y", "HOME": "/z"}, tmp_path)
    assert [item.verdict for item in found] == [Verdict.WARNING, Verdict.WARNING]
    assert "PROJ_DATA" in found[0].text
    assert "SBATCH_PARTITION" in found[1].text
    assert worst(machine_checks.check_environment({"HOME": "/z"}, tmp_path)) is Verdict.OK
    (tmp_path / ".local" / "lib" / "python3.11" / "site-packages" / "numpy").mkdir(parents=True)
    assert "numpy" in machine_checks.check_environment({}, tmp_path)[0].text


def test_proj_is_right_here_and_a_wrong_answer_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert worst(machine_checks.check_proj()) is Verdict.OK
    monkeypatch.setattr(machine_checks, "_ANTWERP_UTM31", (597912.4, 5672997.4))
    assert "off by 100 m" in machine_checks.check_proj()[0].text


def test_a_checkout_that_lost_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine_checks, "ENGINE", tmp_path / "infer")
    found = machine_checks.check_checkout()[0]
    assert found.verdict is Verdict.FAILED
    assert "infer/checkpoints/demo.pt" in found.text
    assert "slash" in found.remedy


def test_what_the_sites_quota_command_says_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "dusage"
    tool.write_text("#!/bin/sh\necho 'space   10 of 20 GB'\necho\necho \"files   $1\"\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    said = check_quota(profile(storage={"quota": "dusage -u"}))
    assert worst(said) is Verdict.OK
    assert "space 10 of 20 GB / files -u" in said[0].text
    assert check_quota(profile()) == []
    tool.write_text("#!/bin/sh\nexit 3\n")
    assert worst(check_quota(profile(storage={"quota": "dusage"}))) is Verdict.WARNING
    assert "not on the PATH" in check_quota(profile(storage={"quota": "surely-no-such-tool"}))[0].text


def test_the_nodes_own_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_DISK", str(tmp_path))

    def found(scratch: str) -> list[Finding]:
        text = f'{RUN_TOML}[site]\nscratch = "{scratch}"\n'
        return machine_checks.check_scratch(parse_config(text, tmp_path / "run.toml"))

    assert worst(found("$NODE_DISK/x")) is Verdict.OK
    assert worst(found("$SURELY_NOT_SET/x")) is Verdict.FAILED


def test_the_purge_clock(tmp_path: Path) -> None:
    site = profile(storage={"purge_days": 21})
    (tmp_path / "run.toml").write_text("")
    assert worst(machine_checks.check_purge(Run(tmp_path), site)) is Verdict.OK
    old = time.time() - 19 * 86400
    os.utime(tmp_path / "run.toml", (old, old))
    assert "goes in 2 days" in machine_checks.check_purge(Run(tmp_path), site)[0].text
    assert machine_checks.check_purge(Run(tmp_path), profile()) == []


def test_a_run_directory_that_cannot_be_written(tmp_path: Path) -> None:
    assert worst(machine_checks.check_run_directory(Run(tmp_path))) is Verdict.OK
    (tmp_path / "file").write_text("")
    assert worst(machine_checks.check_run_directory(Run(tmp_path / "file"))) is Verdict.FAILED


def test_rocm_on_lumi_is_refused(tmp_path: Path) -> None:
    account = {"job": {"account": "project_1"}}
    lumi = merge(load_profile("lumi", Path()).model_dump(exclude_unset=True), account)
    right = Profile.model_validate(lumi)
    wrong = Profile.model_validate(merge(lumi, {"runtime": {"gpu_flag": "--rocm"}}))
    assert worst(doctor.check_profile(Run(tmp_path), right)) is Verdict.OK
    assert "--rocm" in doctor.check_profile(Run(tmp_path), wrong)[0].text
    lacking = load_profile("lumi", Path())
    assert "job.account" in doctor.check_profile(Run(tmp_path), lacking)[0].text


def test_memory_against_the_estimate() -> None:
    plan = replace(plan_of([]), estimate={"infer": Cost(1, 1, 1, 3 * 2**30, 1)})
    assert worst(doctor.check_memory(profile(jobs={"infer": {"memory": "4G"}}), plan)) is Verdict.OK
    assert worst(doctor.check_memory(profile(jobs={"infer": {"memory": "3G"}}), plan)) is Verdict.FAILED
    shared = {"memory": "32G", "gpus": 8}  # one memory for eight processes
    assert worst(doctor.check_memory(profile(jobs={"infer": {**shared, "memory_style": "mem"}}), plan)) is Verdict.OK
    assert worst(doctor.check_memory(profile(jobs={"infer": {**shared, "memory": "16G"}}), plan)) is Verdict.FAILED
    each = {**shared, "memory": "4G", "memory_style": "mem-per-gpu"}
    assert worst(doctor.check_memory(profile(jobs={"infer": each}), plan)) is Verdict.OK


def test_binds_that_are_not_there(tmp_path: Path) -> None:
    assert worst(doctor.check_binds(profile(runtime={"binds": [str(tmp_path)]}))) is Verdict.OK
    assert worst(doctor.check_binds(profile(runtime={"binds": [str(tmp_path / "nowhere")]}))) is Verdict.FAILED


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "x.sif"
    path.write_bytes(b"an image")
    write_json(
        record_path(path),
        {
            "sha256": sha256_file(path),
            "bytes": path.stat().st_size,
            "engine": engine_hash(ENGINE),
            "flavour": "rocm",
        },
    )
    return path


def record_check(image: Path, site: Profile) -> Finding:
    script = Script("infer", Path("/r"), Path("/p"), Path("/l"), container=Container(image, "apptainer"))
    return doctor.check_record(script, site, record_path(image))[0]


def test_an_image_against_its_record(image: Path) -> None:
    assert record_check(image, profile(runtime={"gpu_flag": "--rocm"})).verdict is Verdict.OK
    assert "a rocm image with --nv" in record_check(image, profile(runtime={"gpu_flag": "--nv"})).text
    record = json.loads(record_path(image).read_text())
    write_json(record_path(image), {**record, "engine": "another"})
    assert "another engine" in record_check(image, profile(runtime={"engine": "image"})).text
    assert record_check(image, profile(runtime={"engine": "checkout"})).verdict is Verdict.OK
    image.write_bytes(b"an Image")
    assert "differs from its record" in record_check(image, profile()).text


def test_the_account_and_how_many_jobs_it_may_have() -> None:
    site = profile(job={"account": "crops"}, limits={"max_jobs": 500})
    assert parse_associations("crops|200\nother|\n") == {"crops": 200, "other": 0}
    assert doctor.account_findings(site, {"crops": 0}) == []
    assert doctor.account_findings(site, None) == []
    assert "not among yours" in doctor.account_findings(site, {"other": 0})[0].text
    assert "may have 200 queued" in doctor.account_findings(site, {"crops": 200})[0].text


def test_no_slurm_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "not on the PATH" in doctor.check_slurm(profile())[0].text


def test_findings_for_people_and_machines() -> None:
    found = Findings(
        (ok("a", "fine"), warning("bb", "hm", "look"), finding_from(json.loads(PROBED[len(MARK) :]), "node"))
    )
    assert found.worst is Verdict.FAILED
    assert found.as_text().splitlines() == [
        "ok       a   fine",
        "warning  bb  hm: look",
        "failed   c   [node] broken: mend it",
        "1 ok, 1 warnings, 1 failed",
    ]
    assert json.loads(found.as_json())["findings"][2]["where"] == "node"
    assert Findings(()).worst is Verdict.OK
    assert failed("x", "y", "z").verdict is Verdict.FAILED


PROBED = MARK + '{"check": "c", "verdict": "failed", "text": "broken", "remedy": "mend it"}'


def test_probes_are_read_from_logs_and_ask_for_little() -> None:
    assert parse_findings(f"noise\n{PROBED}\nmore\n", "container")[0].where == "container"
    site = Profile.model_validate(merge(load_profile("lumi", Path()).model_dump(exclude_unset=True), {}))
    short = probe_profile(site).kind("infer")
    assert short.time == "00:10:00"
    assert short.env["SMALTI_GPU_ARCHS"] == "gfx90a"
    assert short.env["MIOPEN_USER_DB_PATH"]  # and all that real tasks have


def test_messages_end_with_what_to_do() -> None:
    assert error_text(SmaltiError("/a/b: missing: fetch it")) == ("/a/b: missing", "fetch it")
    assert error_text(SmaltiError("nothing"))[1] == "see above"


@pytest.mark.parametrize(
    ("scheme", "endpoint"), [("s3", "AWS_ENDPOINT_URL"), ("gs", "GOOGLE_BASE_URL"), ("http", "UNUSED")]
)
def test_a_scene_is_read_as_fetch_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, endpoint: str
) -> None:
    """By its own client: buckets, signatures, proxies and retries."""
    for name in ("AWS_ACCESS_KEY_ID", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "box").mkdir()
    (tmp_path / "box" / "B02.tif").write_bytes(b"II*\0" * 99)
    faults = Faults(always={"/box/busy.tif": "503"})
    with RangeServer(serve_folder(tmp_path), faults=faults).running() as server:
        monkeypatch.setenv(endpoint, server.url)
        place = f"{server.url}/box" if scheme == "http" else f"{scheme}://box"
        text = RUN_TOML.replace('"mpc"', f'"static"\nhref = "{place}/catalog.json"')
        config = parse_config(text, tmp_path / "run.toml")

        def check(href: str) -> Finding:
            monkeypatch.setattr(machine_checks, "load_scenes", lambda *_: [SimpleNamespace(assets={"B02": href})])
            (found,) = machine_checks.check_archive(Run(tmp_path), config)
            return found

        write_json(tmp_path / "plan.json", {})
        assert check(f"{place}/B02.tif") == ok("archive", f"{place}/B02.tif can be read")
        gone = check(f"{place}/gone.tif")
        assert gone.verdict is Verdict.FAILED
        assert f"{place}/gone.tif: the server answers 404" in f"{gone.text}: {gone.remedy}"
        busy = check(f"{place}/busy.tif")
        assert busy.verdict is Verdict.FAILED
        assert "503, 2 times" in busy.text
        assert server.tally.requests["/box/busy.tif"] == 2
        assert check(f"{tmp_path}/box/B02.tif").verdict is Verdict.OK
        assert "does not read ftp" in check("ftp://box/B02.tif").text


LFS = """\
Disk quotas for usr me (uid 10012345):
      Filesystem    kbytes   quota   limit   grace   files   quota   limit   grace
        /scratch  41285932       0 1048576000       -  312045       0 1000000       -
/cluster/projects/nn1234k/with/a/long/name
                 955183104* 943718400 1048576000 6d23h12m  12045       0       0       -
uid 10012345 is using default block quota setting
"""
LUMI = """\
Quota for your projects:

Disk area                          Capacity(used/max)  Files(used/max)
----------------------------------------------------------------------
Personal home folder
 Home folder is hosted on lustrep3
/users/me                                   3.4G/22G       19K/100K
----------------------------------------------------------------------
Project: project_465000000
 Project is hosted on lustrep4
/projappl/project_465000000                 1.2G/54G         5/100K
/scratch/project_465000000                   40T/55T      1.9M/2.0M
----------------------------------------------------------------------
"""


def test_quotas_as_lustre_tells_them() -> None:
    scratch = quota_of(LFS, "lfs", Path("/scratch/me/run"))
    assert scratch is not None
    assert scratch.left == Space((1048576000 - 41285932) * 1024, 1000000 - 312045)
    project = quota_of(LFS, "lfs", Path("/cluster/projects/nn1234k/with/a/long/name/run"))
    assert project is not None
    assert project.left.bytes < 0, "the soft limit is passed, which an asterisk says"
    assert project.left.files == math.inf, "0 is no limit"
    assert quota_of(LFS, "lfs", Path("/home/me")) is None
    assert quota_of("", "lfs", Path("/scratch")) is None


def test_quotas_as_lumi_tells_them() -> None:
    quota = quota_of(LUMI, "used/max", Path("/scratch/project_465000000/run"))
    assert quota is not None
    assert quota.left == Space(15e12, pytest.approx(0.1e6))
    assert quota_of(LUMI, "used/max", Path("/scratch/project_465000001/run")) is None


def test_the_peak_is_compared_with_the_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiled_run(tmp_path / "run", across=4, down=2)
    plan = replace(Plan.read(run), estimate={"fetch": Cost(1, 10**9, 88, 1, 1), "infer": Cost(1, 10**8, 24, 1, 1)})
    kept = parse_config(RUN_TOML, tmp_path / "run.toml")
    waves = parse_config(f'{RUN_TOML}[tiles]\nkeep = "record"\n[site]\ntile_space = "200MB"\n', tmp_path / "run.toml")
    assert [stage.stage for stage in disk_of(plan, kept)] == ["fetch", "infer", "all"]
    assert disk_of(plan, kept)[-1].peak == Space(1.1e9, 112)
    assert disk_of(plan, waves)[-1].peak.bytes < 0.4e9
    assert disk_of(plan, waves)[0].end.files == 8 * 5
    tool = tmp_path / "bin" / "lfs"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\necho '{tmp_path} 100 0 600000 - 10 0 500 -'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")
    site = profile(storage={"quota": "lfs quota -u $USER", "quota_format": "lfs"})
    (found,) = machine_checks.check_quota(run, kept, site, plan)
    assert found.verdict is Verdict.FAILED
    assert "112 files needed at the peak" in found.text
    assert "tile_space" in found.remedy
    assert worst(machine_checks.check_quota(run, waves, site, plan)) is Verdict.OK
