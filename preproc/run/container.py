"""The one command that runs the engine in a container: local mode runs it, job scripts carry it."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from infer.contract import Run, SmaltiError
from infer.contract.registry import registered_model, weights_folder
from preproc.run.config import Config
from preproc.run.profile import Profile, load_profile
from preproc.run.progress import say
from preproc.run.resources import ENGINE

ENGINE_HOME = "/opt/smalti"
"""Where the image has infer/, and where another one is bound over it."""
_DEVICES = {"/dev/nvidiactl": "--nv", "/dev/kfd": "--rocm"}
"""Device files by which this machine shows its accelerators -> the option that hands them to a container."""


@dataclass(frozen=True)
class Container:
    """How the engine's image is run."""

    image: Path
    program: str
    """apptainer or singularity, a name or a path."""
    gpu_flag: str = ""
    """--nv, --rocm, or none."""
    binds: tuple[str, ...] = ()
    """Paths that are seen inside under the same names."""
    engine: Path | None = None
    """Folder infer/ that takes the place of the image's own."""

    def options(self) -> list[str]:
        """The command up to the image, where a job script adds the node's own paths. Pure.

        The container starts from a clean environment: what the engine needs is handed over by name.
        """
        command = [self.program, "exec", "--cleanenv", "--env", f"PYTHONPATH={ENGINE_HOME},PYTHONNOUSERSITE=1"]
        command += [self.gpu_flag] if self.gpu_flag else []
        for bind in self.binds:
            command += ["--bind", bind]
        return command + ([] if self.engine is None else ["--bind", f"{self.engine}:{ENGINE_HOME}/infer"])

    def command(self, arguments: Sequence[str], binds: Iterable[str] = ()) -> list[str]:
        """The whole command. Pure.

        Args:
            arguments: of Python in the container.
            binds: further paths.
        """
        more = [part for bind in binds for part in ("--bind", bind)]
        return [*self.options(), *more, str(self.image), "python3", "-s", *arguments]


def container_variable(program: str, name: str) -> str:
    """The variable by which a container is given one called `name`. Pure."""
    return ("SINGULARITYENV_" if Path(program).name == "singularity" else "APPTAINERENV_") + name


def device_arguments(profile: Profile) -> list[str]:
    """What the engine is told of its device: a GPU that the site's profile promises is not silently done without."""
    return ["--device", "cuda"] if profile.kind("infer").gpus else []  # torch calls ROCm's devices cuda as well


def weights_of(config: Config) -> Path | None:
    """Folder of fetched checkpoints that the model is read from, if it is."""
    name = config.model.name
    return None if name is None or registered_model(name).bundled else weights_folder().absolute()


def container_of(run: Run, config: Config, profile: Profile) -> Container | None:
    """The container that run.toml or else the site names, or None for this Python.

    Args:
        run: its folder is bound.
        config: its image, and the folder of its checkpoint.
        profile: the site's program, paths and GPU option; `auto` is told from this machine.

    Raises:
        SmaltiError: if a folder's path means something else to `--bind`.
    """
    image = config.site.container or (Path(profile.runtime.image).expanduser() if profile.runtime.image else None)
    if image is None:
        return None
    program = profile.runtime.program
    if program == "auto":
        program = "apptainer" if shutil.which("apptainer") or not shutil.which("singularity") else "singularity"
    flag: str = profile.runtime.gpu_flag
    if flag == "auto":
        flag = next((option for device, option in _DEVICES.items() if Path(device).exists()), "")
    checkpoint, weights = config.model.checkpoint, weights_of(config)
    binds = {str(run.root.absolute())}
    binds |= {str(checkpoint.parent)} if checkpoint is not None else set()
    binds |= {str(weights)} if weights is not None else set()
    for folder in sorted(binds):
        if {":", ","} & set(folder):
            raise SmaltiError(f"{folder}: {program} takes ':' and ',' in a path for the end of it: rename or move it")
    binds |= {*profile.runtime.binds}  # which may name another place inside
    own = ENGINE if profile.runtime.engine == "checkout" else None
    return Container(image, program, flag, tuple(sorted(binds)), own)


def engine_python(run: Run, config: Config, arguments: Sequence[str], binds: Iterable[str] = ()) -> list[str]:
    """The command that runs the engine's Python with some arguments: in the container, or here where torch is.

    Args:
        run: its folder is bound.
        config: its settings.
        arguments: of Python.
        binds: further folders that a container is to see.

    Raises:
        SmaltiError: if there is neither a container nor torch.
    """
    container = container_of(run, config, load_profile(config.site.profile, run.root, config.site))
    if container is None:
        if importlib.util.find_spec("torch") is None:
            raise SmaltiError(
                "torch is not installed here and no container is named: `pip install 'smalti[local]'`, "
                "or set [site] container in run.toml"
            )
        return [sys.executable, *arguments]
    if not container.image.exists():
        raise SmaltiError(f"{container.image}: no such container image ([site] container in run.toml)")
    if shutil.which(container.program) is None:
        raise SmaltiError(f"{container.program} is not on the PATH, and [site] container names an image")
    if container.gpu_flag:
        say(f"{container.image.name} is run with {container.gpu_flag}")
    return container.command(arguments, binds)
