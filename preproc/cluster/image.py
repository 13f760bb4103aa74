"""Build the engine's container image from containers/smalti.def.

The definition is rendered here (old programs know no build arguments) and handed to apptainer or singularity,
whichever there is. Beside the image goes a JSON file with its SHA-256, what it was made from and its engine's hash.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from infer.contract import EXIT_FAILED, SOFTWARE, SmaltiError, sha256_file, sha256_json, write_json
from preproc.run.progress import say
from preproc.run.resources import CHECKOUT, CONTAINERS, ENGINE

FLAVOURS = ("cuda", "rocm", "cpu")

_PLACEHOLDER = re.compile(r"\{\{\s*([A-Z_]+)\s*\}\}")
_ARGUMENTS = re.compile(r"^%arguments\n((?:[ \t]+.*\n|\n)*)", re.MULTILINE)


@dataclass(frozen=True)
class ImageRequest:
    """What to build."""

    flavour: str
    """cuda, rocm or cpu: containers/<flavour>.args."""
    output: Path
    """The .sif file."""
    base: str | None = None
    """Another base image, for example a newer CUDA; `localimage:FILE` and `docker-archive:FILE` work too."""
    wheels: Path | None = None
    """Folder of wheels: then nothing is installed from the network."""
    cache: Path | None = None
    """Where downloaded layers are kept; None: a temporary folder that is removed afterwards."""


def parse_arguments(text: str) -> dict[str, str]:
    """KEY=VALUE lines, as `--build-arg-file` takes them; comments and blank lines are left out."""
    lines = (line.strip() for line in text.splitlines())
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#") and "=" in line)


def render_definition(template: str, arguments: Mapping[str, str]) -> str:
    """Fill in the template's `{{ KEY }}`s: its own defaults (%arguments) below `arguments`.

    Raises:
        SmaltiError: for a placeholder without a value, or a value that no placeholder takes.
    """
    section = _ARGUMENTS.search(template)
    defaults = parse_arguments(section[1]) if section else {}
    values = {**defaults, **arguments}
    body = _ARGUMENTS.sub("", template)
    wanted = set(_PLACEHOLDER.findall(body))
    missing, unused = sorted(wanted - set(values)), sorted(set(arguments) - wanted)
    if missing or unused:
        raise SmaltiError(f"containers/smalti.def: no value for {missing}, no place for {unused}")
    return _PLACEHOLDER.sub(lambda match: values[match[1]], body)


def engine_hash(folder: Path) -> str:
    """SHA-256 over the engine's files, bundled model included: whether an image runs the engine of this checkout."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    return sha256_json({file.relative_to(folder).as_posix(): sha256_file(file) for file in files})


def find_program() -> tuple[str, Path]:
    """The container program, apptainer before singularity.

    Raises:
        SmaltiError: if there is neither.
    """
    for name in ("apptainer", "singularity"):
        found = shutil.which(name)
        if found is not None:
            return name, Path(found)
    raise SmaltiError("neither apptainer nor singularity is on the PATH: load the site's module, or build elsewhere")


def build_flags(program: str, *, root: bool, proot: bool, subuid: bool) -> list[str]:
    """How an image is built without being root.

    Apptainer chooses by itself. SingularityCE uses proot where it is on the PATH, and needs --fakeroot otherwise.

    Raises:
        SmaltiError: if no way is open.
    """
    if root or program == "apptainer" or proot:
        return []
    if subuid:
        return ["--fakeroot"]
    raise SmaltiError(
        "singularity cannot build here: neither proot on the PATH nor a range in /etc/subuid "
        "(LUMI: `module load LUMI systools`; elsewhere build on your own machine and copy the image)"
    )


def commit_of(checkout: Path | None) -> str:
    """Short git hash, with `-changed` when infer/ differs from it; "unknown" outside a checkout or without git."""
    if checkout is None or shutil.which("git") is None:
        return "unknown"
    git = ["git", "-C", str(checkout)]
    head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode != 0:
        return "unknown"
    changed = subprocess.run([*git, "status", "--porcelain", "infer"], capture_output=True, text=True, check=False)
    return head.stdout.strip() + ("-changed" if changed.stdout.strip() else "")


def _definition_arguments(request: ImageRequest) -> dict[str, str]:
    path = CONTAINERS / f"{request.flavour}.args"
    if request.flavour not in FLAVOURS or not path.is_file():
        raise SmaltiError(f"unknown kind of image {request.flavour!r}: one of {', '.join(FLAVOURS)}")
    arguments = parse_arguments(path.read_text(encoding="utf-8"))
    if request.base is not None:
        scheme, separator, rest = request.base.partition(":")
        known = scheme in ("docker", "docker-archive", "localimage", "oras", "library") and separator
        arguments["BOOTSTRAP"], arguments["BASE"] = (
            (scheme, rest.removeprefix("//")) if known else ("docker", request.base)
        )
        if known and scheme in ("localimage", "docker-archive"):
            arguments["BASE"] = str(Path(rest).absolute())  # the program runs in another folder
    if request.wheels is not None:
        if not list(request.wheels.glob("torch-*.whl")):
            raise SmaltiError(
                f"{request.wheels}: no torch wheel there: `pip download -d {request.wheels} torch numpy pip`"
            )
        arguments["WHEELS"] = str(request.wheels.absolute())
    arguments["COMMIT"] = commit_of(CHECKOUT)
    arguments["VERSION"] = SOFTWARE.removeprefix("smalti ")
    return arguments


def _stage(folder: Path) -> None:
    """Copy what the definition's relative paths name, as they stand in a checkout: in a wheel they stand elsewhere."""
    shutil.copytree(ENGINE, folder / "infer", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(CONTAINERS / "wheels", folder / "containers" / "wheels")


def _has_subuid() -> bool:
    try:
        lines = Path("/etc/subuid").read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    user = os.environ.get("USER", "")
    return any(line.split(":")[0] in (user, str(os.getuid())) for line in lines)


def build_image(request: ImageRequest) -> Path:
    """Build an image; the file appears complete, tested and with its record, or not at all.

    Returns:
        The image.

    Raises:
        SmaltiError: if there is no program, the request makes no sense or the build fails (its output stands above).
    """
    arguments = _definition_arguments(request)
    name, program = find_program()
    flags = build_flags(name, root=os.getuid() == 0, proot=shutil.which("proot") is not None, subuid=_has_subuid())
    text = render_definition((CONTAINERS / "smalti.def").read_text(encoding="utf-8"), arguments)
    request.output.parent.mkdir(parents=True, exist_ok=True)
    partial = request.output.with_name(f".{request.output.name}.{os.getpid()}.tmp")
    with tempfile.TemporaryDirectory(prefix="smalti-build-") as scratch:
        definition = Path(scratch) / "smalti.def"
        definition.write_text(text, encoding="utf-8")
        _stage(Path(scratch))
        cache = request.cache or Path(scratch) / "cache"
        temporary = Path(scratch) / "tmp"
        for folder in (cache, temporary):
            folder.mkdir(parents=True, exist_ok=True)
        places = {"CACHEDIR": str(cache.absolute()), "TMPDIR": str(temporary)}
        environment = {**os.environ, **{f"{p}_{k}": v for p in ("APPTAINER", "SINGULARITY") for k, v in places.items()}}
        command = [str(program), "build", *flags, str(partial.absolute()), str(definition)]
        say(" ".join(command))
        try:
            code = subprocess.run(command, cwd=scratch, env=environment, check=False).returncode
            if code != 0:
                raise SmaltiError(
                    f"{name} build ended with code {code}: its reason stands above", exit_code=EXIT_FAILED
                )
            _record(request, arguments, partial)
            partial.replace(request.output)
        finally:
            partial.unlink(missing_ok=True)
    return request.output


def record_path(image: Path) -> Path:
    """The JSON file beside an image."""
    return image.with_name(image.name + ".json")


def _record(request: ImageRequest, arguments: Mapping[str, str], image: Path) -> None:
    record = {
        "format": "smalti/image",
        "sha256": sha256_file(image),
        "bytes": image.stat().st_size,
        "engine": engine_hash(ENGINE),
        "software": SOFTWARE,
        "commit": arguments["COMMIT"],
        "flavour": request.flavour,
        "base": f"{arguments['BOOTSTRAP']}:{arguments['BASE']}",
    }
    write_json(record_path(request.output), record)
    say(f"sha256 {record['sha256']}  {request.output}")
