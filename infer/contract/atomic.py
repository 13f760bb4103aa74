"""Files that are either complete or absent: temporary name, fsync, rename, fsync of the folder.

A temporary name carries host, job and process id (`.NAME.HOST.JOB.PID.tmp`), so that tasks on many nodes never
collide on a shared file system and what a killed process left behind can be recognised and removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infer.contract.errors import FormatError, writing
from infer.contract.names import name_problem
from infer.contract.regular import open_regular, parse_json, parse_json_parts, read_regular

_TEMP = re.compile(r"^\..+\.(?P<host>[A-Za-z0-9_-]+)\.(?P<job>[A-Za-z0-9_-]+)\.(?P<pid>\d+)\.tmp$")


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname()) or "host"


def _job() -> str:
    job = os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ.get("SLURM_JOB_ID") or "0"
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    return re.sub(r"[^A-Za-z0-9_-]", "-", f"{job}_{task}" if task else job)


def temporary_path(path: Path) -> Path:
    """The hidden sibling under which this process prepares `path`.

    Raises:
        FormatError: if `path` ends in no name of its own (`..`), so that replacing it would replace another folder.
    """
    problem = name_problem(path.name)
    if problem is not None or "\0" in str(path):  # names are checked where they enter; this is the last line
        raise FormatError(f"{str(path)!r}: cannot be written: its name {problem or 'holds control characters'}")
    return path.parent / f".{path.name}.{_host()}.{_job()}.{os.getpid()}.tmp"


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(NotADirectoryError):  # then it was never made
            path.unlink(missing_ok=True)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a temporary path; when the block ends well, fsync it and rename it to `path`. Otherwise remove it.

    Args:
        path: the final name. Its folder is made if needed. An existing file is replaced at once, never half.

    Raises:
        SmaltiError: if the file system refuses (full, read-only, forbidden).
    """
    temporary = temporary_path(path)
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            _fsync(temporary)
            temporary.replace(path)
            _fsync(path.parent)
    finally:
        _remove(temporary)


@contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """The same for a whole folder: its files are fsynced, then the folder takes its final name.

    An existing folder of that name is set aside and removed after the new one stands; a kill in between leaves no
    folder rather than a mixed one, and readers see it as missing.
    """
    temporary = temporary_path(path)
    aside = temporary.with_name(temporary.name.replace(f".{path.name}.", f".{path.name}.old.", 1))
    try:
        with writing(path):
            _remove(temporary)
            temporary.mkdir(parents=True)
            yield temporary
            for child in temporary.iterdir():
                _fsync(child)
            _fsync(temporary)
            if path.exists():
                path.replace(aside)
            temporary.replace(path)
            _fsync(path.parent)
    finally:
        _remove(temporary)
        _remove(aside)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a small file atomically."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically: sorted keys, so that equal content has equal bytes; NaN is refused."""
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        json.dump(content, stream, indent=1, sort_keys=True, allow_nan=False)  # a plan may have a million rows
        stream.write("\n")


def json_bytes(content: Any) -> bytes:
    """What `write_json` writes."""
    return (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def read_json(path: Path | str, *, what: str, remedy: str) -> Any:
    """Read a JSON file, or say in one line what it was meant to be and what to do.

    Raises:
        FormatError: if it is missing, unreadable or not JSON.
    """
    return read_json_and_digest(path, what=what, remedy=remedy, hashed=False)[0]


def read_json_and_digest(
    path: Path | str, *, what: str, remedy: str, hashed: bool = True, trusted: str = "", wanted: Sequence[str] = ()
) -> tuple[Any, str]:
    """The same with the SHA-256 of the file's bytes, which are read once.

    Args:
        path: the file.
        what: it was meant to be, for the message.
        remedy: what to do, for the message.
        hashed: whether the SHA-256 is wanted; otherwise it is empty.
        trusted: SHA-256 of a file that was read before: of the same bytes only what is wanted is parsed.
        wanted: keys of a table; of others' layout all are parsed.

    Raises:
        FormatError: if it is missing, unreadable or not JSON.
    """
    try:
        content = read_regular(path)
        digest = hashlib.sha256(content).hexdigest() if hashed else ""
        known = parse_json_parts(content, wanted) if trusted and digest == trusted else None
        return parse_json(content) if known is None else known, digest
    except FileNotFoundError as error:
        raise FormatError(f"{path}: {what} is missing: {remedy}") from error
    except FormatError as error:
        raise FormatError(f"{path}: {what} {str(error).removeprefix(f'{path}: ')}: {remedy}") from error
    except OSError as error:
        raise FormatError(f"{path}: {what} cannot be read ({error.strerror}): {remedy}") from error
    except ValueError as error:
        raise FormatError(f"{path}: {what} is not valid JSON ({error}): {remedy}") from error


def write_npy(path: Path, array: NDArray[Any]) -> None:
    """Write an array as .npy (C order) inside `atomic_file` or `atomic_dir`, which say what the disk refuses."""
    if array.dtype.hasobject:
        raise ValueError(f"{path}: an array of objects is not written")
    whole = np.ascontiguousarray(array)
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(whole))
        # Not numpy's own writer: on a full disk it raises an error that does not say so.
        if whole.size:
            stream.write(whole.reshape(-1).view(np.uint8).data)
        stream.flush()
        os.fsync(stream.fileno())


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a regular file's bytes, read in pieces."""
    with open_regular(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(content: Any) -> str:
    """SHA-256 of a JSON value in its canonical form: the fingerprint of settings and lists."""
    return sha256_text(canonical_json(content))


def sha256_text(text: str) -> str:
    """Hexadecimal SHA-256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


def canonical_json(content: Any) -> str:
    """The text of a JSON value that is the same whenever the value is."""
    return _CANONICAL.encode(content)


def remove_stale_temporaries(folder: Path) -> int:
    """Remove what dead processes of this host left in `folder`; those of other hosts may still be alive.

    Returns:
        How many were removed.
    """
    removed = 0
    if not folder.is_dir():
        return removed
    with os.scandir(folder) as entries:
        hidden = [entry.name for entry in entries if entry.name.startswith(".")]  # few: a country's files are many
    for name in hidden:
        match = _TEMP.match(name)
        if match is None or match["host"] != _host() or _alive(int(match["pid"])):
            continue
        _remove(folder / name)
        removed += 1
    return removed


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
