"""The image's definition, without building it: rendering, flags, and that the Containerfile keeps step."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from infer.contract import SmaltiError
from preproc.cluster.image import (
    FLAVOURS,
    ImageRequest,
    build_flags,
    build_image,
    engine_hash,
    parse_arguments,
    render_definition,
)
from preproc.run.resources import CONTAINERS

TEMPLATE = (CONTAINERS / "smalti.def").read_text()


def rendered(flavour: str) -> str:
    return render_definition(TEMPLATE, parse_arguments((CONTAINERS / f"{flavour}.args").read_text()))


def test_the_kinds_share_everything_but_the_base() -> None:
    texts = {flavour: rendered(flavour) for flavour in FLAVOURS}
    assert len(set(texts.values())) == 3
    for flavour, text in texts.items():
        assert "{{" not in text
        assert "%arguments" not in text
        differing = set(text.splitlines()) ^ set(texts["cpu"].splitlines())
        told = ("Bootstrap:", "From:", "org.smalti.flavour", "org.smalti.base", "smalti's engine (")
        assert all(line.strip().startswith(told) for line in differing), (flavour, differing)


def test_installs_torch_and_numpy_only() -> None:
    lines = [line for line in TEMPLATE.splitlines() if "$pip install" in line]
    assert len(lines) == 2
    for line in lines:
        assert re.findall(r'"torch==\{\{ TORCH \}\}" (.*)$', line) == ["numpy"]


def test_a_wrong_placeholder_is_named() -> None:
    with pytest.raises(SmaltiError, match="COLOUR"):
        render_definition(TEMPLATE + "{{ COLOUR }}", {})
    with pytest.raises(SmaltiError, match="SHAPE"):
        render_definition(TEMPLATE, {"SHAPE": "round"})


def test_how_to_build_without_being_root() -> None:
    assert build_flags("apptainer", root=False, proot=False, subuid=False) == []
    assert build_flags("singularity", root=False, proot=True, subuid=True) == []  # LUMI: proot, not --fakeroot
    assert build_flags("singularity", root=False, proot=False, subuid=True) == ["--fakeroot"]
    with pytest.raises(SmaltiError, match="systools"):
        build_flags("singularity", root=False, proot=False, subuid=False)


def test_wrong_requests(tmp_path: Path) -> None:
    with pytest.raises(SmaltiError, match="one of cuda, rocm, cpu"):
        build_image(ImageRequest("tpu", tmp_path / "x.sif"))
    with pytest.raises(SmaltiError, match="no torch wheel"):
        build_image(ImageRequest("cpu", tmp_path / "x.sif", wheels=tmp_path))


def test_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SmaltiError, match="neither apptainer nor singularity"):
        build_image(ImageRequest("cpu", tmp_path / "x.sif"))


def test_the_engines_hash_follows_its_sources(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    before = engine_hash(tmp_path)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "a.py").write_text("")
    assert engine_hash(tmp_path) == before
    (tmp_path / "a.py").write_text("x = 2\n")
    assert engine_hash(tmp_path) != before


def test_the_containerfile_does_the_same() -> None:
    text = (CONTAINERS / "Containerfile").read_text()
    for shared in (
        "/opt/smalti",
        "PYTHONNOUSERSITE=1",
        "PYTHONDONTWRITEBYTECODE=1",
        "-m infer --self-test",
        "compileall",
    ):
        assert shared in text, shared
        assert shared in TEMPLATE, shared
    defaults = parse_arguments(TEMPLATE.split("%arguments\n")[1].split("\n\n")[0])
    for name, value in re.findall(r"^ARG (\w+)=(.*)$", text, re.MULTILINE):
        assert defaults[name] == value, name
