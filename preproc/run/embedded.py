"""The embedding of a tile as a unit: where it is and what it has to be made from, as far as this side knows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from infer.contract import TILE_MANIFEST, Inputs, Run, child, embedding_manifest, sha256_file
from infer.contract.imported import imported_tiles
from infer.contract.registry import cache_path, joined_sha256, parts_of
from preproc.run.config import Config
from preproc.run.stage import LateInputs, Unit

_HASHED_BYTES = 2**30
"""Checkpoints up to this size are hashed to tell whether embeddings are current; the teacher's 8 GB would take long."""


def embedding_units(run: Run, config: Config) -> Callable[[str], Unit]:
    """What gives the unit of a tile's embedding by the tile's name.

    Raises:
        FormatError: if import.json cannot be read.
    """
    known, imported = known_inputs(config), imported_tiles(run)
    return lambda name: _unit(run, name, known, imported)


def _unit(run: Run, name: str, known: Inputs, imported: Mapping[str, str]) -> Unit:
    if name in imported:
        return _imported_unit(run, name, imported[name], known)

    def inputs() -> Inputs:
        source = child(run.tiles, name) / TILE_MANIFEST
        # people remove whole tiles once the embeddings are made: those are none the worse for it
        return {**known, "tile": sha256_file(source)} if source.is_file() else known

    return Unit(name, embedding_manifest(run.embeddings, name), "embedding", LateInputs(inputs), partial=True)


def _imported_unit(run: Run, name: str, identity: str, known: Inputs) -> Unit:
    """A tile whose embedding `smalti import` took from others: neither scenes nor weights make it stale."""
    inputs = {"import": identity, **{key: known[key] for key in ("output", "dim", "min_clear_s2")}}
    return Unit(name, embedding_manifest(run.embeddings, name), "embedding", inputs, partial=True)


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
