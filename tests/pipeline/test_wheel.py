"""smalti from its wheel, in an environment that knows no checkout: what comes with the package is found there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHIPPED = {
    "preproc": ("**/*.py", "**/*.j2", "py.typed"),
    "infer": ("**/*.py", "checkpoints/*"),
    "slurm": ("*", "sites/*"),
    "containers": ("*", "wheels/README.md"),
}
"""What the wheel has to hold of each folder of the checkout."""

pytestmark = pytest.mark.slow

DEMO = """
import sys
from pathlib import Path
from preproc.simulate import SimulationOptions
from preproc.simulate.demo import write_demo_run
small = SimulationOptions(extent_km=0.6, s2_dates=8, s1_dates=5, neighbour_dates=2, parcel_ha=0.9)
write_demo_run(Path(sys.argv[1]), small)
"""
"""The demonstration of `smalti demo`, at a size that takes seconds."""

APPTAINER = """\
#!/bin/sh -e
while [ $# -gt 2 ]; do shift; done
grep -q "^ *infer /opt/smalti/infer$" "$2"
grep -q "^ *containers/wheels /opt/smalti-wheels$" "$2"
test -f infer/__main__.py
test -f infer/checkpoints/demo.pt
test ! -e infer/__pycache__
test -d containers/wheels
cp "$2" "$1"
"""
"""Looks for what the definition's relative paths name, and gives the definition out as the image."""


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel, and a folder outside the checkout to work in."""

    environment: Path
    work: Path

    def __call__(self, program: str, *arguments: object, path: Path | None = None) -> str:
        """Output of a program of the environment.

        Args:
            program: smalti or python.
            arguments: its arguments.
            path: a folder of further programs.
        """
        variables = {**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
        variables.pop("PYTHONPATH", None)
        if path is not None:
            variables["PATH"] = f"{path}:{variables['PATH']}"
        command = [str(self.environment / "bin" / program), *map(str, arguments)]
        done = subprocess.run(command, cwd=self.work, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @property
    def packages(self) -> Path:
        return next(self.environment.glob("lib/python*/site-packages"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools builds in the folder it is given, and takes along what an older build left."""
    folder = tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("preproc", "infer", "slurm", "containers"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=ignore)
    for name in ("pyproject.toml", "setup.py", "README.md"):
        shutil.copy(ROOT / name, folder / "source")
    _pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, folder / "source")
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel and nothing else is installed; the dependencies are those of the environment that runs the tests."""
    environment, work = tmp_path_factory.mktemp("environment"), tmp_path_factory.mktemp("work")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    _pip("--python", environment / "bin" / "python", "install", "--no-compile", "--no-deps", "--no-index", wheel)
    found = Installed(environment, work)
    # A line in a .pth file adds the folder alone: that folder's own .pth, by which this checkout is found, is not read.
    (found.packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return found


def _pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, arguments)]
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wheel_holds_every_module_and_what_comes_with_them(wheel: Path) -> None:
    wanted = set()
    for name, patterns in SHIPPED.items():
        inside = "" if name in ("preproc", "infer") else "preproc/"
        files = [path for each in patterns for path in (ROOT / name).glob(each) if path.is_file()]
        wanted |= {inside + path.relative_to(ROOT).as_posix() for path in files}
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    assert held >= wanted
    assert {name.split("/")[0] for name in held if ".dist-info" not in name} == {"preproc", "infer"}


def test_the_demonstration_runs_from_the_wheel(installed: Installed) -> None:
    where = "import infer, preproc.run.resources as r; print(r.CHECKOUT, r.SLURM, infer.__file__)"
    packages = installed.packages
    assert installed("python", "-c", where).split() == [
        "None",
        str(packages / "preproc" / "slurm"),
        str(packages / "infer" / "__init__.py"),
    ]
    installed("python", "-c", DEMO, "demo")
    settings = installed.work / "demo" / "run.toml"
    text = settings.read_text().replace("trials = 12", "trials = 1").replace("folds = 4", "folds = 2")
    installed("smalti", "plan", "demo", "--dry-run")
    installed("smalti", "plan", "demo")
    (installed.work / "image.sif").write_bytes(b"")
    settings.write_text(f'{text}container = "../image.sif"\n[site.runtime]\nengine = "checkout"\n')
    scripts = installed("smalti", "submit", "demo", "--dry-run")
    assert f"{packages}/infer:/opt/smalti/infer" in scripts
    assert "begin() {" in scripts  # common.sh was copied in
    settings.write_text(text)
    installed("smalti", "run", "demo")
    assert "Against the truth" in (installed.work / "demo" / "report" / "index.html").read_text()


def test_an_image_is_built_from_the_wheel(installed: Installed, tmp_path: Path) -> None:
    assert "cuda|rocm|cpu" in installed("smalti", "container", "build", "--help")
    program = tmp_path / "apptainer"
    program.write_text(APPTAINER)
    program.chmod(0o755)
    image = tmp_path / "cpu.sif"
    installed("smalti", "container", "build", "cpu", "--base=localimage:base.sif", "--output", image, path=tmp_path)
    assert f"From: {installed.work}/base.sif\n" in image.read_text()
    assert '"commit": "unknown"' in image.with_name("cpu.sif.json").read_text()
