"""Models by name: which family, which data they were trained on, where their weights are.

Both environments read this table: the venv side fetches and verifies weights, the engine looks names up.
Source: the geotessera organisation on the Hugging Face hub, and GitHub where `revision` is set, November 2026. A hash
is pinned where it is known; where it is not, the first fetch records what it got. Either way every later use compares.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from infer.contract.atomic import sha256_json
from infer.contract.errors import SmaltiError
from infer.contract.manifest import FileRecord, read_manifest
from infer.contract.monthly import MONTHLY_DIM, MONTHLY_FAMILY

Family = Literal["v2-student", "v2-teacher", "v1.1", "v1.0", "v1.0-qat", "monthly", "presto", "galileo-nano"]
DataSource = Literal["mpc", "aws", "other"]

HUB = "https://huggingface.co"
GITHUB = "https://raw.githubusercontent.com"
_GITHUB_PAGES = "https://github.com"

DEMO_CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "demo.pt"
"""The small model that comes with smalti."""

_BUNDLED = {"demo": DEMO_CHECKPOINT, "monthly": DEMO_CHECKPOINT.with_name("monthly-v1.json")}
"""What needs no download. `monthly` has no weights: its file says what it computes, its checksum stands for that."""


JOIN = "+"
"""Between the names of models whose numbers stand side by side as one model: demo+monthly."""

WEIGHTS_KIND = "weights"
"""Of the manifest that `smalti weights fetch` leaves beside a checkpoint, named after the model."""

MATRYOSHKA = (16, 32, 64, 128)
"""Leading numbers that a v2 student's embedding may be cut to."""


_TESSERA_V1 = "Feng et al., TESSERA, arXiv:2506.20380"
_TESSERA_V2 = "TESSERA v2, arXiv:2607.03949; Feng et al., TESSERA, arXiv:2506.20380"


@dataclass(frozen=True)
class RegisteredModel:
    """One model that can be asked for by name."""

    name: str
    family: Family
    normalisation: str
    """Key of the normalisation statistics: v2-student, v2-teacher, v1.1-mpc, v1.1-aws, v1.0; else the family's name."""
    data_source: DataSource | None
    """Whose data it was trained on; None where its publisher states none (any tile is accepted)."""
    repo: str | None = None
    """Repository on the Hugging Face hub, or on GitHub."""
    revision: str | None = None
    """Commit of a repository on GitHub; None: it is on the hub."""
    file: str | None = None
    """File inside that repository; None where its name is not known."""
    sha256: str | None = None
    """Hash of the published file, where known."""
    parameters: int | None = None
    """Number of parameters as published (rounded for the students)."""
    size_bytes: int | None = None
    """Size of the checkpoint as published (some rounded)."""
    note: str = ""
    """What a user has to know to get or use it."""
    licence: str = "CC0-1.0"
    """Of the weights, by its SPDX name."""
    citation: str = _TESSERA_V1
    """The paper to cite with anything made from them."""

    @property
    def url(self) -> str | None:
        """Where the file can be fetched, or None (then `note` says how to get it)."""
        if self.repo is None or self.file is None:
            return None
        if self.revision is not None:
            return self.github_url(GITHUB)
        return f"{HUB}/{self.repo}/resolve/main/{self.file}"

    def github_url(self, endpoint: str) -> str:
        """Where a file on GitHub is, there or on a mirror of it."""
        return f"{endpoint}/{self.repo}/{self.revision}/{self.file}"

    @property
    def page(self) -> str | None:
        """The repository in which its publisher has it."""
        return None if self.repo is None else f"{HUB if self.revision is None else _GITHUB_PAGES}/{self.repo}"

    @property
    def tessera(self) -> bool:
        """Whether what it gives may be called TESSERA embeddings."""
        return self.name.startswith("tessera-") and not self.joined

    @property
    def dims(self) -> tuple[int, ...] | None:
        """Numbers a pixel that it can be asked for; None where its file tells."""
        if self.family == "v2-student":
            return MATRYOSHKA
        return (128,) if self.family in ("presto", "galileo-nano") else None

    @property
    def bundled(self) -> bool:
        """Whether the weights come with smalti."""
        return all(part in _BUNDLED for part in self.name.split(JOIN))

    @property
    def joined(self) -> bool:
        """Whether it is several models side by side."""
        return JOIN in self.name

    @property
    def coded(self) -> bool:
        """Whether int8 codes with one scale a pixel can keep its numbers.

        They have no way to say that a month is missing, and one scale for several models would crush the smaller ones.
        """
        return not (self.joined or self.weightless)

    @property
    def usual_dim(self) -> int:
        """Numbers a pixel that a run keeps unless it asks for fewer."""
        return sum(MONTHLY_DIM if family == MONTHLY_FAMILY else 128 for family in self.family.split(JOIN))

    @property
    def weightless(self) -> bool:
        """Whether it is no network: plain numbers, which the pixel's observations are summed up in."""
        return self.family == "monthly"


def _v2(name: str, letter: str, parameters: int, size_bytes: int, sha256: str, **other: Any) -> RegisteredModel:
    return RegisteredModel(
        name=f"tessera-v2-{name}",
        **{"family": "v2-student", "normalisation": "v2-student", "file": f"ckpt/student_{name}.pt", **other},
        data_source=None,
        repo=f"geotessera/TESSERA-V-2.0-2B-{letter}",
        sha256=sha256,
        parameters=parameters,
        size_bytes=size_bytes,
        citation=_TESSERA_V2,
    )


def _v1(name: str, family: Family, normalisation: str, source: DataSource, **other: Any) -> RegisteredModel:
    return RegisteredModel(f"tessera-{name}", family, normalisation, source, **other)


_MODELS = (
    RegisteredModel(
        "demo", "v2-student", "v2-student", None, note="comes with smalti", licence="MIT", citation="smalti"
    ),
    RegisteredModel(
        "monthly",
        "monthly",
        "none",
        None,
        parameters=0,
        note="monthly medians, no network: comes with smalti",
        licence="MIT",
        citation="smalti",
    ),
    RegisteredModel(
        "presto",
        "presto",
        "presto",
        None,
        repo="nasaharvest/presto",
        revision="13173d028f035abcbcc3b13829314323a5c15d02",
        file="data/default_model.pt",
        sha256="559c9d76f525bdf2dd3774da8b1e7f1510769b73baacac12e9e4d8d5c67fbe65",
        parameters=402_000,
        size_bytes=3_321_716,
        note="needs each tile's place and season",
        licence="MIT",
        citation="Tseng et al., Presto, arXiv:2304.14065",
    ),
    RegisteredModel(
        "galileo-nano",
        "galileo-nano",
        "galileo-nano",
        None,
        repo="nasaharvest/galileo",
        revision="0f0b5b95ac81acef4b74cf4686dc877202f4541b",
        file="data/models/nano/encoder.pt",
        sha256="eab6acacf527886a508a555bc24efe4b4a2cf91b162e84cd1c4a1807e942180c",
        parameters=1_037_856,
        size_bytes=4_189_406,
        note="needs each tile's season",
        licence="MIT",
        citation="Tseng et al., Galileo, arXiv:2502.09356",
    ),
    _v2("nano", "N", 1_070_000, 4_288_221, "bc9929e3643dfab2744c2ce14e7c14f698703a94e9562e4e0982f9d6540b0691"),
    _v2("small", "S", 7_110_000, 28_000_000, "92619d4ffc2936895f145fdcf710140b58c23c860e02f01873828b10c6958d95"),
    _v2("medium", "M", 21_030_000, 84_000_000, "3823be7db9d9cfc93f3c2a47c7699be82821ab4e1117d4d2befdb746941ee96e"),
    _v2("large", "L", 43_830_000, 175_000_000, "b5f20239dbb1849c01a3e407b095aafe39b0bf764300206af78cb9b85f9ec1e1"),
    _v2(
        "teacher",
        "Teacher",
        2_064_266_242,
        8_257_134_395,
        "bfca890a9956485edf9d6be61375fde4cd0b4cb4b47db79596f0523a289aa555",
        family="v2-teacher",
        normalisation="v2-teacher",
        file="ckpt/tessera_v2_2B_teacher.pt",
    ),
    _v1(
        "v1.1-mpc",
        "v1.1",
        "v1.1-mpc",
        "mpc",
        repo="geotessera/TESSERA-V-1.1",
        file="tessera_v1_1_mpc_encoder.pt",
        sha256="5dab0f070d5711034f7c241e841eaeedb49fef90b9355f68c8f20b9507839ec3",
        size_bytes=230_891_229,
    ),
    _v1(
        "v1.1-aws",
        "v1.1",
        "v1.1-aws",
        "aws",
        repo="geotessera/TESSERA-V-1.1",
        file="tessera_v1_1_aws_encoder.pt",
        size_bytes=230_000_000,
        note="trained anew on 2026-05-03: files from before are another model",
    ),
    _v1(
        "v1.0",
        "v1.0",
        "v1.0",
        "mpc",
        note="not on the hub: take the file from its publisher (links in the README of github.com/ucam-eo/tessera), "
        "then name it",
    ),
    _v1(
        "v1.0-qat",
        "v1.0-qat",
        "v1.0",
        "mpc",
        repo="geotessera/TESSERA-V-1.0",
        file="tessera-v1.0-QAT-best.pt",
    ),
)

REGISTRY: dict[str, RegisteredModel] = {model.name: model for model in _MODELS}
"""Name -> model."""


def registered_model(name: str) -> RegisteredModel:
    """Look a model up, or what several are side by side (demo+monthly).

    Raises:
        SmaltiError: naming the models there are; or if models cannot stand side by side.
    """
    parts = parts_of(name)
    return parts[0] if len(parts) == 1 else _joined(parts)


def known_model(name: str) -> RegisteredModel | None:
    """The same; None for a file's name."""
    try:
        return registered_model(name)
    except SmaltiError:
        return None


def parts_of(name: str) -> tuple[RegisteredModel, ...]:
    """The models whose numbers stand side by side under a name, in their order; most names are of one.

    Raises:
        SmaltiError: naming the models there are; or if one comes twice.
    """
    parts = name.split(JOIN)
    unknown = [part for part in parts if part not in REGISTRY]
    if unknown:
        raise SmaltiError(f"model {unknown[0]!r} is not known: choose one of {', '.join(REGISTRY)}, or name a file")
    if len(set(parts)) < len(parts):
        raise SmaltiError(f"model {name!r}: one of its parts comes twice: name each once")
    return tuple(REGISTRY[part] for part in parts)


def _joined(parts: tuple[RegisteredModel, ...]) -> RegisteredModel:
    name = JOIN.join(part.name for part in parts)
    sources = {part.data_source for part in parts} - {None}
    if len(sources) > 1:
        raise SmaltiError(f"model {name!r}: its parts were trained on the data of different archives: no tile fits all")
    parameters = [part.parameters for part in parts]
    return RegisteredModel(
        name,
        cast(Family, JOIN.join(part.family for part in parts)),
        "none",
        next(iter(sources), None),
        parameters=None if None in parameters else sum(count or 0 for count in parameters),
        licence=" AND ".join(dict.fromkeys(part.licence for part in parts)),
        citation="; ".join(dict.fromkeys(part.citation for part in parts)),
    )


def joined_sha256(digests: Sequence[str]) -> str:
    """What stands for the checksums of a model's files: of one file its own."""
    return digests[0] if len(digests) == 1 else sha256_json(list(digests))


def weights_folder() -> Path:
    """Where fetched checkpoints are kept: $SMALTI_WEIGHTS, else ~/.cache/smalti/weights."""
    chosen = os.environ.get("SMALTI_WEIGHTS")
    return Path(chosen) if chosen else Path.home() / ".cache" / "smalti" / "weights"


def cache_path(name: str) -> Path:
    """Where the checkpoint of one registered model is, or will be once it has been fetched."""
    model = registered_model(name)
    if model.bundled:
        return _BUNDLED[name]
    return weights_folder() / name / Path(model.file or "checkpoint.pt").name


def expected_sha256(model: RegisteredModel, path: Path) -> str | None:
    """The checksum that a model's file must have: the published one, else the one at its first fetch; None before it.

    Raises:
        FormatError: if the record of the fetch, beside the file, cannot be read.
    """
    record = path.parent / f"{model.name}.json"
    if model.sha256 is not None or not record.is_file():
        return model.sha256
    manifest = read_manifest(record, WEIGHTS_KIND, remedy="delete it and fetch the weights again")
    recorded: FileRecord | None = manifest["files"].get(path.name)
    return None if recorded is None else recorded["sha256"]


def cached_checkpoint(name: str) -> Path:
    """Path of the weights of a registered model on this machine.

    Raises:
        SmaltiError: if they have not been fetched; the message says how to get them.
    """
    path = cache_path(name)
    if path.is_file():
        return path
    model = registered_model(name)
    if model.url is None:
        raise SmaltiError(
            f"{path}: the weights of {name} are not there; {model.note} with --checkpoint or as this path"
        )
    raise SmaltiError(f"{path}: the weights of {name} are not there: run `smalti weights fetch {name}`")
