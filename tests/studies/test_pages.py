"""What a study says of its data, never more than these carry, and the page that says it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cinesynth.config import EvaluateConfig
from cinesynth.metrics.record import Comparison, IntervalRecord
from cinesynth.studies import lora_vs_full
from cinesynth.studies.cells import Cell
from cinesynth.studies.config import STUDIES, StudyConfig
from cinesynth.studies.driver import complete, outline_study, run_study, study_of
from cinesynth.studies.estimates import Estimate, beyond, over_seeds
from cinesynth.studies.findings import Difference, conclusions, told, unsaid
from cinesynth.studies.inputs import GPU_BYTES, Inputs, too_large
from cinesynth.studies.latency_quality import timing_of
from cinesynth.wan.placement import Memory
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
    assert told(alone) == "+1.000 [0.8000, 1.400] (1 of 2 seeds)"
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
    both = beyond(away, home)
    assert (both.value, dict(both.by_seed)) == (1.0, {0: 1.0})
    assert (both.low, both.high) == pytest.approx((0.5, 1.5))
    assert beyond(away, mean_of(compared(1.0))).low is None


def test_conclusions_claim_what_the_intervals_carry() -> None:
    """What is shown comes first; what is not is told together, by why it is not."""
    shown, open_, bare = mean_of(compared(-1.0, -1.2, -0.8)), mean_of(compared(-1.0, -2.0, 0.1)), mean_of(compared(-1))
    worse = mean_of(compared(1.0, 0.8, 1.2))
    told_of = {"a": open_, "b": bare, "c": None, "d": shown, "e": open_, "f": worse}
    assert conclusions([Difference(what, e, "it is closer", "it is farther") for what, e in told_of.items()]) == [
        "d: −1.000 [−1.200, −0.8000] shows that it is closer.",
        "f: +1.000 [0.8000, 1.200] shows that it is farther.",
        "The data do not show a difference where the interval holds zero: "
        "a: −1.000 [−2.000, 0.1000]; e: −1.000 [−2.000, 0.1000].",
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
    monkeypatch.setattr("cinesynth.studies.grid.cut_parts", lambda *_: None)
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


def test_metrics_without_a_number_are_called_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = run(tmp_path, "domain_shift", monkeypatch, FakeJobs(unmeasured=frozenset({"fid"})))
    assert "Nothing can be said by FID: no weights: a file is not there." in page


@pytest.mark.parametrize("study", ["rank_motion", "lora_vs_full", "latency_quality"])
def test_every_study_has_a_page(study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = run(tmp_path, study, monkeypatch, FakeJobs())
    assert STUDIES[study] in page.replace("&#39;", "'")
    assert "<td>complete</td>" in page
    assert "<td>failed</td>" not in page


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
    assert len({cell.name for cell in cells if cell.kind == "evaluate"}) == 2


def test_the_first_video_of_a_group_is_not_timed() -> None:
    group = {"attempt": 1, "group": 0, "load_seconds": 4.0, "device": "a CPU"}
    rows = [{**group, "seconds": {"denoise": s, "decode": 1.0}} for s in (50.0, 3.0, 1.0, 2.0, 9.0)]
    found = timing_of(rows, 3)
    assert found is not None
    assert (found.seconds, found.count, found.load_seconds, found.device) == (3.0, 3, 4.0, "a CPU")
    another = {**group, "attempt": 2, "load_seconds": 5.0, "seconds": {"denoise": 70.0}}
    assert timing_of([rows[0], another], 3) is None


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
