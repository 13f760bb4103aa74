"""What the tiles of a run have in common, read from the manifests of their embeddings: model, data, kind of numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infer.contract import (
    REGISTRY,
    SOFTWARE,
    FormatError,
    PlannedTile,
    Run,
    SmaltiError,
    embedding_paths,
    output_state,
    planned_tiles,
    read_manifest,
    read_plan,
    sha256_json,
)

_REMEDY = "run `smalti infer` again"
_NAMED = 3
"""Tiles named in a message about many."""


@dataclass(frozen=True)
class Facts:
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
    fingerprint: str
    """SHA-256 over the checksums of all embeddings."""

    @property
    def content(self) -> str:
        """What the numbers are: only a published model's are called TESSERA embeddings."""
        model = REGISTRY.get(self.model)
        published = model is not None and not model.bundled
        return "TESSERA embeddings" if published else f"embeddings of {self.label}"

    def tags(self) -> dict[str, str]:
        """GeoTIFF tags."""
        return {
            "SMALTI_SOFTWARE": SOFTWARE,
            "SMALTI_MODEL": self.model,
            "SMALTI_MODEL_LABEL": self.label,
            "SMALTI_MODEL_TRAINED": "yes" if self.trained else "no",
            "SMALTI_MODEL_FAMILY": self.family,
            "SMALTI_CHECKPOINT_SHA256": self.checkpoint,
            "SMALTI_DIMENSIONS": str(self.dim),
            "SMALTI_WINDOW_START": self.window[0],
            "SMALTI_WINDOW_END": self.window[1],
            "SMALTI_ARCHIVE": self.archive,
            "SMALTI_DATA_SOURCE": ", ".join(self.data_sources) or "not stated",
            "SMALTI_EMBEDDINGS": "int8 codes and scales" if self.int8 else "float32",
        }

    def fields(self) -> dict[str, Any]:
        """The same for manifests."""
        return {
            "model": {
                "name": self.model,
                "label": self.label,
                "trained": self.trained,
                "family": self.family,
                "checkpoint": self.checkpoint,
            },
            "dim": self.dim,
            "embeddings_as": "int8" if self.int8 else "float32",
            "data_sources": list(self.data_sources),
            "archive": self.archive,
            "window": {"start": self.window[0], "end": self.window[1]},
        }


def gather_facts(run: Run) -> Facts:
    """Read the manifests of all tiles' embeddings, which have to be there and to fit together.

    Raises:
        SmaltiError: if tiles lack a valid embedding (how many, and the first few), or were made by different models.
    """
    tiles = planned_tiles(run)
    _check_complete(run, tiles)
    plan = read_plan(run)
    first = _manifest(run, tiles[0].name)
    digest = hashlib.sha256()
    sources = set()
    for tile in tiles:  # there may be a million: nothing is kept of them
        manifest = _manifest(run, tile.name)
        _check_alike(run, tiles[0].name, first, tile.name, manifest)
        digest.update(sha256_json([tile.name, manifest["files"]]).encode())
        if manifest.get("data_source"):
            sources.add(str(manifest["data_source"]))
    try:
        model = first["model"]
        start, end = plan["window"]
        return Facts(
            model=str(model["name"]),
            label=str(model["label"]),
            trained=bool(model["trained"]),
            family=str(model["family"]),
            checkpoint=str(first["inputs"]["checkpoint"]),
            dim=_dim(tiles[0].name, first),
            int8=_is_int8(tiles[0].name, first),
            data_sources=tuple(sorted(sources)),
            archive=str(plan["source"]),
            window=(str(start), str(end)),
            fingerprint=digest.hexdigest(),
        )
    except (KeyError, TypeError, ValueError) as error:
        where = embedding_paths(run.embeddings, tiles[0].name)[2]
        raise FormatError(
            f"{where}: it or plan.json lacks what a mosaic has to state ({error!r}): {_REMEDY}"
        ) from error


def _manifest(run: Run, name: str) -> dict[str, Any]:
    return read_manifest(embedding_paths(run.embeddings, name)[2], "embedding", remedy=_REMEDY)


def _check_complete(run: Run, tiles: Sequence[PlannedTile]) -> None:
    reasons = {}
    for tile in tiles:
        state = output_state(embedding_paths(run.embeddings, tile.name)[2], "embedding")
        if not state.complete:
            reasons[tile.name] = state.kind
    if reasons:
        shown = ", ".join(f"{name} ({kind})" for name, kind in list(reasons.items())[:_NAMED])
        more = ", ..." if len(reasons) > _NAMED else ""
        raise SmaltiError(
            f"{run.embeddings}: {len(reasons)} of {len(tiles)} tiles have no valid embedding: {shown}{more}: "
            f"run `smalti infer {run.root}`"
        )
    if not tiles:
        raise SmaltiError(f"{run.plan}: it has no tiles: run `smalti plan {run.root}` again")


def _check_alike(run: Run, first: str, one: Mapping[str, Any], name: str, other: Mapping[str, Any]) -> None:
    """Embeddings of different models, or cut to different lengths, are not comparable."""
    differing = [
        what
        for what, (a, b) in {
            "checkpoint": (one["inputs"].get("checkpoint"), other["inputs"].get("checkpoint")),
            "dimensions": (_dim(first, one), _dim(name, other)),
            "output": (_is_int8(first, one), _is_int8(name, other)),
        }.items()
        if a != b
    ]
    if differing:
        raise SmaltiError(
            f"{run.embeddings}: {first} and {name} differ in {', '.join(differing)} and do not belong in one mosaic: "
            f"run `smalti infer {run.root}`"
        )


def _dim(name: str, manifest: Mapping[str, Any]) -> int:
    return int(manifest["files"][f"{name}.npy"]["shape"][2])


def _is_int8(name: str, manifest: Mapping[str, Any]) -> bool:
    return f"{name}_scales.npy" in manifest["files"]
