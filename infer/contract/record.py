"""Manifests as typed values: a kind of manifest is a frozen dataclass, whose types are checked once, where it is read.

Manifests are edited by hand and made by other versions. Whoever reads one gets a record, or one line that names the
key; whoever holds a record need not ask again whether a key is there or a number is one. Keys that a record does not
know are passed over, so that later versions may add some.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from datetime import date
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Self, TypeVar, Union, get_args, get_origin, get_type_hints

from infer.contract.atomic import sha256_json
from infer.contract.errors import FormatError
from infer.contract.manifest import kind_of, read_manifest, verify_files, write_manifest
from infer.contract.names import brief_name
from infer.contract.run import Run

_T = TypeVar("_T")
_MOST = 2**63
"""Numbers from here on count nothing, and some of Python's own formatting fails on them."""
_NAMES: Mapping[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    date: "a day such as 2021-07-01",
}


@dataclass(frozen=True, kw_only=True)
class Record:
    """What every manifest says; a kind of manifest adds its fields."""

    kind: ClassVar[str]
    """As in `format`: smalti/<kind>."""
    stage: ClassVar[str]
    """The command that makes it."""
    instead: ClassVar[Mapping[str, str]] = {}
    """Kind of a manifest that may stand in this one's place -> why it will not do."""

    inputs: Mapping[str, Any] = field(default_factory=dict)
    """Fingerprint of what the output was made from."""
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Name, relative to the manifest -> bytes, sha256, and of arrays dtype and shape."""

    @classmethod
    def path(cls, run: Run) -> Path:
        """Where the manifest of a run is, for kinds of which a run has one."""
        raise NotImplementedError

    @classmethod
    def read(cls, run: Run) -> Self:
        """Read a run's manifest of this kind; its files are not looked at.

        Raises:
            FormatError: if it is missing or not what it should be.
        """
        return cls.read_file(cls.path(run), run)

    @classmethod
    def read_file(cls, path: Path, run: Run) -> Self:
        """The same for a kind of which a run has many: the one at `path`."""
        remedy = f"run `smalti {cls.stage} {run.quoted}"
        try:
            content = read_manifest(path, cls.kind, remedy=f"{remedy}`")
        except FormatError:
            other = kind_of(path) or ""
            if other in cls.instead:
                raise FormatError(f"{path}: {cls.instead[other]}") from None
            raise
        return from_json(cls, content, path, f"{remedy} --force`")  # without it the stage sees nothing to do

    def verify(self, run: Run, *, checksums: bool = True) -> Self:
        """Check that the files are there as recorded; see `verify_files`.

        Raises:
            FormatError: naming the first file that does not match.
        """
        remedy = f"run `smalti {self.stage} {run.quoted}` again"
        verify_files(self.path(run), {"files": self.files}, checksums=checksums, remedy=remedy)
        return self

    def write(self, path: Path, *, inputs: Mapping[str, Any], files: Sequence[Path]) -> None:
        """Write the completion marker of an output; see `write_manifest`."""
        write_manifest(path, self.kind, inputs=inputs, files=files, fields=self.as_json())

    def as_json(self) -> dict[str, Any]:
        """The record as JSON values."""
        content: dict[str, Any] = to_json(self)
        return content

    @property
    def files_fingerprint(self) -> str:
        """SHA-256 over the files' names and checksums."""
        return sha256_json(self.files)


def from_json(cls: type[_T], content: Any, path: Path, remedy: str) -> _T:
    """A dataclass made of JSON values, each of which must be of the type of its field.

    A field with a default may be absent. One with `metadata={"was": name}` is looked for under its older name as well.

    Args:
        cls: a dataclass of numbers, text, days, Literals, other such dataclasses, tuples and mappings of them, or None.
        content: as parsed.
        path: what it was read from, for the message.
        remedy: what to do, for the message.

    Raises:
        FormatError: naming the first key that is missing or of another type.
    """
    try:
        made: _T = _value(cls, content, "")
    except _MisfitError as error:
        raise FormatError(f"{path}: {error}: {remedy}") from error
    return made


def to_json(value: Any) -> Any:
    """The JSON values of a dataclass: what `from_json` reads. A field that is None by default is left out if it is."""
    if is_dataclass(value):
        parts = ((part.name, part.default, getattr(value, part.name)) for part in fields(value))
        return {name: to_json(inner) for name, default, inner in parts if inner is not None or default is not None}
    if isinstance(value, Mapping):
        return {key: to_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(inner) for inner in value]
    return value.isoformat() if isinstance(value, date) else value


class _MisfitError(ValueError):
    """Which key, and why it cannot be read."""


@cache
def _parts(cls: type[Any]) -> list[tuple[str, str, Any, bool]]:
    """Name, older name, type and whether it may be absent, of each field."""
    hints = get_type_hints(cls)
    return [
        (
            part.name,
            part.metadata.get("was", part.name),
            hints[part.name],
            part.default is not MISSING or part.default_factory is not MISSING,
        )
        for part in fields(cls)
    ]


def _value(kind: Any, value: Any, name: str) -> Any:
    origin, kinds = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, UnionType):  # of one type and None
        return None if value is None else _value(next(one for one in kinds if one is not NoneType), value, name)
    if is_dataclass(kind):
        return _dataclass(kind, value, name)
    if origin in (tuple, Sequence):
        return _tuple(kinds if origin is tuple else (*kinds, ...), value, name)
    if origin is Mapping:
        if not isinstance(value, dict):
            raise _misfit(name, value, "a table")
        return {key: _value(kinds[1], inner, f"{name}.{key}") for key, inner in value.items()}
    if origin is Literal:
        if not any(type(value) is type(one) and value == one for one in kinds):
            raise _misfit(name, value, f"one of {', '.join(map(str, kinds))}")
        return value
    if kind is date:
        return _day(value, name)
    fits = type(value) is kind or (kind is float and type(value) is int)
    if not fits or (kind in (int, float) and not (abs(value) < _MOST and math.isfinite(value))):
        raise _misfit(name, value, _NAMES[kind])
    if kind is str and not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise _misfit(name, value, _NAMES[str])  # half a character cannot be written anywhere
    return value


def _dataclass(kind: Any, value: Any, name: str) -> Any:
    if not isinstance(value, dict):
        raise _misfit(name, value, "a table")
    found: dict[str, Any] = {}
    for key, older, inner, optional in _parts(kind):
        stated = key if key in value else older
        where = f"{name}.{key}" if name else key
        if stated in value:
            found[key] = _value(inner, value[stated], where)
        elif not optional:
            raise _MisfitError(f"{brief_name(where)[1:-1]} is missing")
    try:
        return kind(**found)
    except ValueError as error:  # what the class itself asks of its values
        raise _MisfitError(f"{f'{name}: ' if name else ''}{error}") from error


def _tuple(kinds: tuple[Any, ...], value: Any, name: str) -> tuple[Any, ...]:
    if isinstance(value, tuple):
        return value  # JSON has none: a record that reads this field in its own way has done so
    if not isinstance(value, list):
        raise _misfit(name, value, "a list")
    if kinds[-1] is ...:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        raise _misfit(name, value, f"a list of {len(kinds)}")
    return tuple(
        _value(inner, one, f"{name}[{index}]") for index, (inner, one) in enumerate(zip(kinds, value, strict=True))
    )


def _day(value: Any, name: str) -> date:
    try:
        day = date.fromisoformat(value)
    except (TypeError, ValueError):
        raise _misfit(name, value, _NAMES[date]) from None
    if day.isoformat() != value:  # "20210701" means the same, and is not what is written
        raise _misfit(name, value, _NAMES[date])
    return day


def _misfit(name: str, value: Any, wanted: str) -> _MisfitError:
    return _MisfitError(f"{brief_name(name)[1:-1] if name else 'it'} = {brief_name(value)} is not {wanted}")
