"""What the tiles of a run have in common, read from the manifests of their embeddings: model, data, kind of numbers."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from infer.contract import (
    REGISTRY,
    SOFTWARE,
    FormatError,
    Plan,
    PlannedTile,
    Run,
    SmaltiError,
    embedding_paths,
    read_manifest,
    sha256_json,
    verify_files,
)
from infer.contract.provenance import Embedded, Encoder, Window

_REMEDY = "run `smalti infer` again"
_NAMED = 3
"""Tiles named in a message about many."""


@dataclass(frozen=True)
class RunProvenance:
    """The provenance that mosaics and maps carry."""

    model: str
    """Registered name or file name of the encoder."""
    label: str
    """What to call it in front of people."""
    trained: bool
    """False for a model whose weights were never trained: its embeddings mean nothing."""
    family: str
    checkpoint: str
    """SHA-256 of the checkpoint."""
    dim: int
    """Numbers a pixel."""
    int8: bool
    """The embeddings were kept as int8 codes with a scale a pixel."""
    data_sources: tuple[str, ...]
    """Archives that the tiles' scenes come from (mpc, aws, other), sorted."""
    archive: str
    """[archive] source of the plan."""
    window: tuple[str, str]
    """First and last day, inclusive."""
    region: str
    """Its name."""
    fingerprint: str
    """SHA-256 over the checksums of all embeddings."""
    min_clear_s2: int = 0
    """Pixels with fewer clear Sentinel-2 observations have no embedding."""
    origins: Mapping[str, int] = field(default_factory=dict)
    """Where imported embeddings came from -> tiles."""

    @property
    def content(self) -> str:
        """What the numbers are: only a published model's are called TESSERA embeddings."""
        model = REGISTRY.get(self.model)
        published = model is not None and not model.bundled
        return "TESSERA embeddings" if published else f"embeddings of {self.label}"

    def tags(self) -> dict[str, str]:
        """GeoTIFF tags."""
        encoder = self.encoder
        return {
            "SMALTI_SOFTWARE": SOFTWARE,
            "SMALTI_MODEL": self.model,
            "SMALTI_MODEL_LABEL": self.label,
            "SMALTI_MODEL_TRAINED": "yes" if self.trained else "no",
            "SMALTI_MODEL_FAMILY": self.family,
            "SMALTI_CHECKPOINT_SHA256": self.checkpoint,
            "SMALTI_MODEL_LICENCE": encoder.licence or "not stated",
            "SMALTI_MODEL_CITATION": encoder.citation or "not stated",
            "SMALTI_DIMENSIONS": str(self.dim),
            "SMALTI_WINDOW_START": self.window[0],
            "SMALTI_WINDOW_END": self.window[1],
            "SMALTI_ARCHIVE": self.archive,
            "SMALTI_DATA_SOURCE": ", ".join(self.data_sources) or "not stated",
            "SMALTI_EMBEDDINGS": "int8 codes and scales" if self.int8 else "float32",
            "SMALTI_IMPORTED_FROM": "; ".join(self.origins) or "nowhere: all were computed in this run",
            "SMALTI_MIN_CLEAR_S2": str(self.min_clear_s2),
        }

    @property
    def encoder(self) -> Encoder:
        """The model, as manifests and STAC items state it."""
        known = REGISTRY.get(self.model)
        terms = (None, None) if known is None else (known.licence, known.citation)
        return Encoder(self.model, self.label, self.trained, self.family, self.checkpoint, *terms)

    def stated(self) -> dict[str, Any]:
        """The fields of `Provenance`."""
        return {
            "model": self.encoder,
            "dim": self.dim,
            "embeddings_as": "int8" if self.int8 else "float32",
            "data_sources": self.data_sources,
            "archive": self.archive,
            "min_clear_s2": self.min_clear_s2,
            "origins": dict(self.origins),
            "window": Window(date.fromisoformat(self.window[0]), date.fromisoformat(self.window[1])),
        }


def embedded(facts: RunProvenance, plan: Plan) -> Embedded:
    """The same as samples and classifiers state it."""
    return Embedded(
        region=facts.region,
        bbox=plan.region.bbox,
        model=facts.encoder,
        embeddings_as="int8" if facts.int8 else "float32",
        data_sources=facts.data_sources,
        archive=facts.archive,
        window=Window(*plan.window),
        min_clear_s2=facts.min_clear_s2,
    )


def read_provenance(
    run: Run, visit: Callable[[PlannedTile, Mapping[str, Any]], None] = lambda _tile, _manifest: None
) -> RunProvenance:
    """Read the manifests of all tiles' embeddings, which have to be there and to fit together: each is read once.

    Args:
        run: the run directory.
        visit: shown every tile with its manifest, for who wants more of them.

    Raises:
        SmaltiError: if tiles lack a valid embedding (how many, and the first few), or were made by different models.
    """
    plan = Plan.read(run)
    tiles = plan.tiles
    if not tiles:
        raise SmaltiError(f"{run.plan}: it has no tiles: run `smalti plan {run.quoted}` again")
    first: dict[str, Any] = {}
    lacking: dict[str, str] = {}
    digest = hashlib.sha256()
    sources = set()
    origins: Counter[str] = Counter()
    for tile in tiles:  # there may be a million: nothing is kept of them
        path = embedding_paths(run.embeddings, tile.name)[2]
        try:
            manifest = read_manifest(path, "embedding", remedy=_REMEDY)
            verify_files(path, manifest, checksums=False, remedy=_REMEDY)
        except FormatError:
            lacking[tile.name] = "broken" if path.exists() else "missing"
        if lacking:
            continue
        first = first or manifest
        _check_alike(run, tiles[0].name, first, tile.name, manifest)
        digest.update(sha256_json([tile.name, manifest["files"]]).encode())
        if manifest.get("data_source"):
            sources.add(str(manifest["data_source"]))
        if "origin" in manifest:
            origins[f"{manifest['origin']['dataset']} from {manifest['origin']['source']}"] += 1
        visit(tile, manifest)
    _check_complete(run, lacking, len(tiles))
    try:
        model = first["model"]
        return RunProvenance(
            model=str(model["name"]),
            label=str(model["label"]),
            trained=bool(model["trained"]),
            family=str(model["family"]),
            checkpoint=str(first["inputs"]["checkpoint"]),
            dim=_dim(tiles[0].name, first),
            int8=_is_int8(tiles[0].name, first),
            data_sources=tuple(sorted(sources)),
            archive=plan.source,
            window=(plan.window[0].isoformat(), plan.window[1].isoformat()),
            region=plan.region.name,
            fingerprint=digest.hexdigest(),
            origins=dict(sorted(origins.items())),
            min_clear_s2=int(first.get("min_clear_s2", 0)),
        )
    except (KeyError, TypeError, ValueError) as error:
        where = embedding_paths(run.embeddings, tiles[0].name)[2]
        raise FormatError(f"{where}: lacks what a mosaic has to state ({error!r}): {_REMEDY}") from error


def _check_complete(run: Run, lacking: Mapping[str, str], tiles: int) -> None:
    if lacking:
        shown = ", ".join(f"{name} ({kind})" for name, kind in list(lacking.items())[:_NAMED])
        more = ", ..." if len(lacking) > _NAMED else ""
        raise SmaltiError(
            f"{run.embeddings}: {len(lacking)} of {tiles} tiles have no valid embedding: {shown}{more}: "
            f"run `smalti infer {run.quoted}`"
        )


def _check_alike(run: Run, first: str, one: Mapping[str, Any], name: str, other: Mapping[str, Any]) -> None:
    """Embeddings of different models, or cut to different lengths, are not comparable."""
    differing = [
        what
        for what, (a, b) in {
            "checkpoint": (one["inputs"].get("checkpoint"), other["inputs"].get("checkpoint")),
            "dimensions": (_dim(first, one), _dim(name, other)),
            "output": (_is_int8(first, one), _is_int8(name, other)),
            "min_clear_s2": (one.get("min_clear_s2", 0), other.get("min_clear_s2", 0)),
        }.items()
        if a != b
    ]
    if differing:
        raise SmaltiError(
            f"{run.embeddings}: {first} and {name} differ in {', '.join(differing)} and do not belong in one mosaic: "
            f"run `smalti infer {run.quoted}`"
        )


def _dim(name: str, manifest: Mapping[str, Any]) -> int:
    return int(manifest["files"][f"{name}.npy"]["shape"][2])


def _is_int8(name: str, manifest: Mapping[str, Any]) -> bool:
    return f"{name}_scales.npy" in manifest["files"]
