"""What the report is made from: the manifests of a run, read together and checked to belong together."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infer.contract import (
    QUALITY_FILE,
    TILE_MANIFEST,
    FormatError,
    Plan,
    Run,
    SmaltiError,
    read_json,
    read_manifest,
    sha256_file,
    sha256_json,
    verify_files,
)


@dataclass(frozen=True)
class Sources:
    """The manifests."""

    plan: Plan
    mosaic: Mapping[str, Any]
    samples: Mapping[str, Any]
    model: Mapping[str, Any]
    map: Mapping[str, Any]
    accuracy: Mapping[str, Any]
    simulated: bool
    """The scenes say of themselves that they are made up."""


def manifest_paths(run: Run) -> dict[str, tuple[Path, str, str]]:
    """Name -> path, kind and the command that makes it, of everything the report needs."""
    return {
        "mosaic": (run.mosaic_manifest, "mosaic", "stitch"),
        "samples": (run.samples_manifest, "samples", "sample"),
        "model": (run.model_manifest, "classifier", "train"),
        "map": (run.map_manifest, "map", "predict"),
        "accuracy": (run.accuracy, "accuracy", "validate"),
    }


def fingerprint(run: Run) -> dict[str, str]:
    """SHA-256 of every manifest that the report tells of.

    Raises:
        FormatError: if one is missing or not what it should be; the message says which command makes it.
    """
    plan = Plan.read(run)
    found = {"plan": sha256_file(run.plan)}
    for name, (path, kind, command) in manifest_paths(run).items():
        read_manifest(path, kind, remedy=f"run `smalti {command} {run.quoted}`")
        found[name] = sha256_file(path)
    digest = hashlib.sha256()
    for tile in plan.tiles:
        for file in (TILE_MANIFEST, QUALITY_FILE):
            path = run.tiles / tile.name / file
            digest.update(sha256_file(path).encode() if path.is_file() else b"-")
    found["tiles"] = digest.hexdigest()
    return found


def read_sources(run: Run) -> Sources:
    """Read and verify everything.

    Raises:
        SmaltiError: if something is missing or damaged, or if parts were made from different models or embeddings.
    """
    read: dict[str, dict[str, Any]] = {}
    for name, (path, kind, command) in manifest_paths(run).items():
        remedy = f"run `smalti {command} {run.quoted}`"
        read[name] = read_manifest(path, kind, remedy=remedy)
        # mosaics may be many gigabytes, and the report shows none of their bytes but the preview's
        verify_files(path, read[name], checksums=name != "mosaic", remedy=f"{remedy} again")
    _check_consistent(run, read)
    return Sources(plan=Plan.read(run), simulated=_is_simulated(run), **read)


def _check_consistent(run: Run, read: Mapping[str, Mapping[str, Any]]) -> None:
    model = read["model"]
    classifier = sha256_json([model["files"], model.get("classes"), model.get("dim")])
    pairs = {
        "the map and the mosaic were made from different embeddings": (
            read["map"]["inputs"].get("embeddings"),
            read["mosaic"]["inputs"].get("embeddings"),
        ),
        "the map was made by another classifier": (read["map"]["inputs"].get("classifier"), classifier),
        "accuracy.json is about another classifier": (
            read["accuracy"]["inputs"].get("model"),
            sha256_json(model["files"]),
        ),
    }
    for problem, (one, other) in pairs.items():
        if one != other:
            raise SmaltiError(f"{run.root}: {problem}: run `smalti run {run.quoted}` to bring the run up to date")


def _is_simulated(run: Run) -> bool:
    """Whether the saved items carry smalti:simulated, as those of the simulated archive do."""
    for path in sorted(run.items.glob("*.json"))[:1]:
        content = read_json(path, what="the saved items", remedy=f"run `smalti plan {run.quoted}` again")
        features = content.get("features", [content]) if isinstance(content, dict) else []
        if not all(isinstance(item, dict) for item in features):
            raise FormatError(f"{path}: not a collection of STAC items: run `smalti plan {run.quoted}` again")
        return any((item.get("properties") or {}).get("smalti:simulated") is True for item in features)
    return False
