"""Names that come from files: one rule for what may become a file's name, checked where a name enters.

Plans, manifests and catalogues are written by others as well as by smalti. A name out of them is joined to a folder's
path later, far from where it was read; `../../x` must not get that far.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import Any

from infer.contract.errors import UNPRINTABLE, FormatError, one_line

MAX_NAME_BYTES = 200
"""Of UTF-8. File systems take 255, and suffixes and temporary names need room."""

_SEPARATORS = frozenset("/\\")


def brief_name(value: Any, length: int = 60) -> str:
    """A value for a message: quoted, on one line, cut where it is long."""
    if isinstance(value, str):
        return one_line(repr(value[:length])) + ("..." if len(value) > length else "")
    return (
        str(value)[:length]
        if isinstance(value, bool | int | float | None) and abs(value or 0) < 1e15
        else f"({type(value).__name__})"
    )


def name_problem(value: Any) -> str | None:
    """What keeps a value from being the name of one file in its folder, or None."""
    if not isinstance(value, str):
        return f"is not text {brief_name(value)}"
    if value in ("", ".", ".."):
        return "names no file"
    if len(value) > MAX_NAME_BYTES or len(value.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
        return f"is longer than {MAX_NAME_BYTES} bytes"
    if not _SEPARATORS.isdisjoint(value):
        return "holds a path, not a name"
    if value.isascii() and value.isprintable():
        return None  # as nearly all are: a plan may have a million of them
    if any(unicodedata.category(c) in UNPRINTABLE for c in value):
        return "holds control characters"
    return None


def safe_name(value: Any, where: str, remedy: str) -> str:
    """The value, if it can be the name of one file or folder inside another.

    Args:
        value: as read from a file.
        where: what it was read from, for the message.
        remedy: what to do, for the message.

    Raises:
        FormatError: if it is not text, empty, `.`, `..`, too long, or holds separators or control characters.
    """
    problem = name_problem(value)
    if problem is not None:
        raise FormatError(f"{where}: the name {brief_name(value)} {problem}: {remedy}")
    return str(value)


def child(folder: Path, name: str) -> Path:
    """The path of a name in its folder, for those who are going to write, replace or remove it.

    Raises:
        FormatError: if the name would lead out of the folder; see `safe_name`.
    """
    return folder / child_name(folder, name)


def child_name(folder: Path, name: str) -> str:
    """The same name, if it does not lead out of the folder; see `child`."""
    return safe_name(name, str(folder), "nothing outside this folder is touched by it; correct the name")


def safe_relative(value: Any, where: str, remedy: str) -> str:
    """The same for a relative path with slashes, each part of which must be a safe name.

    Raises:
        FormatError: as `safe_name`; absolute paths have an empty first part.
    """
    if not isinstance(value, str) or len(value) > 10 * MAX_NAME_BYTES:
        return safe_name(value, where, remedy)
    problem = _relative_problem(value)
    if problem is not None:
        raise FormatError(f"{where}: the file name {brief_name(value)} leaves its folder or {problem}: {remedy}")
    return value


@lru_cache(maxsize=1024)
def _relative_problem(value: str) -> str | None:  # of a country's tiles all list the same files
    return next((problem for part in value.split("/") if (problem := name_problem(part)) is not None), None)


def name_for(text: str) -> str:
    """A name made of any text, that every file system and object store takes; texts that had to be changed stay apart.

    Returns:
        The text itself where it is made of ASCII letters, digits, `.`, `_`, `-`, and short; else those of its
        characters, with a hash of the whole. Of a name that was made so, it is that name.
    """
    most = MAX_NAME_BYTES - 40
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", text)
    if safe == text and 0 < len(text) <= most and not text.startswith("."):
        return safe
    digest = "-" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return (safe.lstrip(".")[: most - len(digest)] or "_") + digest
