"""Manifests: the JSON file beside every output that says what it is, what it was made from and that it is whole.

A manifest is written last. Without a valid one an output does not exist; with one, `inputs` tells whether the output
still belongs to its sources, and the checksums tell whether its bytes are those that were written. Manifests hold no
times, hosts or durations: equal work has equal bytes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypedDict, TypeGuard

from infer.contract.atomic import read_json, read_json_and_digest, sha256_file, write_json
from infer.contract.errors import FormatError
from infer.contract.names import brief_name, safe_relative
from infer.contract.regular import JsonObject, check_regular, npy_header

FORMAT_VERSION = 1
"""Version of every format in this package. A reader refuses another one."""

VERSION = "0.1.0"
"""The one place where it is written: pyproject.toml and `smalti --version` read it here."""
SOFTWARE = f"smalti {VERSION}"
"""Name and version that outputs carry."""
_REMEDY = "run the stage again"


Inputs: TypeAlias = Mapping[str, Any]
"""What an output was made from, as JSON: the writer's own words, which others compare as a whole and do not read."""


class _WholeFile(TypedDict):
    bytes: int
    sha256: str


class FileRecord(_WholeFile, total=False):
    """What a manifest says of a file: its size and SHA-256 (see `describes_file`), and of an array dtype and shape."""

    dtype: str
    shape: Sequence[int]


@dataclass(frozen=True, slots=True)
class State:
    """Where an output stands."""

    kind: Literal["complete", "released", "missing", "stale", "broken"]
    """complete: valid and current; released: it has served, and only its record is kept; missing: no manifest;
    stale: made from other inputs; broken: damaged."""
    reason: str = ""
    """One line on why it is not complete."""

    @property
    def complete(self) -> bool:
        """Whether nothing needs to be done."""
        return self.kind in ("complete", "released")


_COMPLETE = State("complete")
_TOLD = ("files", "format", "format_version", "inputs")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def describe_file(path: Path) -> FileRecord:
    """The record of one file: bytes and SHA-256, for .npy also dtype and shape."""
    record: FileRecord = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    if path.suffix == ".npy":
        with path.open("rb") as stream:
            shape, _, dtype = npy_header(stream)
        record["dtype"], record["shape"] = str(dtype), list(shape)
    return record


def write_manifest(
    path: Path, kind: str, *, inputs: Inputs, files: Sequence[Path], fields: JsonObject | None = None
) -> dict[str, Any]:
    """Write the completion marker of an output.

    Args:
        path: the manifest's path; `files` are named relative to its folder.
        kind: what the output is, for example "tile" or "embedding".
        inputs: fingerprint of everything the output depends on; compared as a whole to decide whether it is current.
        files: the output's files, already in their final place (or in the same temporary folder as `path`).
        fields: what else readers want to know.

    Returns:
        The manifest as written.
    """
    manifest = {
        **(fields or {}),
        "format": f"smalti/{kind}",
        "format_version": FORMAT_VERSION,
        "software": SOFTWARE,
        "inputs": dict(inputs),
        "files": {file.relative_to(path.parent).as_posix(): describe_file(file) for file in sorted(files)},
    }
    write_json(path, manifest)
    return manifest


def describes_file(record: Any) -> TypeGuard[FileRecord]:
    """Whether a value can be what `describe_file` recorded of a file: its bytes and SHA-256."""
    if not isinstance(record, dict) or type(record.get("bytes")) is not int:
        return False
    digest = record.get("sha256")
    return isinstance(digest, str) and _DIGEST.fullmatch(digest) is not None


def read_manifest(path: Path | str, kind: str, *, remedy: str) -> dict[str, Any]:
    """Read a manifest and check that it is one, of this kind and version (its files are not looked at).

    Raises:
        FormatError: with the path, what is wrong and `remedy`.
    """
    return read_manifest_and_digest(path, kind, remedy=remedy, hashed=False)[0]


def read_manifest_and_digest(
    path: Path | str, kind: str, *, remedy: str, hashed: bool = True, trusted: str = ""
) -> tuple[dict[str, Any], str]:
    """The same with the SHA-256 of the file.

    Args:
        path: the manifest.
        kind: its kind.
        remedy: what to do, for messages.
        hashed: whether the SHA-256 is wanted; otherwise it is empty.
        trusted: SHA-256 of a manifest that somebody has read in full: of the same file only inputs and files are told.
    """
    what = f"the manifest of this {kind}"
    manifest, digest = read_json_and_digest(
        path, what=what, remedy=remedy, hashed=hashed, trusted=trusted, wanted=_TOLD
    )
    if not isinstance(manifest, dict) or manifest.get("format") != f"smalti/{kind}":
        raise FormatError(f"{path}: not a smalti {kind} manifest: {remedy}")
    if manifest.get("format_version") != FORMAT_VERSION:
        found = brief_name(manifest.get("format_version"))
        raise FormatError(f"{path}: format version {found}, this smalti reads {FORMAT_VERSION}: {remedy}")
    if not isinstance(manifest.get("files"), dict) or not isinstance(manifest.get("inputs"), dict):
        raise FormatError(f"{path}: the manifest lacks its files or inputs: {remedy}")
    for name, record in manifest["files"].items():
        safe_relative(name, str(path), remedy)
        if not describes_file(record):
            raise FormatError(f"{path}: says of {name} no bytes and sha256: {remedy}")
    return manifest, digest


def kind_of(path: Path) -> str | None:
    """What kind of manifest a file says that it is; None if it cannot be told."""
    try:
        content = read_json(path, what="a manifest", remedy="")
    except (FormatError, OSError):
        return None
    said = content.get("format") if isinstance(content, dict) else None
    return said.removeprefix("smalti/") if isinstance(said, str) else None


def verify_files(
    path: Path | str,
    files: Mapping[str, FileRecord],
    *,
    checksums: bool = True,
    remedy: str,
    without: Collection[str] = (),
) -> None:
    """Check that the files of a manifest are there with the recorded size and, by default, checksum.

    Args:
        path: the manifest; its files lie beside it.
        files: what it says of them.
        checksums: read every byte, not only the sizes.
        remedy: what to do, for messages.
        without: names of files that may be gone.

    Raises:
        FormatError: naming the first file that does not match.
    """
    place = str(path)
    folder, own = place[: place.rfind("/") + 1], place.rpartition("/")[2]
    for name, record in files.items():
        if name in without:
            continue
        file = f"{folder}{name}"
        try:
            size = check_regular(file)
        except OSError:
            raise FormatError(f"{file}: missing, though {own} lists it: {remedy}") from None
        if size != record["bytes"]:
            raise FormatError(f"{file}: {size} bytes, {own} says {record['bytes']}: {remedy}")
        if checksums and sha256_file(Path(file)) != record["sha256"]:
            # Without its manifest the output is missing, and only so is it made again: stages do not read every byte.
            raise FormatError(f"{file}: its contents do not match the checksum in {own}: delete {path}, then {remedy}")


def output_state(
    path: Path | str,
    kind: str,
    inputs: Inputs | None = None,
    *,
    checksums: bool = False,
    partial: bool = False,
    without: Collection[str] = (),
) -> State:
    """Whether the output behind the manifest `path` is complete, missing, stale or broken.

    Args:
        path: the manifest.
        kind: its kind.
        inputs: the fingerprint that the output should have been made from; None skips that comparison.
        checksums: read every byte (slow, thorough) instead of comparing sizes only.
        partial: compare only the keys that `inputs` has; for readers that do not know all of what the writer knew.
        without: names of files that may be gone.
    """
    return state_and_digest(path, kind, inputs, checksums=checksums, partial=partial, without=without)[0]


def state_and_digest(
    path: Path | str,
    kind: str,
    inputs: Inputs | None = None,
    *,
    checksums: bool = False,
    partial: bool = False,
    without: Collection[str] = (),
    trusted: str = "",
) -> tuple[State, str]:
    """The same with the SHA-256 of the manifest, or "" if it cannot be read; see `read_manifest_and_digest`."""
    try:
        manifest, digest = read_manifest_and_digest(path, kind, remedy=_REMEDY, trusted=trusted)
    except FormatError as error:
        there = Path(path).exists()
        return State("broken", str(error)) if there else State("missing", f"{path} is not there"), ""
    files, made_from = manifest["files"], manifest["inputs"]
    return state_of(path, files, made_from, inputs, checksums=checksums, partial=partial, without=without), digest


def state_of(
    path: Path | str,
    files: Mapping[str, FileRecord],
    made_from: Inputs,
    inputs: Inputs | None = None,
    *,
    checksums: bool = False,
    partial: bool = False,
    without: Collection[str] = (),
) -> State:
    """The same of a manifest that was read: of what it says of its files, and of what it was made from."""
    try:
        verify_files(path, files, checksums=checksums, remedy=_REMEDY, without=without)
    except FormatError as error:
        return State("broken", str(error))
    if inputs is None or inputs == made_from:
        return _COMPLETE
    keys = set(inputs) if partial else {*inputs, *made_from}
    differing = sorted(key for key in keys if inputs.get(key) != made_from.get(key))
    if differing:
        return State("stale", f"made from other inputs ({', '.join(differing)})")
    return _COMPLETE
