"""Points of a search: what is refused, what a point is called, and that Optuna's parameters and points are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest

from cinesynth.config import TuneConfig
from cinesynth.errors import ConfigError
from cinesynth.settings import parse_config
from tune.records import COMPLETE, CUT, FAILED, Record, Records
from tune.search import StudySearch
from tune.space import (
    Point,
    Trial,
    distributions,
    every_point,
    first_trials,
    make_sampler,
    params_of,
    point_of,
    training_of,
    wanted_points,
)

VALUES: dict[str, Any] = {
    "name": "study",
    "dataset": "d",
    "train": {"lora": {"rank": 8, "alpha": 16}, "optimizer": {"lr": 3e-5}},
    "space": {"rank": [4, 64], "alpha_over_rank": [0.5, 4], "lr": [1e-5, 3e-4]},
    "budget": {"trials": 4},
}


def config(storage: Path | str = "/s", **changes: Any) -> TuneConfig:
    return parse_config(TuneConfig, {**VALUES, "storage": str(storage), **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {"lr": [3e-4, 1e-5]}}, "lr goes from 0.0003 to 1e-05; give the lower end first"),
        ({"space": {"rank": [4, 48]}}, "rank holds 48, which is no power of two"),
        ({"space": {"rank": [8, 8], "lr": None, "alpha_over_rank": None}}, "the space is one point"),
        ({"space": {"alpha": [1, 2], "alpha_over_rank": [1, 2]}}, "either alpha or alpha_over_rank"),
        ({"objectives": ["kvd", "kvd"]}, "holds 'kvd' twice"),
        ({"objectives": ["kvd", "kdv"]}, "is not a metric"),
        ({"objectives": ["kvd", "fid"]}, "objectives holds 'fid'; known are fvd"),
        ({"objectives": ["fvd", "r_lpips"]}, "set r_lpips_weights to the file .*or search by lpips"),
        ({"train": {"mode": "full"}}, "set it to lora"),
        (
            {"asha": {"grace": 100}, "train": {"optimizer": {"steps": 200}, "checkpoint_every": 150}},
            "the held-out loss that follows it is that of step 250, known with the checkpoint of step 300",
        ),
        (
            {"asha": {"grace": 100}, "train": {"optimizer": {"steps": 100}}},
            "but training ends at step 100; lower asha.grace",
        ),
        ({"space": {"steps": [10, 20]}}, r"space\.steps"),
    ],
)
def test_what_cannot_be_searched_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**changes)


def test_a_baseline_outside_its_space_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"space\.rank: the baseline \(train\) has 8, which is not within \(16, 64\)"):
        first_trials(config(space={"rank": [16, 64]}))
    with pytest.raises(ConfigError, match=r"space\.lr: points\.0 has 1\.0, which is not within"):
        first_trials(config(points=[{"lr": 1.0}]))
    with pytest.raises(ConfigError, match=r"space\.shift: points\.0 has 9\.0, but nothing searches it"):
        first_trials(config(points=[{"shift": 9.0}]))


def test_points_and_parameters_are_the_same_and_name_runs() -> None:
    given = config(points=[{"rank": 32, "alpha": 64, "lr": 1e-4}])
    baseline = Point.of(given.train)
    fixed, points = first_trials(given)
    assert [trial.seed for trial in fixed] == [0, 1, 2]
    for point in (baseline, *points):
        assert point_of(params_of(point, given.space, baseline, "it"), given.space, baseline) == point
        assert Point.from_json(point.to_json()) == point
    study = optuna.create_study(directions=["minimize"] * 2, sampler=make_sampler(given, 0))
    drawn = [point_of(study.ask(distributions(given.space)).params, given.space, baseline) for _ in range(50)]
    assert {point.rank for point in drawn} == {4, 8, 16, 32, 64}
    for point in drawn:
        params = params_of(point, given.space, baseline, "it")
        assert Trial(point_of(params, given.space, baseline), 0).name("s") == Trial(point, 0).name("s")
    odd = config(space={"lr": [1.00004e-5, 2.00006e-4], "rank": None, "alpha_over_rank": None})
    for lr in (1.00004e-5, 2.00006e-4):  # rounding carries both past their ends
        params = params_of(point_of({"lr": lr}, odd.space, baseline), odd.space, baseline, "it")
        assert distributions(odd.space)["lr"]._contains(params["lr"])
    run = training_of(given, Trial(points[0], 5))
    assert (run.name, run.lora.rank, run.lora.alpha, run.optimizer.lr, run.seed) == (
        Trial(points[0], 5).name("study"), 32, 64.0, 1e-4, 5,
    )  # fmt: skip
    assert run.name != Trial(points[0], 6).name("study")


def test_a_grid_holds_the_ends_of_each_span_and_every_rank() -> None:
    given = config(method="grid", space={"rank": [4, 16], "alpha_over_rank": [0.5, 2], "lr": [1e-5, 1e-3]})
    points = every_point(given)
    assert points is not None
    assert len(points) == len(set(points)) == 3 * 3 * 3
    assert {p.rank for p in points} == {4, 8, 16}
    assert {p.alpha / p.rank for p in points} == {0.5, 1.0, 2.0}
    assert {p.lr for p in points} == {1e-5, 1e-4, 1e-3}
    assert points != sorted(points, key=lambda p: (p.rank, p.alpha, p.lr))  # a part of it is spread over the space
    assert wanted_points(given) == 4
    assert wanted_points(config(method="grid", budget={"trials": 99})) == 5 * 3 * 3 + 1  # lr 3e-5 is not on the grid
    assert every_point(config()) is None
    assert wanted_points(config(space={"lr": None, "alpha_over_rank": None}, budget={"trials": 99})) == 5


def searched(storage: Path, study: optuna.Study, **changes: Any) -> tuple[StudySearch, Records]:
    given = config(storage, **changes)
    from cinesynth.runs import Run

    records = Records(Run.at(given).folder)
    return StudySearch(given, study, records), records


def trial_of(suggested: Any) -> Trial:
    return Trial(Point.from_json(suggested["point"]), suggested["seed"])


def end(search: StudySearch, records: Records, tune_id: str, suggested: Any, x: float = 1.0) -> None:
    trial = trial_of(suggested)
    records.write(Record(trial.name("study"), trial, COMPLETE, {"kvd": x, "lpips": 1 / x}, ended=x))
    search.on_trial_complete(tune_id, {"kvd": x})


def new_study(storage: Any = None) -> optuna.Study:
    return optuna.create_study(directions=["minimize"] * 2, storage=storage, study_name="s", load_if_exists=True)


def test_the_baseline_comes_first_with_its_seeds_then_points_then_drawn_ones(tmp_path: Path) -> None:
    search, records = searched(tmp_path, new_study(), points=[{"rank": 64, "alpha": 64}])
    given = [search.suggest(str(i)) for i in range(6)]
    assert search.suggest("beyond") is None  # not before it is known that none of them is lost
    trials = [trial_of(value) for value in given]
    assert [t.seed for t in trials] == [0, 1, 2, 0, 0, 0]
    assert [t.point.rank for t in trials[:4]] == [8, 8, 8, 64]
    for i, value in enumerate(given):
        end(search, records, str(i), value, x=1.0 + i)
    assert search.suggest("beyond") == "FINISHED"
    assert [t.state.name for t in search.study.trials] == ["COMPLETE"] * 4


def test_a_killed_study_repeats_nothing_and_loses_nothing(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/optuna.db"
    search, records = searched(tmp_path, new_study(storage))
    given = [search.suggest(str(i)) for i in range(5)]
    end(search, records, "0", given[0])
    done = trial_of(given[3])  # it ended, but the driver was killed before it could tell Optuna
    records.write(Record(done.name("study"), done, COMPLETE, {"kvd": 2.0, "lpips": 0.5}, ended=2.0))
    again, records = searched(tmp_path, new_study(storage))
    left = []
    while (value := again.suggest(str(len(left)))) is not None:
        left.append(value)
    names = [trial_of(value).name("study") for value in left]
    before = [trial_of(value).name("study") for value in given]
    assert before[4] in names  # it was running
    assert set(before[1:3]) <= set(names)  # seeds of the baseline that had not ended
    assert not {before[0], before[3]} & set(names)
    for i, value in enumerate(left):
        end(again, records, str(i), value, x=3.0 + i)
    states = [t.state.name for t in again.study.trials]
    assert states == ["COMPLETE"] * 4
    assert [t.params for t in again.study.trials].count(again.study.trials[0].params) == 1
    more, _ = searched(tmp_path, new_study(storage), budget={"trials": 5})
    extra = more.suggest("x")
    assert trial_of(extra).name("study") not in {*names, *before}
    assert more.suggest("y") is None
    end(more, records, "x", extra)
    assert more.suggest("y") == "FINISHED"


EXACT = {"train": {"lora": {"rank": 8, "alpha": 16}, "optimizer": {"lr": 3.16234e-5}}, "points": [{"lr": 1.23456e-4}]}
"""A baseline and a point of more digits than those that drawn numbers have."""


def test_a_given_point_is_trained_with_all_its_digits(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/optuna.db"
    search, records = searched(tmp_path, new_study(storage), **EXACT)
    given = [search.suggest(str(i)) for i in range(4)]
    trials = [trial_of(value) for value in given]
    assert [trial.point for trial in trials[:3]] == [Point.of(search.config.train)] * 3
    assert trials[3].point.lr == 1.23456e-4
    assert search.study.trials[0].user_attrs["run"] == trials[0].name("study")
    end(search, records, "0", given[0])
    again, _ = searched(tmp_path, new_study(storage), **EXACT)
    left = [trial_of(again.suggest(str(i))) for i in range(3)]
    assert left[0] == trials[3]  # it was running
    assert trials[0] not in left


def test_a_number_like_a_given_one_is_the_given_one() -> None:
    fixed = {"rank": [4, 64], "alpha_over_rank": None, "lr": [3.16234e-5, 3.16234e-5]}
    given = config(space=fixed, budget={"trials": 99}, **{**EXACT, "points": []})
    assert wanted_points(given) == 5
    assert Point.of(given.train) in (every_point(given) or [])
    middle = {"rank": None, "alpha_over_rank": None, "lr": [1e-5, 1e-4]}  # its middle is 3.16228e-05
    given = config(space=middle, method="grid", budget={"trials": 99}, **{**EXACT, "points": []})
    assert {point.lr for point in every_point(given) or []} == {1e-5, 3.16234e-5, 1e-4}
    assert wanted_points(given) == 3


def test_a_study_that_trained_given_points_rounded_trains_only_its_baseline_anew(tmp_path: Path) -> None:
    study = new_study()
    exact = config(tmp_path, **EXACT)
    baseline, (point,) = Point.of(exact.train), first_trials(exact)[1]
    from cinesynth.runs import Run

    records = Records(Run.at(exact).folder)
    lrs = [(baseline.lr, 3.162e-5), (point.lr, 1.235e-4), (2e-5, 2e-5), (4e-5, 4e-5)]
    for i, (given, rounded) in enumerate(lrs):
        trial = Trial(Point(**{**vars(baseline), "lr": rounded}), 0)
        params = params_of(Point(**{**vars(baseline), "lr": given}), exact.space, baseline, "it")
        record = Record(trial.name("study"), trial, COMPLETE, {"kvd": 1.0 + i, "lpips": 0.1}, ended=float(i))
        records.write(record)
        study.add_trial(
            optuna.trial.create_trial(
                values=[1.0 + i, 0.1],
                params=params,
                distributions=distributions(exact.space),
                user_attrs={"run": record.name},
            )
        )
    search, records = searched(tmp_path, study, **EXACT, baseline_seeds=1)
    assert len(study.trials) == 4
    value = search.suggest("0")
    assert trial_of(value).point == baseline
    end(search, records, "0", value)
    assert search.suggest("1") == "FINISHED"  # the budget is spent, and the given point was tried
    searched(tmp_path, study, **EXACT, baseline_seeds=1)
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 5


def test_failed_trials_are_told_as_failed_and_stay_out(tmp_path: Path) -> None:
    search, records = searched(tmp_path, new_study(), budget={"trials": 3}, baseline_seeds=1)
    given = [search.suggest(str(i)) for i in range(3)]
    search.on_trial_complete("0", {"status": FAILED, "reason": "loss nan"})
    broken = trial_of(given[1])
    records.write(Record(broken.name("study"), broken, COMPLETE, {"kvd": float("nan"), "lpips": 1.0}))
    search.on_trial_complete("1", {"kvd": float("nan")})
    end(search, records, "2", given[2])
    assert [t.state.name for t in search.study.trials] == ["FAIL", "FAIL", "COMPLETE"]
    failed = records.read()[trial_of(given[0]).name("study")]
    assert (failed.status, failed.facts["reason"]) == (FAILED, "loss nan")


def test_a_lost_process_costs_its_trial_nothing_unless_it_is_lost_again_and_again(tmp_path: Path) -> None:
    search, records = searched(tmp_path, new_study(), budget={"trials": 2}, baseline_seeds=2)
    first, seed, drawn = (search.suggest(str(i)) for i in range(3))
    name = trial_of(drawn).name("study")
    step = tmp_path / "runs" / name / "checkpoints" / "step-00000001.json"
    step.parent.mkdir(parents=True)
    for lost, checkpoint in [("0", None), ("1", None), ("2", None), ("a2", None), ("b2", step), ("c2", None)]:
        if checkpoint is not None:
            checkpoint.write_text("{}")
        search.on_trial_complete(lost, None, error=True)
        wanted = {"0": first, "1": seed}.get(lost, drawn)
        again = {"0": "a0", "1": "a1", "2": "a2", "a2": "b2", "b2": "c2", "c2": "d2"}[lost]
        assert trial_of(search.suggest(again)) == trial_of(wanted)
    assert not records.read()
    assert [t.state.name for t in search.study.trials] == ["RUNNING"] * 2
    search.on_trial_complete("d2", None, error=True)  # the third without a newer checkpoint
    search.suggest("e2")
    search.on_trial_complete("e2", None, error=True)
    assert "lost 4 times without progress" in records.read()[name].facts["reason"]
    end(search, records, "a0", first)
    assert search.suggest("beyond") is None
    end(search, records, "a1", seed)
    assert search.suggest("beyond") == "FINISHED"
    assert [t.state.name for t in search.study.trials] == ["COMPLETE", "FAIL"]


def test_a_lost_storage_is_filled_from_the_records(tmp_path: Path) -> None:
    search, records = searched(tmp_path, new_study())
    for i in range(4):
        end(search, records, str(i), search.suggest(str(i)), x=1.0 + i)
    again, _ = searched(tmp_path, new_study())
    finished = [t for t in again.study.trials if t.state.name == "COMPLETE"]
    assert len(finished) == 2  # of the study's own seed; the baseline's other seeds are no points
    assert trial_of(again.suggest("a")).name("study") not in records.read()


@pytest.mark.parametrize("method", ["grid", "tpe", "random"])
def test_a_space_that_is_tried_to_the_end_ends_the_search(tmp_path: Path, method: str) -> None:
    space = {"rank": [4, 32], "lr": None, "alpha_over_rank": None}
    changes: dict[str, Any] = {"method": method, "space": space, "budget": {"trials": 50}, "baseline_seeds": 1}
    search, records = searched(tmp_path, new_study(), **changes)
    names = []
    running = []
    while isinstance(value := search.suggest(str(len(names))), dict):
        names.append(trial_of(value).name("study"))
        if len(names) % 2:
            end(search, records, str(len(names) - 1), value, x=1.0 + len(names))
        else:
            running.append((str(len(names) - 1), value))
    assert running
    for tune_id, suggested in running:
        end(search, records, tune_id, suggested)
    assert search.suggest("beyond") == "FINISHED"
    assert len(names) == len(set(names)) == 4
    assert trial_of({"point": Point.of(search.config.train).to_json(), "seed": 0}).name("study") == names[0]


def test_a_trial_that_was_cut_is_told_as_pruned(tmp_path: Path) -> None:
    search, records = searched(tmp_path, new_study(), baseline_seeds=1)
    first, second = search.suggest("0"), search.suggest("1")
    end(search, records, "0", first)
    cut = trial_of(second)
    records.write(Record(cut.name("study"), cut, CUT, facts={"reason": "held-out loss"}, ended=2.0))
    search.on_trial_complete("1", {"status": CUT})
    assert [t.state.name for t in search.study.trials] == ["COMPLETE", "PRUNED"]
    assert trial_of(search.suggest("2")) not in (cut, trial_of(first))


def test_what_the_time_did_not_allow_is_tried_first_the_next_time(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/optuna.db"
    search, records = searched(tmp_path, new_study(storage), baseline_seeds=1)
    end(search, records, "0", search.suggest("0"))
    running = trial_of(search.suggest("1"))
    late, _ = searched(tmp_path, new_study(storage), baseline_seeds=1, budget={"trials": 4, "hours": 1e-9})
    assert late.suggest("x") == "FINISHED"
    late.close()
    assert "RUNNING" not in [t.state.name for t in late.study.trials]
    again, _ = searched(tmp_path, new_study(storage), baseline_seeds=1)
    assert trial_of(again.suggest("y")) == running


def test_an_earlier_study_is_known_to_the_sampler_and_counts_no_trial(tmp_path: Path) -> None:
    baseline = Point.of(config().train)
    inside = [Trial(Point(**{**vars(baseline), "lr": lr}), 0) for lr in (1e-5, 1e-4)]
    outside = Trial(Point(**{**vars(baseline), "rank": 256, "alpha": 256.0}), 0)
    earlier = {
        t.name("old"): Record(t.name("old"), t, COMPLETE, {"kvd": 1.0 + i, "lpips": 0.1}, ended=float(i))
        for i, t in enumerate([*inside, outside])
    }
    study = new_study()
    from cinesynth.runs import Run

    records = Records(Run.at(config(tmp_path)).folder)
    for _ in range(2):  # taken over once
        search = StudySearch(config(tmp_path), study, records, earlier={"old": earlier})
        assert [t.user_attrs.get("study") for t in study.trials] == ["old", "old"]
    given = []
    while (value := search.suggest(str(len(given)))) != "FINISHED":
        given.append(trial_of(value))
        end(search, records, str(len(given) - 1), value)
    assert len(given) == 4 + 2
    assert given[0].point == baseline
