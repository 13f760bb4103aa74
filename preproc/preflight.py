"""What can be known of a run before anything is downloaded or paid for: `plan --dry-run`, `run`, `submit`, `doctor`."""

from __future__ import annotations

import importlib.util
import os
import shutil
import unicodedata
from collections import defaultdict
from typing import Any

import numpy as np
import shapely

from infer.contract import Plan, Run, Shard, SmaltiError, embedding_paths, sha256_file
from infer.contract.classification import RegressorManifest
from infer.contract.registry import cached_checkpoint, joined_sha256, parts_of, registered_model
from preproc.catalogue.sources import CATALOGUES
from preproc.classify.elsewhere import described
from preproc.classify.labels import LabelSet, read_labels, to_zone
from preproc.region.grid import utm_zones
from preproc.region.region import Region, load_region, region_in
from preproc.report.truth import truth_fingerprint
from preproc.run.checks import Finding, Findings, Verdict, error_text, failed, ok, warning
from preproc.run.classifier import learns_number, read_regressor, verified
from preproc.run.config import Archive, Config
from preproc.run.engine import engine_command
from preproc.run.profile import load_profile
from preproc.run.text import some
from preproc.run.waves import disk_of

_LOW_SHARE = 1.2
"""Free space below so many times of what is needed is too little."""


def preflight(
    run: Run, config: Config, plan: Plan | None, *, hashes: bool = False, elsewhere: bool = False
) -> Findings:
    """Check labels, classifier, truth, model, engine and disk.

    Args:
        run: the run directory.
        config: its settings.
        plan: of the run, or one that was not written; None if there is none.
        hashes: read the whole checkpoint and compare it with what was published.
        elsewhere: a container will be run on other nodes, which may have what is not here.
    """
    found = [*check_labels(config), *check_classifier(config), *check_truth(config)]
    found += check_model(config, hashes=hashes)
    if not (elsewhere and contained(run, config)):
        found += check_engine(run, config)
    return Findings((*found, *check_space(run, config, plan)))


def refuse(run: Run, config: Config, plan: Plan | None, *, elsewhere: bool = False) -> None:
    """Raise if something is sure to stop a later stage. Where all embeddings are there, no engine is needed.

    Raises:
        SmaltiError: one line a problem, each with what to do.
    """
    found = preflight(run, config, plan, elsewhere=elsewhere).items
    done = plan is not None and all(embedding_paths(run.embeddings, tile.name)[2].exists() for tile in plan.tiles)
    moot: tuple[str, ...] = ("model", "engine") if done else ()
    if config.trains and config.classify.method == "segment":
        moot = moot[:1]  # the engine trains it
    problems = [item for item in found if item.verdict is Verdict.FAILED and item.check not in moot]
    if problems:
        lines = [f"{item.check}: {item.text}{f': {item.remedy}' if item.remedy else ''}" for item in problems]
        raise SmaltiError("\n".join([f"{run.config}: this would stop the run later:", *lines]))


def check_labels(config: Config) -> list[Finding]:
    """Whether the labels can be read and lie in the region, how many there are, and names that look like one."""
    if config.labels is None:
        return []
    try:
        region = load_region(config.region)
        labels = _labels(config, region)
        inside = _inside(labels, region)
    except SmaltiError as error:
        return [failed("labels", *error_text(error))]
    if not inside.any():
        return [failed("labels", f"{labels.path}: none lies in the region", "check the file, its CRS and [region]")]
    classes, groups = labels.classes_n[inside].astype(str), labels.groups_n[inside].astype(str)
    if config.labels.value is not None:
        numbers = labels.classes_n[inside].astype(float)
        text = f"{int(inside.sum())} in the region, in {len(np.unique(groups))} groups; {config.labels.value} from "
        return [ok("labels", f"{text}{numbers.min():g} to {numbers.max():g}")]
    names, counts = np.unique(classes, return_counts=True)
    per_class = [len(np.unique(groups[classes == name])) for name in names]
    table = ", ".join(f"{n} ({c} in {g})" for n, c, g in zip(names.tolist(), counts.tolist(), per_class, strict=True))
    if len(names) < 2:
        return [failed("labels", f"{labels.path}: of one class only in the region: {table}", "add labels of another")]
    found = [ok("labels", f"{int(inside.sum())} in the region; class (labels in groups): {table}")]
    few = [name for name, n in zip(names.tolist(), per_class, strict=True) if n < config.classify.min_groups]
    if few:
        text = f"{some(few)}: fewer than {config.classify.min_groups} groups, left out of training"
        found.append(warning("labels", text, "add labels, or lower [classify] min_groups"))
    for what, values in (("classes", names.tolist()), ("groups", np.unique(groups).tolist())):
        alike = names_alike(values)
        if alike:
            shown = some([" / ".join(map(repr, one)) for one in alike])
            text = f"{what} that differ only in case, blanks or the form of accents: {shown}"
            found.append(warning("labels", text, "make them one, if they are meant to be"))
    return found


def names_alike(names: list[str]) -> list[list[str]]:
    """Names that people would take for one: the same but for case, blanks and the form of their accents. Pure."""
    seen: dict[str, list[str]] = defaultdict(list)
    for name in names:
        seen[" ".join(unicodedata.normalize("NFC", name).casefold().split())].append(name)
    return [same for same in seen.values() if len(same) > 1]


def check_classifier(config: Config) -> list[Finding]:
    """Whether a classifier trained elsewhere is whole, and of the embeddings that this run will make."""
    folder = config.predict.model
    if folder is None:
        return []
    try:
        about = read_regressor(folder) if learns_number(folder) else verified(folder)
    except SmaltiError as error:
        return [failed("classifier", *error_text(error))]
    if not about.trained_on:
        text, remedy = f"{folder}: does not say what embeddings it was trained on", "train it again"
        return [failed("classifier", text, remedy)]
    known = about.trained_on[0].embedded
    wanted = {"name": known.model.name, "dim": about.dim, "output": known.embeddings_as}
    asked = {"name": config.model.name or known.model.name, "dim": config.model.dim, "output": config.model.output}
    differing = [f"{key} {wanted[key]}, not {asked[key]}" for key in wanted if wanted[key] != asked[key]]
    if differing:
        text = f"{folder}: trained on embeddings of {'; '.join(differing)}"
        return [failed("classifier", text, "set [model] alike, or take another classifier")]
    what = about.value if isinstance(about, RegressorManifest) else f"{len(about.classes)} classes"
    return [ok("classifier", f"{folder}: {what}, trained on {'; '.join(described(about.trained_on))}")]


def check_truth(config: Config) -> list[Finding]:
    """Whether the map that the report is to compare with is there: the last stage reads it."""
    if config.report.truth is None or not config.maps:
        return []
    try:
        truth_fingerprint(config.report.truth)
    except SmaltiError as error:
        return [failed("truth", *error_text(error))]
    return [ok("truth", f"{config.report.truth} is there")]


def check_model(config: Config, *, hashes: bool = False) -> list[Finding]:
    """Whether the weights are there, fit the archive, and give as many numbers as are asked for."""
    name, path = config.model.name, config.model.checkpoint
    parts = () if name is None else parts_of(name)
    try:
        files = [path] if path is not None else [cached_checkpoint(part.name) for part in parts]
    except SmaltiError as error:
        return [failed("model", *error_text(error))]
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        return [failed("model", f"{missing} is missing", "correct [model] checkpoint")]
    if name is None:
        return [ok("model", f"{files[0].name}, a file: the engine will say what it gives")]
    model = registered_model(name)
    if model.dims is not None and config.model.dim not in model.dims:
        allowed = ", ".join(map(str, model.dims))
        return [failed("model", f"[model] dim {config.model.dim}: {name} gives {allowed}", "choose one of these")]
    archive = config.archive.data_source or _data_source(config.archive)
    source = model.data_source
    if source is not None and archive is not None and source != archive and not config.model.allow_source_mismatch:
        text = f"{name} was trained on {source} data, the archive is {archive}"
        return [failed("model", text, "choose the other one")]
    if hashes:
        digests = [sha256_file(file) for file in files]
        for part, file, digest in zip(parts, files, digests, strict=True):
            if part.sha256 is not None and part.sha256 != digest:
                return [
                    failed("model", f"{file}: sha256 {digest[:12]}, published is {part.sha256[:12]}", "fetch it again")
                ]
        return [ok("model", f"{name}, sha256 {joined_sha256(digests)[:12]}")]
    return [ok("model", f"{name}, {config.model.dim} numbers a pixel")]


def _data_source(archive: Archive) -> str | None:
    """Whose data a live catalogue has; None for a static archive, whose items tell."""
    return None if archive.source == "static" else CATALOGUES[archive.source].products[0].data_source


def contained(run: Run, config: Config) -> bool:
    """Whether the engine runs in an image."""
    profile = load_profile(config.site.profile, run.root, config.site)
    return config.site.container is not None or bool(profile.runtime.image)


def check_engine(run: Run, config: Config) -> list[Finding]:
    """Whether there is something to run the engine with on this machine."""
    try:
        command = engine_command(run, config, Shard())
    except SmaltiError as error:
        return [failed("engine", *error_text(error))]
    if command[0].endswith(("apptainer", "singularity")):
        return [ok("engine", f"in the image, by {shutil.which(command[0])}")]
    spec = importlib.util.find_spec("torch")
    return [ok("engine", f"in this Python, torch at {spec.origin if spec else 'an unknown place'}")]


def check_space(run: Run, config: Config, plan: Plan | None) -> list[Finding]:
    """Free bytes and files against the plan's estimate. Quotas may be tighter than what the file system says."""
    if plan is None or not run.root.is_dir():
        return []
    peak = disk_of(plan, config)[-1].peak
    need_bytes, need_files = peak.bytes, round(peak.files)
    system = os.statvfs(run.root)
    free_bytes, free_files = system.f_bavail * system.f_frsize, system.f_favail
    text = f"{need_bytes / 1e9:.1f} GB and {need_files} files needed, {free_bytes / 1e9:.0f} GB free"
    if free_bytes < need_bytes * _LOW_SHARE:
        low = warning if run.tiles.is_dir() else failed  # part of it may be written already
        return [low("space", text, "free some, or move the run")]
    if system.f_files and free_files < need_files * _LOW_SHARE:
        return [
            failed("space", f"{need_files} files needed, {free_files} may be made", "remove files, or move the run")
        ]
    return [ok("space", text)]


def _labels(config: Config, region: Region) -> LabelSet:
    labels = config.labels
    assert labels is not None
    zones = {epsg: region_in(region, epsg).bounds for epsg in utm_zones(region)}
    numeric = labels.value is not None
    return read_labels(
        labels.path, labels.attribute, labels.group, labels.layer, zones, encoding=labels.encoding, numeric=numeric
    )


def _inside(labels: LabelSet, region: Region) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """(N,) whether each label touches the region, in any of its zones."""
    inside = np.zeros(len(labels.classes_n), dtype=bool)
    for epsg in utm_zones(region):
        shapes, area = to_zone(labels, epsg), region_in(region, epsg)
        shapely.prepare(area)
        inside |= shapely.intersects(area, shapes) & ~shapely.is_missing(shapes)
    return inside
