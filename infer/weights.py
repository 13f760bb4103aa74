"""Checkpoints: safe loading, which family one belongs to, and what has to travel with it.

Nothing of a checkpoint is ever executed: it is read with `weights_only=True`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch

from infer.contract import (
    FormatError,
    ModelJob,
    RegisteredModel,
    Run,
    SmaltiError,
    brief_name,
    cached_checkpoint,
    one_line,
    registered_model,
    sha256_file,
)
from infer.contract.registry import DataSource, Family, expected_sha256, joined_sha256, parts_of
from infer.normalisation import NORMALISATIONS, Normalisation
from infer.torch_file import Saved, check_parameter, read_torch

_PREFIX = "_orig_mod."
_PROJECTOR = "projector."
_SOURCES: tuple[DataSource, ...] = get_args(DataSource)
_MAX_LABEL = 200
"""Characters of a checkpoint's name for itself, which maps and reports repeat."""
_OVER_MONTHS: Mapping[Family, str] = {
    "presto": "eo_patch_embed.S1.weight",
    "galileo-nano": "space_time_embed.S1.proj.weight",
}
"""Families that are told by the one parameter of this name, whatever stands before it."""
_WRAPPINGS = ("state_dict", "model_state_dict", "model_state", "model")
"""Where those who train such networks keep the parameters, if not at the top."""
_BACKBONE = ".backbone"
"""In some of Galileo's names."""
_REMEDY = "fetch it again, or use another checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: parameters by clean names, and what the engine and the manifest need to know."""

    name: str
    """Registered name, or the file's name."""
    path: Path
    sha256: str
    family: Family
    state: Mapping[str, torch.Tensor] = field(repr=False)
    """Parameters without `_orig_mod.` prefixes and projector."""
    settings: Saved
    """What the checkpoint says of itself (heads, normalisation of the output ...)."""
    normalisation_key: str
    data_source: DataSource | None
    """None: any tile is accepted."""
    trained: bool
    label: str
    """What to call it in front of people, for example "untrained demonstration model"."""
    parts: tuple[Checkpoint, ...] = ()
    """Of several models side by side: theirs."""

    @property
    def normalisation(self) -> Normalisation:
        """The statistics that standardise this model's input."""
        return NORMALISATIONS[self.normalisation_key]


def _clean_state(path: Path, state: Any) -> dict[str, torch.Tensor]:
    if not isinstance(state, Mapping):
        raise FormatError(f"{path}: its parameters are not a table of tensors: {_REMEDY}")
    clean = {str(key).removeprefix(_PREFIX): value for key, value in state.items()}
    if len(clean) < len(state):
        raise FormatError(f"{path}: two of its parameters have the same name: {_REMEDY}")
    return {
        key: check_parameter(path, key, value, _REMEDY)
        for key, value in clean.items()
        if not key.startswith(_PROJECTOR)
    }


def _part(path: Path, state: Saved, prefix: str) -> dict[str, torch.Tensor]:
    """The parameters behind a prefix, by their names there; decoders and heads beside them are not looked at."""
    chosen = {key: value for key, value in state.items() if key.startswith(prefix)}
    return _clean_state(path, {key.removeprefix(prefix): value for key, value in chosen.items()})


def _table(path: Path, content: Saved, key: str) -> dict[str, Any]:
    table = content.get(key)
    if not isinstance(table, Mapping | None):
        raise FormatError(f"{path}: {key!r} is a {type(table).__name__}, not a table: {_REMEDY}")
    return dict(table or {})


def _recognise(path: Path, content: Saved) -> tuple[Family, dict[str, torch.Tensor], dict[str, Any]]:
    """Family, parameters and settings of a checkpoint, from its own structure."""
    if "args" in content and "model" in content:
        return "v2-student", _clean_state(path, content["model"]), _table(path, content, "args")
    if "arch" in content and "encoder_state_dict" in content:
        return "v2-teacher", _clean_state(path, content["encoder_state_dict"]), _table(path, content, "arch")
    for key in ("model_state", "model_state_dict"):
        if key not in content:
            continue
        state = _clean_state(path, content[key])
        settings = _table(path, content, "config")
        if "s2_backbone.attn_pool.temporal_context.weight_ih_l0" in state:
            return "v1.0", state, settings
        if "s2_backbone.attn_pool.temporal_context.gru_cell.W_ir.weight" in state:
            return ("v1.1" if "dim_reducer.4.weight" in state else "v1.0-qat"), state, settings
    for family, parameter in _OVER_MONTHS.items():
        for stored in (content, *(content[key] for key in _WRAPPINGS if isinstance(content.get(key), Mapping))):
            table = {str(key).replace(_BACKBONE, ""): value for key, value in stored.items()}
            if len(table) < len(stored):
                raise FormatError(f"{path}: two of its parameters have the same name: {_REMEDY}")
            prefixes = [key[: -len(parameter)] for key in table if key.endswith(parameter)]
            if len(prefixes) == 1:
                return family, _part(path, table, prefixes[0]), {}
    raise FormatError(
        f"{path}: not a TESSERA checkpoint that smalti knows (v2 student or teacher, v1.1, v1.0, v1.0 QAT), nor one of "
        f"{' or '.join(_OVER_MONTHS)}; it holds {', '.join(sorted(map(brief_name, content))[:8]) or 'nothing'}: "
        f"{_REMEDY}"
    )


def _stated_source(table: Saved) -> DataSource | None:
    stated = table.get("data_source")
    return next((source for source in _SOURCES if isinstance(stated, str) and stated == source), None)


def _source(path: Path, family: Family, settings: Saved, metadata: Saved) -> tuple[str, DataSource | None]:
    """Key of the normalisation and the data source, from what the checkpoint says."""
    if family in ("v2-student", "v2-teacher"):
        return family, _stated_source(metadata)
    if family == "v1.1":
        source = _stated_source(settings)
        if source not in ("mpc", "aws"):
            found = brief_name(settings.get("data_source"))
            raise FormatError(f"{path}: config.data_source is {found}, expected 'mpc' or 'aws': {_REMEDY}")
        return f"v1.1-{source}", source
    if family in _OVER_MONTHS:
        return family, None
    return "v1.0", "mpc"


def load_checkpoint(path: Path, registered: RegisteredModel | None = None, *, heads: int | None = None) -> Checkpoint:
    """Read a checkpoint without running anything in it.

    Args:
        path: a .pt file in the published format of any family.
        registered: the model it is meant to be; family, source and hash have to agree.
        heads: attention heads, for a v1.0 checkpoint of another size than published (it does not state them).

    Raises:
        SmaltiError: one line that names the file and what is wrong.
    """
    try:
        sha256 = sha256_file(path)
    except FileNotFoundError:
        raise SmaltiError(f"{path}: no such checkpoint") from None
    except OSError as error:
        raise SmaltiError(f"{path}: the checkpoint cannot be read: {error.strerror}") from error
    expected = None if registered is None else expected_sha256(registered, path)
    if registered is not None and expected not in (None, sha256):
        raise FormatError(
            f"{path}: its SHA-256 is {sha256[:12]}..., that of {registered.name} is {str(expected)[:12]}...: "
            f"run `smalti weights verify` and fetch it again"
        )
    if registered is not None and registered.weightless:
        label = "monthly medians"
        return Checkpoint(
            registered.name, path, sha256, registered.family, {}, {}, registered.normalisation, None, True, label
        )
    content = read_torch(path, _REMEDY)
    family, state, settings = _recognise(path, content)
    if heads is not None:
        settings = {**settings, "nhead": heads}
    metadata = _table(path, content, "smalti")
    key, source = _source(path, family, settings, metadata)
    if registered is not None and (family, key) != (registered.family, registered.normalisation):
        raise FormatError(
            f"{path}: a {family} checkpoint (statistics {key}), but {registered.name} is {registered.family} "
            f"({registered.normalisation}): name the model it is, or the file alone"
        )
    trained = metadata.get("trained", True) is True
    name = registered.name if registered else path.name
    stated = metadata.get("label")
    label = stated if isinstance(stated, str) and stated else name if trained else f"{name} (untrained)"
    return Checkpoint(name, path, sha256, family, state, settings, key, source, trained, one_line(label[:_MAX_LABEL]))


def resolve_checkpoint(job: ModelJob, run: Run) -> Checkpoint:
    """The checkpoint that a run's model.json asks for.

    Raises:
        SmaltiError: if it is not known, not fetched, or not what it should be.
    """
    registered = registered_model(job.name) if job.name is not None else None
    if job.checkpoint is not None:
        return load_checkpoint(run.root / job.checkpoint, registered)
    if registered is None:
        raise SmaltiError(f"{run.model_job}: names neither a model nor a checkpoint: set [model] name in run.toml")
    return load_registered(registered.name)


def load_registered(name: str, *, heads: int | None = None) -> Checkpoint:
    """The checkpoint of a registered model, or of several side by side (demo+monthly).

    Raises:
        SmaltiError: if one is not known, not fetched, or not what it should be.
    """
    parts = tuple(load_checkpoint(cached_checkpoint(part.name), part, heads=heads) for part in parts_of(name))
    if len(parts) == 1:
        return parts[0]
    whole = registered_model(name)
    return Checkpoint(
        name,
        parts[0].path,
        joined_sha256([part.sha256 for part in parts]),
        whole.family,
        {},
        {},
        whole.normalisation,
        whole.data_source,
        all(part.trained for part in parts),
        one_line(" beside ".join(part.label for part in parts)[:_MAX_LABEL]),
        parts,
    )


def check_source(checkpoint: Checkpoint, tile_name: str, tile_source: str | None) -> None:
    """Refuse a tile of another data source than the checkpoint was trained on.

    Raises:
        SmaltiError: with what to do. A tile or checkpoint that states no source is accepted.
    """
    if checkpoint.data_source is None or tile_source is None or tile_source == checkpoint.data_source:
        return
    raise SmaltiError(
        f"{tile_name}: its data come from {tile_source!r}, {checkpoint.name} was trained on "
        f"{checkpoint.data_source!r}: use the checkpoint of that source, "
        "or --allow-source-mismatch ([model] allow_source_mismatch = true)"
    )
