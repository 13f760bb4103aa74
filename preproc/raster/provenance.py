"""What the tiles of a run have in common, read from the manifests of their embeddings: model, data, kind of numbers."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

from infer.contract import (
    SOFTWARE,
    FormatError,
    Plan,
    PlannedTile,
    Run,
    SmaltiError,
    planned_tiles,
    sha256_text,
)
from infer.contract.glance import Stated, glance_at
from infer.contract.provenance import Embedded, Encoder, Window
from infer.contract.registry import known_model
from preproc.run.text import some

_NAMED = 3
"""Tiles named in a message about many."""
_LISTED = 40
"""And in the list at the end; manifests name all."""


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
    missing: tuple[str, ...] = ()
    """Tiles that were asked for and have no valid embedding, where that is allowed."""

    @property
    def content(self) -> str:
        """What the numbers are: only a published model's are called TESSERA embeddings."""
        model = known_model(self.model)
        return "TESSERA embeddings" if model is not None and model.tessera else f"embeddings of {self.label}"

    def present(self, tiles: Sequence[PlannedTile]) -> list[PlannedTile]:
        """Those of some tiles that are not missing."""
        missing = frozenset(self.missing)
        return [tile for tile in tiles if tile.name not in missing]

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
        known = known_model(self.model)
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
            "missing": self.missing,
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


@dataclass
class Embeddings:
    """The embeddings of a run, asked for by tiles: each manifest is read once, and only those that are asked for."""

    run: Run
    archive: str
    """[archive] source of the plan."""
    window: tuple[str, str]
    """First and last day, inclusive."""
    region: str
    """Its name."""
    gaps: Sequence[PlannedTile] | None = None
    """All tiles of the plan, any of which may be missing; None: those that are asked for have to be there."""
    _seen: dict[str, tuple[str, Stated]] = field(default_factory=dict, repr=False)
    """Tile -> digest of its name and its files, what it states."""
    _gone: dict[str, str] = field(default_factory=dict, repr=False)
    """Tile -> why it is missing, where that is allowed: one that comes while a sheet is made is for the next time."""

    @classmethod
    def of_run(cls, run: Run, plan: Plan, *, gaps: bool = False) -> Embeddings:
        """Of a planned run; nothing is read yet. With `gaps` tiles may lack theirs: [stitch] missing = "nodata".

        Raises:
            SmaltiError: if the plan has no tiles.
        """
        if not plan.tiles:
            raise SmaltiError(f"{run.plan}: it has no tiles: run `smalti plan {run.quoted}` again")
        window = plan.window[0].isoformat(), plan.window[1].isoformat()
        return cls(run, plan.source, window, plan.region.name, plan.tiles if gaps else None)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_seen": {}, "_gone": {}}  # another process reads what it needs

    def lacks(self, tile: PlannedTile) -> bool:
        """Whether one tile has no valid embedding."""
        try:
            self._tile(tile)
        except _LackingError:
            return True
        return False

    def digest(self, tile: PlannedTile) -> str:
        """SHA-256 of the files of one tile's embedding.

        Raises:
            SmaltiError: if it has no valid one.
        """
        self._tile(tile)
        return sha256_text(glance_at(f"{self._folder}/{tile.name}.json").files)

    def provenance(self, tiles: Sequence[PlannedTile]) -> RunProvenance:
        """What some tiles have in common; they have to be there, unless gaps are allowed, and to fit together.

        Raises:
            SmaltiError: if tiles lack a valid embedding (how many, and the first few), or differ in their models; with
                gaps, if no tile of the run has one.
        """
        lacking: dict[str, str] = {}
        digest = hashlib.sha256()
        sources = set()
        origins: Counter[str] = Counter()
        first: Stated | None = None
        one = ""
        for tile in tiles:
            try:
                own, stated = self._tile(tile)
            except _LackingError as error:
                lacking[tile.name] = str(error)
                continue
            if lacking and self.gaps is None:
                continue
            if first is None:
                first, one = stated, tile.name
            _check_alike(self.run, one, first, tile.name, stated)
            digest.update(own.encode())
            sources.add(stated.data_source)
            if stated.origin:
                origins[stated.origin] += 1
        if lacking and self.gaps is None:
            raise _incomplete(self.run, lacking, len(tiles))
        first = first or self._any()
        if first is None:
            raise _incomplete(self.run, lacking, len(tiles))
        name, label, trained, family = first.model
        return RunProvenance(
            model=name,
            label=label,
            trained=trained,
            family=family,
            checkpoint=first.checkpoint,
            dim=first.dim,
            int8=first.int8,
            data_sources=tuple(sorted(sources - {""})),
            archive=self.archive,
            window=self.window,
            region=self.region,
            fingerprint=digest.hexdigest(),
            min_clear_s2=first.min_clear_s2,
            origins=dict(sorted(origins.items())),
            missing=tuple(sorted(lacking)),
        )

    def _any(self) -> Stated | None:
        """What any embedding of the run states, for a sheet all of whose tiles are missing."""
        for tile in self.gaps or ():
            try:
                return self._tile(tile)[1]
            except _LackingError:
                continue
        return None

    def _tile(self, tile: PlannedTile) -> tuple[str, Stated]:
        if tile.name in self._gone:
            raise _LackingError(self._gone[tile.name])
        if tile.name not in self._seen:
            path = f"{self._folder}/{tile.name}.json"
            try:
                found = glance_at(path)
                found.verify(path)
            except FormatError as error:
                why = "broken" if Path(path).exists() else "missing"
                if self.gaps is not None:
                    self._gone[tile.name] = why
                raise _LackingError(why) from error
            self._seen[tile.name] = found.digest, found.stated
        return self._seen[tile.name]

    @cached_property
    def _folder(self) -> str:
        return str(self.run.embeddings)


class _LackingError(SmaltiError):
    """A tile has no valid embedding."""


def read_provenance(run: Run, *, gaps: bool = False) -> RunProvenance:
    """What all tiles of a run have in common; see `Embeddings.provenance`."""
    plan = Plan.read(run)
    return Embeddings.of_run(run, plan, gaps=gaps).provenance(plan.tiles)


def embeddings_fingerprint(run: Run, *, gaps: bool = False) -> str:
    """One SHA-256 over the files' checksums of all embeddings of the plan; with `gaps` of those that are valid.

    Raises:
        SmaltiError: if one is missing; the message says how many are.
    """
    folder, tiles = run.embeddings, planned_tiles(run)
    digest, lead = hashlib.sha256(), "["
    missing: list[str] = []
    broken: FormatError | None = None
    for tile in tiles:
        path = f"{folder}/{tile.name}.json"
        try:
            found = glance_at(path)
            if gaps:
                found.verify(path)
        except FormatError as error:
            if gaps or not Path(path).exists():
                missing.append(tile.name)
            else:
                broken = broken or error
            continue
        digest.update(f"{lead}[{json.dumps(tile.name)},{found.files}]".encode())  # as one JSON it may fill the memory
        lead = ","
    if missing and (not gaps or len(missing) == len(tiles)):
        raise SmaltiError(
            f"{folder}: {len(missing)} of {len(tiles)} tiles have no embedding yet "
            f"(the first is {missing[0]}): run `smalti infer {run.quoted}`"
        )
    if broken is not None:
        raise broken
    digest.update(b"[]" if lead == "[" else b"]")
    return digest.hexdigest()


def missing_lines(stage: str, run: Run, missing: Sequence[str]) -> list[str]:
    """What to tell people of tiles that are nodata."""
    if not missing:
        return []
    shown = some(missing, _LISTED)
    many = f"{len(missing)} tiles have no embedding and are" if len(missing) > 1 else "1 tile has no embedding and is"
    return [
        f"{stage}: {many} nodata ([stitch] missing): {shown}: `smalti run {run.quoted}` or "
        f"`smalti submit {run.quoted}` fills in what can be had"
    ]


def _incomplete(run: Run, lacking: Mapping[str, str], tiles: int) -> SmaltiError:
    shown = some([f"{name} ({kind})" for name, kind in lacking.items()], _NAMED)
    return SmaltiError(
        f"{run.embeddings}: {len(lacking)} of {tiles} tiles have no valid embedding: {shown}: "
        f'run `smalti infer {run.quoted}`; this can do without: [stitch] missing = "nodata"'
    )


def _check_alike(run: Run, first: str, one: Stated, name: str, other: Stated) -> None:
    """Embeddings of different models, or cut to different lengths, are not comparable."""
    if one is other:
        return
    differing = [
        what
        for what, (a, b) in {
            "checkpoint": (one.checkpoint, other.checkpoint),
            "dimensions": (one.dim, other.dim),
            "output": (one.int8, other.int8),
            "min_clear_s2": (one.min_clear_s2, other.min_clear_s2),
        }.items()
        if a != b
    ]
    if differing:
        raise SmaltiError(
            f"{run.embeddings}: {first} and {name} differ in {', '.join(differing)} and do not belong in one mosaic: "
            f"run `smalti infer {run.quoted}`"
        )
