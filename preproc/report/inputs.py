"""What the report is made from: the manifests of a run, checked to belong together, and how often it was seen."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from infer.contract import (
    QUALITY_FILE,
    TILE_MANIFEST,
    FormatError,
    Plan,
    Record,
    Run,
    SmaltiError,
    planned_tiles,
    read_json,
    sha256_file,
)
from infer.contract.classification import AccuracyManifest, ClassifierManifest, SamplesManifest
from infer.contract.rasters import MapManifest, MosaicManifest
from infer.contract.tile import TileSeason
from preproc.run.classifier import MANIFEST, about_classifier, file_of, model_folder, verified
from preproc.run.config import Config
from preproc.run.quality import STACKS, StackSummary, poor_tiles, summarise, tile_qualities, unseen_pixels


@dataclass(frozen=True)
class Sources:
    """The manifests."""

    plan: Plan
    mosaic: MosaicManifest
    samples: SamplesManifest | None
    """None where the classifier was trained on labels of other runs only."""
    model: ClassifierManifest
    trials: tuple[str, ...]
    """Lines of the classifier's trials.jsonl."""
    map: MapManifest
    accuracy: AccuracyManifest
    simulated: bool
    """The scenes say of themselves that they are made up."""


_KINDS: Mapping[str, type[Record]] = {
    "mosaic": MosaicManifest,
    "map": MapManifest,
    "accuracy": AccuracyManifest,
}
"""What the report needs besides the plan."""


def fingerprint(run: Run, config: Config) -> dict[str, str]:
    """SHA-256 of every manifest that the report tells of.

    Raises:
        FormatError: if one is missing or not what it should be; the message says which command makes it.
    """
    plan = Plan.read(run)
    found = {"plan": sha256_file(run.plan)}
    for name, kind in _KINDS.items():
        kind.read(run)
        found[name] = sha256_file(kind.path(run))
    if config.labels is not None:
        SamplesManifest.read(run)
        found["samples"] = sha256_file(run.samples_manifest)
    about_classifier(run, config)
    found["model"] = sha256_file(file_of(model_folder(run, config), MANIFEST))
    digest = hashlib.sha256()
    for tile in plan.tiles:
        for file in (TILE_MANIFEST, QUALITY_FILE):
            path = run.tiles / tile.name / file
            digest.update(sha256_file(path).encode() if path.is_file() else b"-")
    found["tiles"] = digest.hexdigest()
    return found


def read_sources(run: Run, config: Config) -> Sources:
    """Read and verify everything.

    Raises:
        SmaltiError: if something is missing or damaged, or if parts were made from different models or embeddings.
    """
    sources = Sources(
        plan=Plan.read(run),
        # mosaics may be many gigabytes, and the report shows none of their bytes but the preview's
        mosaic=MosaicManifest.read(run).verify(run, checksums=False),
        samples=SamplesManifest.read(run).verify(run) if config.labels is not None else None,
        model=verified(model_folder(run, config)),
        trials=tuple(file_of(model_folder(run, config), "trials.jsonl").read_text().splitlines()),
        map=MapManifest.read(run).verify(run),
        accuracy=AccuracyManifest.read(run).verify(run),
        simulated=is_simulated(run),
    )
    _check_consistent(run, sources)
    return sources


def _check_consistent(run: Run, read: Sources) -> None:
    pairs = {
        "the map and the mosaic were made from different embeddings": (
            read.map.inputs.get("embeddings"),
            read.mosaic.inputs.get("embeddings"),
        ),
        "the map was made by another classifier": (read.map.inputs.get("classifier"), read.model.fingerprint),
        "accuracy.json is about another classifier": (read.accuracy.inputs.get("model"), read.model.files_fingerprint),
    }
    for problem, (one, other) in pairs.items():
        if one != other:
            raise SmaltiError(f"{run.root}: {problem}: run `smalti run {run.quoted}` to bring the run up to date")


def is_simulated(run: Run) -> bool:
    """Whether the saved items carry smalti:simulated, as those of the simulated archive do."""
    for path in sorted(run.items.glob("*.json"))[:1]:
        content = read_json(path, what="the saved items", remedy=f"run `smalti plan {run.quoted}` again")
        features = content.get("features", [content]) if isinstance(content, dict) else []
        if not all(isinstance(item, dict) for item in features):
            raise FormatError(f"{path}: not a collection of STAC items: run `smalti plan {run.quoted}` again")
        return any((item.get("properties") or {}).get("smalti:simulated") is True for item in features)
    return False


@dataclass(frozen=True)
class Observations:
    """Everything the report says about the scenes."""

    stacks: Mapping[str, StackSummary]
    months: Sequence[str]
    """YYYY-MM of the window."""
    per_month: Mapping[str, Sequence[int]]
    """Stack -> dates kept in each month, by at least one tile."""
    tiles: int
    """Tiles whose time series are still here."""
    planned: int
    unseen: int | None
    """Pixels without any observation, optical or radar; None if a tile was fetched before this was counted."""
    poor_tiles: Sequence[str]
    """Tiles with a median below FEW_CLEAR clear observations."""


def observe(run: Run, window: tuple[str, str]) -> Observations:
    """Read quality.json and the dates of every tile that is still there.

    Raises:
        FormatError: if one of them is damaged.
    """
    planned = planned_tiles(run)
    tiles = tile_qualities(run, planned)  # people remove the time series once the embeddings are made
    days: dict[str, set[date]] = {name: set() for name in STACKS}
    for tile in tiles:
        for name, dates in _dates(run.tiles / tile.name).items():
            days[name].update(dates)
    months = list(_months(*window))
    per_month = {name: [sum(f"{day:%Y-%m}" == month for day in days[name]) for month in months] for name in STACKS}
    return Observations(
        summarise(tiles), months, per_month, len(tiles), len(planned), unseen_pixels(tiles), poor_tiles(tiles)
    )


def _dates(folder: Path) -> Mapping[str, Sequence[date]]:
    dates = TileSeason.of_folder(folder).dates or {}
    missing = [stack for stack in STACKS if stack not in dates]
    if missing:
        raise FormatError(f"{folder / TILE_MANIFEST}: dates.{missing[0]} is missing: {'fetch this tile again'}")
    return {stack: dates[stack] for stack in STACKS}


def _months(start: str, end: str) -> Iterator[str]:
    day, last = date.fromisoformat(start).replace(day=1), date.fromisoformat(end)
    while day <= last:
        yield f"{day:%Y-%m}"
        day = day.replace(year=day.year + day.month // 12, month=day.month % 12 + 1)
