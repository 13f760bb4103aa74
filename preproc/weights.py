"""Checkpoints on this machine: what there is, fetching one, and that none has changed since.

The container has no network on most clusters: weights are fetched here, on a login node, into a folder that the GPU
nodes read. What the first fetch got is recorded beside the file, and every later use must agree.
"""

from __future__ import annotations

import fcntl
import io
import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.table import Table

from infer.contract import (
    SmaltiError,
    State,
    atomic_file,
    output_state,
    read_manifest,
    sha256_file,
    write_manifest,
    writing,
)
from infer.contract.registry import HUB, REGISTRY, RegisteredModel, cache_path, registered_model, weights_folder
from preproc.reader.ranges import MissingDataError, RangeClient, UnreachableError
from preproc.run.progress import plain_console, progress, say
from preproc.run.text import human_bytes

KIND = "weights"
_MAGIC = (b"PK\x03\x04", b"\x80\x02")
"""First bytes of a checkpoint: torch's zip archive, or the pickle of old versions."""


def record_path(name: str) -> Path:
    """The record of a fetched checkpoint, beside it."""
    return cache_path(name).parent / f"{name}.json"


def weights_state(name: str, *, checksums: bool = False) -> State:
    """Whether a model's weights are on this machine and as they were fetched.

    Args:
        name: a registered model.
        checksums: read every byte.
    """
    path, model = cache_path(name), registered_model(name)
    if model.bundled:
        return State("complete") if path.is_file() else State("missing", f"{path} is not there: install smalti again")
    if not path.is_file():
        return State("missing", f"not fetched: `smalti weights fetch {name}`" if model.url else model.note)
    if not record_path(name).is_file():
        remedy = f"run `smalti weights fetch {name} --from {shlex.quote(str(path))}`"
        return State("broken", f"{path} has no record: {remedy}")
    state = output_state(record_path(name), KIND, checksums=checksums)
    known = model.sha256
    if checksums and state.complete and known is not None and sha256_file(path) != known:
        return State("broken", f"{path} is not the file that was published")
    return state


def list_weights() -> str:
    """All registered models and where each stands, as text."""
    table = Table("model", "family", "trained on", "parameters", "here", title_justify="left")
    for model in REGISTRY.values():
        state = weights_state(model.name)
        millions = "" if model.parameters is None else f"{model.parameters / 1e6:,.2f} M"
        here = (
            "yes" if state.complete else f"no: {state.reason}" if state.kind == "missing" else f"BROKEN: {state.reason}"
        )
        table.add_row(model.name, model.family, model.data_source or "", millions, here)
    out = io.StringIO()
    plain_console(file=out, width=140, color_system=None).print(table)
    return f"{out.getvalue().rstrip()}\nFolder: {weights_folder()} (SMALTI_WEIGHTS names another)"


def verify_weights() -> str:
    """Read every fetched checkpoint and compare it with its record.

    Returns:
        One line a checkpoint.

    Raises:
        SmaltiError: naming those that have changed.
    """
    lines, bad = [], []
    for name in REGISTRY:
        state = weights_state(name, checksums=True)
        if state.complete:
            lines.append(f"{name}: as fetched ({human_bytes(cache_path(name).stat().st_size)})")
        elif state.kind != "missing":
            bad.append(f"{name}: {state.reason}")
    if bad:
        raise SmaltiError("\n".join(bad))
    return "\n".join(lines)


def fetch_weights(name: str, *, mirror: str | None = None, source: Path | None = None) -> Path:
    """Bring a model's checkpoint onto this machine; nothing is done when it is there and whole.

    Args:
        name: a registered model.
        mirror: address of a mirror of the Hugging Face hub, instead of the hub (or of HF_ENDPOINT).
        source: a file instead: copied from another machine, or downloaded by hand.

    Returns:
        Where it is.

    Raises:
        SmaltiError: if it cannot be had, is no checkpoint, or is another file than the one that was fetched before.
    """
    model, target = registered_model(name), cache_path(name)
    if model.bundled:
        return target
    if source is None and model.url is None:
        raise SmaltiError(f"{name}: {model.note} with `smalti weights fetch {name} --from FILE`")
    with _alone(name):
        if source is None and weights_state(name, checksums=True).complete:
            return target
        if source is not None:
            _take(model, source, {"file": source.name})
        else:
            got = weights_folder() / ".partial" / f"{name}.pt"
            try:
                _download(model, mirror, got)
                _take(model, got, {"repo": model.repo, "file": model.file})
            finally:
                got.unlink(missing_ok=True)
    say(f"{name}: {target} ({human_bytes(target.stat().st_size)})")
    return target


def _take(model: RegisteredModel, file: Path, origin: dict[str, str | None]) -> None:
    """Check a file and give it its place, the record last."""
    try:
        with file.open("rb") as stream:
            start = stream.read(4)
    except OSError as error:
        raise SmaltiError(f"{file}: cannot be read: {error.strerror}") from error
    if not start.startswith(_MAGIC):
        raise SmaltiError(f"{file}: not a PyTorch checkpoint (an error page, perhaps?): fetch it again")
    digest = sha256_file(file)
    expected, why = _expected(model)
    if expected is not None and digest != expected:
        raise SmaltiError(
            f"{file}: SHA-256 {digest[:12]}..., {why} {expected[:12]}...: another file than that of {model.name}; if "
            f"it is meant to replace it, delete {record_path(model.name)} first"
        )
    target, record = cache_path(model.name), record_path(model.name)
    if not (target.is_file() and file.samefile(target)):
        record.unlink(missing_ok=True)
        with atomic_file(target) as temporary:
            shutil.copyfile(file, temporary)
    inputs = {"name": model.name, "family": model.family}
    write_manifest(record, KIND, inputs=inputs, files=[target], fields={"origin": origin})


def _expected(model: RegisteredModel) -> tuple[str | None, str]:
    """The checksum that a file must have, and who says so."""
    if model.sha256 is not None:
        return model.sha256, "the registry says"
    record = record_path(model.name)
    if not record.is_file():
        return None, ""
    recorded = _recorded(record, cache_path(model.name).name)
    return recorded, f"{record} says"


def _recorded(record: Path, file: str) -> str | None:
    manifest = read_manifest(record, KIND, remedy="delete it and fetch the weights again")
    digest = manifest["files"].get(file, {}).get("sha256")
    return None if digest is None else str(digest)


def _download(model: RegisteredModel, mirror: str | None, path: Path) -> None:
    """The file from the hub or a mirror of it; one's token is for the hub, not for anybody's mirror."""
    assert model.url is not None  # the caller has looked
    url = model.url.replace(HUB, (mirror or os.environ.get("HF_ENDPOINT") or HUB).rstrip("/"))
    token = None if mirror else os.environ.get("HF_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with (
            RangeClient(connections=1, headers=headers) as client,
            progress(model.name, None, "bytes") as bar,
            writing(path),
            path.open("wb") as stream,
        ):
            for piece, size in client.pieces(url):
                bar.total(size)
                stream.write(piece)
                bar.advance(len(piece))
    except (MissingDataError, UnreachableError) as error:
        reason = str(error).removeprefix(f"{url}: ")
        remedy = f"download the file elsewhere, then run `smalti weights fetch {model.name} --from FILE`"
        raise SmaltiError(f"{url}: cannot be fetched ({reason}): {remedy}", exit_code=error.exit_code) from error


@contextmanager
def _alone(name: str) -> Iterator[None]:
    """One process at a time fetches a model; a second one waits."""
    path = weights_folder() / ".partial" / f"{name}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise SmaltiError(
            f"{weights_folder()}: cannot be written ({error.strerror}): name another folder in SMALTI_WEIGHTS"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
