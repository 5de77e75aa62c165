"""What a study says of its data, never more than these carry, and the page that says it."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel

from benchmarks.gpu_model import SHAPES
from cinesynth.config import EvaluateConfig, TrainConfig
from cinesynth.errors import ModelError
from cinesynth.metrics.record import Comparison, IntervalRecord
from cinesynth.settings import load_config
from cinesynth.studies import latency_quality, lora_vs_full, rank_quality
from cinesynth.studies.cells import Cell, Cells
from cinesynth.studies.config import STUDIES, StudyConfig
from cinesynth.studies.driver import complete, outline_study, run_study, study_of
from cinesynth.studies.estimates import Estimate, beyond, over_seeds
from cinesynth.studies.findings import Difference, Findings, conclusions, told, unsaid
from cinesynth.studies.grid import Grid
from cinesynth.studies.inputs import GPU_BYTES, Inputs, full_memory, too_large
from cinesynth.studies.latency_quality import timing_of
from cinesynth.train.memory import training_memory
from cinesynth.wan.family import WAN21_I2V
from cinesynth.wan.placement import Memory
from tests.conftest import REPOSITORY
from tests.generate.test_windows import ROW
from tests.report.loading import fetched
from tests.studies.fake_jobs import INPUTS, FakeJobs, grid_of, study_config

LARGE = Inputs(
    INPUTS.base,
    INPUTS.datasets,
    Memory(0, {"trained": 262_000_000_000}, {}),
    Memory(65_600_000_000, {"encoders": 14_000_000_000}, {}),
)


def compared(difference: float, low: float | None = None, high: float | None = None) -> Comparison:
    interval = None
    if low is not None and high is not None:
        interval = IntervalRecord(low=low, high=high, level=0.95, standard_error=1, degrees_of_freedom=7)
    reason = None if interval else "2 groups"
    return Comparison.of("kvd", "a", "b", difference, interval=interval, reason=reason, n=8, groups=8)


def mean_of(*comparisons: Comparison | None) -> Estimate:
    found = over_seeds(dict(enumerate(comparisons)))
    assert found is not None
    return found


def test_the_interval_of_a_mean_over_seeds_reaches_as_far_as_theirs_on_average() -> None:
    found = mean_of(compared(1.0, 0.8, 1.4), compared(3.0, 2.6, 3.8))
    assert (found.value, dict(found.by_seed)) == (2.0, {0: 1.0, 1: 3.0})
    assert (found.low, found.high) == pytest.approx((2 - 0.3, 2 + 0.6))
    assert found.is_shown
    alone = mean_of(compared(1.0, 0.8, 1.4), None)
    assert (alone.low, alone.high, alone.wanted) == pytest.approx((0.8, 1.4, 2))
    assert told(alone) == "+1.000 [0.8000, 1.400] (1 of 2 seeds, without seed 1)"
    without = mean_of(compared(1.0, 0.8, 1.4), compared(3.0))
    assert (without.low, without.reason, without.is_shown) == (None, "2 groups", False)
    assert over_seeds({0: None}) is None


def test_that_interval_is_never_too_short_whatever_the_correlation() -> None:
    """The standard deviation of the mean of two draws, against the mean of their standard deviations."""
    draws = np.random.default_rng(0).normal(size=(2, 4000))
    for share in (0.0, 0.5, 1.0, -0.7):
        a, b = draws[0], 2 * (share * draws[0] + np.sqrt(1 - share**2) * draws[1])
        assert np.std((a + b) / 2) <= (np.std(a) + np.std(b)) / 2 + 1e-9


def test_seeds_of_different_sign_show_nothing() -> None:
    found = mean_of(compared(-0.1, -0.12, -0.08), compared(3.0, 2.9, 3.1))
    assert found.excludes_zero
    assert not found.is_shown
    (said,) = conclusions([Difference("KVD", found, "lower", "higher")])
    assert "seeds differ in sign (−0.1000, +3.000): not shown" in said


def test_variances_of_two_domains_add() -> None:
    home, away = mean_of(compared(1.0, 0.7, 1.3), None), mean_of(compared(2.0, 1.6, 2.4), compared(2.0, 1.6, 2.4))
    both, without = beyond(away, home), beyond(away, mean_of(compared(1.0)))
    assert both is not None
    assert (both.value, dict(both.by_seed)) == (1.0, {0: 1.0})
    assert (both.low, both.high) == pytest.approx((0.5, 1.5))
    assert without is not None
    assert without.low is None


def test_a_difference_of_two_domains_is_of_the_seeds_that_both_have() -> None:
    home = mean_of(compared(1.0, 0.9, 1.1), compared(5.0, 4.0, 6.0))
    away = mean_of(compared(2.0, 1.9, 2.1), None)
    both = beyond(away, home)
    assert both is not None
    assert (both.value, dict(both.by_seed), both.left_out) == (1.0, {0: 1.0}, (1,))
    reach = np.hypot(0.1, 0.1)
    assert (both.low, both.high) == pytest.approx((1 - reach, 1 + reach))  # of seed 0 alone
    assert told(both) == "+1.000 [0.8586, 1.141] (1 of 2 seeds, without seed 1)"
    back = beyond(home, away)
    assert back is not None
    assert (back.value, back.left_out) == (-1.0, (1,))
    assert beyond(away, mean_of(None, compared(5.0, 4.0, 6.0))) is None


def test_conclusions_claim_what_the_intervals_carry() -> None:
    """What is shown comes first; what is not is told together, by why it is not."""
    shown, open_, bare = mean_of(compared(-1.0, -1.2, -0.8)), mean_of(compared(-1.0, -2.0, 0.1)), mean_of(compared(-1))
    worse = mean_of(compared(1.0, 0.8, 1.2))
    told_of = {"a": open_, "b": bare, "c": None, "d": shown, "e": open_, "f": worse}
    assert conclusions([Difference(what, e, "it is closer", "it is farther") for what, e in told_of.items()]) == [
        "d: −1.000 [−1.200, −0.8000] shows that it is closer.",
        "f: +1.000 [0.8000, 1.200] shows that it is farther.",
        "The data do not show a difference where the interval holds zero: "
        "a: −1.000 [−2.000, 0.1000], one of 1.100 would have been shown; "
        "e: −1.000 [−2.000, 0.1000], one of 1.100 would have been shown.",
        f"Undecided ({bare.reason}): b: −1.000.",
        "Nothing was measured of: c.",
    ]
    assert unsaid({"FID": "no weights", "KID": "no weights", "R-LPIPS": "not given"}) == [
        "Nothing can be said by FID and KID: no weights.",
        "Nothing can be said by R-LPIPS: not given.",
    ]


def strong(config: EvaluateConfig, metric: str) -> tuple[float, float]:
    """Higher ranks are closer by KVD; nothing else differs."""
    return (-1.0, 0.01) if metric == "kvd" and "rank-32" in config.arms else (0.01, 1.0)


def run(storage: Path, study: str, monkeypatch: pytest.MonkeyPatch, jobs: FakeJobs, **changes: object) -> str:
    monkeypatch.setattr("cinesynth.studies.driver.read_inputs", lambda config: INPUTS)
    config = study_config(storage, study, **changes)
    result = run_study(config, jobs.jobs)
    assert result["status"] == ("failed" if result["figures"]["failed"] else "complete")
    return (storage / "runs" / f"s-{study}" / "report.html").read_text()


def test_rank_quality_says_what_is_shown_and_what_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cinesynth.studies.rank_quality.cut_parts", lambda *_: None)
    page = run(tmp_path, "rank_quality", monkeypatch, FakeJobs(strong))
    assert "KVD, rank 32 − rank 4, fixed learning rate: −1.000" in page
    assert "shows that rank 32 is closer to the real windows than rank 4" in page
    assert "The data do not show a difference where the interval holds zero: KVD, rank 4 − base" in page
    assert "LPIPS is shown, under its own name" in page
    assert "Long clips, part by part" in page
    assert page.count("<svg viewBox") >= 4
    assert fetched(page) == []
    assert "python -m jobs.study rank_quality --config" in page
    again = FakeJobs()
    run(tmp_path, "rank_quality", monkeypatch, again)
    assert again.ran == []


def page_of_long_clips(storage: Path, segment_frames: int, overlap: int) -> Findings:
    """The findings of `rank_quality` before anything was run."""
    expansion = {"segment_frames": segment_frames, "overlap": overlap}
    return rank_quality.findings(grid_of(study_config(storage, generate={"split": "test", "expansion": expansion})))


def test_the_page_tells_the_frames_that_a_segment_adds(tmp_path: Path) -> None:
    (table,) = [t for t in page_of_long_clips(tmp_path, 33, 4).tables if t.title == "Long clips, part by part"]
    assert "made in segments of 33 frames" in table.note
    assert "the 28 frames from where a segment begins to where the next one does" in table.note


def test_the_first_and_the_last_part_are_told_once_where_they_are_the_same(tmp_path: Path) -> None:
    lacking = page_of_long_clips(tmp_path, 81, 4).shows[-1]
    assert lacking == "Nothing was measured of: LPIPS of long clips, rank 4 − base, part 1; " + (
        "LPIPS of long clips, rank 32 − base, part 1."
    )


def test_segments_longer_than_long_clips_leave_no_part(tmp_path: Path) -> None:
    shows = page_of_long_clips(tmp_path, 137, 0).shows
    assert shows[-1] == "Long clips have no part: a segment adds 136 frames, and parts are of the first 129."


def test_failed_and_empty_cells_are_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = FakeJobs(fails=lambda config: config.lora.rank == 32 and config.seed == 1)
    page = run(tmp_path, "domain_shift", monkeypatch, jobs)
    assert "step 3: loss nan; lower &lt;lr&gt;" in page
    assert "which is failed" in page
    assert "<td>empty</td>" in page
    assert "adapting to historical" in page or "do not show a difference" in page
    result = (tmp_path / "runs" / "s-domain_shift" / "result.json").read_text()
    assert '"status": "failed"' in result
    assert "2 cells failed, such as training: rank 32" in result


def seed_1_fails(config: TrainConfig) -> bool:
    """At the fixed learning rate of the lowest rank."""
    return config.lora.rank == 4 and config.seed == 1


@pytest.mark.parametrize("study", ["domain_shift", "rank_motion"])
def test_only_seeds_that_measured_something_are_counted(study: str, tmp_path: Path) -> None:
    grid = grid_of(study_config(tmp_path, study), FakeJobs(fails=seed_1_fails))
    complete(grid)
    found = study_of(study).findings(grid)
    counted = "8 videos of 8 groups in each arm, 1 training of each (seed 0)."
    assert [s for s in found.shows if s.startswith("Windows of")] == [
        f"Windows of {domain}: {counted}" for domain in grid.config.domains
    ]
    marks = [mark for chart in found.charts for series in chart.series.values() for mark in series]
    assert {(mark.x, mark.word) for mark in marks} == {(4.0, "1 of 2 seeds"), (32.0, "")}


def test_metrics_without_a_number_are_called_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = run(tmp_path, "domain_shift", monkeypatch, FakeJobs(unmeasured=frozenset({"fid"})))
    assert "Nothing can be said by FID: no weights: a file is not there." in page


def whole(storage: Path, study: str, monkeypatch: pytest.MonkeyPatch, jobs: FakeJobs) -> str:
    """The page of a study of which no cell failed, with its question and a plot."""
    page = run(storage, study, monkeypatch, jobs)
    assert STUDIES[study] in unescape(page)
    assert "<td>complete</td>" in page
    assert "<td>failed</td>" not in page
    assert "<svg viewBox" in page
    return page


def rows_of(page: str, title: str) -> list[dict[str, str]]:
    """The rows of the table below a heading, by their columns."""
    (table,) = re.findall(rf">{re.escape(title)}</h\d>.*?<table.*?>(.*?)</table>", page, re.DOTALL)
    columns, *rows = [
        [
            unescape(re.sub(r"<.*?>", "", cell)).strip()
            for cell in re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row, re.DOTALL)
        ]
        for row in re.findall(r"<tr.*?>(.*?)</tr>", table, re.DOTALL)
    ]
    return [dict(zip(columns, row, strict=True)) for row in rows]


def apart(config: EvaluateConfig, metric: str) -> tuple[float, float]:
    """Adapters are closer than the base, and twice as much in the second domain."""
    return (-0.2 if getattr(config.real, "dataset", "") == "away" else -0.1), 0.01


def test_domain_shift_shows_the_difference_of_the_differences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = whole(tmp_path, "domain_shift", monkeypatch, FakeJobs(apart, unmeasured=frozenset({"fid"})))
    rows = rows_of(page, "Adapter − base in both domains, fixed learning rate")
    by = {(row["metric"], row["rank"]): row for row in rows}
    for metric in ("KVD", "CLIP-SIM frames", "MotionScore"):
        row = by[metric, "32"]
        assert (row["historical"], row["sci-fi"]) == (
            "−0.1000 [−0.1200, −0.08000]",
            "−0.2000 [−0.2200, −0.1800]",
        )
        assert row["sci-fi − historical"] == "−0.1000 [−0.1283, −0.07172]"  # the root of 0.02² + 0.02² each way
        assert row["each seed"] == "−0.1000, −0.1000"
    assert by["FID", "all"]["historical"] == "unavailable"
    assert "<td>unavailable</td>" in page
    values = {(row["metric"], row["domain"], row["rank"]): row for row in rows_of(page, "Values, fixed learning rate")}
    shown = values["MotionScore", "sci-fi", "4"]
    assert (shown["real"], shown["base"], shown["adapter, each seed"]) == ("3.000", "2.000", "1.800, 1.800")
    text = unescape(page)
    assert "of CLIP-SIM text higher; of CLIP-SIM frames and MotionScore the distances to the real set's own" in text
    closer, farther = (f"adapting to historical helps sci-fi {w} than historical itself" for w in ("more", "less"))
    where = "rank 4, (adapter − base) in sci-fi − in historical: −0.1000 [−0.1283, −0.07172] shows that"
    assert f"KVD, {where} {closer}." in text
    assert f"Distance of MotionScore to the real set, {where} {closer}." in text
    assert f"CLIP-SIM text, {where} {farther}." in text


def test_rank_motion_has_the_real_sets_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = whole(tmp_path, "rank_motion", monkeypatch, FakeJobs(apart))
    row = rows_of(page, "MotionScore by rank, fixed learning rate")[-1]
    assert [row[name] for name in ("domain", "rank", "real", "base", "adapter, each seed")] == [
        "sci-fi", "32", "3.000", "2.000", "1.800, 1.800"
    ]  # fmt: skip
    assert row["distance to real, adapter − base"] == "−0.2000 [−0.2200, −0.1800]"


def test_lora_vs_full_tells_what_was_trained_for_both_budgets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = FakeJobs(
        step_seconds=lambda config: 0.3 if config.mode == "full" else 0.1, unmeasured=frozenset({"fid_128f"})
    )
    page = whole(tmp_path, "lora_vs_full", monkeypatch, jobs)
    told = ("budget", "arm", "best lr on val", "steps", "seconds a step", "seconds of steps")
    assert [tuple(row[name] for name in told) for row in rows_of(page, "What was trained")] == [
        ("equal steps", "lora", "0.001", "60", "0.100", "6.00"),
        ("equal steps", "full", "0.00015", "60", "0.300", "18.0"),
        ("equal time", "lora", "0.001", "180", "0.100", "18.0"),
        ("equal time", "full", "0.00015", "60", "0.300", "18.0"),
    ]
    assert {row["full − LoRA"] for row in rows_of(page, "Long clips") if row["metric"] == "FID-128"} == {"unavailable"}
    assert "<td>unavailable</td>" in page
    least = "KVD-128, full − LoRA, equal steps: +0.1000 [−1.900, 2.100], one of 2.000 would have been shown"
    assert least in page


def test_latency_compares_settings_on_the_same_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = unescape(whole(tmp_path, "latency_quality", monkeypatch, FakeJobs(unmeasured=frozenset({"tof"}))))
    rows = rows_of(page, "By setting")
    assert [(row["steps"], row["adapter"], row["group"]) for row in rows][:4] == [
        ("20", "live", "1"), ("20", "live", "2"), ("20", "merged", "1"), ("20", "merged", "2")
    ]  # fmt: skip
    first = rows[0]
    timed = ("seconds a video", "seconds to load", "device")
    assert [first[name] for name in timed] == ["20.0 (18.0 to 22.0, of 5)", "5.00", "a CPU"]
    assert rows[1]["seconds a video"] == "10.0 (9.00 to 11.0, of 5)"
    assert {row["TSSIM, real"] for row in rows} == {row["MotionScore, real"] for row in rows} == {"3.000"}
    assert "tLP, real" not in first
    assert first["TSSIM"].startswith("2.000")
    assert {row["tOF"] for row in rows} == {"unavailable"}
    assert (
        "On a CPU, a video takes 10.0 (9.00 to 11.0, of 5) s with 20 steps, the adapter live, in a group of 2 and "
        "80.0 (72.0 to 88.0, of 5) s with 80 steps, the adapter live, in a group of 1" in page
    )
    assert (
        "The seconds of 20 steps, the adapter live, in a group of 2 overlap with those of 20 steps, the adapter "
        "merged, in a group of 2: none is called the fastest." in page
    )
    near = "nearest to it, by number, lies that of 20 steps, the adapter merged, 2.100."
    assert f"TSSIM of the real windows is 3.000; {near}" in page
    open_ = (
        "Distance of TSSIM to the real set, 40 steps − 20: +0.1000 [−1.900, 2.100], one of 2.000 would have been shown"
    )
    assert open_ in page
    assert "tLP, 20 steps, merged − live: +0.1000" in page


def test_latency_says_what_paired_differences_show_and_which_setting_is_faster(tmp_path: Path) -> None:
    config = study_config(tmp_path, "latency_quality", latency={"step_factors": [0.5, 2], "ranks": [1]})
    grid = grid_of(config, FakeJobs(lambda *_: (-0.3, 0.01)))
    done = complete(grid)
    (cell,) = [cell for cell, _ in done.values() if cell.kind == "evaluate"]
    assert list(cell.config.arms) == ["20-steps-live", "20-steps-merged", "80-steps-live", "80-steps-merged"]  # type: ignore[attr-defined]
    shows = study_of("latency_quality").findings(grid).shows
    assert (
        "Distance of TSSIM to the real set, 80 steps − 20: −0.3000 [−0.3200, −0.2800] shows that videos of 80 steps "
        "are closer to the real windows than those of 20." in shows
    )
    assert (
        "tLP, 20 steps, merged − live: −0.3000 [−0.3200, −0.2800] shows that the adapter merged is closer to the real "
        "windows than live." in shows
    )
    assert "none is called the fastest" in " ".join(shows)  # live and merged take the same
    known = {
        latency_quality.Setting(steps, False, 1): latency_quality.Timing(steps, 0.9 * steps, 1.1 * steps, 5, 1, "a CPU")
        for steps in (20, 40)
    }
    assert latency_quality._speed(known)[1] == (
        "Every video of 20 steps, the adapter live, in a group of 1 took less than any of another setting timed there."
    )


def timing_at(seconds: float, device: str) -> latency_quality.Timing:
    return latency_quality.Timing(seconds, 0.9 * seconds, 1.1 * seconds, 5, 1, device)


def test_settings_are_ranked_on_the_device_that_they_were_timed_on() -> None:
    slow, fast, other = (latency_quality.Setting(steps, False, 1) for steps in (40, 20, 80))
    known = {slow: timing_at(40, "a CPU"), fast: timing_at(20, "a CPU"), other: timing_at(1, "a GPU")}
    assert latency_quality._speed(known) == [
        "On a CPU, a video takes 20.0 (18.0 to 22.0, of 5) s with 20 steps, the adapter live, in a group of 1 and "
        "40.0 (36.0 to 44.0, of 5) s with 40 steps, the adapter live, in a group of 1: medians, with the least and "
        "the most.",
        "Every video of 20 steps, the adapter live, in a group of 1 took less than any of another setting timed there.",
        "On a GPU, a video takes 1.00 (0.900 to 1.10, of 5) s with 80 steps, the adapter live, in a group of 1: the "
        "median, with the least and the most. No other setting was timed there.",
    ]


def test_one_timed_setting_is_compared_with_none(tmp_path: Path) -> None:
    settings = [latency_quality.Setting(steps, merged, 1) for steps in (20, 80) for merged in (False, True)]
    grid = grid_where_fail(tmp_path, *settings[1:])
    shows = latency_quality.findings(grid).shows
    assert "No other setting was timed there." in shows[0]
    assert not any("took less than" in said or "the fastest" in said or "nearest" in said for said in shows)
    assert "TSSIM of the real windows is 3.000; that of 20 steps, the adapter live, is 2.000." in shows


def test_settings_that_take_the_same_are_both_told() -> None:
    """And not one of them as the fastest and as the slowest."""
    live, merged = (latency_quality.Setting(20, merged, 1) for merged in (False, True))
    said = latency_quality._speed({live: timing_at(20, "a CPU"), merged: timing_at(20, "a CPU")})[0]
    assert "the adapter live" in said
    assert "the adapter merged" in said


def test_a_timing_names_each_device_that_it_was_taken_on() -> None:
    row = {"load_seconds": 4.0, "group": 0, "seconds": {"denoise": 2.0}}
    first, second = {**row, "attempt": 1, "device": "a CPU"}, {**row, "attempt": 2, "device": "a GPU"}
    found = timing_of([first, first, second, second], 5)
    assert found is not None
    assert (found.count, found.device) == (2, "a CPU and a GPU")


def test_seconds_of_different_devices_are_not_drawn_as_one_series(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = grid_where_fail(tmp_path)
    monkeypatch.setattr(
        latency_quality, "timing", lambda grid, s: timing_at(s.steps, "a CPU" if s.steps == 20 else "a GPU")
    )
    found = latency_quality.findings(grid)
    assert list(found.charts[0].series) == [
        f"{adapter}, group of 1, on {device}" for device in ("a CPU", "a GPU") for adapter in ("live", "merged")
    ]
    assert "Settings were timed on a CPU and a GPU: seconds of different devices do not compare." in found.warnings


def grid_where_fail(storage: Path, *settings: latency_quality.Setting) -> Grid:
    """A finished grid of 20 and 80 steps, live and merged; the videos of some settings failed."""
    changes = {"step_factors": [0.5, 2], "ranks": [1]}
    grid = grid_of(study_config(storage, "latency_quality", latency=changes), FakeJobs(lambda *_: (-0.3, 0.01)))
    failed = {latency_quality.videos(grid, setting).name for setting in settings}
    made = grid.cells._jobs["generate"]  # type: ignore[index]

    def failing(config: Any) -> dict[str, Any]:
        if config.name in failed:
            raise ModelError("no room")
        return made(config)

    grid.cells._jobs = {**grid.cells._jobs, "generate": failing}  # type: ignore[dict-item]
    outcomes = complete(grid)
    assert {name for name, (_, outcome) in outcomes.items() if outcome.status == "failed"} == failed
    return grid


def test_a_setting_that_fails_leaves_the_others_compared(tmp_path: Path) -> None:
    grid = grid_where_fail(tmp_path, latency_quality.Setting(20, True, 1))
    shows = " ".join(latency_quality.findings(grid).shows)
    assert "tLP, 80 steps − 20: −0.3000" in shows
    assert "tLP, 20 steps, merged − live: −0.3000" not in shows
    assert "Nothing was measured of: " in shows


def test_nothing_is_compared_with_another_arm_than_the_one_that_is_named(tmp_path: Path) -> None:
    """The live adapter at the fewest steps failed: the evaluation's first arm is the merged one."""
    grid = grid_where_fail(tmp_path, latency_quality.Setting(20, False, 1))
    measured = latency_quality.quality(grid)
    assert measured is not None
    assert list(measured.config.arms) == ["20-steps-merged", "80-steps-live", "80-steps-merged"]  # type: ignore[attr-defined]
    shows = " ".join(latency_quality.findings(grid).shows)
    assert "−0.3000" not in shows
    names = [
        f"{name}, {what}"
        for name in ("Distance of TSSIM to the real set", "tLP")
        for what in ("80 steps − 20", "20 steps, merged − live")
    ]
    assert f"Nothing was measured of: {'; '.join(names)}." in shows
    assert grid.comparison(measured, "tlp", "80-steps-live", "20-steps-merged") is not None
    assert grid.comparison(measured, "tlp", "80-steps-live", "20-steps-live") is None


def test_equal_time_gives_the_faster_arm_more_steps(tmp_path: Path) -> None:
    jobs = FakeJobs(step_seconds=lambda config: 0.3 if config.mode == "full" else 0.1)
    grid = grid_of(study_config(tmp_path, "lora_vs_full"), jobs)
    assert lora_vs_full.equal_time_steps(grid) == {}
    complete(grid)
    assert lora_vs_full.equal_time_steps(grid) == {"lora": 180, "full": 60}
    steps = {arm: lora_vs_full.trained(grid, arm, "time", 0) for arm in lora_vs_full.ARMS}
    assert steps["lora"] is not None
    assert steps["lora"].config.optimizer.steps == 180  # type: ignore[attr-defined]
    assert steps["full"] == lora_vs_full.trained(grid, "full", "steps", 0)


def test_full_cells_that_do_not_fit_are_refused_with_the_arithmetic(tmp_path: Path) -> None:
    grid = grid_of(study_config(tmp_path, "lora_vs_full", train={"use_gpu": True}))
    grid.inputs = LARGE
    done = complete(grid)
    refused = [(cell, outcome) for cell, outcome in done.values() if outcome.status == "refused"]
    assert [cell.what.partition(",")[0] for cell, _ in refused] == ["training: all weights"] * 2
    assert "not sharded yet" in refused[0][1].reason
    assert "262.00 GB" in refused[0][1].reason
    assert "more than 92% of a device's 80 GB" in refused[0][1].reason
    shows = lora_vs_full.findings(grid).shows
    assert len(shows) == 1
    assert shows[0].startswith("Nothing can be said of LoRA against full fine-tuning")
    assert not any(outcome.status == "failed" for _, outcome in done.values())


def test_full_fine_tuning_of_wan14b_is_refused_and_its_largest_adapter_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the shipped configuration and the model's shape, without its weights."""
    config = load_config(
        StudyConfig,
        str(REPOSITORY / "jobs/configs/wan14b/study.yaml"),
        ["study=lora_vs_full", f"storage={tmp_path}"],
    )
    with torch.device("meta"):
        transformer = WanTransformer3DModel(in_channels=WAN21_I2V.in_channels, out_channels=16, **SHAPES["wan14b"])
    parameters = sum(p.numel() for p in transformer.parameters())
    stored = SimpleNamespace(bytes=2 * parameters, empty_transformer=lambda: transformer)
    monkeypatch.setattr("cinesynth.wan.stream.StoredWeights", lambda model: stored)
    monkeypatch.setattr("cinesynth.wan.folder.model_spec", lambda model: SimpleNamespace(family=WAN21_I2V))
    sizes = WAN21_I2V.resolutions["720p"].sizes
    rows = [replace(ROW, num_frames=33, width=width, height=height) for width, height in sizes]
    dataset: Any = SimpleNamespace(windows=lambda split=None: rows)

    grid = Grid(config, Cells(config.storage), INPUTS)
    grid.inputs = Inputs(
        "base", dict.fromkeys((*config.domains.values(), config.long), "hash"), full_memory(config, dataset)
    )
    assert parameters == pytest.approx(16.4e9, rel=0.01)
    assert sum(grid.inputs.full.whole.values()) == 16 * parameters
    refused = [cell for cell in lora_vs_full.cells(grid) if cell.refused]
    assert [cell.what.partition(",")[0] for cell in refused] == ["training: all weights"] * len(config.lr_factors)
    assert f"optimiser {8 * parameters / 1e9:.2f} GB" in refused[0].refused
    assert "more than 92% of a device's 80 GB" in refused[0].refused

    lora = config.train.lora.model_copy(update={"rank": max(config.ranks)})
    train = config.train.model_copy(update={"lora": lora})
    adapter = training_memory(train, WAN21_I2V, transformer, stored.bytes, dataset, torch.bfloat16)
    assert too_large(adapter, use_gpu=True) == ""


def test_merged_cells_are_refused_where_fp32_does_not_fit(tmp_path: Path) -> None:
    config = study_config(tmp_path, "latency_quality", generate={"split": "test", "use_gpu": True})
    grid = grid_of(config)
    grid.inputs = LARGE
    refused = [cell for cell in study_of("latency_quality").cells(grid) if cell.refused]
    assert refused
    assert all("merged" in cell.what for cell in refused)
    assert too_large(Memory(GPU_BYTES // 2, {}, {}), use_gpu=True) == ""


def test_group_sizes_are_cells_of_their_own_and_share_what_they_measure(tmp_path: Path) -> None:
    grid = grid_of(study_config(tmp_path, "latency_quality", latency={"step_factors": [1], "ranks": [1, 2]}))
    cells: list[Cell] = study_of("latency_quality").cells(grid)
    assert len({cell.name for cell in cells if cell.kind == "generate"}) == 4
    assert len({cell.name for cell in cells if cell.kind == "evaluate"}) == 1


def test_the_first_video_of_a_group_is_not_timed() -> None:
    group = {"attempt": 1, "group": 0, "load_seconds": 4.0, "device": "a CPU"}
    rows = [{**group, "seconds": {"denoise": s, "decode": 1.0}} for s in (50.0, 3.0, 1.0, 2.0, 9.0)]
    found = timing_of(rows, 3)
    assert found is not None
    assert (found.seconds, found.count, found.load_seconds, found.device) == (3.0, 3, 4.0, "a CPU")
    assert found.told() == "3.00 (2.00 to 4.00, of 3)"
    another = {**group, "attempt": 2, "load_seconds": 5.0, "seconds": {"denoise": 70.0}}
    assert timing_of([rows[0], another], 3) is None


def test_a_cell_that_was_killed_before_its_seconds_were_written_is_not_timed(tmp_path: Path) -> None:
    grid = grid_of(study_config(tmp_path, "latency_quality"))
    complete(grid)
    setting = latency_quality.settings(grid)[0]
    assert latency_quality.timing(grid, setting) is not None
    cell = latency_quality.videos(grid, setting)
    (tmp_path / "runs" / cell.name / "seconds.json").unlink()
    assert latency_quality.timing(grid, setting) is None


def test_a_dry_run_lists_cells_and_starts_nothing(tmp_path: Path) -> None:
    config = study_config(tmp_path, "domain_shift")
    told = outline_study(config, lambda given: INPUTS).text()
    assert "study s-domain_shift: new" in told
    assert "6 cells, 0 of them complete" in told  # 2 ranks x (2 seeds + another rate)
    assert "360 optimiser steps" in told
    assert not (tmp_path / "runs").exists()
    complete(grid_of(config))
    told = outline_study(config, lambda given: INPUTS).text()
    assert "0 optimiser steps" in told
    assert "8 cells, 8 of them complete" in told  # the better rate has a second seed


def test_the_run_of_a_study_is_found_again_by_its_own_configuration(tmp_path: Path) -> None:
    given = study_config(tmp_path)
    assert given.of_run().name == "s-rank_quality"
    assert given.of_run().of_run() == given.of_run()
    assert isinstance(given, StudyConfig)
