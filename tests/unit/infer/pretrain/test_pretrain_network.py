"""The trained network is the engine's network: same parameters, same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.recorded import GOLDEN

from infer.contract import read_tile
from infer.device import Device
from infer.engine import Engine
from infer.model import Network
from infer.model.network import student_architecture
from infer.normalisation import NORMALISATIONS
from infer.pretrain.options import Recipe, Shape
from infer.pretrain.state import saved_bytes
from infer.pretrain.views import View
from infer.sequence import sequence
from infer.weights import load_checkpoint
from preproc.simulate.seasons import write_tile


def engine_for(path: Path) -> Engine:
    return Engine(load_checkpoint(path), Device(torch.device("cpu"), "float32", 1))


def whole_view(tile: object, row: int, column: int) -> View | None:
    """One pixel's sequences, by the rules of the published family: an independent way to the network's input."""
    norm = NORMALISATIONS["v2-student"]

    def z(values: np.ndarray, statistics: object) -> np.ndarray:
        return (values - np.array(statistics.mean)) / (np.array(statistics.std) + 1e-9)  # type: ignore[attr-defined]

    s2 = z(tile.bands_thwb[:, row, column].astype(float), norm.s2)  # type: ignore[attr-defined]
    keep = tile.masks_thw[:, row, column] == 1  # type: ignore[attr-defined]
    s2, s2_days = s2[keep], tile.doys_t[keep].astype(int)  # type: ignore[attr-defined]
    parts, days = [], []
    for stack, doys, statistics in (
        (tile.sar_asc_thwp, tile.sar_asc_doys_t, norm.asc),  # type: ignore[attr-defined]
        (tile.sar_desc_thwp, tile.sar_desc_doys_t, norm.desc),  # type: ignore[attr-defined]
    ):
        raw = stack[:, row, column].astype(float)
        some = (raw != 0).any(axis=1)
        parts.append(z(raw, statistics)[some])
        days.append(doys[some].astype(int))
    s1, s1_days = np.concatenate(parts), np.concatenate(days)
    if len(s2) + len(s1) == 0:
        return None
    tensors = []
    for values, when in ((s2, s2_days), (s1, s1_days)):
        if len(values) == 0:
            tensors += [torch.zeros(1, 1, values.shape[1]), torch.zeros(1, 1, dtype=torch.long)]
            continue
        index = sequence("v2", len(values))
        tensors += [torch.tensor(values[index], dtype=torch.float32)[None], torch.tensor(when[index])[None]]
    return View(*tensors)


@pytest.mark.parametrize("case", ["v2-student", "v2-student-long"])
def test_the_training_network_gives_the_reference_output(case: str) -> None:
    folder = GOLDEN / case
    content = torch.load(folder / "checkpoint.pt", weights_only=True)
    student = Network(student_architecture(content["args"]))
    student.load_state_dict(content["model"])
    tile = read_tile(folder / "tile", need_manifest=False)
    expected = np.load(folder / "expected.npy")
    compared = 0
    for row in range(2):
        for column in range(tile.shape_hw[1]):
            view = whole_view(tile, row, column)
            if view is None:
                assert np.isnan(expected[row, column]).all()
                continue
            with torch.no_grad():
                found = student(*view.batches())[0].numpy()
            np.testing.assert_allclose(found, expected[row, column], atol=3e-5)
            compared += 1
    assert compared > 8


def test_the_engine_runs_what_is_exported_as_it_was_trained(tmp_path: Path) -> None:
    torch.manual_seed(3)
    shape = Shape(latent_dim=4, num_layers=2, nhead=2, dim_feedforward=24, repr_dim=32)
    arguments = Recipe(shape=shape, prefixes=(16, 32)).published_args()
    student = Network(student_architecture(arguments))
    content = {"args": arguments, "model": student.state_dict()}
    (tmp_path / "student.pt").write_bytes(saved_bytes(content))
    write_tile(tmp_path / "tile", 5, 8)
    tile = read_tile(tmp_path / "tile", need_manifest=True)
    embedded = engine_for(tmp_path / "student.pt").embed(tile).values_hwc
    for row, column in ((0, 0), (3, 5), (7, 7)):
        view = whole_view(tile, row, column)
        assert view is not None
        with torch.no_grad():
            np.testing.assert_allclose(embedded[row, column], student(*view.batches())[0].numpy(), atol=3e-5)


def test_parameter_names_are_those_of_published_students() -> None:
    content = torch.load(GOLDEN / "v2-student" / "checkpoint.pt", weights_only=True)
    mine = Network(student_architecture(content["args"])).state_dict()
    assert {name: value.shape for name, value in mine.items()} == {n: v.shape for n, v in content["model"].items()}


@pytest.mark.parametrize("settings", [{}, {"enable_qk_norm": True}], ids=["joined", "normalised"])
def test_folding_changes_the_form_and_not_the_values(settings: dict[str, bool]) -> None:
    torch.manual_seed(4)
    network = Network(student_architecture({**Recipe().published_args(), **settings}))
    days = [torch.randint(1, 367, (3, length)) for length in (9, 5)]
    view = View(torch.randn(3, 9, 10), days[0], torch.randn(3, 5, 2), days[1])
    trained = network(*view.batches())
    trained.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    folded = network.fold()(*view.batches())
    assert not folded.requires_grad
    torch.testing.assert_close(folded, trained.detach(), atol=1e-5, rtol=0)
