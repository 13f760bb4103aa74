"""Taking parameters out of a checkpoint by name and shape, and noticing what is missing or left over."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from infer.contract import FormatError, one_line

_SHOWN = 6
_LENGTH = 120
"""Characters of a name or problem, which a file may make as long as it likes."""


def _some(names: list[str]) -> str:
    shown = ", ".join(one_line(name[:_LENGTH]) for name in names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


class StateReader:
    """Hands out parameters once each; `finish` complains about the rest."""

    def __init__(self, state: Mapping[str, torch.Tensor], path: Path) -> None:
        self._state = state
        self._path = path
        self._taken: set[str] = set()
        self._missing: list[str] = []
        self._wrong: list[str] = []

    def take(self, name: str, *shape: int) -> torch.Tensor:
        """The parameter `name` as float32. What is missing or misshapen is noted and reported by `finish`."""
        self._taken.add(name)
        tensor = self._state.get(name)
        if tensor is None:
            self._missing.append(name)
            return torch.zeros(shape)
        if tuple(tensor.shape) != shape:
            self._wrong.append(f"{name} {tuple(tensor.shape)}, expected {shape}")
            return torch.zeros(shape)
        return tensor.detach().float()

    def finish(self) -> None:
        """Check that every parameter was used and none was missing.

        Raises:
            FormatError: naming the keys.
        """
        problems = []
        if self._missing:
            problems.append(f"missing {_some(self._missing)}")
        if self._wrong:
            problems.append(f"of another shape {_some(self._wrong)}")
        left = sorted(set(self._state) - self._taken)
        if left:
            problems.append(f"left over {_some(left)}")
        if problems:
            raise FormatError(
                f"{self._path}: parameters do not fit the network: {'; '.join(problems)}: use another checkpoint"
            )
