"""The bundled checkpoint: small, safe to load, trained, not collapsed, and better than an untrained one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from support.pretraining import write_untrained

from infer.contract import DEMO_CHECKPOINT, read_tile
from infer.device import Device
from infer.engine import Engine
from infer.pretrain.check import check_tile
from infer.weights import load_checkpoint
from preproc.simulate.seasons import write_tile

UNSEEN = (9001, 9002, 9003)
"""Seeds of seasons that no training used."""


def engine(path: Path) -> Engine:
    return Engine(load_checkpoint(path), Device(torch.device("cpu"), "float32", 1))


@pytest.fixture(scope="module")
def seasons(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("seasons")
    for seed in UNSEEN:
        write_tile(root / f"season-{seed}", seed, 24)
    return sorted(root.iterdir())


def accuracy(model: Engine, folder: Path) -> float:
    """Part of the pixels told right by a linear classifier that was trained on other stands of the tile."""
    values = model.embed(read_tile(folder, need_manifest=True)).values_hwc.reshape(-1, 128)
    truth, stand = np.load(folder / "truth.npy").ravel(), np.load(folder / "stand.npy").ravel()
    right = total = 0
    for fold in range(4):
        test = stand % 4 == fold
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.02, max_iter=400))
        classifier.fit(values[~test], truth[~test])
        known = test & np.isin(truth, truth[~test])
        right += int((classifier.predict(values[known]) == truth[known]).sum())
        total += int(known.sum())
    return right / total


def test_it_is_small_and_says_what_it_is() -> None:
    assert DEMO_CHECKPOINT.stat().st_size <= 2_000_000
    checkpoint = load_checkpoint(DEMO_CHECKPOINT)
    assert checkpoint.family == "v2-student"
    assert checkpoint.trained
    assert "demonstration" in checkpoint.label
    assert "not TESSERA" in checkpoint.label
    content = torch.load(DEMO_CHECKPOINT, weights_only=True)
    assert content["smalti"]["recipe"]["steps"] > 0
    assert "seed" in content["smalti"]["recipe"]
    assert DEMO_CHECKPOINT.with_suffix(".md").exists()


def test_it_has_not_collapsed_and_is_steady(seasons: list[Path]) -> None:
    model = engine(DEMO_CHECKPOINT)
    for folder in seasons:
        figures = check_tile(model, read_tile(folder, need_manifest=True))
        assert figures["effective_rank"] > 2
        assert figures["spread_min"] > 0.02
        assert figures["cosine_third_missing"] > 0.98
        assert figures["cosine_third_missing_centred"] > 0.9


def test_it_tells_kinds_of_land_apart_better_than_an_untrained_one(seasons: list[Path], tmp_path: Path) -> None:
    trained, untrained = engine(DEMO_CHECKPOINT), engine(write_untrained(tmp_path / "untrained.pt"))
    gains = [accuracy(trained, folder) - accuracy(untrained, folder) for folder in seasons]
    assert np.mean(gains) > 0.03, gains


def test_prefixes_are_as_good_as_they_claim(seasons: list[Path]) -> None:
    """The first 16 numbers keep most of what 128 tell: Matryoshka."""
    values = engine(DEMO_CHECKPOINT).embed(read_tile(seasons[0], need_manifest=True)).values_hwc.reshape(-1, 128)
    truth, stand = np.load(seasons[0] / "truth.npy").ravel(), np.load(seasons[0] / "stand.npy").ravel()
    test = stand % 4 == 0
    known = test & np.isin(truth, truth[~test])
    scores = []
    for size in (16, 128):
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.02, max_iter=400))
        classifier.fit(values[~test][:, :size], truth[~test])
        scores.append(classifier.score(values[known][:, :size], truth[known]))
    assert scores[0] > scores[1] - 0.15
