"""The embedding of a tile as a unit: where it is and what it has to be made from, as far as this side knows."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infer.contract import (
    TILE_MANIFEST,
    FormatError,
    Inputs,
    Run,
    SmaltiError,
    State,
    child,
    embedding_manifest,
    sha256_file,
)
from infer.contract.glance import glance_at
from infer.contract.imported import imported_tiles
from infer.contract.registry import cache_path, joined_sha256, parts_of
from preproc.run.config import Config
from preproc.run.stage import LateInputs, Unit

_HASHED_BYTES = 2**30
"""Checkpoints up to this size are hashed to tell whether embeddings are current; the teacher's 8 GB would take long."""


class EmbeddingUnit(Unit):
    """An embedding. Its manifest is read once, however many stages of a command ask for it."""

    def state(self, *, checksums: bool = False) -> State:
        """As of any unit."""
        if checksums:
            return super().state(checksums=True)
        try:
            inputs = self.wanted()
            found = glance_at(str(self.manifest))
        except SmaltiError:
            return super().state()  # which tells what is missing or broken
        return found.state(str(self.manifest), inputs)


@dataclass(frozen=True)
class EmbeddingUnits:
    """The embeddings of a run's tiles."""

    known: Inputs
    """What run.toml says of their fingerprint."""
    imported: Mapping[str, str]
    """Tile whose embedding `smalti import` took from others -> identity of the import."""
    tiles: Path
    embeddings: Path

    def of(self, name: str, tile: str | None = None) -> Unit:
        """The embedding of a tile, by name.

        Args:
            name: of the tile.
            tile: SHA-256 of the tile's manifest, for whoever knows it; otherwise it is read when it is needed.
        """
        manifest = embedding_manifest(self.embeddings, name)
        if name in self.imported:  # neither scenes nor weights make it stale
            inputs = {"import": self.imported[name], **{key: self.known[key] for key in _OF_IMPORTED}}
            return EmbeddingUnit(name, manifest, "embedding", inputs, partial=True)
        if tile is not None:
            return EmbeddingUnit(name, manifest, "embedding", {**self.known, "tile": tile}, partial=True)
        inputs_of = LateInputs(functools.partial(self._inputs, name))
        return EmbeddingUnit(name, manifest, "embedding", inputs_of, partial=True)

    def made_from(self, name: str) -> str:
        """SHA-256 of the manifest of the tile that an embedding was made from; empty where that is not known."""
        try:
            return glance_at(f"{self.embeddings}/{name}.json").tile or ""
        except FormatError:
            return ""

    def _inputs(self, name: str) -> Inputs:
        source = child(self.tiles, name) / TILE_MANIFEST
        # people remove whole tiles once the embeddings are made: those are none the worse for it
        return {**self.known, "tile": sha256_file(source)} if source.is_file() else self.known


_OF_IMPORTED = ("output", "dim", "min_clear_s2")


def embedding_units(run: Run, config: Config) -> EmbeddingUnits:
    """The embeddings of a run.

    Raises:
        FormatError: if import.json cannot be read.
    """
    return EmbeddingUnits(known_inputs(config), imported_tiles(run), run.tiles, run.embeddings)


def known_inputs(config: Config) -> Inputs:
    """What run.toml says of an embedding's fingerprint; "auto" and weights that are not here: the engine knows."""
    model = config.model
    known: dict[str, Any] = {"output": model.output, "dim": model.dim, "min_clear_s2": model.min_clear_s2 or None}
    if model.precision != "auto":
        known["precision"] = model.precision
    paths = [model.checkpoint] if model.name is None else [cache_path(part.name) for part in parts_of(model.name)]
    stats = [(path, path.stat()) for path in paths if path is not None and path.is_file()]
    if len(stats) == len(paths) and all(stat.st_size <= _HASHED_BYTES for _, stat in stats):
        digests = [_checkpoint_digest(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]
        known["checkpoint"] = joined_sha256(digests)
    return known


@functools.lru_cache(maxsize=8)
def _checkpoint_digest(path: Path, size: int, changed_ns: int) -> str:
    del size, changed_ns  # part of the key: a file that was replaced is read again
    return sha256_file(path)
