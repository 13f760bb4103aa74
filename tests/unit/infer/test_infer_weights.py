"""Safe loading: what is recognised, and one clear line for what is not."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.pretraining import write_untrained
from support.recorded import GOLDEN

from infer.contract import (
    DEMO_CHECKPOINT,
    ModelJob,
    Run,
    SmaltiError,
    cache_path,
    cached_checkpoint,
    registered_model,
    write_manifest,
)
from infer.model import build_network, read_architecture
from infer.model.network import random_student
from infer.selftest import SETTINGS, formula_checkpoint
from infer.weights import check_source, load_checkpoint, resolve_checkpoint


class Harm:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (str(self.target),))


@pytest.fixture
def student(tmp_path: Path) -> Path:
    path = tmp_path / "student.pt"
    torch.save({"args": SETTINGS, "model": random_student(SETTINGS, 3)}, path)
    return path


def refused(path: Path, match: str, *, build: bool = False) -> str:
    with pytest.raises(SmaltiError, match=match) as caught:
        checkpoint = load_checkpoint(path)
        if build:
            build_network(checkpoint)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    return message


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path):
    for number, legacy in enumerate((False, True)):
        path, target = tmp_path / f"harm{number}.pt", tmp_path / f"harmed{number}"
        content = {"args": {}, "model": {"x": Harm(target)}}
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        refused(path, "refused")
        assert not target.exists()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "not a readable checkpoint|refused"),
        (b"not a checkpoint at all", "not a readable checkpoint|refused"),
        (b"PK\x03\x04 truncated", "not a readable checkpoint"),
        (b"\x02\x00\x00\x00\x00\x00\x00\x00{}", "not a readable checkpoint|refused"),  # safetensors
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path, content, match):
    path = tmp_path / "bad.pt"
    path.write_bytes(content)
    refused(path, match)


def test_a_truncated_checkpoint_is_refused(student):
    student.write_bytes(student.read_bytes()[:-2000])
    refused(student, "not a readable checkpoint")


def test_a_missing_checkpoint_is_refused(tmp_path):
    refused(tmp_path / "none.pt", "no such checkpoint")


@pytest.mark.parametrize("content", [[1, 2], {"weights": torch.ones(2)}, {"model_state": {"a": torch.ones(1)}}])
def test_an_unknown_family_is_refused(tmp_path, content):
    path = tmp_path / "other.pt"
    torch.save(content, path)
    refused(path, "not a TESSERA checkpoint|not a checkpoint's table")


WEIGHT = "s2_backbone.embedding.0.weight"


def _first(change: Callable[[torch.Tensor], object]) -> Callable[[dict[str, Any]], None]:
    def apply(content: dict[str, Any]) -> None:
        content["model"][WEIGHT] = change(content["model"][WEIGHT])

    return apply


def _settings(**changes: object) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.update(args={**content["args"], **changes})


ODD: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "settings are a tensor": (lambda c: c.update(args=torch.ones(3)), "'args' is a Tensor, not a table"),
    "marks are a tensor": (lambda c: c.update(smalti=torch.ones(3)), "'smalti' is a Tensor, not a table"),
    "parameters are a list": (lambda c: c.update(model=[1]), "not a table of tensors"),
    "a parameter is text": (_first(lambda w: "x"), "is no tensor but a str"),
    "heads 0": (_settings(nhead=0), "setting nhead is 0, not a number of them"),
    "heads -4": (_settings(nhead=-4), "setting nhead is -4, not a number of them"),
    "heads text": (_settings(nhead="x" * 10**6), "setting nhead is 'x+'\\.\\.\\., not a number of them"),
    "heads NaN": (_settings(nhead=float("nan")), "setting nhead is .*, not a number of them"),
    "heads a tensor": (_settings(nhead=torch.ones(2)), r"setting nhead is \(Tensor\), not a number of them"),
    "heads that divide nothing": (_settings(nhead=7), "7 heads do not divide the width"),
    "complex": (_first(lambda w: w.to(torch.complex64)), "holds complex64, not floating-point numbers"),
    "whole numbers": (_first(lambda w: w.to(torch.int64)), "holds int64, not floating-point numbers"),
    "sparse": (_first(lambda w: w.to_sparse()), r"is no plain array \(cpu, sparse_coo\)"),
    "compressed rows": (_first(lambda w: w.to_sparse_csr()), r"is no plain array \(cpu, sparse_csr\)|refused"),
    "meta": (_first(lambda w: w.to("meta")), r"is no plain array \(meta, strided\)"),
    "quantised": (
        _first(lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8)),
        r"is no plain array \(cpu, quantised\)|refused",
    ),
    "one number": (_first(lambda w: w.sum()), "has 0 axes, not 2"),
    "three axes": (_first(lambda w: w[None].clone()), "has 3 axes, not 2"),
    "empty": (_first(lambda w: torch.zeros(0, 10)), r"is empty, of shape \(0, 10\)"),
    "stride 0": (_first(lambda w: torch.zeros(1).expand(10**7, 10)), "of which the file holds a part"),
    "NaN": (_first(lambda w: w * torch.nan), "holds numbers that are not finite"),
    "infinite": (_first(lambda w: w / 0), "holds numbers that are not finite"),
    "an absurd width": (_first(lambda w: torch.zeros(100_000, 10)), "embedding.2.weight is not 100000 x 100000"),
    "no width": (_first(lambda w: torch.zeros(1, 10)), "embedding.2.weight is not 1 x 1"),
    "names of a megabyte": (
        lambda c: c["model"].update({"x" * 10**6: torch.ones(1)}),
        "parameters do not fit the network: left over x+",
    ),
    "layers without end": (
        lambda c: c["model"].update(
            {f"s2_backbone.transformer_encoder.layers.{n}.x": torch.ones(1) for n in range(10_000)}
        ),
        "s2_backbone has 10000 transformer layers",
    ),
}


@pytest.mark.parametrize("case", ODD)
def test_an_odd_checkpoint_is_refused_in_one_short_line(student, case):
    content = torch.load(student, weights_only=True)
    change, match = ODD[case]
    change(content)
    torch.save(content, student)
    assert len(refused(student, match, build=True)) < 1200


def test_a_v1_checkpoint_of_odd_settings_is_refused(tmp_path):
    content = torch.load(GOLDEN / "v1.1-aws" / "checkpoint.pt", weights_only=True)
    for key, value, match in (
        ("data_source", torch.ones(2), r"config\.data_source is \(Tensor\), expected 'mpc' or 'aws'"),
        ("save_embedding_dim", "all", "setting save_embedding_dim is 'all', not a number of them"),
        ("s2_num_heads", 2**70, r"setting s2_num_heads is .*, not a number of them"),
    ):
        torch.save({**content, "config": {**content["config"], key: value}}, tmp_path / "odd.pt")
        refused(tmp_path / "odd.pt", match, build=True)


def test_a_compressed_archive_is_refused_before_it_grows(student):
    with zipfile.ZipFile(student) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(student, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    refused(student, "an archive that is compressed")


def test_a_pipe_or_device_is_no_checkpoint(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    refused(tmp_path / "pipe.pt", "is a pipe")
    (tmp_path / "zero.pt").symlink_to("/dev/zero")
    refused(tmp_path / "zero.pt", "is a device")


def test_missing_left_over_and_misshapen_parameters_are_named(student):
    content = torch.load(student, weights_only=True)
    state = content["model"]
    del state["s1_backbone.attn_pool.query.bias"]
    state["s2_backbone.surplus"] = torch.ones(1)
    state["dim_reducer.1.bias"] = torch.ones(3)
    torch.save(content, student)
    message = refused(student, "do not fit", build=True)
    assert "missing s1_backbone.attn_pool.query.bias" in message
    assert "left over s2_backbone.surplus" in message
    assert "dim_reducer.1.bias (3,)" in message


def test_prefixes_and_projectors_are_taken_off(student, tmp_path):
    content = torch.load(student, weights_only=True)
    state = {f"_orig_mod.{key}": value for key, value in content["model"].items()}
    state["_orig_mod.projector.net.0.weight"] = torch.ones(4, 4)
    torch.save({"args": SETTINGS, "model": state}, tmp_path / "prefixed.pt")
    build_network(load_checkpoint(tmp_path / "prefixed.pt"))


def test_a_checkpoint_of_another_family_than_its_name_is_refused(student):
    with pytest.raises(SmaltiError, match="v2-student checkpoint"):
        load_checkpoint(student, replace(registered_model("tessera-v2-teacher"), sha256=None))
    with pytest.raises(SmaltiError, match=r"its SHA-256 is .*that of tessera-v2-teacher is bfca890a9956"):
        load_checkpoint(student, registered_model("tessera-v2-teacher"))


def test_the_demo_says_that_it_is_no_tessera():
    checkpoint = load_checkpoint(cached_checkpoint("demo"), registered_model("demo"))
    metadata = torch.load(DEMO_CHECKPOINT, weights_only=True)["smalti"]
    assert checkpoint.trained == metadata["trained"]
    assert checkpoint.label == metadata["label"]
    assert "demonstration" in checkpoint.label
    assert DEMO_CHECKPOINT.stat().st_size < 2_000_000
    assert build_network(checkpoint).architecture.output == 128


def test_random_weights_are_those_of_their_seed(tmp_path):
    a, b = (load_checkpoint(write_untrained(tmp_path / name)) for name in ("a.pt", "b.pt"))
    assert not a.trained
    assert "untrained" in a.label
    assert all(torch.equal(a.state[key], b.state[key]) for key in a.state)


def test_weights_that_are_not_fetched_are_asked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("SMALTI_WEIGHTS", str(tmp_path))
    with pytest.raises(SmaltiError, match="smalti weights fetch tessera-v2-nano"):
        cached_checkpoint("tessera-v2-nano")
    with pytest.raises(SmaltiError, match="not on the hub"):
        cached_checkpoint("tessera-v1.0")
    with pytest.raises(SmaltiError, match="is not known"):
        cached_checkpoint("tessera-v9")


def test_fetched_weights_that_changed_are_refused(monkeypatch, tmp_path, student):
    monkeypatch.setenv("SMALTI_WEIGHTS", str(tmp_path / "weights"))
    model = replace(registered_model("tessera-v2-nano"), sha256=None)
    path = cache_path(model.name)
    path.parent.mkdir(parents=True)
    path.write_bytes(student.read_bytes())
    write_manifest(path.parent / f"{model.name}.json", "weights", inputs={}, files=[path])
    assert load_checkpoint(cached_checkpoint(model.name), model).name == model.name
    torch.save({"args": SETTINGS, "model": random_student(SETTINGS, 4)}, path)
    with pytest.raises(SmaltiError, match="smalti weights verify"):
        load_checkpoint(cached_checkpoint(model.name), model)


def test_a_job_names_a_model_or_a_file(student, tmp_path):
    run = Run(tmp_path)
    assert resolve_checkpoint(ModelJob(None, "student.pt", "int8", 128, "auto"), run).name == "student.pt"
    assert resolve_checkpoint(ModelJob("demo", None, "int8", 128, "auto"), run).name == "demo"
    with pytest.raises(SmaltiError, match="neither a model nor a checkpoint"):
        resolve_checkpoint(ModelJob(None, None, "int8", 128, "auto"), run)


def test_sources_that_differ_are_refused():
    aws = load_checkpoint(GOLDEN / "v1.1-aws" / "checkpoint.pt")
    with pytest.raises(SmaltiError, match="allow-source-mismatch"):
        check_source(aws, "t", "mpc")
    check_source(aws, "t", "aws")
    check_source(aws, "t", None)
    check_source(load_checkpoint(cached_checkpoint("demo")), "t", "other")


@pytest.mark.parametrize("dim", [16, 32, 64, 128, 0])
def test_students_have_prefixes(dim):
    assert read_architecture(formula_checkpoint()).dimensions(dim) == (dim or 128)


def test_other_prefixes_and_families_are_refused():
    with pytest.raises(SmaltiError, match="16, 32, 64, 128"):
        read_architecture(formula_checkpoint()).dimensions(100)
    teacher = read_architecture(load_checkpoint(GOLDEN / "v2-teacher" / "checkpoint.pt"))
    assert teacher.dimensions(0) == teacher.output
    with pytest.raises(SmaltiError, match="dim 16"):
        teacher.dimensions(16)
