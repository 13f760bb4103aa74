"""Embeddings on disk."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infer.contract import (
    FormatError,
    glance,
    output_state,
    read_embedding,
    read_manifest,
    sha256_json,
    write_embedding,
    write_manifest,
)
from infer.contract.embedding import EmbeddingManifest, EmbeddingModel, ModelPart
from infer.contract.glance import Look, glance_at, one_look
from infer.contract.provenance import TileGrid

ABOUT = EmbeddingManifest(model=EmbeddingModel("demo", "a label", True, "v2-student", None, "v2-student"))


def _codes() -> tuple[np.ndarray, np.ndarray]:
    codes = np.arange(-12, 12, dtype=np.int8).reshape(2, 3, 4)
    scales = np.array([[1, 2, 3], [4, np.nan, 0.5]], dtype=np.float32)
    return codes, scales


def test_int8_comes_back_as_value_times_scale_with_nan_for_nodata(tmp_path: Path) -> None:
    codes, scales = _codes()
    write_embedding(tmp_path, "t", codes, scales, inputs={"a": 1}, about=ABOUT)
    embedding = read_embedding(tmp_path, "t")
    values = embedding.window(slice(0, 2), slice(1, 3))
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values[0, 0], codes[0, 1] * np.float32(2))
    assert np.isnan(values[1, 0]).all()
    assert embedding.shape_hwc == (2, 3, 4)
    assert embedding.manifest.tile == "t"


def test_float32_replaces_int8_and_its_scales(tmp_path: Path) -> None:
    codes, scales = _codes()
    write_embedding(tmp_path, "t", codes, scales, inputs={}, about=ABOUT)
    write_embedding(tmp_path, "t", codes.astype(np.float32), None, inputs={}, about=ABOUT)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.json", "t.npy"]
    assert read_embedding(tmp_path, "t").scales_hw is None


def test_scales_that_are_gone_are_noticed(tmp_path: Path) -> None:
    codes, scales = _codes()
    write_embedding(tmp_path, "t", codes, scales, inputs={}, about=ABOUT)
    (tmp_path / "t_scales.npy").unlink()
    with pytest.raises(FormatError, match=r"t_scales.npy: missing, though t.json lists it"):
        read_embedding(tmp_path, "t")


def test_state_tells_missing_stale_broken_and_complete(tmp_path: Path) -> None:
    codes, scales = _codes()
    manifest = tmp_path / "t.json"
    assert output_state(manifest, "embedding").kind == "missing"
    write_embedding(tmp_path, "t", codes, scales, inputs={"tile": "x", "dim": 4}, about=ABOUT)
    assert output_state(manifest, "embedding", {"tile": "x", "dim": 4}).complete
    assert output_state(manifest, "embedding", {"dim": 4}, partial=True).complete
    stale = output_state(manifest, "embedding", {"tile": "y", "dim": 4})
    assert (stale.kind, stale.reason) == ("stale", "made from other inputs (tile)")
    assert output_state(manifest, "embedding", {"dim": 4}).kind == "stale"
    (tmp_path / "t.npy").write_bytes(b"short")
    assert output_state(manifest, "embedding").kind == "broken"


@pytest.mark.parametrize("values", [np.zeros((2, 3), np.float32), np.zeros((2, 3, 4), np.float64)])
def test_what_is_no_embedding_is_not_written(tmp_path: Path, values: np.ndarray) -> None:
    with pytest.raises(ValueError, match="embedding of t"):
        write_embedding(tmp_path, "t", values, None, inputs={}, about=ABOUT)
    assert not list(tmp_path.iterdir())


def test_infinite_scales_and_another_tiles_embedding_are_refused(tmp_path: Path) -> None:
    codes, scales = _codes()
    write_embedding(tmp_path, "t", codes, scales * np.float32(np.inf), inputs={}, about=ABOUT)
    with pytest.raises(FormatError, match=r"t_scales\.npy: holds infinite scales \(NaN is nodata\)"):
        read_embedding(tmp_path, "t")
    write_embedding(tmp_path, "t", codes, scales, inputs={}, about=ABOUT)
    for end in (".npy", "_scales.npy", ".json"):
        (tmp_path / f"t{end}").rename(tmp_path / f"u{end}")
    (tmp_path / "u.json").write_text((tmp_path / "u.json").read_text().replace('"t.npy"', '"u.npy"'))
    (tmp_path / "u.json").write_text((tmp_path / "u.json").read_text().replace('"t_scales.npy"', '"u_scales.npy"'))
    with pytest.raises(FormatError, match=r"u\.json: the embedding of 't' under this tile's name"):
        read_embedding(tmp_path, "u")


def test_a_manifest_that_was_edited_is_refused_by_its_key(tmp_path: Path) -> None:
    codes, scales = _codes()
    part = ModelPart("demo", "v2-student", 4, "ab" * 32)
    model = replace(ABOUT.model, parts=(part,))
    about = replace(ABOUT, model=model, grid=TileGrid("EPSG:32631", (10, 0, 0, 0, -10, 0)), nodata_pixels=1)
    write_embedding(tmp_path, "t", codes, scales, inputs={"tile": "x"}, about=about)
    read = read_embedding(tmp_path, "t").manifest
    assert replace(read, inputs={}, files={}) == replace(about, tile="t")
    path = tmp_path / "t.json"
    content = json.loads(path.read_text())
    assert "origin" not in content
    assert "data_source" not in content, "what is not known is not stated"
    content["model"]["parts"][0]["numbers"] = "four"
    path.write_text(json.dumps(content))
    said = r"t\.json: model.parts\[0\].numbers = 'four' is not a whole number: delete it, then run `smalti infer` again"
    with pytest.raises(FormatError, match=said):
        read_embedding(tmp_path, "t")


def test_counts_of_observations_stay_with_the_embedding(tmp_path: Path) -> None:
    codes, scales = _codes()
    counts = np.full((*scales.shape, 2), 7, np.uint8)
    write_embedding(tmp_path, "t", codes, scales, observations_hwm=counts, inputs={}, about=ABOUT)
    found = read_embedding(tmp_path, "t").observations_hwm
    assert found is not None
    np.testing.assert_array_equal(found, counts)
    with pytest.raises(ValueError, match="observations of t: uint8 "):
        write_embedding(tmp_path, "t", codes, scales, observations_hwm=counts[..., :1], inputs={}, about=ABOUT)
    np.save(tmp_path / "t_observations.npy", counts[:1])
    ABOUT.write(tmp_path / "t.json", inputs={}, files=sorted(tmp_path.glob("*.npy")))
    with pytest.raises(FormatError, match=r"t_observations\.npy: uint8 .* does not fit the embedding"):
        read_embedding(tmp_path, "t")
    write_embedding(tmp_path, "t", codes, scales, inputs={}, about=ABOUT)
    assert not (tmp_path / "t_observations.npy").exists(), "of an older embedding"


def test_a_manifest_at_rest_is_read_once_and_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes, scales = _codes()
    inputs = {"tile": "x", "checkpoint": "c", "dim": 4}
    read: list[str] = []
    monkeypatch.setattr(
        glance, "read_manifest", lambda path, *rest, **words: read.append(path) or read_manifest(path, *rest, **words)
    )
    path = tmp_path / "t.json"
    write_embedding(tmp_path, "t", codes, scales, inputs=inputs, about=ABOUT)
    found = glance_at(str(path))
    assert glance_at(str(path)) == found
    assert len(read) == 2, "it was written a moment ago, and may be again without another date"
    os.utime(path, (1, 1))
    assert [glance_at(str(path)) for _ in range(3)] == [found] * 3
    assert len(read) == 3
    files = read_manifest(path, "embedding", remedy="")["files"]
    assert json.loads(found.files) == files
    assert found.digest == sha256_json(["t", sha256_json(files)])
    stated = found.stated
    assert stated.model == ("demo", "a label", True, "v2-student")
    assert (stated.checkpoint, stated.dim, stated.int8, stated.origin) == ("c", 4, True, "")
    for wanted in (inputs, {"tile": "x"}, {"tile": "y"}, {"checkpoint": "c", "dim": 5}):
        assert found.state(str(path), wanted) == output_state(path, "embedding", wanted, partial=True)
    (tmp_path / "t_scales.npy").write_bytes(b"")
    assert found.state(str(path), inputs).kind == "broken"
    with pytest.raises(FormatError, match=r"t_scales.npy: 0 bytes, t.json says"):
        found.verify(str(path))
    write_embedding(tmp_path, "t", codes, scales, inputs={}, about=ABOUT)
    assert glance_at(str(path)).tile is None
    with pytest.raises(FormatError, match=r"t.json: lacks what a mosaic has to state \(inputs.checkpoint\)"):
        assert glance_at(str(path)).stated
    write_manifest(path, "embedding", inputs=inputs, files=sorted(tmp_path.glob("*.npy")))
    assert glance_at(str(path)).state(str(path), inputs).complete
    with pytest.raises(FormatError, match=r"t.json: model is missing: delete it, then run"):
        assert glance_at(str(path)).stated


def test_within_one_look_an_embedding_is_looked_at_once(tmp_path: Path) -> None:
    codes, scales = _codes()
    inputs = {"tile": "x", "checkpoint": "c", "dim": 4}
    write_embedding(tmp_path, "t", codes, scales, inputs=inputs, about=ABOUT)
    path, look = str(tmp_path / "t.json"), Look()
    with one_look(look):
        (tmp_path / "t_scales.npy").rename(tmp_path / "kept")
        assert glance_at(path).state(path, inputs).kind == "broken", "what is not whole is looked at again"
        (tmp_path / "kept").rename(tmp_path / "t_scales.npy")
        assert glance_at(path).state(path, inputs).complete
    for file in tmp_path.iterdir():
        file.unlink()
    with one_look(look):
        glance_at(path).verify(path)
        assert glance_at(path).state(path, inputs).complete
        assert glance_at(path).state(path, {"tile": "y"}).kind == "stale"
    with one_look(Look()), pytest.raises(FormatError, match=r"t\.json: the manifest of this embedding is missing"):
        glance_at(path)
    with pytest.raises(FormatError, match=r"t\.json: the manifest of this embedding is missing"):
        glance_at(path)
