"""The formulas, against published worked examples and independent computations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import confusion_matrix, f1_score, precision_score, recall_score

from preproc.classify.accuracy import (
    class_scores,
    count_matrix,
    macro_f1,
    olofsson,
    overall,
    stehman,
    weighted_f1,
)

# Olofsson et al. 2014, table 8: deforestation, forest gain, stable forest, stable non-forest.
COUNTS_2014 = np.array([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]])
PIXELS_2014 = np.array([200_000, 150_000, 3_200_000, 6_450_000])
LANDSAT_HA = 0.09


def test_olofsson_2014_error_matrix_is_that_of_table_9() -> None:
    shares = olofsson(COUNTS_2014, PIXELS_2014).shares_kk
    printed = [
        [0.0176, 0, 0.0013, 0.0011],
        [0, 0.0110, 0.0016, 0.0024],
        [0.0019, 0, 0.2967, 0.0213],
        [0.0040, 0.0020, 0.0179, 0.6212],
    ]
    assert np.abs(shares - printed).max() <= 0.00006


def test_olofsson_2014_accuracies_are_those_of_page_54() -> None:
    made = olofsson(COUNTS_2014, PIXELS_2014)
    assert made.overall.value == pytest.approx(0.95, abs=0.005)
    assert 1.96 * made.overall.error == pytest.approx(0.02, abs=0.005)
    assert [round(e.value, 2) for e in made.users] == [0.88, 0.73, 0.93, 0.96]
    assert [round(1.96 * e.error, 2) for e in made.users] == [0.07, 0.10, 0.04, 0.02]
    assert [round(e.value, 2) for e in made.producers] == [0.75, 0.85, 0.93, 0.96]
    # What equation 7 gives for these counts; in print the margins of the second and fourth differ in the last digit.
    assert [round(1.96 * e.error, 2) for e in made.producers] == [0.21, 0.25, 0.03, 0.02]


def test_olofsson_2014_areas_are_those_of_page_54() -> None:
    made = olofsson(COUNTS_2014, PIXELS_2014)
    hectares = PIXELS_2014.sum() * LANDSAT_HA
    areas = [e.value * hectares for e in made.areas]
    margins = [1.96 * e.error * hectares for e in made.areas]
    assert areas == pytest.approx([21_158, 11_686, 285_770, 581_386], rel=1e-4)
    assert margins == pytest.approx([6_158, 3_756, 15_510, 16_282], rel=2e-3)


def test_olofsson_2013_example() -> None:
    # Olofsson et al. 2013, RSE 129: 45,651 pixels of deforestation with a standard error of 10,751.
    counts = np.array([[97, 0, 3], [3, 279, 18], [2, 1, 97]])
    pixels = np.array([22_353, 1_122_543, 610_228])
    made = olofsson(counts, pixels)
    assert np.abs(made.shares_kk - [[0.012, 0, 0.0004], [0.006, 0.595, 0.038], [0.007, 0.003, 0.337]]).max() < 0.0011
    assert made.areas[0].value * pixels.sum() == pytest.approx(
        45_651, rel=0.015
    )  # in print from shares rounded to 0.026
    assert made.areas[0].error * pixels.sum() == pytest.approx(10_751, rel=0.015)
    assert made.users[0].value == pytest.approx(0.97)
    assert made.producers[0].value == pytest.approx(0.48, abs=0.005)
    assert made.overall.value == pytest.approx(0.944, abs=0.0006)


# Stehman 2014, table 2: strata, map classes and reference classes of forty units.
STRATUM = list("A" * 10 + "B" * 10 + "C" * 10 + "D" * 10)
MAPPED = list("AAAAAAABBB" + "ABBBBBBBBB" + "BBCCCCCCBB" + "DDDDDDDDDD")
REFERENCE = list("AAAAACBABC" + "ABBBBBAABB" + "CCCCCDDBBA" + "DDDDDDDCCB")
SIZES = {"A": 40_000.0, "B": 30_000.0, "C": 20_000.0, "D": 10_000.0}


def codes(letters: list[str]) -> np.ndarray:
    return np.array(["ABCD".index(letter) + 1 for letter in letters])


def test_stehman_2014_example() -> None:
    made = stehman(np.array(STRATUM), codes(MAPPED), codes(REFERENCE), np.arange(1, 5), SIZES)
    # The paper prints A 0.35 (0.082), C 0.20 (0.064), overall 0.63 (0.085), user's B 0.574 (0.125), producer's B
    # 0.794 (0.117), cell (2, 3) 0.08; the other per-class figures are those of the R package mapac for the same data.
    assert [e.value for e in made.areas] == pytest.approx([0.35, 0.34, 0.20, 0.11])
    assert made.areas[0].error == pytest.approx(0.082, abs=0.0005)
    assert made.areas[2].error == pytest.approx(0.064, abs=0.0005)
    assert made.overall.value == pytest.approx(0.63)
    assert made.overall.error == pytest.approx(0.085, abs=0.0005)
    assert made.shares_kk[1, 2] == pytest.approx(0.08)
    assert [e.value for e in made.users] == pytest.approx([0.7419355, 0.5744681, 0.5, 0.7])
    assert [e.error for e in made.users] == pytest.approx([0.1645627, 0.1248023, 0.2151657, 0.1527525], rel=1e-5)
    assert [e.value for e in made.producers] == pytest.approx([0.6571429, 0.7941176, 0.3, 0.6363636])
    assert [e.error for e in made.producers] == pytest.approx([0.1477318, 0.1165671, 0.1504438, 0.1623242], rel=1e-5)


def expand(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.nonzero(counts)
    times = counts[rows, columns]
    return np.repeat(rows, times), np.repeat(columns, times)


@given(arrays(np.int64, (3, 3), elements=st.integers(1, 30)), arrays(np.float64, 3, elements=st.floats(1, 1000)))
def test_two_estimators_agree_where_strata_are_the_map_classes(counts: np.ndarray, sizes: np.ndarray) -> None:
    mapped, reference = expand(counts)
    one = olofsson(counts, sizes)
    other = stehman(mapped, mapped, reference, np.arange(3), dict(enumerate(sizes)))
    assert np.allclose(one.shares_kk, other.shares_kk)
    for mine, theirs in (
        ([one.overall], [other.overall]), (one.users, other.users), (one.producers, other.producers),
        (one.areas, other.areas),
    ):  # fmt: skip
        assert [e.value for e in mine] == pytest.approx([e.value for e in theirs])
        assert [e.error for e in mine] == pytest.approx([e.error for e in theirs], abs=1e-9)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    truth = np.array([[0.18, 0.02, 0.0], [0.05, 0.45, 0.05], [0.01, 0.04, 0.20]])
    held = np.zeros(3)
    rounds = 400
    for _ in range(rounds):
        counts = np.array([rng.multinomial(150, row / row.sum()) for row in truth])
        made = olofsson(counts, truth.sum(axis=1))
        for index, (estimate, true) in enumerate(
            [(made.overall, np.trace(truth)), (made.areas[0], truth[:, 0].sum()), (made.producers[1], 0.45 / 0.51)]
        ):
            low, high = estimate.interval
            held[index] += low <= true <= high
    assert (held / rounds > 0.90).all()
    assert (held / rounds < 0.985).all()


def test_a_class_that_is_in_the_field_but_not_on_the_map_counts_as_omitted() -> None:
    made = olofsson(np.array([[40, 5, 5], [5, 40, 5], [0, 0, 0]]), np.array([100.0, 100.0, 0.0]))
    assert made.areas[2].value == pytest.approx(0.1)
    assert made.producers[2].value == 0
    assert np.isnan(made.users[2].value)
    assert made.overall.value == pytest.approx(0.8)


def test_a_mapped_class_without_sample_units_is_refused() -> None:
    with pytest.raises(ValueError, match="every mapped class"):
        olofsson(np.array([[5, 1], [0, 0]]), np.array([1.0, 1.0]))


def test_a_single_unit_in_a_class_leaves_its_error_unknown() -> None:
    made = olofsson(np.array([[9, 1], [0, 1]]), np.array([1.0, 1.0]))
    assert np.isnan(made.overall.error)
    assert not np.isnan(made.users[0].error)


labels = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60)


@given(labels)
def test_scores_are_those_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    mapped, reference = np.array(pairs).T
    codes_k = np.arange(5)
    matrix = count_matrix(mapped, reference, codes_k)
    assert (matrix == confusion_matrix(reference, mapped, labels=codes_k).T).all()
    scores = class_scores(matrix)
    options = {"labels": codes_k, "average": None, "zero_division": np.nan}
    assert np.allclose(scores.users_k, precision_score(reference, mapped, **options), equal_nan=True)
    assert np.allclose(scores.producers_k, recall_score(reference, mapped, **options), equal_nan=True)
    there = np.unique(reference)
    expected = f1_score(reference, mapped, labels=there, average="macro", zero_division=0.0)
    assert macro_f1(matrix) == pytest.approx(expected)
    assert weighted_f1(matrix) == pytest.approx(
        f1_score(reference, mapped, labels=there, average="weighted", zero_division=0.0)
    )
    assert overall(matrix) == pytest.approx(float((mapped == reference).mean()))
