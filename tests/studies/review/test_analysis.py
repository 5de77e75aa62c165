"""What a review's answers give, on answers whose figures can be counted by hand, and the commands."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from cinesynth.studies.review.__main__ import main
from cinesynth.studies.review.analysis import analyse, as_csv, read_rows
from cinesynth.studies.review.folder import ReviewFolder
from cinesynth.studies.review.intervals import wilson
from cinesynth.studies.review.make import make_review
from tests.report.loading import fetched
from tests.studies.review.small_review import answer, review_config


@pytest.fixture
def review(tmp_path: Path) -> ReviewFolder:
    return make_review(review_config(tmp_path, raters=10))


def test_wins_are_counted_for_the_arm_whatever_side_it_stood_on(review: ReviewFolder) -> None:
    for place, name in enumerate(("ann", "bob", "cid")):
        answer(review, place, name, "adapter" if place < 2 else "none")
    found = analyse(review.design, read_rows(review), 0.75)
    assert found.attentive is None
    assert {(p.question, p.arm, p.over, p.wins, p.ties, p.losses) for p in found.every.preferences} == {
        (q.name, "adapter", "base", 8, 4, 0) for q in review.design.questions
    }
    rate = found.every.preferences[0].rate
    assert (rate.value, rate.low, rate.high) == pytest.approx((10 / 12, *wilson(10, 12)))
    assert rate.too_narrow
    assert (found.every.raters, found.every.windows, found.every.items, found.every.answers) == (3, 4, 12, 48)
    assert [(f.answered, f.items, f.right, f.asked, f.failed) for f in found.raters] == [(6, 6, 6, 6, False)] * 3
    assert found.raters[0].median_seconds == 3.5


def test_eight_raters_give_an_interval_strengths_and_agreement(review: ReviewFolder) -> None:
    for place in range(10):
        answer(review, place, f"r{place}", "adapter" if place else "base")
    part = analyse(review.design, read_rows(review), 0.75).every
    preference, strength, agreement = part.preferences[0], part.strengths[0], part.agreement[0]
    assert (preference.wins, preference.losses, preference.rate.value) == (36, 4, 0.9)
    assert preference.rate.method == "jackknife over 10 raters"
    assert preference.rate.excludes(0.5)
    assert strength.strength.value == pytest.approx(2.1972, abs=1e-4)  # ln 9
    assert strength.strength.low is None
    assert "never preferred" in strength.strength.method, "without the one who disagrees there is no finite strength"
    # Of 40 x 9 ordered pairs of answers to one window 72 differ; by chance 2 x 36 x 4 / 39 of 40.
    assert agreement.nominal == pytest.approx(1 - (4 * 2 * 9 / 9) / (2 * 36 * 4 / 39))
    assert agreement.ordinal == pytest.approx(agreement.nominal), "two values are both"


def test_who_fails_the_checks_is_shown_with_and_left_out_without(review: ReviewFolder) -> None:
    answer(review, 0, "ann", "adapter")
    answer(review, 1, "bob", "base", wrong_checks=True)
    found = analyse(review.design, read_rows(review), 0.75)
    assert [facts.failed for facts in found.raters] == [False, True]
    assert found.attentive is not None
    assert (found.every.preferences[0].wins, found.every.preferences[0].losses) == (4, 4)
    assert (found.attentive.preferences[0].wins, found.attentive.preferences[0].losses) == (4, 0)
    assert found.shown.raters == 1
    assert analyse(review.design, read_rows(review), 0.001).attentive is None or found.raters[1].right == 0


def test_a_rater_who_stopped_counts_with_what_was_answered(review: ReviewFolder) -> None:
    design = review.design
    assert review.place_of("ann") == 0
    first = next(name for name in design.sequences[0] if not design.items[name].expected)
    review.put(0, first, {q.name: "B" for q in design.questions}, 2.0, 1, now=5.0)
    found = analyse(design, read_rows(review), 0.75)
    assert [(f.answered, f.asked, f.failed) for f in found.raters] == [(1, 0, None)]
    winner = design.arms_of(first)[1]
    assert found.every.preferences[0].wins == (winner == "adapter")


def test_three_arms_are_compared_in_all_pairs(tmp_path: Path) -> None:
    review = make_review(review_config(tmp_path, arms=3, raters=9, checks=0))
    for place in range(9):
        answer(review, place, f"r{place}", "joint" if place % 2 else "adapter")
    part = analyse(review.design, read_rows(review), 0.75).every
    pairs = {(p.arm, p.over): p for p in part.preferences if p.question == "style"}
    assert set(pairs) == {("adapter", "base"), ("joint", "base"), ("joint", "adapter")}
    assert sum(p.n for p in pairs.values()) == 9 * 4
    assert [s.arm for s in part.strengths if s.question == "style"] == ["adapter", "joint"]
    assert all(s.strength.value > 0 for s in part.strengths)


def test_scales_give_means_and_differences_to_the_baseline(tmp_path: Path) -> None:
    review = make_review(review_config(tmp_path, format="scales", raters=8, times=2, checks=0))
    for place in range(8):
        review.place_of(f"r{place}")
        for name in review.design.sequences[place]:
            score = {"base": 2, "adapter": 4 + (place == 0)}[review.design.arms_of(name)[0]]
            review.put(place, name, {q.name: str(score) for q in review.design.questions}, 1.0, 1, now=1.0)
    part = analyse(review.design, read_rows(review), 0.75).every
    base, adapter = part.ratings[:2]
    assert (base.arm, base.n, base.mean.value, base.difference) == ("base", 32, 2.0, None)
    assert adapter.mean.value == pytest.approx(4.125)
    assert adapter.difference is not None
    assert adapter.difference.value == pytest.approx(2.125)
    assert adapter.difference.excludes(0)
    assert adapter.difference.low == pytest.approx(2.125 - 2.364624 * 0.125, abs=1e-5), "Student's t of 7 degrees"
    assert not part.preferences
    assert not part.strengths


def test_the_table_has_a_line_an_answer_with_the_arms_and_no_name_of_a_key(review: ReviewFolder) -> None:
    answer(review, 0, "ann", "adapter")
    lines = list(csv.DictReader(io.StringIO(as_csv(read_rows(review)))))
    assert len(lines) == 6 * 4
    judged = [line for line in lines if line["check"] == "no"]
    assert {line["preferred"] for line in judged} == {"adapter"}
    assert all(line["answer"] == "AB"[[line["left"], line["right"]].index("adapter")] for line in judged)
    assert {line["as_expected"] for line in lines if line["check"] == "yes"} == {"yes", ""}
    assert {line["rater"] for line in lines} == {"rater 1"}
    assert lines[0]["answered_at"] == "1970-01-01T00:16:40+00:00"


def test_the_commands_design_analyse_and_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = review_config(tmp_path, title="Looks", raters=10)
    file = tmp_path / "review.yaml"
    file.write_text(json.dumps(config.model_dump(mode="json")))
    main(["design", "--config", str(file)])
    assert "4 windows of base, adapter" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["analyse", "--config", str(file)])
    assert ended.value.code == 2
    assert "has no answers yet" in capsys.readouterr().err
    review = ReviewFolder.open(config.storage, "looks")
    for place in range(10):
        answer(review, place, f"r{place}", "adapter", wrong_checks=place == 9)
    main(["export", "--config", str(file)])
    assert "240 answers in" in capsys.readouterr().out
    main(["analyse", "--config", str(file)])
    told = capsys.readouterr().out
    assert "9 raters, 36 items, 144 answers; 1 raters failed the checks" in told
    assert "style: adapter over base 100% [70%, 100%], 36 answers" in told
    page = review.folder.read_text("report.html")
    assert "Adapter is preferred over base in style (100 %), stability (100 %), motion (100 %) and artefacts" in page
    for part in ("Without the 1 rater who failed", "All raters", "Wilson, over 9 raters", "rater 10", "6 of 6"):
        assert part in page, part
    assert fetched(page) == []
    kept = review.folder.read_json("analysis.json")
    assert kept["attentive"]["preferences"][0]["rate"]["value"] == 1.0
    assert len(review.folder.read_text("answers.csv").splitlines()) == 241
