"""How often the printed 95 % intervals hold the truth: at least 92 %, on drawn sets whose truth is known.

Windows belong to groups of 1 to 6 and share half of their variance with their group; generated ones share part of
theirs with the real window of their name. The arms differ from the real set and from each other. The truth is a closed
form, never an average of what is tested.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from cinesynth.metrics import catalogue
from cinesynth.metrics.metric import Metric, Results, Sample

KVD = catalogue.METRICS["kvd"]
SCORE = replace(catalogue.METRICS["lpips"], first_frame=0)
LEAST = 0.92
SCALES = np.arange(1, 17) ** -0.5
"""Standard deviations of the features: a few directions hold most of the variance, as in I3D's logits."""
SHIFTS = {"base": 0.9, "arm": 0.6}
"""By how many standard deviations each arm's features lie off the real ones."""


class Windows:
    """Drawn windows: their groups, and what the groups share."""

    def __init__(self, rng: np.random.Generator, groups: int) -> None:
        self.rng = rng
        self.place = np.repeat(np.arange(groups), rng.integers(1, 7, groups))
        self.ids = [f"v{i:03}" for i in range(len(self.place))]
        self.group_of = {key: f"g{place}" for key, place in zip(self.ids, self.place, strict=True)}

    def normal(self, width: int) -> np.ndarray:
        """Standard normal rows; those of a group share half of their variance."""
        shared = self.rng.normal(size=(self.place.max() + 1, width))[self.place]
        return math.sqrt(0.5) * shared + math.sqrt(0.5) * self.rng.normal(size=shared.shape)

    def sample(self, name: str, rows: np.ndarray, lost: float = 0.0) -> Sample:
        """A set that lacks a share of the windows, by chance, but never the first of a group."""
        first = np.diff(self.place, prepend=-1) > 0
        kept = first | (self.rng.random(len(rows)) >= lost)
        found = {key: row for key, row, keeps in zip(self.ids, rows, kept, strict=True) if keeps}
        return Sample(name, found, self.group_of)


def near(windows: Windows, rows: np.ndarray) -> np.ndarray:
    """Standard normal rows that share 64 % of their variance with the given ones."""
    return 0.8 * rows + 0.6 * windows.rng.normal(size=rows.shape)


def kvd_study(windows: Windows, lost: float) -> tuple[Metric, Results, dict[str, float]]:
    real = windows.normal(len(SCALES))
    arms = [windows.sample(name, SCALES * (near(windows, real) + shift), lost) for name, shift in SHIFTS.items()]
    truth = {name: _mmd(shift) for name, shift in SHIFTS.items()}
    return KVD, KVD.measure(KVD, windows.sample("real", SCALES * real), arms), truth


def _mmd(shift: float) -> float:
    """MMD^2 of N(0, S) and N(shift, S), by the moments of the products of coordinates."""
    zero, off = np.zeros_like(SCALES), SCALES * shift
    return _kernel_mean(zero, zero) + _kernel_mean(off, off) - 2 * _kernel_mean(zero, off)


def _kernel_mean(a: np.ndarray, b: np.ndarray) -> float:
    """E (x.y / d + 1)^3 for independent x ~ N(a, S), y ~ N(b, S): cumulants of the coordinates' products add up."""
    s = SCALES**2
    raw = [a * b, (a**2 + s) * (b**2 + s), (a**3 + 3 * a * s) * (b**3 + 3 * b * s)]
    k1, k2, k3 = raw[0], raw[1] - raw[0] ** 2, raw[2] - 3 * raw[1] * raw[0] + 2 * raw[0] ** 3
    d = len(SCALES)
    k1, k2, k3 = k1.sum() / d, k2.sum() / d**2, k3.sum() / d**3
    return float(1 + 3 * k1 + 3 * (k2 + k1**2) + k3 + 3 * k2 * k1 + k1**3)


def mean_study(windows: Windows, lost: float) -> tuple[Metric, Results, dict[str, float]]:
    """Skewed scores, as distances are: log-normal, their spread half of their mean."""
    real, sigma = windows.normal(1), math.sqrt(math.log(1.25))
    means = {"base": 0.30, "arm": 0.24}
    arms = [
        windows.sample(name, mean * np.exp(sigma * near(windows, real) - sigma**2 / 2), lost)
        for name, mean in means.items()
    ]
    return SCORE, SCORE.measure(SCORE, Sample("real", {}, windows.group_of), arms), means


def match_study(at: dict[str, float]) -> Callable[[Windows, float], tuple[Metric, Results, dict[str, float]]]:
    """Numbers whose best is the real set's own, 0: arms whose means lie `at` so many standard deviations from it."""

    def study(windows: Windows, lost: float) -> tuple[Metric, Results, dict[str, float]]:
        metric, real = replace(SCORE, direction="match"), windows.normal(1)
        arms = [windows.sample(name, near(windows, real) + off, lost) for name, off in at.items()]
        return metric, metric.measure(metric, windows.sample("real", real), arms), at

    return study


STUDIES = {
    "kvd": kvd_study,
    "mean": mean_study,
    "match, both arms off": match_study({"base": 1.5, "arm": -0.8}),
    "match, one arm as the real set": match_study({"base": 0.7, "arm": 0.0}),
    "match, both arms as the real set": match_study({"base": 0.0, "arm": 0.0}),
}


def coverage(name: str, groups: int, lost: float, repetitions: int) -> dict[str, float]:
    """Share of the intervals that hold the truth, of each arm's value and of the difference."""
    rng = np.random.default_rng([groups, repetitions])
    held: Counter[str] = Counter()
    for _ in range(repetitions):
        metric, found, truth = STUDIES[name](Windows(rng, groups), lost)
        for value in found.values:
            held[value.arm] += value.interval.low <= truth[value.arm] <= value.interval.high
        far = {arm: abs(at) if metric.direction == "match" else at for arm, at in truth.items()}
        interval = found.comparisons[0].interval
        held["difference"] += interval.low <= far["arm"] - far["base"] <= interval.high
    return {what: held[what] / repetitions for what in ("base", "arm", "difference")}


@pytest.mark.parametrize(("groups", "lost"), [(8, 0.15), (12, 0.0)])
@pytest.mark.parametrize("name", ["kvd", "mean", "match, one arm as the real set"])
def test_intervals_hold_the_truth(name: str, groups: int, lost: float) -> None:
    assert min(coverage(name, groups, lost, 200).values()) >= LEAST


@pytest.mark.slow
@pytest.mark.beside
@pytest.mark.parametrize("lost", [0.0, 0.15], ids=["whole arms", "arms that lack windows"])
@pytest.mark.parametrize("groups", [8, 12, 40])
@pytest.mark.parametrize("name", STUDIES)
def test_intervals_hold_the_truth_in_a_thousand_studies(name: str, groups: int, lost: float) -> None:
    found = coverage(name, groups, lost, 1000)
    print(f"{name}, {groups} groups, {lost:.0%} lost: " + ", ".join(f"{k} {v:.1%}" for k, v in found.items()))
    assert min(found.values()) >= LEAST
