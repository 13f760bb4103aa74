"""The manifests of embeddings in brief: of a country each is read once, however many stages ask for it.

Status, mosaic, samples and map all ask for the embedding of every tile. What they want to know of it takes a kilobyte,
and is kept as long as the manifest is the file that it was. Its arrays are looked at whenever somebody asks.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from infer.contract.atomic import canonical_json, sha256_json, sha256_text
from infer.contract.embedding import EmbeddingSource, embedding_manifest
from infer.contract.errors import FormatError
from infer.contract.manifest import FileRecord, Inputs, State, read_manifest, state_of, verify_files
from infer.contract.record import from_json
from infer.contract.regular import JsonObject, file_mark

_MOST = 1 << 18
"""Manifests that are kept: a quarter of a gigabyte."""
_AT_REST_NS = 2 * 10**9
"""A file that was changed a moment ago may be changed again without another date."""
_REMEDY = "run `smalti infer` again"
_AGAIN = f"delete it, then {_REMEDY}"
"""Which takes it for whole."""

_T = TypeVar("_T", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Stated:
    """What a tile's embedding states of itself; equal ones are kept once."""

    model: tuple[str, str, bool, str]
    """Name, label, trained, family."""
    checkpoint: str
    dim: int
    int8: bool
    min_clear_s2: int
    data_source: str
    """Archive of its scenes; empty if it states none."""
    origin: str
    """Where it was imported from; empty for what was computed."""


@dataclass(frozen=True, slots=True)
class Glance:
    """The manifest of an embedding in brief."""

    tile: str | None
    """SHA-256 of the manifest of the tile that it was made from."""
    others: Inputs
    """Its other inputs, shared among tiles."""
    files: str
    """What the manifest says of its files, as canonical JSON."""
    digest: str
    """SHA-256 that stands for the tile and its files where those of many are summed up."""
    sizes: tuple[tuple[bool, str, int], ...]
    """Of each file: whether its name begins with the tile's, (the rest of) its name, bytes."""
    _stated: Stated | str
    """Or why it cannot be told."""

    @property
    def stated(self) -> Stated:
        """What it states.

        Raises:
            FormatError: if it lacks what a mosaic has to state.
        """
        if isinstance(self._stated, str):
            raise FormatError(self._stated)
        return self._stated

    def state(self, path: str, inputs: Inputs) -> State:
        """Whether it is complete and made from these inputs among others; its files are looked at, not read."""
        made_from = self.others if self.tile is None else {**self.others, "tile": self.tile}
        files = {} if self._seen_whole() else self._files(path)
        state = state_of(path, files, made_from, inputs, partial=True)
        if state.kind != "broken":
            self._found_whole()
        return state

    def verify(self, path: str) -> None:
        """Check that its files are there, and as large as they should be.

        Raises:
            FormatError: naming the first file that does not match.
        """
        if not self._seen_whole():
            verify_files(path, self._files(path), checksums=False, remedy=_REMEDY)
            self._found_whole()

    def _seen_whole(self) -> bool:
        return _look is not None and id(self) in _look.whole

    def _found_whole(self) -> None:
        if _look is not None:
            _look.whole.add(id(self))

    def _files(self, path: str) -> dict[str, FileRecord]:
        name = _name(path)  # whoever looks only at sizes needs no checksum
        return {(f"{name}{rest}" if own else rest): {"bytes": size, "sha256": ""} for own, rest, size in self.sizes}


@dataclass
class Look:
    """One look at a run: what was seen of an embedding holds for all who ask within it; see `one_look`."""

    seen: dict[str, Glance] = field(default_factory=dict)
    """Path of a manifest -> what it says."""
    whole: set[int] = field(default_factory=set)
    """Ids of those of them whose files were there, as large as they should be."""


_look: Look | None = None


@contextmanager
def one_look(look: Look) -> Iterator[None]:
    """Within it no embedding is looked at twice. For whoever judges a run as it is at one moment, and makes nothing."""
    global _look
    before, _look = _look, look
    try:
        yield
    finally:
        _look = before


_kept: dict[str, tuple[tuple[int, ...], Glance]] = {}
"""Path -> what tells the file from another one, and the file in brief."""
_alike: dict[Any, Any] = {}


def glance_at(path: str) -> Glance:
    """The manifest of an embedding, read if it is not the file that was read before.

    Raises:
        FormatError: if it is missing, or is not what it should be.
    """
    if _look is not None and (seen := _look.seen.get(path)) is not None:
        return seen
    found = _glance(path)
    if _look is not None:
        _look.seen[path] = found
    return found


def _glance(path: str) -> Glance:
    mark = file_mark(path)
    kept = _kept.get(path)
    if kept is not None and kept[0] == mark:
        return kept[1]
    found = _brief(path, read_manifest(path, EmbeddingSource.kind, remedy=_REMEDY))
    if len(_kept) < _MOST or kept is not None:
        if mark and time.time_ns() - mark[1] > _AT_REST_NS:
            _kept[path] = mark, found
        else:
            _kept.pop(path, None)
    return found


def lacks_embedding(folder: Path, name: str) -> bool:
    """Whether a tile's embedding is missing or broken: what counts as missing where that is allowed."""
    path = str(embedding_manifest(folder, name))
    try:
        glance_at(path).verify(path)
    except FormatError:
        return True
    return False


def _name(path: str) -> str:
    return path.rpartition("/")[2].removesuffix(".json")


def _brief(path: str, manifest: JsonObject) -> Glance:
    name = _name(path)
    inputs, files = dict(manifest["inputs"]), manifest["files"]
    tile = inputs.pop("tile", None)
    if not isinstance(tile, str | None):
        inputs["tile"], tile = tile, None
    sizes = tuple(
        (own := file.startswith(name), sys.intern(file[len(name) :] if own else file), record["bytes"])
        for file, record in files.items()
    )
    try:
        stated: Stated | str = _one(_stated(path, from_json(EmbeddingSource, manifest, path, _AGAIN)))
    except FormatError as error:
        stated = str(error)
    try:
        text = canonical_json(files)
    except ValueError as error:
        raise FormatError(f"{path}: what it says of its files is not JSON ({error}): {_REMEDY}") from error
    digest = sha256_json([name, sha256_text(text)])
    return Glance(tile, _shared(inputs), text, digest, _one(sizes), stated)


def _stated(path: str, about: EmbeddingSource) -> Stated:
    name, model, origin = _name(path), about.model, about.origin
    checkpoint, values = about.inputs.get("checkpoint"), about.files.get(f"{name}.npy")
    shape = () if values is None else values.get("shape", ())
    if not isinstance(checkpoint, str) or not isinstance(shape, list) or list(map(type, shape)) != [int] * 3:
        what = f"the shape of {name}.npy" if isinstance(checkpoint, str) else "inputs.checkpoint"
        raise FormatError(f"{path}: lacks what a mosaic has to state ({what}): {_AGAIN}")
    return Stated(
        model=(model.name, model.label, model.trained, model.family),
        checkpoint=checkpoint,
        dim=shape[2],
        int8=f"{name}_scales.npy" in about.files,
        min_clear_s2=about.min_clear_s2 or 0,
        data_source=about.data_source or "",
        origin="" if origin is None else f"{origin.dataset} from {origin.source}",
    )


def _one(value: _T) -> _T:
    """The value that was kept first of those that are equal to it."""
    found: _T = _alike.setdefault(value, value)
    return found


def _shared(inputs: dict[str, Any]) -> Inputs:
    key = tuple(inputs.items())
    try:
        found: dict[str, Any] = _alike.setdefault(key, inputs)
    except TypeError:  # a list among them
        return inputs
    return found
