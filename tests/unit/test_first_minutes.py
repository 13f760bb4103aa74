"""What people meet first: the installation, `smalti --version`, a checkout that was moved."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from infer.contract import VERSION
from preproc.cli import app

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def install() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / ".ci" / "install"))


def test_the_version_is_told_and_stands_in_one_place() -> None:
    assert CliRunner().invoke(app, ["--version"]).output == f"smalti {VERSION}\n"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "infer.contract.manifest.VERSION"}
    assert f"## {VERSION}" in (ROOT / "CHANGELOG.md").read_text()


def test_shells_can_complete_commands() -> None:
    asked = {**os.environ, "_SMALTI_COMPLETE": "complete_bash", "COMP_WORDS": "smalti st", "COMP_CWORD": "1"}
    code = "import sys; sys.argv = ['smalti']; from preproc.cli import app; app(prog_name='smalti')"
    done = subprocess.run([sys.executable, "-c", code], env=asked, capture_output=True, text=True, check=False)
    assert set(done.stdout.split()) == {"stitch", "status"}


def test_torch_is_chosen_by_what_the_machine_has(install: dict[str, Any]) -> None:
    choices = install["torch_choices"]
    (_, cpu), (_, otherwise) = choices("", None)
    assert cpu[:2] == ("--index-url", install["CPU_INDEX"])
    assert otherwise == ()
    assert [index for _, index in choices("", "/dev/nvidia0")] == [()]
    assert [index for _, index in choices("https://own.example/simple", "/dev/kfd")] == [
        ("--index-url", "https://own.example/simple")
    ]


def test_an_index_out_of_reach_costs_seconds(install: dict[str, Any]) -> None:
    assert not install["reachable"]("http://127.0.0.1:9", 5.0)  # the port of `discard`: nobody listens
    assert not install["reachable"]("http://127.0.0.1:9", 0.001)  # nor waits


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "Downloading torch-2.13.0-cp311-none-any.whl (190.4 MB)\n",
            "  downloading torch-2.13.0-cp311-none-any.whl (190.4 MB)",
        ),
        ("Downloading https://own.example/a/nvidia-1-py3.whl (1.2 GB)", "  downloading nvidia-1-py3.whl (1.2 GB)"),
        ("Downloading six-1.17.0-py2.py3-none-any.whl (11 kB)", None),
        ("Downloading idna-3.20-py3-none-any.whl (1.1 MB)", None),
        ("Installing collected packages: a, b, c", "  unpacking 3 packages"),
        ("ERROR: No matching distribution found for torch", "  ERROR: No matching distribution found for torch"),
        ("Collecting numpy", None),
    ],
)
def test_what_takes_long_is_said(install: dict[str, Any], line: str, said: str | None) -> None:
    assert install["worth_a_line"](line) == said


def test_a_checkout_that_was_moved_or_copied_mends_its_scripts(tmp_path: Path) -> None:
    old, new = tmp_path / "a", tmp_path / "a2"
    venv = new / ".venv"
    packages = venv / "lib" / "python3.11" / "site-packages"
    (packages / "smalti-0.1.0.dist-info").mkdir(parents=True)
    (venv / "bin").mkdir()
    config = f"home = /usr/bin\nversion = 3.11.2\ncommand = /usr/bin/python3 -m venv {old}/.venv\n"
    (venv / "pyvenv.cfg").write_text(config)
    script = venv / "bin" / "smalti"
    script.write_text(f"#!{old}/.venv/bin/python\nfrom preproc.cli import main\n")
    script.chmod(0o755)
    finder = packages / "__editable___smalti_0_1_0_finder.py"
    finder.write_text(f"MAPPING = {{'preproc': '{old}/preproc', 'other': '{old}2/preproc'}}\n")
    path_file = packages / "__editable__.smalti-0.1.0.pth"
    path_file.write_text(f"{old}\n")

    def mend() -> str:
        command = [sys.executable, str(ROOT / ".ci" / "move-venv"), ".venv"]
        return subprocess.run(command, cwd=new, capture_output=True, text=True, check=True).stdout

    assert re.search(r"was made in \S+/a: mended for \S+/a2", mend())
    assert script.read_text().startswith(f"#!{new}/.venv/bin/python\n")
    assert script.stat().st_mode & 0o111
    assert finder.read_text() == f"MAPPING = {{'preproc': '{new}/preproc', 'other': '{old}2/preproc'}}\n"
    assert path_file.read_text() == f"{new}\n"
    assert mend() == ""
