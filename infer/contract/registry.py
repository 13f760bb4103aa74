"""Models by name: which family, which data they were trained on, where their weights are.

Both environments read this table: the venv side fetches and verifies weights, the engine looks names up.
Source: README of ucam-eo/tessera, November 2026. Hashes of published files are not known in advance: the first fetch
records what it got, and every later use compares.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from infer.contract.errors import SmaltiError

Family = Literal["v2-student", "v2-teacher", "v1.1", "v1.0", "v1.0-qat"]
DataSource = Literal["mpc", "aws", "other"]

HUB = "https://huggingface.co"

DEMO_CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "demo.pt"
"""The small model that comes with smalti."""


MATRYOSHKA = (16, 32, 64, 128)
"""Leading numbers that a v2 student's embedding may be cut to."""


@dataclass(frozen=True)
class RegisteredModel:
    """One model that can be asked for by name."""

    name: str
    family: Family
    normalisation: str
    """Key of the normalisation statistics: v2-student, v2-teacher, v1.1-mpc, v1.1-aws, v1.0."""
    data_source: DataSource | None
    """Whose data it was trained on; None where its publisher states none (any tile is accepted)."""
    repo: str | None = None
    """Repository on the Hugging Face hub."""
    file: str | None = None
    """File inside that repository; None where its name is not known."""
    sha256: str | None = None
    """Hash of the published file, where known."""
    parameters: int | None = None
    """Number of parameters as published (rounded for the students)."""
    size_bytes: int | None = None
    """Size of the checkpoint as published (rounded)."""
    note: str = ""
    """What a user has to know to get or use it."""

    @property
    def url(self) -> str | None:
        """Where the file can be fetched, or None (then `note` says how to get it)."""
        if self.repo is None or self.file is None:
            return None
        return f"{HUB}/{self.repo}/resolve/main/{self.file}"

    @property
    def bundled(self) -> bool:
        """Whether the weights come with smalti."""
        return self.name == "demo"


_DRIVE = (
    "published on Google Drive (links in the README of github.com/ucam-eo/tessera): download it, then name the file"
)


def _v2(size: str, letter: str, parameters: int, size_bytes: int | None = None) -> RegisteredModel:
    return RegisteredModel(
        name=f"tessera-v2-{size}",
        family="v2-student",
        normalisation="v2-student",
        data_source=None,
        repo=f"geotessera/TESSERA-V-2.0-2B-{letter}",
        file=f"ckpt/student_{size}.pt",
        parameters=parameters,
        size_bytes=size_bytes,
    )


_MODELS = (
    RegisteredModel("demo", "v2-student", "v2-student", None, note="comes with smalti"),
    _v2("nano", "N", 1_070_000),
    _v2("small", "S", 7_110_000),
    _v2("medium", "M", 21_030_000, 84_000_000),
    _v2("large", "L", 43_830_000),
    RegisteredModel(
        "tessera-v2-teacher",
        "v2-teacher",
        "v2-teacher",
        None,
        repo="geotessera/TESSERA-V-2.0-2B-Teacher",
        parameters=2_064_266_242,
        size_bytes=8_260_000_000,
        note="the file's name in its repository is not known here: look there, download it, then name the file",
    ),
    RegisteredModel("tessera-v1.1-mpc", "v1.1", "v1.1-mpc", "mpc", note=_DRIVE),
    RegisteredModel("tessera-v1.1-aws", "v1.1", "v1.1-aws", "aws", note=_DRIVE),
    RegisteredModel("tessera-v1.0", "v1.0", "v1.0", "mpc", note=_DRIVE),
    RegisteredModel("tessera-v1.0-qat", "v1.0-qat", "v1.0", "mpc", note=_DRIVE),
)

REGISTRY: dict[str, RegisteredModel] = {model.name: model for model in _MODELS}
"""Name -> model."""


def registered_model(name: str) -> RegisteredModel:
    """Look a model up.

    Raises:
        SmaltiError: naming the models there are.
    """
    try:
        return REGISTRY[name]
    except KeyError:
        raise SmaltiError(f"model {name!r} is not known: choose one of {', '.join(REGISTRY)}, or name a file") from None


def weights_folder() -> Path:
    """Where fetched checkpoints are kept: $SMALTI_WEIGHTS, else ~/.cache/smalti/weights."""
    chosen = os.environ.get("SMALTI_WEIGHTS")
    return Path(chosen) if chosen else Path.home() / ".cache" / "smalti" / "weights"


def cache_path(name: str) -> Path:
    """Where the checkpoint of a registered model is, or will be once it has been fetched."""
    model = registered_model(name)
    if model.bundled:
        return DEMO_CHECKPOINT
    return weights_folder() / name / Path(model.file or "checkpoint.pt").name


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
