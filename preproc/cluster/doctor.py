"""`smalti doctor`: everything that can be found out before a job is queued, here and, with a probe, on the nodes."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from infer.contract import Plan, Run, SmaltiError, sha256_file
from preproc.cluster import machine_checks, slurm
from preproc.cluster.check_jobs import probe_nodes
from preproc.cluster.image import engine_hash, record_path
from preproc.cluster.sbatch import Script, render_script
from preproc.cluster.submit import common_script, what_is_due
from preproc.preflight import preflight
from preproc.run import status
from preproc.run.checks import Finding, Findings, Verdict, error_text, failed, flatten, ok, warning
from preproc.run.config import Config
from preproc.run.profile import JOBS, Profile, load_profile, parse_memory, unmet_needs
from preproc.run.resources import ENGINE
from preproc.run.stages import stage_named

__all__ = ["Verdict", "examine"]

_HEADROOM = 1.3
"""Requested memory should exceed the estimate by this factor."""


def examine(run: Run, config: Config, site: str | None = None, *, probe: bool = False) -> Findings:
    """Make every check.

    Args:
        run: the run directory, planned or not.
        config: its settings.
        site: another profile than run.toml's.
        probe: also queue one short job a kind of node and wait for it.

    Raises:
        SmaltiError: if the profile itself is not valid; nothing can be checked then.
    """
    run = Run(run.root.absolute())
    profile = load_profile(site or config.site.profile, run.root, config.site)
    plan = _plan(run)
    checks: list[Callable[[], list[Finding]]] = [
        lambda: check_profile(run, profile),
        machine_checks.check_checkout,
        lambda: machine_checks.check_environment(os.environ, Path.home()),
        machine_checks.check_proj,
        lambda: _check_plan(run, config, plan),
        lambda: _check_outputs(run, config),
        lambda: machine_checks.check_run_directory(run),
        lambda: machine_checks.check_quota(run, config, profile, plan),
        lambda: machine_checks.check_purge(run, profile),
        machine_checks.check_temporary,
        lambda: _check_archive(run, config, profile),
        lambda: list(preflight(run, config, plan, hashes=True, elsewhere=True).items),
        lambda: _check_tiles(run),
        lambda: check_memory(profile, plan),
        lambda: _check_image(run, config, profile),
        lambda: check_binds(profile),
        lambda: check_slurm(profile),
        lambda: _check_directives(run, config, profile, plan),
    ]
    groups = [check() for check in checks]
    if probe:
        groups.append(probe_nodes(run, config, profile))
    return Findings(flatten(groups))


def _plan(run: Run) -> Plan | None:
    try:
        return Plan.read(run)
    except SmaltiError:
        return None


def check_profile(run: Run, profile: Profile) -> list[Finding]:
    unmet = unmet_needs(profile)
    if unmet:
        return [failed("profile", f"{profile.name} lacks {', '.join(unmet)}", f"set them under [site] in {run.config}")]
    flag = profile.runtime.gpu_flag
    if flag in profile.runtime.refused_gpu_flags:
        return [failed("profile", f"{flag} fails on {profile.name}", 'set [site.runtime] gpu_flag = ""')]
    return [ok("profile", f"{profile.name}: {profile.description or 'no description'}")]


def _check_plan(run: Run, config: Config, plan: Plan | None) -> list[Finding]:
    if plan is None:
        return [warning("plan", "not there or not valid", f"run `smalti plan {run.quoted}`: then more can be checked")]
    for stale in status.stale_before(stage_named("fetch"), status.Survey(run, config)):
        remedy = f"run `smalti plan {run.quoted}`: until then these checks are of the plan that is there"
        return [warning("plan", stale.told(), remedy)]
    return [ok("plan", f"{len(plan.tiles)} tiles")]


def _check_outputs(run: Run, config: Config) -> list[Finding]:
    stages = status.run_status(status.Survey(run, config))
    bad = {stage.stage: len(stage.problems) for stage in stages if stage.problems}
    if bad:
        text = ", ".join(f"{stage}: {count}" for stage, count in bad.items())
        return [warning("outputs", f"stale or broken: {text}", "the next run makes them again")]
    return [ok("outputs", "none is stale or broken")]


def _check_archive(run: Run, config: Config, profile: Profile) -> list[Finding]:
    found = machine_checks.check_archive(run, config)
    fetch = profile.kind("fetch")
    online = config.archive.source != "static" or "://" in (config.archive.href or "")
    if online and fetch.where == "batch" and fetch.internet == "none":
        remedy = 'set [site.jobs.fetch] where = "here", name a transfer partition, or mirror the archive'
        found.append(failed("internet", f"fetch jobs on {profile.name} have none", remedy))
    return found


def _check_tiles(run: Run) -> list[Finding]:
    """Band order and data source of the tiles that are there, from a few manifests."""
    from infer.contract import BANDS
    from infer.contract.tile import TileManifest

    folders = sorted(folder for folder in run.tiles.iterdir() if folder.is_dir()) if run.tiles.is_dir() else []
    sources = set()
    for folder in folders[:50]:
        try:
            manifest = TileManifest.of_folder(folder)
        except SmaltiError:
            continue  # counted among the outputs
        if manifest.band_order != BANDS:
            return [failed("data contract", f"{folder}: another band order", "fetch the tiles again")]
        sources.add(str(manifest.data_source))
    if len(sources) > 1:
        return [
            failed("data contract", f"tiles of different sources: {', '.join(sorted(sources))}", "fetch them again")
        ]
    return [ok("data contract", f"band order right, source {next(iter(sources))}")] if sources else []


def check_memory(profile: Profile, plan: Plan | None) -> list[Finding]:
    if plan is None:
        return []
    found = []
    for kind in ("fetch", "infer", "stitch"):
        job = profile.kind(kind)
        cost = plan.estimate.get(kind)
        if cost is None or not job.memory or job.memory_style == "none" or (kind == "fetch" and job.where == "here"):
            continue
        need = cost.memory_bytes / 2**20
        units = {"mem": 1, "mem-per-cpu": job.cpus * max(1, job.gpus), "mem-per-gpu": job.gpus}[job.memory_style]
        asked = parse_memory(job.memory) * units / (max(1, job.gpus) if kind == "infer" else 1)
        text = f"{kind}: {asked / 1024:.1f} GB asked for a process, about {need / 1024:.1f} GB needed"
        if asked < need * _HEADROOM:
            found.append(failed("memory", text, f"raise [site.jobs.{kind}] memory, or use smaller tiles"))
        else:
            found.append(ok("memory", text))
    return found


def _check_image(run: Run, config: Config, profile: Profile) -> list[Finding]:
    script = common_script(run, config, profile, 1)
    if script.container is None:
        if profile.kind("infer").gpus:
            return [
                failed("container", "no image is named", "set [site] container; `smalti container build` makes one")
            ]
        return [ok("container", "none: the engine runs in this Python")]
    found = []
    if shutil.which(script.container.program) is None:
        text = f"{script.container.program} is not on the PATH here"
        found.append(warning("container", text, "fine if the nodes have it: --probe tells"))
    if not script.container.image.exists():
        return [*found, failed("container", f"{script.container.image} is missing", "build or copy it")]
    record = record_path(script.container.image)
    if not record.is_file():
        return [*found, ok("container", f"{script.container.image} (no record beside it: not built by smalti)")]
    return [*found, *check_record(script, profile, record)]


def check_record(script: Script, profile: Profile, path: Path) -> list[Finding]:
    from infer.contract import read_json

    assert script.container is not None
    record = read_json(path, what="the image's record", remedy="build the image again")
    size = script.container.image.stat().st_size
    if size != record["bytes"] or sha256_file(script.container.image) != record["sha256"]:
        return [failed("container", f"{script.container.image} differs from its record", "copy it again")]
    wrong = {"--nv": "rocm", "--rocm": "cuda"}.get(profile.runtime.gpu_flag)
    if record["flavour"] == wrong:
        return [failed("container", f"a {wrong} image with {profile.runtime.gpu_flag}", "use the other image")]
    if profile.runtime.engine == "image" and record["engine"] != engine_hash(ENGINE):
        remedy = 'build it again, or set [site.runtime] engine = "checkout"'
        return [warning("container", f"{script.container.image} has another engine than this checkout", remedy)]
    return [ok("container", f"{script.container.image}, {record['flavour']}, sha256 {record['sha256'][:12]}")]


def check_binds(profile: Profile) -> list[Finding]:
    missing = [path for path in profile.runtime.binds if not Path(path.split(":")[0]).exists()]
    if missing:
        return [
            failed("binds", f"not there: {', '.join(missing)}", "correct [site.runtime] binds: jobs would not start")
        ]
    return [ok("binds", ", ".join(profile.runtime.binds) or "none besides the run")]


def check_slurm(profile: Profile) -> list[Finding]:
    try:
        limits, known = slurm.configuration(), slurm.partitions()
    except SmaltiError as error:
        return [failed("slurm", *error_text(error))]
    found = []
    largest = int(re.sub(r"\D", "", limits.get("MaxArraySize", "0")) or 0)
    if largest and profile.limits.max_array >= largest:
        text = f"limits.max_array is {profile.limits.max_array}, Slurm allows {largest - 1}"
        found.append(failed("arrays", text, f"set [site.limits] max_array = {largest - 1}"))
    for kind in JOBS:
        job = profile.kind(kind)
        if job.where == "batch" and job.partition and job.partition not in known:
            remedy = f"set [site.jobs.{kind}] partition to one of {', '.join(sorted(known))}"
            found.append(failed("partitions", f"{kind}: no partition {job.partition!r} here", remedy))
    found += account_findings(profile, slurm.associations())
    return found or [ok("slurm", f"arrays up to {largest - 1}, {len(known)} partitions")]


def account_findings(profile: Profile, known: Mapping[str, int] | None) -> list[Finding]:
    """Whether the account is one's own, and how many jobs it may have. Pure."""
    account = profile.job.account
    if known is None or not account:
        return []
    if account not in known:
        remedy = f"set [site.job] account to one of {', '.join(sorted(known))}"
        return [failed("account", f"{account} is not among yours", remedy)]
    most = known[account]
    if most and profile.limits.max_jobs > most:
        text = f"limits.max_jobs is {profile.limits.max_jobs}, {account} may have {most} queued"
        return [failed("account", text, f"set [site.limits] max_jobs = {most}")]
    return []


def _check_directives(run: Run, config: Config, profile: Profile, plan: Plan | None) -> list[Finding]:
    if shutil.which("sbatch") is None:
        return [failed("directives", "sbatch is not on the PATH", "run doctor on a login node")]
    try:
        tasks = what_is_due(status.Survey(run, config), profile, ()).tasks if plan is not None else 1
    except SmaltiError:
        tasks = 1
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in JOBS:
            if profile.kind(kind).where == "here":
                continue
            array = f"0-{tasks - 1}" if kind in ("fetch", "infer") else None
            script = common_script(run, config, profile, tasks, kind=kind, array=array)
            path = Path(folder) / f"{kind}.sbatch"
            path.write_text(render_script(profile, script), encoding="utf-8")
            try:
                found.append(ok("directives", f"{kind}: {slurm.test_only(path)}"))
            except SmaltiError as error:
                text = str(error).removeprefix(f"{path}: ")
                found.append(failed("directives", f"{kind}: {text}", f"look at [site.jobs.{kind}]"))
    return found
