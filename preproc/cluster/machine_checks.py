"""Checks of the machine at hand: environment, PROJ, archive, run directory. Made here and again in a probe job."""

from __future__ import annotations

import importlib
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from infer.contract import Plan, Run, SmaltiError, scratch_folder, stage_lock, temporary_path
from preproc.catalogue.items import load_scenes
from preproc.catalogue.sources import CATALOGUES
from preproc.cluster.quota import Quota, quota_of
from preproc.reader.placement import UnusableError
from preproc.reader.ranges import RangeClient, is_remote
from preproc.reader.read import local_name
from preproc.reader.signing import make_signer
from preproc.reader.transport import HttpTransport, fetch_bytes
from preproc.run.checks import Finding, error_text, failed, ok, warning
from preproc.run.config import Config
from preproc.run.profile import Profile
from preproc.run.resources import CONTAINERS, ENGINE, SITES, SLURM
from preproc.run.stages import STAGES
from preproc.run.text import human_bytes
from preproc.run.waves import disk_of

_LEAKS = ("PYTHONPATH", "PYTHONHOME", "PROJ_DATA", "PROJ_LIB", "GDAL_DATA", "GDAL_DRIVER_PATH", "LD_PRELOAD")
_SETTINGS = ("APPTAINER_BIND", "SINGULARITY_BIND", "APPTAINER_BINDPATH", "SINGULARITY_BINDPATH", "SBATCH_PARTITION")
_SETTINGS_TOO = ("SBATCH_ACCOUNT", "SBATCH_TIMELIMIT", "SBATCH_QOS", "SBATCH_EXPORT", "SLURM_EXPORT_ENV")
_ATTEMPTS = 2
"""Tries of a request: what is down for longer should be said rather than waited for."""
_QUOTA_S = 30
_QUOTA_LINES = 12

_ANTWERP = (4.4, 51.2)
"""Longitude and latitude of a point whose UTM coordinates are known:"""
_ANTWERP_UTM31 = (597812.4, 5672997.4)
"""easting and northing in metres (EPSG:32631), by Krueger's series, to a tenth of a metre."""


def check_environment(environment: Mapping[str, str], home: Path) -> list[Finding]:
    """Variables and packages that change what runs. The jobs unset the first kind; people's own commands do not."""
    leaks = [name for name in _LEAKS if environment.get(name)]
    quiet = [name for name in (*_SETTINGS, *_SETTINGS_TOO) if environment.get(name)]
    found = []
    if leaks:
        found.append(warning("environment", f"set here: {', '.join(leaks)}", "unset them; jobs do that themselves"))
    if quiet:
        text = f"{', '.join(quiet)} override settings silently"
        found.append(warning("environment", text, "unset them, or say the same in the profile"))
    user_site = sorted((home / ".local" / "lib").glob("python3*/site-packages/numpy"))
    if user_site:
        found.append(warning("environment", f"{user_site[0]} is there", "harmless to the jobs (python -s); remove it"))
    return found or [ok("environment", "no variable changes what runs")]


def check_proj() -> list[Finding]:
    """Transform a known point: a PROJ that finds another PROJ's database fails or answers nonsense."""
    from pyproj import Transformer
    from pyproj.exceptions import ProjError

    try:
        east, north = Transformer.from_crs(4326, 32631, always_xy=True).transform(*_ANTWERP)
    except ProjError as error:
        return [failed("proj", f"cannot transform a point ({error})", "unset PROJ_DATA and PROJ_LIB, reinstall pyproj")]
    away = max(abs(east - _ANTWERP_UTM31[0]), abs(north - _ANTWERP_UTM31[1]))
    if away > 1:
        return [failed("proj", f"a known point is off by {away:.0f} m", "unset PROJ_DATA and PROJ_LIB")]
    return [ok("proj", "a known point is where it should be"), *_check_gdal_proj()]


def _check_gdal_proj() -> list[Finding]:
    """rasterio carries a PROJ of its own."""
    from rasterio.errors import RasterioError
    from rasterio.warp import transform

    try:
        xs, ys = transform("EPSG:4326", "EPSG:32631", [_ANTWERP[0]], [_ANTWERP[1]])
    except RasterioError as error:
        return [
            failed("proj", f"rasterio cannot transform a point ({error})", "unset PROJ_DATA, PROJ_LIB and GDAL_DATA")
        ]
    if max(abs(xs[0] - _ANTWERP_UTM31[0]), abs(ys[0] - _ANTWERP_UTM31[1])) > 1:
        return [failed("proj", "rasterio puts a known point elsewhere", "unset PROJ_DATA, PROJ_LIB and GDAL_DATA")]
    return []


def check_checkout() -> list[Finding]:
    """Whether the copy of smalti is whole: rsync with --exclude 'data' drops inner folders of that name."""
    wanted = [
        ENGINE / "checkpoints" / "demo.pt",
        CONTAINERS / "smalti.def",
        SLURM / "common.sh",
        SITES / "generic.toml",
    ]
    missing = [str(path) for path in wanted if not path.is_file()]
    for entry in STAGES:
        module = entry.implementation.split(":")[0]
        try:
            importlib.import_module(module)
        except ImportError as error:
            missing.append(f"{module} ({error})")
    if missing:
        remedy = "copy the checkout again; in rsync's excludes begin patterns with a slash"
        return [failed("checkout", f"lacks {', '.join(missing)}", remedy)]
    return [ok("checkout", "whole")]


def check_run_directory(run: Run) -> list[Finding]:
    """Whether files can be written and locked there."""
    probe = temporary_path(run.logs / "doctor")
    try:
        run.logs.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"smalti")
        probe.unlink()
        with stage_lock(run, "doctor"):
            pass
    except OSError as error:
        return [failed("run directory", f"{run.root} cannot be written ({error})", "put the run on scratch")]
    except SmaltiError as error:
        return [failed("run directory", *error_text(error))]
    return [ok("run directory", "can be written and locked")]


def check_quota(run: Run, config: Config, profile: Profile, plan: Plan | None) -> list[Finding]:
    """What the site's own command says of quotas, against what the plan takes, or for people to compare with it."""
    try:
        words = shlex.split(os.path.expandvars(profile.storage.quota))
    except ValueError as error:
        return [failed("quota", f"{profile.storage.quota!r}: {error}", "correct [site.storage] quota")]
    if not words:
        return []
    if shutil.which(words[0]) is None:
        remedy = f"on {profile.name} run doctor on a login node; elsewhere set [site.storage] quota"
        return [warning("quota", f"{words[0]} is not on the PATH: quotas are not known", remedy)]
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_QUOTA_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return [warning("quota", f"`{profile.storage.quota}` failed ({error})", "look at your quotas by hand")]
    said = [" ".join(line.split()) for line in done.stdout.splitlines() if line.strip()]
    if done.returncode or not said:
        text = f"`{profile.storage.quota}` ended with {done.returncode} and said nothing of use"
        return [warning("quota", text, "look at your quotas by hand")]
    form = profile.storage.quota_format
    if form != "text":
        quota = quota_of(done.stdout, form, run.root.resolve())
        if quota is not None:
            return [_compare(quota, run, config, plan)]
    return [ok("quota", f"compare with what `{profile.storage.quota}` says: {' / '.join(said[:_QUOTA_LINES])}")]


def check_scratch(config: Config) -> list[Finding]:
    """Whether this node has the disk that [site] scratch names."""
    try:
        folder = scratch_folder(config.site.scratch)
    except SmaltiError as error:
        return [failed("scratch", *error_text(error))]
    if folder is None:
        return []
    if not os.access(folder, os.W_OK):
        return [failed("scratch", f"{folder} cannot be written", "name another folder in [site] scratch")]
    return [ok("scratch", f"{folder}, {shutil.disk_usage(folder).free / 1e9:.0f} GB free")]


def check_purge(run: Run, profile: Profile) -> list[Finding]:
    """How long the oldest file has before the site removes it."""
    days = profile.storage.purge_days
    if not days:
        return []
    oldest = min((path.stat().st_mtime for path in run.root.iterdir()), default=time.time())
    left = days - (time.time() - oldest) / 86400
    if left < 0.25 * days:
        remedy = "finish, copy what matters to project storage, or touch the files"
        return [warning("purge", f"the oldest file goes in {max(0.0, left):.0f} days", remedy)]
    return [ok("purge", f"{profile.name} removes files after {days} days; the oldest has {left:.0f} left")]


def check_temporary() -> list[Finding]:
    """Room for temporary files, and where the container program puts its cache."""
    found = []
    folder = Path(os.environ.get("TMPDIR", "/tmp"))
    if not os.access(folder, os.W_OK):
        found.append(failed("temporary files", f"{folder} cannot be written", "set TMPDIR"))
    elif shutil.disk_usage(folder).free < 1e9:
        found.append(warning("temporary files", f"{folder} has less than 1 GB free", "set TMPDIR elsewhere"))
    names = ("APPTAINER_CACHEDIR", "SINGULARITY_CACHEDIR")
    if not any(os.environ.get(name) for name in names):
        remedy = f"export {names[0]}=... and {names[1]}=... off home before `pull`; `smalti container build` does"
        found.append(warning("container cache", "downloaded layers go to ~/.apptainer or ~/.singularity", remedy))
    return found or [ok("temporary files", f"{folder}")]


def check_archive(run: Run, config: Config) -> list[Finding]:
    """Read the first bytes of a scene (signed where needed); before there is a plan, ask the catalogue for its page."""
    if not run.plan.exists():
        return _check_catalogue(config)
    try:
        scenes = load_scenes(run, config)
        href = next(iter(scenes[0].assets.values())) if scenes else ""
        if not href:
            return [failed("archive", "the plan has no scenes", "look at dates and region")]
        return [_read_first_bytes(run, config, href)]
    except (SmaltiError, UnusableError) as error:
        return [failed("archive", *error_text(error))]


def _read_first_bytes(run: Run, config: Config, href: str) -> Finding:
    """As fetch does it, signatures, buckets and all."""
    if not is_remote(href):
        there = Path(local_name(href)).is_file()
        return ok("archive", f"{href} is there") if there else failed("archive", f"{href} is missing", "stage it")
    with RangeClient(make_signer(run, config), connections=1, attempts=_ATTEMPTS) as client:
        client.get(href, 0, 16)
    return ok("archive", f"{href} can be read")


def _check_catalogue(config: Config) -> list[Finding]:
    if config.archive.source == "static":
        return [warning("archive", "not planned yet: its scenes are not known", "run `smalti plan RUN`")]
    url = config.archive.url or CATALOGUES[config.archive.source].url
    try:
        with HttpTransport() as transport:
            fetch_bytes(transport, url, "the catalogue", attempts=_ATTEMPTS)
    except SmaltiError as error:
        return [failed("archive", *error_text(error))]
    return [ok("archive", f"{url} answers")]


def _compare(quota: Quota, run: Run, config: Config, plan: Plan | None) -> Finding:
    """What may still be written against the run's peak; what it has written already counts for it."""
    left = quota.left
    text = f"{quota.place}: {human_bytes(left.bytes)} and {left.files:,.0f} files left"
    if plan is None:
        return ok("quota", text)
    need = disk_of(plan, config)[-1].peak
    text += f", {human_bytes(need.bytes)} and {need.files:,.0f} files needed at the peak"
    if left.holds(need):
        return ok("quota", text)
    remedy = 'set [tiles] keep = "record" and [site] tile_space, `smalti clean`, or ask for more'
    begun = run.tiles.is_dir()  # part of it may be written already
    return warning("quota", text, remedy) if begun else failed("quota", text, remedy)
