"""Site profiles: what comes with smalti, people's own files, run.toml on top; everything unknown is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from infer.contract import SmaltiError
from preproc.run.config import Config, parse_config
from preproc.run.profile import (
    JOBS,
    load_profile,
    merge,
    parse_memory,
    parse_time,
    profile_path,
    unmet_needs,
)
from preproc.run.resources import SITES

RUN_TOML = """
[region]
bbox = [4.05, 50.74, 4.12, 50.79]
start = "2024-01-01"
end = "2024-12-31"
[archive]
source = "mpc"
[site]
"""


def config(site: str) -> Config:
    return parse_config(RUN_TOML + site, Path("/run/run.toml"))


@pytest.mark.parametrize("name", sorted(file.stem for file in SITES.glob("*.toml")))
def test_profiles_that_come_with_smalti_are_valid(name: str) -> None:
    profile = load_profile(name, Path())
    assert profile.name == name
    for kind in JOBS:
        assert profile.kind(kind).seconds > 0


def test_the_facts_that_cost_people_days() -> None:
    lumi, node = load_profile("lumi", Path()), load_profile("lumi-node", Path())
    assert lumi.runtime.gpu_flag == node.runtime.gpu_flag == ""
    assert node.runtime.visible_devices == "rocr"
    assert node.kind("infer").whole_nodes
    assert not lumi.kind("infer").cpu_bind
    assert lumi.limits.max_array == lumi.limits.max_jobs == 200
    assert load_profile("betzy", Path()).kind("infer").gpu_style == "gpus"
    saga = load_profile("saga", Path())
    assert {saga.kind(kind).memory_style for kind in JOBS} == {"mem-per-cpu"}
    assert all(saga.kind(kind).memory for kind in JOBS)
    assert saga.storage.purge_days == 21


def test_masks_leave_the_systems_cores_alone() -> None:
    mask = load_profile("lumi-node", Path()).kind("infer").cpu_bind.removeprefix("mask_cpu:")
    bits = [int(part, 16) for part in mask.split(",")]
    assert len(bits) == 8
    assert all(part.bit_count() == 7 for part in bits)
    assert sum(bits).bit_count() == 56  # no two processes share a core
    assert not any(sum(bits) >> (8 * group) & 1 for group in range(8))


def test_run_toml_changes_single_keys() -> None:
    changed = config('profile = "lumi"\njob.account = "project_1"\n[site.jobs.infer]\npartition = "dev-g"\n').site
    profile = load_profile(changed.profile, Path("/run"), changed)
    assert profile.kind("infer").partition == "dev-g"
    assert profile.kind("infer").memory_style == "mem-per-gpu"  # of the profile
    assert {profile.kind(kind).account for kind in JOBS} == {"project_1"}
    assert not unmet_needs(profile)
    assert unmet_needs(load_profile("lumi", Path())) == ["job.account"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("colour = 1", "[site] colour: unknown key"),
        ("[site.jobs.infer]\nqueue = 'x'", "[site] jobs.infer.queue: unknown key"),
        ("[site.jobs.dinner]\ncpus = 1", "[site] jobs.dinner: unknown key"),
        ("[site.job]\ntime = '3h'", "'3h' is not a time"),
        ("[site.job]\nmemory = '8 GB'", "'8 GB' is not a memory size"),
        ("[site.job]\ncpus = 0", "[site] job.cpus"),
        ("[site.job]\ncpus = '4'", "[site] job.cpus"),
        ("[site.job]\nmodules = ['load x; rm -rf ~']", "write `use PATH` or `load NAME`"),
        ("[site.job.env]\nA = '$(id)'", "command substitution"),
        ("[site.job.env]\n'A B' = 'x'", "is not a variable's name"),
        ("[site.job]\ndirectives = ['rm -rf /']", "write --option=value"),
        ("[site.runtime]\ngpu_flag = '--gpu'", "[site] runtime.gpu_flag"),
    ],
)
def test_wrong_keys_and_values_are_named(text: str, said: str) -> None:
    with pytest.raises(SmaltiError) as caught:
        config(text)
    assert said in str(caught.value)
    assert "run.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[site.job]\ninternet = 'proxy'", "needs proxy"),
        ("[site.job]\nmemory = '8G'\nmemory_style = 'mem-per-gpu'", "without GPUs"),
        ("[site.jobs.infer]\ncpu_bind = 'mask_cpu:0x1'", "whole nodes only"),
    ],
)
def test_contradictions_are_found_when_everything_is_put_together(text: str, said: str) -> None:
    site = config(text).site
    with pytest.raises(SmaltiError, match=said):
        load_profile(site.profile, Path("/run"), site)


def test_own_profile_files(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('name = "mine"\nbase = "saga"\n[jobs.infer]\npartition = "h100"\n')
    profile = load_profile("mine.toml", tmp_path)
    assert profile.name == "mine"
    assert profile.kind("infer").partition == "h100"
    assert profile.kind("infer").memory_style == "mem-per-cpu"  # of its base


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('name = "x"\ncolour = "red"', "colour: unknown key"),
        ('description = "x"', "name: field required"),
        ('name = "x"\nbase = "mine.toml"', "leads back to itself"),
        ('name = "x"\nbase = "nowhere"', "no such site profile"),
        ("name = ", "not valid TOML"),
    ],
)
def test_broken_profile_files(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "mine.toml").write_text(content)
    with pytest.raises(SmaltiError, match=said):
        load_profile("mine.toml", tmp_path)


def test_unknown_profiles_are_answered_with_the_known() -> None:
    with pytest.raises(SmaltiError, match=r"betzy, generic, local, lumi, lumi-node, saga"):
        profile_path("lumy", Path())


def test_times_and_memory() -> None:
    assert parse_time("1-02:03:04") == 93784
    assert parse_time("00:30:00") == 1800
    assert parse_memory("8G") == 8192
    assert parse_memory("500M") == 500
    for text in ("90", "1:30", "8GB", "8g"):
        with pytest.raises(ValueError, match="is not a"):
            (parse_time if ":" in text or text.isdigit() else parse_memory)(text)


def test_merge_goes_key_by_key() -> None:
    below = {"a": {"b": 1, "c": [1, 2]}, "d": 1}
    assert merge(below, {"a": {"c": [3]}, "e": 2}) == {"a": {"b": 1, "c": [3]}, "d": 1, "e": 2}
    assert below == {"a": {"b": 1, "c": [1, 2]}, "d": 1}
