"""Cells are named by their identity, run once, and say why they are empty."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cinesynth.config import EvaluateSettings, GenerateConfig, TrainConfig
from cinesynth.data.video import read_video, write_video
from cinesynth.errors import DatasetError, WeightsUnavailable
from cinesynth.generate.driver import window_segments
from cinesynth.metrics.catalogue import METRICS
from cinesynth.runs import Run
from cinesynth.storage import Storage
from cinesynth.studies.cells import Cells, with_needs
from cinesynth.studies.driver import complete, outline_study, study_of
from cinesynth.studies.grid import GRID_METRICS, Grid
from cinesynth.studies.inputs import LONG_FRAMES
from cinesynth.studies.rank_quality import long_parts
from cinesynth.studies.segments import cut_parts, part_folder
from cinesynth.wan.family import WAN21_I2V
from tests.studies.fake_jobs import INPUTS, FakeJobs, grid_of, study_config


def names(study: str, storage: Path, **changes: object) -> set[str]:
    grid = grid_of(study_config(storage, study, **changes))
    return {cell.name for cell in with_needs(study_of(study).cells(grid))}


def test_equal_identity_is_an_equal_name_wherever_it_runs(tmp_path: Path) -> None:
    given = names("domain_shift", tmp_path)
    runtime = {"optimizer": {"steps": 60, "lr": 2e-3}, "workers": 2, "log_every": 5}
    assert names("domain_shift", tmp_path / "other", train=runtime, name="t") == given
    moved = {"historical": "/mnt/home", "sci-fi": "/mnt/away"}
    grid = grid_of(study_config(tmp_path, "domain_shift", domains=moved))
    grid.inputs = type(INPUTS)(INPUTS.base, {"/mnt/home": "hash-home", "/mnt/away": "hash-away"})
    assert {cell.name for cell in with_needs(grid.grid_cells())} == given


def test_another_identity_or_content_is_another_cell(tmp_path: Path) -> None:
    grid = grid_of(study_config(tmp_path))
    cell = grid.adapter(4, 0, 1.0)
    others = [grid.adapter(8, 0, 1.0), grid.adapter(4, 1, 1.0), grid.adapter(4, 0, 0.5), grid.adapter(4, 0, 1.0, 30)]
    longer = grid_of(study_config(tmp_path, train={"optimizer": {"steps": 61, "lr": 2e-3}}))
    others.append(longer.adapter(4, 0, 1.0))
    based = grid_of(study_config(tmp_path))
    based.inputs = type(INPUTS)("another base", INPUTS.datasets)
    others.append(based.adapter(4, 0, 1.0))
    assert len({cell.name, *(other.name for other in others)}) == 7


def test_evaluations_of_equal_configurations_differ_by_what_they_read(tmp_path: Path) -> None:
    """Folders are runtime fields: what lies in them counts."""
    grid = grid_of(study_config(tmp_path))
    cells = [grid.against_base("fixed", 4, "historical", seed) for seed in (0, 1)]
    assert cells[0] is not None
    assert cells[1] is not None
    assert cells[0].config.identity() == cells[1].config.identity()
    assert cells[0].name != cells[1].name


def test_the_three_studies_of_the_grid_share_its_cells(tmp_path: Path) -> None:
    quality, shift, motion = (names(s, tmp_path) for s in ("rank_quality", "domain_shift", "rank_motion"))
    assert shift == motion
    assert shift < quality


def test_the_adapter_has_twice_its_rank_as_alpha(tmp_path: Path) -> None:
    cell = grid_of(study_config(tmp_path)).adapter(16, 3, 0.5)
    assert isinstance(cell.config, TrainConfig)
    assert (cell.config.lora.rank, cell.config.lora.alpha, cell.config.seed) == (16, 32.0, 3)
    assert cell.config.optimizer.lr == pytest.approx(1e-3)
    assert cell.config.optimizer.steps == 60


def test_the_same_command_runs_only_what_is_missing(tmp_path: Path) -> None:
    config = study_config(tmp_path, "domain_shift")
    first = FakeJobs()
    done = complete(grid_of(config, first))
    assert len(first.ran) == len(set(first.ran)) == len(done)
    assert all(outcome.is_complete for _, outcome in done.values())

    again = FakeJobs()
    complete(grid_of(config, again))
    assert again.ran == []

    lost = next(cell for cell, _ in done.values() if cell.kind == "evaluate")
    Cells(config.storage).folder(lost).delete("result.json")
    complete(grid_of(config, again))
    assert again.ran == [lost.name]

    wider = FakeJobs()
    complete(grid_of(study_config(tmp_path, "domain_shift", seeds=[0, 1, 2]), wider))
    assert wider.ran
    assert not set(wider.ran) & set(first.ran)


def give_weights(monkeypatch: pytest.MonkeyPatch, are_there: bool) -> list[str]:
    """Inception's weights can be had, or not; returns what is asked for them."""
    asked: list[str] = []

    def load(settings: EvaluateSettings) -> str:
        asked.append("inception")
        if not are_there:
            raise WeightsUnavailable("a file is not there")
        return "network"

    for name in ("fid", "kid"):
        network = replace(METRICS[name].network, load=load)
        monkeypatch.setitem(METRICS, name, replace(METRICS[name], network=network))
    return asked


def test_an_evaluation_that_lacked_weights_is_made_again_once_they_can_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = study_config(tmp_path, "domain_shift")
    absent = frozenset({"fid", "kid"})
    done = complete(grid_of(config, FakeJobs(unmeasured=absent)))
    evaluations = {name for name, (cell, _) in done.items() if cell.kind == "evaluate"}

    asked, still = give_weights(monkeypatch, are_there=False), FakeJobs(unmeasured=absent)
    told = outline_study(config, lambda given: INPUTS).text()
    assert f"{len(evaluations)} evaluations that lacked weights, where these can be had by then" in told
    assert asked == []  # an outline fetches nothing
    complete(grid_of(config, still))
    assert still.ran == []
    assert len(asked) == 1  # once for all cells and both metrics

    give_weights(monkeypatch, are_there=True)
    later = FakeJobs()
    grid = grid_of(config, later)
    cell = grid.against_base("fixed", 4, "historical", 0)
    assert grid.unavailable([cell], "fid") == "no weights: a file is not there"
    complete(grid)
    assert sorted(later.ran) == sorted(evaluations)
    assert grid.unavailable([cell], "fid") == ""
    assert grid.values([cell], "fid", "adapter")

    again = FakeJobs()
    complete(grid_of(config, again))
    assert again.ran == []


def test_an_evaluation_that_cannot_be_made_again_keeps_its_numbers_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = study_config(tmp_path, "domain_shift")
    complete(grid_of(config, FakeJobs(unmeasured=frozenset({"fid"}))))
    give_weights(monkeypatch, are_there=True)
    grid = Grid(config, Cells(config.storage, {"evaluate": lambda given: 1 / 0}), INPUTS)
    complete(grid)
    cell = grid.against_base("fixed", 4, "historical", 0)
    assert cell is not None
    outcome = grid.cells.outcome(cell)
    assert outcome.is_complete
    assert outcome.reason == "measuring it again failed: ZeroDivisionError: division by zero"
    assert grid.values([cell], "kvd", "adapter")


def test_the_best_rate_is_that_of_the_lowest_held_out_loss_and_shares_the_fixed_cells(tmp_path: Path) -> None:
    grid = grid_of(study_config(tmp_path), FakeJobs(losses=lambda lr: -lr))
    assert grid.factor("best", 4) is None
    assert grid.against_base("best", 4, "historical", 0) is None
    complete(grid)
    assert grid.factor("best", 4) == 1.0
    assert grid.against_base("best", 4, "historical", 0) == grid.against_base("fixed", 4, "historical", 0)
    assert grid.rules == {"fixed": "fixed learning rate, the best on val too"}, "told once"

    other = grid_of(study_config(tmp_path / "other"), FakeJobs(losses=lambda lr: 1.0))
    complete(other)
    assert other.factor("best", 4) == 0.5  # of equal ones the lower


def test_a_failed_cell_says_why_and_leaves_those_that_need_it_empty(tmp_path: Path) -> None:
    jobs = FakeJobs(fails=lambda config: config.lora.rank == 32 and config.seed == 1)
    done = complete(grid_of(study_config(tmp_path, "domain_shift"), jobs))
    outcomes = {cell.what: outcome for cell, outcome in done.values()}
    failed = [what for what, outcome in outcomes.items() if outcome.status == "failed"]
    assert failed == ["training: rank 32, lr 0.002, seed 1", "training: rank 32, lr 0.001, seed 1"]
    assert "loss nan" in outcomes[failed[0]].reason
    empty = [outcome.reason for outcome in outcomes.values() if outcome.status == "empty"]
    assert empty
    assert all("which is failed" in reason and "loss nan" in reason for reason in empty)
    assert sum(outcome.is_complete for outcome in outcomes.values()) > len(failed) + len(empty)
    assert len(jobs.ran) == len(set(jobs.ran))  # none is tried twice by one command

    mended = FakeJobs()
    assert all(o.is_complete for _, o in complete(grid_of(study_config(tmp_path, "domain_shift"), mended)).values())
    assert len(mended.ran) == len(failed) + len(empty)


def test_a_rate_that_fails_is_passed_over(tmp_path: Path) -> None:
    jobs = FakeJobs(losses=lambda lr: -lr, fails=lambda config: config.optimizer.lr > 1e-3 and config.lora.rank == 4)
    grid = grid_of(study_config(tmp_path), jobs)
    complete(grid)
    assert grid.factor("best", 4) == 0.5
    assert grid.factor("best", 32) == 1.0


def test_what_fails_before_its_run_is_opened_has_a_reason_too(tmp_path: Path) -> None:
    config = study_config(tmp_path)
    cells = Cells(config.storage, {"train": lambda given: 1 / 0})
    cell = grid_of(config).adapter(4, 0, 1.0)
    assert cells.outcome(cell).reason == "not run yet"
    assert cells.run(cell).status == "failed"
    assert cells.outcome(cell).reason == "ZeroDivisionError: division by zero"


def test_a_stopped_cell_is_empty_and_goes_on(tmp_path: Path) -> None:
    config = study_config(tmp_path)
    cell = grid_of(config).adapter(4, 0, 1.0)
    Run.open(cell.config).end("cut", "stopped from outside (Ctrl-C or a signal)")
    cells = Cells(config.storage, FakeJobs().jobs)
    assert cells.outcome(cell).status == "empty"
    assert "stopped from outside" in cells.outcome(cell).reason
    assert cells.run(cell).is_complete


def test_r_lpips_is_asked_for_only_with_its_weights(tmp_path: Path) -> None:
    grid = grid_of(study_config(tmp_path))
    cell = grid.against_base("fixed", 4, "historical", 0)
    assert cell is not None
    assert "r_lpips" in GRID_METRICS
    assert cell.config.metrics == [m for m in GRID_METRICS if m != "r_lpips"]  # type: ignore[attr-defined]
    assert grid.unavailable([], "r_lpips") == "r_lpips_weights is not given"


def test_a_session_is_open_for_what_needs_a_cluster_and_closed_for_what_is_measured_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    jobs, opened = FakeJobs(), [0]
    at: dict[str, set[int]] = {}

    @contextmanager
    def session() -> Iterator[None]:
        opened[0] += 1
        yield
        opened[0] -= 100

    def noting(job: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
        def noted(config: Any) -> dict[str, Any]:
            at.setdefault(config.kind, set()).add(opened[0])
            return job(config)

        return noted

    noted = {kind: noting(job) for kind, job in jobs.jobs.items()}
    config = study_config(tmp_path, "domain_shift", ray={"address": "head:6379"})
    grid = Grid(config, Cells(config.storage, noted), INPUTS)
    done = complete(grid, None, session)
    assert at == {"train": {1}, "generate": {1}, "evaluate": {-99}}  # opened once, then closed
    addresses = {(cell.kind, cell.config.ray.address) for cell, _ in done.values()}
    assert addresses == {("train", "head:6379"), ("generate", "head:6379"), ("evaluate", None)}

    monkeypatch.setenv("RAY_ADDRESS", "head:6379")  # a submitted job
    config = study_config(tmp_path / "submitted", "domain_shift")
    at.clear()
    opened[0] = 0
    complete(Grid(config, Cells(config.storage, noted), INPUTS), None, session)
    assert at["evaluate"] == {1}


def test_parts_of_long_clips_are_cut_without_loss(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (13, 16, 16, 3), dtype=np.uint8)
    run = Storage.open(tmp_path)
    (tmp_path / "videos" / "base").mkdir(parents=True)
    write_video(tmp_path / "videos" / "base" / "w.mkv", frames, 16, "ffv1")
    for number in (0, 2):
        cut_parts(run, "base", number, 4)
        part = tmp_path.joinpath(*part_folder(number, 4, "base")) / "w.mkv"
        assert np.array_equal(read_video(part)[0], frames[4 * number : 4 * number + 4])
        before = part.stat().st_mtime_ns
        cut_parts(run, "base", number, 4)
        assert part.stat().st_mtime_ns == before
    with pytest.raises(DatasetError, match="has 13 frames: no part 3 of 4"):
        cut_parts(run, "base", 3, 4)


def test_a_long_clip_has_as_many_parts_as_segments_that_add_to_it(tmp_path: Path) -> None:
    parts = long_parts(grid_of(study_config(tmp_path)))
    assert {rank: len(cells) for rank, cells in parts.items()} == {4: 4, 32: 4}
    assert all(cell.before is not None for cells in parts.values() for cell in cells)
    assert len({cell.name for cells in parts.values() for cell in cells}) == 8
    assert long_parts(grid_of(study_config(tmp_path, generate={"split": "test"}))) == {}


@pytest.mark.parametrize(("segment_frames", "overlap"), [(33, 0), (33, 4), (17, 7), (81, 4)])
def test_a_part_of_a_long_clip_begins_where_a_segment_does(tmp_path: Path, segment_frames: int, overlap: int) -> None:
    expansion = {"segment_frames": segment_frames, "overlap": overlap}
    grid = grid_of(study_config(tmp_path, generate={"split": "test", "expansion": expansion}))
    parts = long_parts(grid)[4]
    generated = parts[0].needs[0].config
    assert isinstance(generated, GenerateConfig)
    segments = window_segments(generated, WAN21_I2V, LONG_FRAMES)
    places = [part.config.real.split("/")[-2] for part in parts]  # type: ignore[attr-defined]
    starts = [int(frames) * int(number) for frames, number in (place.split("-") for place in places)]
    assert starts == [segment.start for segment in segments][: len(starts)]
    adds = segments[1].start
    assert len(starts) == LONG_FRAMES // adds


def test_parts_of_segments_that_do_not_overlap_keep_their_names(tmp_path: Path) -> None:
    """As they were named before parts minded the overlap."""
    parts = long_parts(grid_of(study_config(tmp_path)))
    assert [cell.config.real.split("/")[-2] for cell in parts[4]] == ["32-0", "32-1", "32-2", "32-3"]  # type: ignore[attr-defined]
