"""Files that torch.save wrote, or that say so: read without running anything in them, and what a parameter may be.

What a tensor promises is checked against what is stored: a shape may repeat one number a million million times.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch

from infer.contract import FormatError, brief_name, one_line, open_regular

_DTYPES = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})

Saved: TypeAlias = Mapping[str, Any]
"""A table that torch.save wrote, or one in it: settings and tensors as their publisher names them."""


def read_torch(path: Path, remedy: str) -> dict[str, Any]:
    """The table that torch.save wrote into a file. Of one as a zip archive (all since 2020) tensors share its pages.

    Args:
        path: the file.
        remedy: what to do, for the message.

    Raises:
        FormatError: if it is damaged, no table, or holds anything but tensors, numbers, text and containers of them.
        OSError: if it cannot be opened.
    """
    archive = _is_archive(path, remedy)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on kinds of tensors that are refused below
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except pickle.UnpicklingError as error:
        raise FormatError(
            f"{path}: refused: not a plain checkpoint of tensors (damaged, or a pickle that would run code): {remedy}"
        ) from error
    except Exception as error:  # torch stumbles over damaged bytes in any of its layers
        first_line = one_line((str(error).splitlines() or [type(error).__name__])[0])[:200]
        raise FormatError(f"{path}: not a readable checkpoint ({first_line}): {remedy}") from error
    if not isinstance(content, dict):
        raise FormatError(f"{path}: holds a {type(content).__name__}, not a checkpoint's table: {remedy}")
    return content


def _is_archive(path: Path, remedy: str) -> bool:
    """Whether a file is a zip archive, which must be stored as torch.save does: compressed, it may hold any amount."""
    with open_regular(path) as stream:
        if stream.read(4) != b"PK\x03\x04":
            return False
        try:
            with zipfile.ZipFile(stream) as archive:
                stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
        except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError) as error:
            raise FormatError(
                f"{path}: not a readable checkpoint (an archive cut short or damaged): {remedy}"
            ) from error
    if not stored:
        raise FormatError(f"{path}: refused: an archive that is compressed, as torch.save writes none: {remedy}")
    return True


def check_parameter(path: Path, name: str, tensor: Any, remedy: str) -> torch.Tensor:
    """Make sure that a value is a plain array of finite floating-point numbers that are all stored.

    Args:
        path: the file.
        name: of the parameter.
        tensor: as read.
        remedy: what to do, for the message.

    Raises:
        FormatError: naming the parameter and what it is instead.
    """
    problem = _problem(tensor)
    if problem is not None:
        raise FormatError(f"{path}: parameter {brief_name(name)} {problem}: {remedy}")
    plain: torch.Tensor = tensor
    return plain


def _problem(tensor: Any) -> str | None:
    if not isinstance(tensor, torch.Tensor):
        return f"is no tensor but a {type(tensor).__name__}"
    if tensor.device.type != "cpu" or tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
        kind = "quantised" if tensor.is_quantized else "nested" if tensor.is_nested else tensor.layout
        return f"is no plain array ({tensor.device.type}, {str(kind).removeprefix('torch.')})"
    if tensor.dtype not in _DTYPES:
        return f"holds {str(tensor.dtype).removeprefix('torch.')}, not floating-point numbers"
    if tensor.numel() == 0:
        return f"is empty, of shape {tuple(tensor.shape)[:8]}"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"promises {tuple(tensor.shape)[:8]} numbers, of which the file holds a part"
    low, high = torch.aminmax(tensor.detach())
    return None if bool(torch.isfinite(low) & torch.isfinite(high)) else "holds numbers that are not finite"
