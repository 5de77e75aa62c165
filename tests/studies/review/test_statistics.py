"""Agreement, strengths and intervals against published worked examples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from scipy import stats

from cinesynth.metrics.statistics import jackknife
from cinesynth.studies.review.agreement import Level, krippendorff_alpha
from cinesynth.studies.review.intervals import estimate, share, wilson
from cinesynth.studies.review.strengths import NoStrengths, bradley_terry

KRIPPENDORFF_2011 = ["123321412...", "1233224125.3", ".3332342251.", "12332441251."]
"""4 observers, 12 units, dots are missing: K. Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), C."""


def units_of(rows: list[str]) -> list[list[float]]:
    return [[float(row[n]) for row in rows if row[n] != "."] for n in range(len(rows[0]))]


@pytest.mark.parametrize(("level", "published"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_is_that_of_krippendorffs_example_with_missing_values(level: Level, published: float) -> None:
    assert krippendorff_alpha(units_of(KRIPPENDORFF_2011), level) == pytest.approx(published, abs=5e-4)


def test_alpha_is_that_of_krippendorffs_examples_of_two_observers() -> None:
    """Sections A (binary: 0.095) and B (nominal: 0.692) of the same paper."""
    binary = ["0100000010", "1110010000"]
    assert krippendorff_alpha(units_of(binary), "nominal") == pytest.approx(0.095, abs=5e-4)
    nominal = ["aabbdcccedda", "babbbccceddd"]
    as_digits = [row.translate(str.maketrans("abcde", "12345")) for row in nominal]
    assert krippendorff_alpha(units_of(as_digits), "nominal") == pytest.approx(0.692, abs=5e-4)


def test_alpha_is_one_for_full_agreement_and_none_where_nothing_differs() -> None:
    assert krippendorff_alpha([[1, 1], [2, 2, 2], [3, 3]], "ordinal") == 1
    assert krippendorff_alpha([[1, 1], [1, 1, 1]], "nominal") is None
    assert krippendorff_alpha([[1], [2]], "nominal") is None


TEAMS = ("Milwaukee", "Detroit", "Toronto", "New York", "Boston", "Cleveland", "Baltimore")
BASEBALL = np.array(
    [
        [0, 7, 9, 7, 7, 9, 11],
        [6, 0, 7, 5, 11, 9, 9],
        [4, 6, 0, 7, 7, 8, 12],
        [6, 8, 6, 0, 6, 7, 10],
        [6, 2, 6, 7, 0, 7, 12],
        [4, 4, 5, 6, 6, 0, 6],
        [2, 4, 1, 3, 1, 7, 0],
    ],
    np.float64,
)
"""American League East 1987, the row's wins over the column: A. Agresti, Categorical Data Analysis, 2nd ed., p. 438."""
PUBLISHED = (1.5814, 1.4364, 1.2945, 1.2476, 1.1077, 0.6839, 0.0)
"""Against Baltimore: the vignette of the R package BradleyTerry2, `baseballModel1`."""


def test_strengths_are_those_published_for_agrestis_baseball_table() -> None:
    assert (BASEBALL + BASEBALL.T)[~np.eye(7, dtype=bool)].tolist() == [13.0] * 42
    strengths = bradley_terry(BASEBALL)
    assert strengths[0] == 0
    assert strengths - strengths[-1] == pytest.approx(PUBLISHED, abs=5e-5)


def test_strengths_of_two_arms_are_the_logit_of_the_rate_and_ties_count_half() -> None:
    wins = np.array([[0.0, 6.5], [13.5, 0.0]])  # 20 comparisons, some of them ties
    assert bradley_terry(wins)[1] == pytest.approx(np.log(13.5 / 6.5), abs=1e-7)


@pytest.mark.parametrize("wins", [[[0, 0], [5, 0]], [[0, 3, 0], [3, 0, 0], [0, 0, 0]]])
def test_arms_that_always_lose_or_were_never_compared_have_no_strengths(wins: list[list[int]]) -> None:
    with pytest.raises(NoStrengths, match="never preferred"):
        bradley_terry(np.array(wins, np.float64))


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_is_that_of_newcombes_table(successes: int, n: int, low: float, high: float) -> None:
    """R. Newcombe, Statistics in Medicine 17 (1998) 857-872, Table I, method 3; and scipy's."""
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)
    theirs = stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert wilson(successes, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@dataclass(frozen=True)
class Said:
    rater: str
    group: str
    score: float


def said(raters: int, groups: int, of: str = "both") -> list[Said]:
    """Scores that differ between the raters, or between the groups."""
    draw = np.random.default_rng(0)
    kinds = {"raters": draw.random(raters), "groups": draw.random(groups)}
    return [
        Said(f"r{r}", f"g{g}", float(kinds[of][{"raters": r, "groups": g}[of]] if of in kinds else draw.random()))
        for r in range(raters)
        for g in range(groups)
    ]


@pytest.mark.parametrize("of", ["raters", "groups"])
def test_the_interval_is_that_of_the_unit_that_varies_most(of: str) -> None:
    rows = said(9, 10, of)
    found = share(lambda row: row.score, rows)
    unit = {"raters": lambda row: row.rater, "groups": lambda row: row.group}[of]
    means = [np.mean([row.score for row in rows if unit(row) == name]) for name in sorted({unit(row) for row in rows})]
    expected = stats.t.interval(0.95, len(means) - 1, np.mean(means), stats.sem(means))
    assert (found.low, found.high) == pytest.approx(expected)
    assert found.method == f"jackknife over {9 if of == 'raters' else 10} {of}"


def by_student(means: list[float]) -> tuple[float, float]:
    low, high = stats.t.interval(0.95, len(means) - 1, np.mean(means), stats.sem(means))
    return max(0.0, low), min(1.0, high)


def test_of_a_skewed_share_the_wider_of_the_intervals_that_can_be_printed_is_given() -> None:
    """The unit with the wider correction for skewness need not be the one with the wider Student's interval."""
    draw = np.random.default_rng(3)
    for _ in range(60):
        leaning = np.maximum.outer(draw.beta(0.15, 1.2, 9), draw.beta(0.15, 1.2, 12))
        scores = (draw.random((9, 12)) < leaning).astype(float)
        rows = [Said(f"r{r}", f"g{g}", float(scores[r, g])) for r in range(9) for g in range(12)]
        printed = [by_student(scores.mean(axis=axis).tolist()) for axis in (0, 1)]
        found = share(lambda row: row.score, rows)
        assert (found.low, found.high) == pytest.approx(max(printed, key=lambda pair: pair[1] - pair[0]))


def test_raters_who_all_have_the_same_share_are_counted_whatever_rounding_makes_of_it() -> None:
    rows = [Said(f"r{r}", f"g{g}", float(g == 0)) for r in range(10) for g in range(3)]
    found = share(lambda row: row.score, rows)
    assert (found.low, found.high) == pytest.approx(wilson(10 / 3, 10))
    assert found.method == "Wilson, over 10 raters"


def test_of_other_figures_the_interval_of_the_larger_width_is_given_with_its_unequal_sides() -> None:
    draw = np.random.default_rng(2)
    scores = np.add.outer(draw.exponential(1.0, 9), draw.exponential(1.0, 12))
    rows = [Said(f"r{r}", f"g{g}", float(scores[r, g])) for r in range(9) for g in range(12)]
    value = float(scores.mean())
    both = [
        jackknife(value, [((means.sum() - means) / (len(means) - 1)).tolist()])
        for means in (scores.mean(axis=0), scores.mean(axis=1))
    ]
    wider = max(both, key=lambda interval: interval.high - interval.low)
    found = estimate(lambda some: sum(row.score for row in some) / len(some), rows)
    assert (found.low, found.high) == pytest.approx((wider.low, wider.high))
    assert wider.high - value > 1.05 * (value - wider.low), "skewed"


def test_where_all_say_the_same_the_raters_are_counted_not_the_answers() -> None:
    rows = [Said(f"r{r}", f"g{g}", 1.0) for r in range(8) for g in range(20)]
    found = share(lambda row: row.score, rows)
    assert (found.low, found.high) == pytest.approx(wilson(8, 8))
    assert (found.method, found.excludes(0.5)) == ("Wilson, over 8 raters", True)


def test_an_interval_of_few_raters_and_groups_says_that_it_is_too_narrow_and_decides_nothing() -> None:
    rows = [Said(f"r{r}", f"g{g}", 1.0) for r in range(3) for g in range(7)]
    found = share(lambda row: row.score, rows)
    assert (found.low, found.high) == pytest.approx(wilson(21, 21))
    assert found.low is not None
    assert found.low > 0.5
    assert found.too_narrow
    assert "too narrow" in found.method
    assert not found.excludes(0.5)
    assert estimate(lambda some: sum(row.score for row in some) / len(some), rows).low is None


def test_intervals_of_independent_answers_hold_the_truth_as_often_as_they_say() -> None:
    draw = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        rows = [Said(f"r{r}", f"g{g}", float(draw.random() < 0.6)) for r in range(8) for g in range(8)]
        found = share(lambda row: row.score, rows)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0.6 <= found.high
    assert held / 200 > 0.95 - 3 * (0.95 * 0.05 / 200) ** 0.5


def test_a_statistic_that_some_rows_do_not_give_has_no_interval() -> None:
    def statistic(rows: list[Said]) -> float:
        if len({row.rater for row in rows}) < 8:
            raise NoStrengths("it is not there")
        return 1.0

    found = estimate(statistic, said(8, 8))
    assert (found.value, found.low, found.method) == (1.0, None, "none: with some left out, it is not there")
