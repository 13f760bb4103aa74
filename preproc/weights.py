"""Checkpoints on this machine: what there is, fetching one, and that none has changed since.

The container has no network on most clusters: weights are fetched here, on a login node, into a folder that the GPU
nodes read. The hub's own library brings them: it knows the hub's storage, mirrors of it, tokens and how to go on
after a broken connection. Small ones on GitHub come in one piece. A file must be the one that the registry pins or,
where it pins none, the first that came.
"""

from __future__ import annotations

import fcntl
import io
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.table import Table

from infer.contract import (
    EXIT_FAILED,
    EXIT_TRY_AGAIN,
    SmaltiError,
    State,
    atomic_file,
    one_line,
    output_state,
    sha256_file,
    write_manifest,
)
from infer.contract.registry import (
    GITHUB,
    HUB,
    REGISTRY,
    WEIGHTS_KIND,
    RegisteredModel,
    cache_path,
    expected_sha256,
    parts_of,
    registered_model,
    weights_folder,
)
from preproc.reader.transport import HttpTransport, fetch_bytes
from preproc.run.progress import plain_console, say
from preproc.run.text import human_bytes

_MAGIC = (b"PK\x03\x04", b"\x80\x02")
"""First bytes of a checkpoint: torch's zip archive, or the pickle of old versions."""
_REPLACED = (
    "its publisher may have replaced it since this smalti was made: a newer one may know it; until then download it "
    "and name it as [model] checkpoint, under which it is a model of its own"
)


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
    state = output_state(record_path(name), WEIGHTS_KIND, checksums=checksums)
    known = model.sha256
    if checksums and state.complete and known is not None and sha256_file(path) != known:
        return State("broken", f"{path} is not the file that was published")
    return state


def list_weights() -> str:
    """All registered models and where each stands, as text."""
    table = Table("model", "family", "trained on", "parameters", "size", "licence", "here", title_justify="left")
    for model in REGISTRY.values():
        state = weights_state(model.name)
        millions = "" if model.parameters is None else f"{model.parameters / 1e6:,.2f} M"
        here = (
            "yes" if state.complete else f"no: {state.reason}" if state.kind == "missing" else f"BROKEN: {state.reason}"
        )
        size = "" if model.size_bytes is None else human_bytes(model.size_bytes)
        table.add_row(model.name, model.family, model.data_source or "", millions, size, model.licence, here)
    out = io.StringIO()
    plain_console(file=out, width=160, color_system=None).print(table)
    cited = [f"  {citation}: {', '.join(names)}" for citation, names in _by_citation().items()]
    folder = f"Folder: {weights_folder()} (SMALTI_WEIGHTS names another)"
    return "\n".join([out.getvalue().rstrip(), "To cite with what is made of them:", *cited, folder])


def _by_citation() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for model in REGISTRY.values():
        found.setdefault(model.citation, []).append(model.name)
    return found


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
        mirror: address of a mirror of the Hugging Face hub, instead of the hub (or of HF_ENDPOINT), or of the place
            where GitHub has its files.
        source: a file instead: copied from another machine, or downloaded by hand.

    Returns:
        Where it is.

    Raises:
        SmaltiError: if it cannot be had, is no checkpoint, or is another file than the one that was fetched before.
    """
    model = registered_model(name)
    if model.joined:
        each = " and ".join(f"`smalti weights fetch {part.name}`" for part in parts_of(name))
        raise SmaltiError(f"{name} is of several models: {each} bring them")
    target = cache_path(name)
    if model.bundled:
        return target
    if source is None and model.url is None:
        raise SmaltiError(f"{name}: {model.note} with `smalti weights fetch {name} --from FILE`")
    with _alone(name):
        if source is None and weights_state(name, checksums=True).complete:
            return target
        if source is not None:
            _check(model, source, f"name the right one, or use it as what it is: [model] checkpoint = '{source}'")
            _keep(model, source, {"file": source.name}, shutil.copyfile)
        else:
            folder = weights_folder() / ".partial" / name
            bring = _download if model.revision is None else _download_github
            got = bring(model, mirror, folder)
            try:
                where = "the hub" if model.revision is None else "GitHub"
                _check(model, got, f"fetch it again, or look at {model.repo} on {where}: {_REPLACED}")
                revision = {} if model.revision is None else {"revision": model.revision}
                _keep(model, got, {"repo": model.repo, "file": model.file, **revision}, os.replace)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    say(f"{name}: {target} ({human_bytes(target.stat().st_size)})")
    return target


def _check(model: RegisteredModel, file: Path, remedy: str) -> None:
    """Refuse what is no checkpoint, or not this model's."""
    try:
        with file.open("rb") as stream:
            start = stream.read(4)
    except OSError as error:
        raise SmaltiError(f"{file}: cannot be read: {error.strerror}") from error
    if not start.startswith(_MAGIC):
        raise SmaltiError(f"{file}: not a PyTorch checkpoint (an error page, perhaps?): fetch it again")
    _check_hash(model, str(file), sha256_file(file), remedy)


def _check_hash(model: RegisteredModel, what: str, digest: str, remedy: str) -> None:
    expected = expected_sha256(model, cache_path(model.name))
    why = "the registry says" if model.sha256 is not None else f"{record_path(model.name)} says"
    if expected is not None and digest != expected:
        if model.sha256 is None:
            remedy = f"if it is meant to replace it, delete {record_path(model.name)} first"
        raise SmaltiError(
            f"{what}: SHA-256 {digest[:12]}..., {why} {expected[:12]}...: another file than that of {model.name}; "
            f"{remedy}"
        )


def _keep(
    model: RegisteredModel, file: Path, origin: dict[str, str | None], bring: Callable[[Path, Path], object]
) -> None:
    """Give a checked file its place, the record last."""
    target, record = cache_path(model.name), record_path(model.name)
    if not (target.is_file() and file.samefile(target)):
        record.unlink(missing_ok=True)
        with atomic_file(target) as temporary:
            bring(file, temporary)
    inputs = {"name": model.name, "family": model.family}
    write_manifest(record, WEIGHTS_KIND, inputs=inputs, files=[target], fields={"origin": origin})


def _download(model: RegisteredModel, mirror: str | None, folder: Path) -> Path:
    """The file from the hub or a mirror of it, into an own folder.

    One's token is for the hub, not for anybody's mirror. What the hub states of the file is looked at first: eight
    gigabytes of another file, or more than the disk holds, are not worth waiting for.
    """
    import httpx2  # with huggingface_hub, which takes half a second to import
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    assert model.repo is not None  # the caller has looked
    assert model.file is not None
    endpoint = (mirror or os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")
    token = False if mirror else None
    url = hf_hub_url(model.repo, model.file, endpoint=endpoint)
    try:
        stated = get_hf_file_metadata(url, token=token, endpoint=endpoint, retry_on_errors=True)
        if stated.etag is not None and re.fullmatch(r"[0-9a-f]{64}", stated.etag):  # of large files it is their hash
            _check_hash(model, url, stated.etag, _REPLACED)
        _check_room(model, stated.size or model.size_bytes or 0)
        return Path(hf_hub_download(model.repo, model.file, local_dir=folder, endpoint=endpoint, token=token))
    except (OSError, EntryNotFoundError, httpx2.HTTPError) as error:
        reason = _reason(error)
        remedy = f"download the file elsewhere, then run `smalti weights fetch {model.name} --from FILE`"
        code = EXIT_FAILED if isinstance(error, HfHubHTTPError) else EXIT_TRY_AGAIN
        raise SmaltiError(f"{url}: cannot be fetched ({reason}): {remedy}", exit_code=code) from error


def _download_github(model: RegisteredModel, mirror: str | None, folder: Path) -> Path:
    """A file of a few megabytes at a pinned commit."""
    url = model.github_url((mirror or GITHUB).rstrip("/"))
    remedy = f"or download the file elsewhere, then run `smalti weights fetch {model.name} --from FILE`"
    with HttpTransport() as transport:
        try:
            content = fetch_bytes(transport, url, f"the weights of {model.name}")
        except SmaltiError as error:
            raise SmaltiError(f"{error}, {remedy}", exit_code=error.exit_code) from error
    _check_room(model, len(content))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / cache_path(model.name).name
    path.write_bytes(content)
    return path


def _reason(error: Exception) -> str:
    """The first line of what the hub's library says, and of the reason behind it."""
    said = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
    behind = str(error.__cause__ or "").strip().partition("\n")[0]
    return one_line(f"{said}: {behind}" if behind and behind not in said else said)


def _check_room(model: RegisteredModel, size: int) -> None:
    free = shutil.disk_usage(weights_folder()).free
    if free < size:
        raise SmaltiError(
            f"{weights_folder()}: {model.name} takes {human_bytes(size)}, {human_bytes(free)} are free: make room, or "
            f"name another folder in SMALTI_WEIGHTS"
        )


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
