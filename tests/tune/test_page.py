"""What is recommended of recorded trials, and the page that says it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cinesynth.config import TuneConfig
from cinesynth.errors import ConfigError
from cinesynth.metrics.record import Comparison, IntervalRecord, MetricsRecord
from cinesynth.runs import Run
from tests.report.loading import fetched
from tests.report.test_verdict import definition
from tests.tune.test_space import config
from tune.outcome import Outcome, outcome
from tune.page import orders, verdict, write_study_page
from tune.records import COMPLETE, CUT, FAILED, Record, Records
from tune.space import Point, Trial, first_trials
from tune.study import delivered_trial

BASE = {"kvd": 10.0, "lpips": 1.0, "fvd": 200.0}


def recorded(storage: Path, best: tuple[float, float] = (2.0, 0.2)) -> tuple[TuneConfig, Records]:
    """Three trainings of the baseline, two points, and one that failed."""
    given = config(storage)
    records = Records(Run.open(given).folder)
    seeds, _ = first_trials(given)
    baseline = seeds[0].point
    points = [Point(**{**vars(baseline), "rank": rank, "lr": lr}) for rank, lr in ((16, 1e-4), (32, 2e-4), (64, 3e-4))]
    trials = [*seeds, *(Trial(point, 0) for point in points)]
    found = [(5.0, 0.5), (5.2, 0.52), (4.8, 0.48), (6.0, 0.6), best]
    for place, (trial, values) in enumerate(zip(trials, found, strict=False)):
        figures = {"kvd": values[0], "lpips": values[1], "fvd": 100 + values[0]}
        facts = {"windows": 12, "adapter_mb": 1.5, "train_seconds": 10.0, "score_seconds": 3.0}
        records.write(Record(trial.name("study"), trial, COMPLETE, figures, facts, ended=float(place)))
    broken = trials[-1]
    records.write(Record(broken.name("study"), broken, FAILED, {}, {"reason": "step 3: loss nan <b>"}, ended=9.0))
    return given, records


def final(metric: str, low: float, high: float) -> MetricsRecord:
    interval = IntervalRecord(low=low, high=high, level=0.95, standard_error=1, degrees_of_freedom=5)
    compared = Comparison.of(
        metric, "recommended", "baseline", (low + high) / 2, interval=interval, reason=None, n=12, groups=12
    )
    return MetricsRecord.model_validate(
        {
            "schema": 3,
            "code_version": "0",
            "arms": ["baseline", "recommended"],
            "definitions": {metric: definition(metric)},
            "values": [],
            "comparisons": [compared],
            "warnings": [],
            "environment": {},
        }
    )


def outcome_of(storage: Path, best: tuple[float, float] = (2.0, 0.2)) -> tuple[TuneConfig, Records, Outcome]:
    given, records = recorded(storage, best)
    return given, records, outcome(given, records, BASE)


def test_the_best_point_is_recommended_and_the_seeds_are_the_noise(tmp_path: Path) -> None:
    _, records, found = outcome_of(tmp_path)
    assert found.point.rank == 32
    assert found.front == [found.recommended]
    assert found.noise == pytest.approx((0.2, 0.02))
    assert found.hypervolume == pytest.approx(8 * 0.8)
    assert len(found.values) == 5
    assert orders(records.read()) == "FVD and KVD agree on the order of 10 of 10 pairs of trials."


def test_within_the_noise_the_baseline_stays(tmp_path: Path) -> None:
    given, _, found = outcome_of(tmp_path, (4.9, 0.49))
    assert found.recommended == found.baseline
    assert "No trial beats the baseline beyond its noise" in verdict(given, found, None)


def test_a_baseline_that_a_trial_beats_in_one_objective_only_is_said_to_be(tmp_path: Path) -> None:
    given, _, found = outcome_of(tmp_path, (4.5, 0.6))
    assert found.recommended == found.baseline
    says = "1 trial is better than the baseline beyond its noise in one objective, and worse in the other"
    assert verdict(given, found, None).startswith(f"{says}: the baseline is recommended as it is")


def test_a_trial_that_is_far_better_and_within_the_noise_otherwise_is_recommended(tmp_path: Path) -> None:
    given, _, found = outcome_of(tmp_path, (2.0, 0.501))
    assert found.point.rank == 32
    assert found.rivals == [found.recommended]
    assert "Recommended is rank 32" in verdict(given, found, None)


def failed_baseline(storage: Path, seeds: int) -> tuple[TuneConfig, Records, Outcome]:
    """A study of which the first trainings of the baseline failed."""
    given, records = recorded(storage)
    for trial in first_trials(given)[0][:seeds]:
        records.write(Record(trial.name("study"), trial, FAILED, {}, {"reason": "step 9: loss nan"}, ended=9.0))
    return given, records, outcome(given, records, BASE)


def test_a_baseline_that_failed_is_said_to_have_failed(tmp_path: Path) -> None:
    given, records, found = failed_baseline(tmp_path, 3)
    assert found.baseline is None
    assert found.point.rank == 32
    assert delivered_trial(given, found, None) == found.recommended
    name = first_trials(given)[0][0].name("study")
    says = f"There is no baseline to compare it with: {name} ended failed (step 9: loss nan)."
    assert says in verdict(given, found, None)
    run = Run.at(given)
    write_study_page(given, run, records, BASE, found, None)
    assert says in run.folder.read_text("report.html")


def test_of_a_baseline_that_failed_the_next_seed_stands_for_it(tmp_path: Path) -> None:
    given, records, found = failed_baseline(tmp_path, 1)
    assert found.baseline == first_trials(given)[0][1].name("study")
    assert delivered_trial(given, found, final("kvd", 0.1, 0.3)) == found.baseline
    assert delivered_trial(given, found, final("kvd", -0.3, -0.1)) == found.recommended
    assert records.read()[found.baseline].status == COMPLETE


def test_a_score_that_is_not_finite_is_none(tmp_path: Path) -> None:
    given, records = recorded(tmp_path)
    trial = first_trials(given)[0][0]
    records.write(Record(trial.name("study"), trial, COMPLETE, {"kvd": float("nan"), "lpips": 0.1}, ended=9.0))
    assert trial.name("study") not in outcome(given, records, BASE).values


def test_what_the_comparison_does_not_show_is_not_claimed(tmp_path: Path) -> None:
    given, _, found = outcome_of(tmp_path)
    assert "final_seeds is 0" in verdict(given, found, None)
    assert "its advantage holds on the test split: LPIPS -0.2" in verdict(given, found, final("lpips", -0.3, -0.1))
    assert "so the baseline is kept" in verdict(given, found, final("lpips", -0.3, 0.1))
    assert "so the baseline is kept" in verdict(given, found, final("kvd", 0.1, 0.3))


def test_the_page_shows_every_trial(tmp_path: Path) -> None:
    given, records, found = outcome_of(tmp_path)
    run = Run.at(given)
    write_study_page(given, run, records, BASE, found, final("lpips", -0.3, -0.1))
    page = run.folder.read_text("report.html")
    assert all(name in page for name in records.read())
    assert fetched(page) == []
    assert "step 3: loss nan &lt;b&gt;" in page
    assert "below 400 FVD is mostly bias" in page
    assert page.count("<svg") == 4
    assert "PED-ANOVA" not in page  # too few trials


def test_a_study_without_any_score_says_why(tmp_path: Path) -> None:
    given = config(tmp_path)
    records = Records(Run.open(given).folder)
    trial = first_trials(given)[0][0]
    records.write(Record(trial.name("study"), trial, FAILED, facts={"reason": "out of memory"}))
    with pytest.raises(ConfigError, match=r"no trial has both objectives .*out of memory"):
        outcome(given, records, BASE)


def test_trials_that_failed_or_were_cut_are_counted_with_the_first_reason(tmp_path: Path) -> None:
    given, records = recorded(tmp_path)
    first, second = (Trial(Point.of(given.train), seed) for seed in (90, 91))
    records.write(Record(first.name("study"), first, CUT, facts={"reason": "held-out loss 3"}, ended=20.0))
    records.write(Record(second.name("study"), second, CUT, facts={"reason": "held-out loss 4"}, ended=21.0))
    assert records.left_out() == {
        "cut": f"2 (the first: {first.name('study')}: held-out loss 3)",
        "failed": f"1 (the first: {next(r.name for r in records.read().values() if r.status == FAILED)}: "
        "step 3: loss nan <b>)",
    }


def test_importance_comes_with_fifty_trials(tmp_path: Path) -> None:
    given, records, _ = outcome_of(tmp_path)
    baseline = Point.of(given.train)
    for i in range(60):
        point = Point(**{**vars(baseline), "lr": 1e-5 * 1.05**i, "rank": 2 ** (2 + i % 5), "alpha": 2.0 ** (3 + i % 5)})
        figures = {"kvd": 1.0 + i, "lpips": 0.1 + i / 100}
        records.write(Record(Trial(point, 0).name("study"), Trial(point, 0), COMPLETE, figures, ended=20.0 + i))
    run = Run.at(given)
    write_study_page(given, run, records, BASE, outcome(given, records, BASE), None)
    page = run.folder.read_text("report.html")
    assert "PED-ANOVA" in page
    assert "log2_rank" in page
