"""What of a list of tiles is to be embedded. Told without torch, so that a task with nothing to do ends at once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from infer.contract import (
    EXIT_FAILED,
    EXIT_OK,
    EXIT_TRY_AGAIN,
    TILE_ARRAYS,
    TILE_MANIFEST,
    FormatError,
    Inputs,
    ModelJob,
    PlannedTile,
    Run,
    SmaltiError,
    array_paths,
    cached_checkpoint,
    embedding_manifest,
    is_released,
    output_state,
    sha256_file,
)
from infer.contract.embedding import EmbeddingSource
from infer.contract.manifest import state_of
from infer.contract.registry import joined_sha256, parts_of

SEMANTICS = 1
"""Version of the engine's arithmetic: outputs made by another version are made again."""

Output = Literal["float32", "int8"]

_WITHOUT_MONTHS = ("v1.0", "v1.0-qat", "v1.1", "v2-student", "v2-teacher")
"""Families that take observations as they are, not composites of months."""
_ANY = ("float32", "bfloat16")
"""Precisions that there are."""


@dataclass(frozen=True)
class TileTask:
    """One tile to do."""

    name: str
    folder: Path
    need_manifest: bool
    """Refuse a tile without tile.json."""
    planned: PlannedTile | None = None
    """The tile that it has to be; None takes any folder's."""


@dataclass(frozen=True)
class Settings:
    """What is made of the tiles."""

    out: Path
    """Folder of the embeddings."""
    output: Output
    dim: int
    """Leading dimensions to keep; 0 = what the family saves."""
    overwrite: bool = False
    allow_source_mismatch: bool = False
    release: bool = False
    """Let a tile's arrays go when its embedding was written and read back."""
    any_precision: bool = False
    """The embedding of a released tile is as good in another precision: none was asked for."""
    scratch: Path | None = None
    """Folder on a disk of this node from which tiles are read, copied there one ahead; None reads them in place."""
    timings: Path | None = None
    """File to which a line (JSON) is added a tile: its pixels with an embedding, and the seconds that they took."""


@dataclass
class Report:
    """What became of the tiles."""

    done: int = 0
    skipped: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    """Name -> reason."""
    interrupted: bool = False

    @property
    def exit_code(self) -> int:
        """For the process."""
        if self.interrupted:
            return EXIT_TRY_AGAIN
        return EXIT_FAILED if self.failed else EXIT_OK

    def summary(self) -> str:
        """What to tell, failures one a line."""
        lines = [f"infer: {self.done} tiles done, {self.skipped} were complete, {len(self.failed)} failed"]
        lines += [f"  {name}: {reason}" for name, reason in self.failed.items()]
        if self.interrupted:
            lines.append("infer: stopped on request; the same command goes on from here")
        return "\n".join(lines)


def tile_fingerprint(folder: Path) -> str:
    """SHA-256 that stands for a tile's content: of tile.json, or of the arrays where there is none.

    Raises:
        FormatError: if a file is missing.
    """
    manifest = folder / TILE_MANIFEST
    if manifest.is_file():
        return sha256_file(manifest)
    digest = hashlib.sha256()
    for spec in TILE_ARRAYS.values():
        path = folder / spec.file
        if not path.is_file():
            raise FormatError(f"{path}: missing: fetch this tile again (delete its folder first if it is not smalti's)")
        digest.update(f"{spec.file} {sha256_file(path)}\n".encode())
    return digest.hexdigest()


def embedding_inputs(
    fingerprint: str, settings: Settings, *, checkpoint: str, precision: str, min_clear_s2: int, by_date: bool = False
) -> Inputs:
    """What the embedding of a tile depends on.

    Args:
        fingerprint: of the tile.
        settings: output and dimensions.
        checkpoint: SHA-256.
        precision: that the network runs in.
        min_clear_s2: pixels with fewer clear Sentinel-2 observations have none.
        by_date: the model starts from months, and those of the tile go by date; see `months_go_by_date`.
    """
    return {
        "tile": fingerprint,
        "checkpoint": checkpoint,
        "output": settings.output,
        "dim": settings.dim,
        "precision": precision,
        "engine": SEMANTICS,
        **({"min_clear_s2": min_clear_s2} if min_clear_s2 else {}),
        **({"months": "by date"} if by_date else {}),
    }


def is_current(manifest: Path, inputs: Inputs, settings: Settings, *, gone: bool) -> bool:
    """Whether an embedding is complete; that of a released tile may be in any precision, if none is asked for."""
    if output_state(manifest, "embedding", inputs).complete:
        return True
    others = _ANY if gone and settings.any_precision else ()
    return any(output_state(manifest, "embedding", {**inputs, "precision": other}).complete for other in others)


def nothing_due(tasks: Sequence[TileTask], settings: Settings, job: ModelJob, run: Run, device: str) -> bool:
    """Whether the engine would find every tile complete, as far as that can be told without starting it.

    Where it cannot (a device chooses the precision, weights are not here, something is missing or broken), the engine
    finds out and says why. Checkpoints, which may be large, are read only if everything else is as it should be.
    """
    if settings.overwrite:
        return False
    stated: set[str] = set()
    try:
        for task in tasks:
            gone = is_released(task.folder)
            if settings.release and any(path.exists() for path in array_paths(task.folder)):
                return False  # they are to be let go
            manifest = embedding_manifest(settings.out, task.name)
            about = EmbeddingSource.read_at(manifest, remedy="")
            if about.model.family not in _WITHOUT_MONTHS:
                return False  # whether a tile's months go by date is for the engine to look at
            checkpoint, precision = str(about.inputs.get("checkpoint")), str(about.inputs.get("precision"))
            if precision not in (_ANY if gone and settings.any_precision else (_precision(job, device),)):
                return False
            wanted = embedding_inputs(
                tile_fingerprint(task.folder),
                settings,
                checkpoint=checkpoint,
                precision=precision,
                min_clear_s2=job.min_clear_s2,
            )
            stated.add(checkpoint)
            if len(stated) > 1 or not state_of(manifest, about.files, about.inputs, wanted).complete:
                return False
        return not stated or stated == {_checkpoint(job, run)}
    except (SmaltiError, OSError):
        return False


def _precision(job: ModelJob, device: str) -> str | None:
    if job.precision != "auto":
        return job.precision
    return "float32" if device == "cpu" else None


def _checkpoint(job: ModelJob, run: Run) -> str:
    paths = [run.root / job.checkpoint] if job.checkpoint is not None else []
    paths = paths or [cached_checkpoint(part.name) for part in parts_of(job.name or "")]
    return joined_sha256([sha256_file(path) for path in paths])
