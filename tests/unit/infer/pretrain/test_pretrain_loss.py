"""Losses against plain arithmetic, the schedule, the average, and the figures that show a collapse."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from infer.contract import FormatError, SmaltiError
from infer.pretrain.check import correlation_with_count, health, steadiness
from infer.pretrain.ema import Average
from infer.pretrain.frame import months_frame, moved_seasons, random_turn
from infer.pretrain.loop import FRAME_PIXELS, FRAME_STEP, FRAME_TILES, learning_rate, parameter_groups
from infer.pretrain.objective import barlow_twins, cosine_distance, missed
from infer.pretrain.options import Recipe, Shape
from infer.pretrain.state import curve_svg
from infer.pretrain.turn_back import axes, back, turned_back


def plain_barlow(one: np.ndarray, two: np.ndarray, weight: float) -> float:
    """The loss as the paper writes it."""
    a = (one - one.mean(0)) / np.sqrt(one.var(0) + 1e-4)
    b = (two - two.mean(0)) / np.sqrt(two.var(0) + 1e-4)
    total = 0.0
    for i in range(one.shape[1]):
        for j in range(one.shape[1]):
            c = float((a[:, i] * b[:, j]).mean())
            total += (c - 1) ** 2 if i == j else weight * c**2
    return total / one.shape[1]


def test_barlow_twins_is_what_the_paper_says() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(size=(40, 6)) * 3 + 1
    two = one + rng.normal(size=(40, 6))
    found = barlow_twins(torch.tensor(one), torch.tensor(two), 0.02)
    assert float(found) == pytest.approx(plain_barlow(one, two, 0.02), rel=1e-4)


def test_what_sets_tiles_apart_earns_nothing() -> None:
    g = torch.Generator().manual_seed(0)
    one, two = torch.randn(40, 5, generator=g), torch.randn(40, 5, generator=g)
    apart = torch.cat([torch.zeros(20, 5), torch.full((20, 5), 50.0)])
    alone = barlow_twins(one, two, 0.01, groups=2)
    assert float(barlow_twins(one + apart, two + apart, 0.01, groups=2)) == pytest.approx(float(alone), rel=1e-3)
    # Standardised together, the offset between tiles would look like agreement.
    assert float(barlow_twins(one + apart, two + apart, 0.0, groups=1)) < 0.1 * float(alone)


def test_months_are_missed_by_what_differs_within_tiles_and_by_tiles_that_lie_apart() -> None:
    g = torch.Generator().manual_seed(0)
    wanted = torch.randn(40, 5, generator=g)
    apart = torch.cat([torch.zeros(20, 5), torch.full((20, 5), 3.0)])
    within, whole = missed(wanted - wanted.view(2, 20, 5).mean(dim=1).repeat_interleave(20, dim=0), wanted, 2)
    assert float(within) == pytest.approx(0, abs=1e-6)
    assert float(whole) == pytest.approx(0, abs=1e-6)
    within, whole = missed(apart, wanted, 2)
    assert float(whole) == pytest.approx(1.5**2)
    assert float(within) == pytest.approx(float(wanted.view(2, 20, 5).var(dim=1, correction=0).mean()), rel=1e-5)


def test_the_frame_weighs_down_what_differs_among_neighbours() -> None:
    """Kinds differ in band 3, pixels of a kind in band 6."""
    rng = np.random.default_rng(0)
    kind = rng.normal(size=(20, 60, 1))
    one, two = (np.full((20, 60, 144), 0.3) + rng.normal(0, 0.03, (20, 60, 144)) for _ in range(2))
    for months in (one, two):
        months[..., 3::12] += 0.1 * kind
        months[..., 6::12] += 0.1 * rng.normal(size=(20, 60, 1))
    shares = []
    for power in (0.0, 0.5):
        frame = months_frame(one, two, 32, power, np.random.default_rng(1))
        assert frame.shape == (144, 32)
        told = (one @ frame).reshape(-1, 32)
        assert np.sqrt((told - told.mean(axis=0)).var(axis=0).mean()) == pytest.approx(0.4, rel=0.1)
        told = told - told.mean(axis=0)
        along = kind.ravel() @ told / (kind**2).sum()
        shares.append((along**2).sum() / (told**2).mean(axis=0).sum())
    assert shares[1] > 1.3 * shares[0]


def test_turning_back_keeps_distances_and_follows_months_and_bands() -> None:
    turn = back(1)
    np.testing.assert_allclose(turn @ turn.T, np.eye(128), atol=1e-9)
    np.testing.assert_allclose(turn.sum(axis=1), 1, atol=1e-9)
    assert len(set(axes())) == 128
    rng = np.random.default_rng([1, FRAME_STEP])
    moved_seasons(np.zeros((FRAME_TILES * FRAME_PIXELS, 144)), rng)
    aligned = random_turn(128, rng) @ turn.T  # months to turned numbers
    along = np.abs(aligned[axes(), np.arange(128)])
    assert np.median(along) > 0.8


def test_only_students_of_months_are_turned_back(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="not a student of recipe 3"):
        turned_back({"model": {}, "smalti": {"recipe": {"version": 1}}}, tmp_path / "student.pt")


def test_distillation_is_zero_for_equal_directions() -> None:
    z = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    assert float(cosine_distance(z, 3 * z)) == pytest.approx(0, abs=1e-6)
    assert float(cosine_distance(z, -z)) == pytest.approx(2, abs=1e-6)


def test_the_learning_rate_warms_up_and_follows_half_a_cosine() -> None:
    recipe = Recipe(steps=1100, warmup=100, learning_rate=1e-3)
    rates = [learning_rate(recipe, step) for step in range(recipe.steps)]
    assert rates[0] == pytest.approx(1e-5)
    assert rates[99] == pytest.approx(1e-3)
    assert rates[600] == pytest.approx(1e-3 * 0.51, rel=1e-3)
    assert rates[-1] == pytest.approx(2e-5, rel=1e-2)
    assert all(a >= b for a, b in pairwise(rates[100:]))


def test_biases_and_norms_do_not_decay() -> None:
    groups = parameter_groups(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)), 0.1)
    assert [len(group["params"]) for group in groups] == [1, 3]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]


def test_the_average_follows_parameters_and_copies_buffers() -> None:
    module = nn.BatchNorm1d(3)
    average = Average(module, 0.9)
    with torch.no_grad():
        module.weight.fill_(2.0)
        module.running_mean.fill_(7.0)
        module.num_batches_tracked.fill_(5)
    average.update(module, 10**6)
    assert average.module.weight.tolist() == pytest.approx([1.1] * 3)
    assert average.module.running_mean.tolist() == [7.0] * 3
    assert int(average.module.num_batches_tracked) == 5
    assert not any(p.requires_grad for p in average.module.parameters())


def test_the_rank_counts_directions() -> None:
    g = torch.Generator().manual_seed(0)
    spread = health(torch.randn(4000, 8, generator=g))
    assert spread.effective_rank == pytest.approx(8, abs=0.05)
    assert not spread.collapsed
    line = health(torch.randn(400, 1, generator=g) @ torch.randn(1, 8, generator=g))
    assert line.effective_rank == pytest.approx(1, abs=1e-6)
    assert line.collapsed
    still = torch.randn(400, 8, generator=g)
    still[:, 3] = 0.5
    assert health(still).collapsed
    assert health(torch.ones(10, 4)).collapsed


def test_a_common_mean_does_not_pass_for_steadiness() -> None:
    g = torch.Generator().manual_seed(0)
    one, two = torch.randn(500, 6, generator=g) + 20, torch.randn(500, 6, generator=g) + 20
    plain, centred = steadiness(one, two)
    assert plain > 0.99
    assert abs(centred) < 0.1


def test_a_dimension_that_follows_cloudiness_is_found() -> None:
    rng = np.random.default_rng(0)
    count = rng.integers(5, 40, 300)
    values = rng.normal(size=(300, 4)).astype(np.float32)
    assert correlation_with_count(values, count)[0] < 0.25
    values[:, 2] = -0.1 * count
    assert correlation_with_count(values, count)[0] == pytest.approx(1, abs=1e-5)
    assert correlation_with_count(values, np.full(300, 7)) == (0.0, 0.0)


def test_the_plot_is_svg_with_a_panel_for_every_figure() -> None:
    records = [{"step": step, "loss": 1 / step, "effective_rank": step / 2} for step in (10, 20, 30)]
    root = ElementTree.fromstring(curve_svg([*records, {"step": 40, "loss": math.nan}]))
    lines = root.findall("{http://www.w3.org/2000/svg}polyline")
    assert [len(line.attrib["points"].split()) for line in lines] == [3, 3]
    assert curve_svg([]).startswith("<svg")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": 0}, "--steps 0"),
        ({"batch": 30, "groups": 4}, "multiple of --groups"),
        ({"longest": 2}, "--longest 2"),
        ({"ema": 1.0}, "--ema 1.0"),
        ({"monthly_power": 0.7}, "--monthly-power 0.7"),
        ({"twins_weight": 0.0, "monthly_weight": 0.0}, "one of them must be above 0"),
        ({"offset_weight": -1.0}, "--offset-weight -1.0"),
        ({"prefixes": (16, 64)}, "prefixes"),
        ({"shape": Shape(nhead=3)}, "--nhead 3"),
    ],
)
def test_impossible_recipes_are_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(SmaltiError, match=words):
        Recipe(**change)  # type: ignore[arg-type]
