"""Manifests as typed values: a kind of manifest is a frozen dataclass, whose types are checked once, where it is read.

Manifests are edited by hand and made by other versions. Whoever reads one gets a record, or one line that names the
key; whoever holds a record need not ask again whether a key is there or a number is one. Keys that a record does not
know are passed over, so that later versions may add some.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from datetime import date
from functools import cache
from itertools import count, repeat
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Literal,
    Self,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from infer.contract.atomic import sha256_json
from infer.contract.errors import FormatError
from infer.contract.manifest import FileRecord, Inputs, kind_of, read_manifest, verify_files, write_manifest
from infer.contract.names import brief_name

if TYPE_CHECKING:
    from infer.contract.run import Run  # which needs, by way of its model, what reads embeddings

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

    inputs: Inputs = field(default_factory=dict)
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    """Name, relative to the manifest -> what it says of that file."""

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

    @classmethod
    def read_at(cls, path: Path, remedy: str, again: str | None = None) -> Self:
        """The same wherever it lies.

        Args:
            path: of the manifest.
            remedy: what to do if it is missing or not one.
            again: what to do if one of its keys is wrong, where that is not the same: the stage may take it for whole.
        """
        return from_json(cls, read_manifest(path, cls.kind, remedy=remedy), path, again or remedy)

    def verify(self, run: Run, *, checksums: bool = True) -> Self:
        """Check that the files are there as recorded; see `verify_files`.

        Raises:
            FormatError: naming the first file that does not match.
        """
        remedy = f"run `smalti {self.stage} {run.quoted}` again"
        verify_files(self.path(run), self.files, checksums=checksums, remedy=remedy)
        return self

    def write(self, path: Path, *, inputs: Inputs, files: Sequence[Path]) -> None:
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


def from_json(cls: type[_T], content: Any, path: Path | str, remedy: str) -> _T:
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
    kind: Any = cls
    try:
        made: _T = _reader(kind)(content)
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
    """Why a value cannot be read, and, as it is passed outwards, of which key."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why, self.where = why, ""

    def within(self, place: str) -> Self:
        """What could not be read is in that place."""
        self.where = place + self.where
        return self

    def __str__(self) -> str:
        if not self.where:
            return self.why.removeprefix(": ") if self.why.startswith(":") else f"it{self.why}"
        return f"{brief_name(self.where.removeprefix('.'))[1:-1]}{self.why}"


_Reader = Callable[[Any], Any]
"""From a JSON value to one of the wanted type, or a `_MisfitError`."""


def _reader(kind: Any) -> _Reader:
    """What reads a type."""
    origin, kinds = get_origin(kind), get_args(kind)
    if kind is Any or kind is FileRecord:  # which `read_manifest` has looked at
        return lambda value: value
    if origin in (Union, UnionType):  # of one type and None
        inner = _reader(next(one for one in kinds if one is not NoneType))
        return lambda value: None if value is None else inner(value)
    if isinstance(kind, type) and is_dataclass(kind):
        return _dataclass(kind)
    if origin in (tuple, Sequence):
        return _tuple(kinds if origin is tuple else (*kinds, ...))
    if origin is Mapping:
        return _mapping(_reader(kinds[1]))
    if origin is Literal:
        return _literal(kinds)
    return {date: _day, str: _text}.get(kind) or _plain(kind)


def _plain(kind: Any) -> _Reader:
    wanted, number = _NAMES[kind], kind in (int, float)
    kinds = (int, float) if kind is float else (kind,)

    def read(value: Any) -> Any:
        if type(value) not in kinds or (number and not -_MOST < value < _MOST):  # nor what is no number
            raise _misfit(value, wanted)
        return value

    return read


def _literal(kinds: tuple[Any, ...]) -> _Reader:
    def read(value: Any) -> Any:
        if not any(type(value) is type(one) and value == one for one in kinds):
            raise _misfit(value, f"one of {', '.join(map(str, kinds))}")
        return value

    return read


def _text(value: Any) -> Any:
    # half a character cannot be written anywhere
    if type(value) is not str or (not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value)):
        raise _misfit(value, _NAMES[str])
    return value


def _day(value: Any) -> date:
    try:
        day = date.fromisoformat(value)
    except (TypeError, ValueError):
        raise _misfit(value, _NAMES[date]) from None
    if day.isoformat() != value:  # "20210701" means the same, and is not what is written
        raise _misfit(value, _NAMES[date])
    return day


def _mapping(inner: _Reader) -> _Reader:
    def read(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _misfit(value, "a table")
        try:
            return {key: inner(one) for key, one in value.items()}
        except _MisfitError:
            raise _first_misfit(((f".{key}", inner, one) for key, one in value.items())) from None

    return read


def _tuple(kinds: tuple[Any, ...]) -> _Reader:
    length = None if kinds[-1] is ... else len(kinds)
    each = [_reader(kind) for kind in kinds if kind is not ...]
    first = each[0]

    def read(value: Any) -> tuple[Any, ...]:
        if isinstance(value, tuple):
            return value  # JSON has none: a record that reads this field in its own way has done so
        if not isinstance(value, list):
            raise _misfit(value, "a list")
        if length not in (None, len(value)):
            raise _misfit(value, f"a list of {length}")
        try:
            if length is None:
                return tuple([first(one) for one in value])
            return tuple([inner(one) for inner, one in zip(each, value, strict=True)])
        except _MisfitError:
            readers = repeat(first) if length is None else each
            places = zip(count(), readers, value, strict=False)
            raise _first_misfit((f"[{index}]", inner, one) for index, inner, one in places) from None

    return read


def _first_misfit(values: Iterable[tuple[str, _Reader, Any]]) -> _MisfitError:
    """Of the values in some places the first that cannot be read, which is looked for only when there is one."""
    for place, inner, value in values:
        try:
            inner(value)
        except _MisfitError as error:
            return error.within(place)
    raise AssertionError("there is one")


@cache
def _dataclass(kind: Any) -> _Reader:
    """What reads a record. It is put together once: of a country the manifests of all tiles are read."""
    hints = get_type_hints(kind)
    parts = [
        (
            part.name,
            part.metadata.get("was", part.name),
            _reader(hints[part.name]),
            part.default is not MISSING or part.default_factory is not MISSING,
        )
        for part in fields(kind)
    ]

    def read(value: Any) -> Any:
        if not isinstance(value, dict):
            raise _misfit(value, "a table")
        found: dict[str, Any] = {}
        key = ""
        try:
            for key, older, inner, optional in parts:
                if key in value:
                    found[key] = inner(value[key])
                elif older in value:
                    found[key] = inner(value[older])
                elif not optional:
                    raise _MisfitError(" is missing")
        except _MisfitError as error:
            raise error.within(f".{key}") from None
        try:
            return kind(**found)
        except ValueError as error:  # what the class itself asks of its values
            raise _MisfitError(f": {error}") from error

    return read


def _misfit(value: Any, wanted: str) -> _MisfitError:
    return _MisfitError(f" = {brief_name(value)} is not {wanted}")
