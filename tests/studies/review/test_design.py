"""A review's design and folder: who sees what, what tells nothing, and what stands when the command is given again."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from cinesynth.data.video import read_metadata, read_video
from cinesynth.errors import ConfigError, DatasetError, IdentityError, MediaError, StorageError
from cinesynth.settings import parse_config
from cinesynth.studies.review.config import ReviewConfig
from cinesynth.studies.review.design import Design, Window, make_design
from cinesynth.studies.review.folder import ReviewFolder
from cinesynth.studies.review.make import choose_windows, damaged, make_review
from tests.studies.review.small_review import review_config, write_arm

SALT = "5a" * 16


def designed(windows: int = 6, **values: Any) -> Design:
    """The design of windows w0, w1 and so on, two to a group."""
    values = {"name": "looks", "arms": {"base": "b", "adapter": "a", "joint": "j"}, "raters": 12, **values}
    config = parse_config(ReviewConfig, values)
    return make_design(config, [Window(id=f"w{n}", group=f"g{n // 2}") for n in range(windows)], SALT, "1.0", {})


def test_each_rater_sees_each_window_and_the_checks_in_blind_pairs() -> None:
    design = designed(checks=4)
    for sequence in design.sequences:
        assert len(set(sequence)) == len(sequence) == 6 + 4
        judged = [name for name in sequence if not design.items[name].expected]
        assert sorted(design.window_of(name).id for name in judged) == [f"w{n}" for n in range(6)]
        assert all(len(set(design.arms_of(name))) == 2 for name in judged)
        assert not design.items[sequence[0]].expected, "a check is never the first"
    left = Counter(design.arms_of(name)[0] for s in design.sequences for name in s if not design.items[name].expected)
    right = Counter(design.arms_of(name)[1] for s in design.sequences for name in s if not design.items[name].expected)
    assert left == right, "each arm stands left as often as right"
    neighbours = [
        (a, b) for s in design.sequences for a, b in pairwise(s) if design.window_of(a) == design.window_of(b)
    ]
    assert neighbours == [], "a check is apart from its window"


def test_checks_show_a_video_beside_itself_or_damaged_and_expect_what_anybody_sees() -> None:
    design = designed(checks=4)
    checks = {name: item for name, item in design.items.items() if item.expected}
    kinds = {"again": 0, "damaged": 0}
    for name, item in checks.items():
        variants = [design.clips[video].variant for video in item.videos]
        assert len(set(item.videos)) == 2, "not even the names tell"
        assert len(set(design.arms_of(name))) == 1
        if "again" in variants:
            kinds["again"] += 1
            assert item.expected == {q.name: ("tie",) for q in design.questions}
        else:
            kinds["damaged"] += 1
            assert item.expected == dict.fromkeys(("stability", "artefacts"), ("AB"[variants.index("whole")],))
    assert kinds == {"again": 4, "damaged": 4}, "each on both sides"
    for sequence in design.sequences:
        assert sum(bool(design.items[name].expected) for name in sequence) == 4
    sides = Counter(
        design.items[name].expected["artefacts"] for s in design.sequences for name in s if design.items[name].expected
    )
    assert sides[("A",)] == sides[("B",)]


def test_scales_show_one_video_and_each_arm_of_each_window_as_often() -> None:
    design = designed(format="scales", checks=2, arms={"base": "b", "adapter": "a"})
    shown = [name for s in design.sequences for name in s]
    assert all(len(design.items[name].videos) == 1 for name in shown)
    judged = Counter((design.window_of(n).id, design.arms_of(n)) for n in shown if not design.items[n].expected)
    assert set(judged.values()) == {6}
    expected = [design.items[name].expected for name in shown if design.items[name].expected]
    assert expected == [{"stability": ("1", "2"), "artefacts": ("1", "2")}] * 24


def test_names_are_opaque_and_the_same_seed_and_salt_give_the_same_design() -> None:
    design = designed()
    assert design == designed()
    assert design.sequences != designed(seed=1).sequences
    config = parse_config(ReviewConfig, {"name": "looks", "arms": {"base": "b", "adapter": "a", "joint": "j"}})
    other = make_design(config, list(design.windows.values()), "00" * 16, "1.0", {})
    assert not design.clips.keys() & other.clips.keys(), "who knows the seed still cannot name a video"
    assert all(len(name) == 32 and set(name) <= set("0123456789abcdef") for name in [*design.clips, *design.items])
    assert Design.model_validate_json(design.model_dump_json()) == design


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"arms": {"base": "b"}}, "two arms"),
        ({"times": 4}, "exceeds the 3 pairs of arms"),
        ({"real": "r", "arms": {"real": "r", "base": "b"}}, "keep one"),
        ({"questions": [{"name": "a", "text": "A"}] * 2, "checks": 0}, "two have one name"),
        ({"questions": [{"name": "a", "text": "A"}]}, "check: true"),
        ({"checks": 7}, "exceeds the 6 windows"),
        ({"arm": {}}, "did you mean 'arms'"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        designed(**values)


def test_the_folder_holds_videos_that_browsers_play_and_that_tell_nothing(tmp_path: Path) -> None:
    review = make_review(review_config(tmp_path, checks=2))
    videos = sorted((Path(review.folder.path) / "videos").iterdir())
    assert {path.stem for path in videos} == set(review.design.clips)
    for path in videos:
        with av.open(str(path)) as container:
            (stream,) = container.streams
            assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
            assert stream.average_rate == 16
        assert read_metadata(path) == {}, "what a generation notes in its videos is left behind"
        assert path.stat().st_mtime == 0
    of = {(clip.source, clip.window, clip.variant): name for name, clip in review.design.clips.items()}
    frames, _ = read_video(review.folder.path + f"/videos/{of['adapter', 'w1', 'shown']}.mp4")
    source, _ = read_video(tmp_path / "adapter" / "w1.mkv")
    assert frames.shape == source.shape
    assert np.abs(frames.astype(int) - source).mean() < 6, "it is that window of that arm"


def test_the_same_command_opens_what_is_there_and_another_design_or_other_videos_are_refused(tmp_path: Path) -> None:
    config = review_config(tmp_path)
    made = make_review(config)
    before = (Path(made.folder.path) / "design.json").read_bytes()
    again = make_review(config.model_copy(update={"pass_share": 0.5}))
    assert again.design == made.design == ReviewFolder.open(config.storage, "looks").design
    with pytest.raises(IdentityError, match=r"identity\.seed: recorded 0, given 1"):
        make_review(config.model_copy(update={"seed": 1}))
    write_arm(tmp_path / "adapter", 4, brightness=90)
    with pytest.raises(IdentityError, match=r"inputs\.adapter: its videos have changed"):
        make_review(config)
    assert (Path(made.folder.path) / "design.json").read_bytes() == before
    with pytest.raises(StorageError, match="there are: looks"):
        ReviewFolder.open(config.storage, "look")


def test_a_review_that_exists_keeps_the_order_that_it_began_with(tmp_path: Path) -> None:
    config = review_config(tmp_path)
    file = Path(make_review(config).folder.path) / "design.json"
    recorded = json.loads(file.read_text())
    recorded["sequences"] = [sequence[::-1] for sequence in recorded["sequences"]]  # as another version ordered them
    file.write_text(json.dumps(recorded))
    assert make_review(config).design.sequences == tuple(map(tuple, recorded["sequences"]))


def test_what_a_stopped_command_left_is_removed(tmp_path: Path) -> None:
    config = review_config(tmp_path)
    leftover = Path(config.storage) / "reviews" / "looks" / "videos" / f"{'0' * 32}.mp4"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"half")
    review = make_review(config)
    assert not leftover.exists()
    assert len(review.folder.list("videos")) == len(review.design.clips)


def test_windows_are_those_that_all_arms_have_one_of_each_group_first(tmp_path: Path) -> None:
    config = review_config(tmp_path, windows=6)
    files = {"base": {f"w{n}": Path() for n in range(6)}, "adapter": {f"w{n}": Path() for n in range(5)}}
    table = tmp_path / "groups.csv"
    table.write_text("video,group,caption\n" + "".join(f"w{n},g{n % 2},shot {n}\n" for n in range(6)))
    config = config.model_copy(update={"groups": str(table), "windows": 2})
    chosen = choose_windows(config, files)
    assert len(chosen) == 2
    assert {window.group for window in chosen} == {"g0", "g1"}
    assert all(window.caption == f"shot {window.id[1]}" for window in chosen)
    everything = choose_windows(config.model_copy(update={"windows": None}), files)
    assert [window.id for window in everything] == [f"w{n}" for n in range(5)]
    table.write_text("video,group\nw0,g\n")
    with pytest.raises(ConfigError, match="no group is given for w1"):
        choose_windows(config, files)
    with pytest.raises(DatasetError, match="1 videos have one name"):
        choose_windows(config.model_copy(update={"groups": None}), {"base": {"a": Path()}, "adapter": {"a": Path()}})


def test_videos_that_would_be_known_by_their_length_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    config = review_config(tmp_path)
    write_arm(tmp_path / "adapter", 4, frames=5)
    with pytest.raises(MediaError, match=r"adapter/w0.mkv \(64x48, 5 frames, 16 fps\) differs"):
        make_review(config)
    assert not Path(config.storage).exists()


def test_a_damaged_video_is_far_from_its_own_and_the_same_for_the_same_seed() -> None:
    y, x = np.mgrid[0:48, 0:64]
    frames = np.repeat(np.stack([x * 3, y * 4, x + y], -1).astype(np.uint8)[None], 6, axis=0)
    found = damaged(frames, 3)
    assert (found.shape, found.dtype) == (frames.shape, np.uint8)
    assert np.abs(found.astype(int) - frames).mean() > 20
    assert len(np.unique(found[0].reshape(-1, 3), axis=0)) <= 8 * 6, "blocks"
    assert np.array_equal(found, damaged(frames, 3))


def test_a_rater_keeps_one_place_and_the_last_one_of_too_many_gets_none(tmp_path: Path) -> None:
    review = make_review(review_config(tmp_path, raters=2))
    assert [review.place_of(name) for name in ("ann", "bob", "ann", "cid", "bob")] == [0, 1, 0, None, 1]
    assert review.raters() == {0: "ann", 1: "bob"}


def test_an_answer_is_kept_once_and_a_changed_one_replaces_it(tmp_path: Path) -> None:
    review = make_review(review_config(tmp_path))
    item = review.design.sequences[0][0]
    answers = {q.name: "A" for q in review.design.questions}
    first = review.put(0, item, answers, 4.0, 1, now=10.0)
    assert review.put(0, item, answers, 9.0, 5, now=20.0) == first, "sent twice, it stands as it was"
    changed = review.put(0, item, {**answers, "style": "tie"}, 6.0, 2, now=30.0)
    assert (changed.first_at, changed.answered_at, changed.changes) == (10.0, 30.0, 1)
    assert review.answers(0) == {item: changed}
    assert review.answers(1) == {}
    (file,) = (Path(review.folder.path) / "answers" / "0000").iterdir()
    assert json.loads(file.read_text())["answers"]["style"] == "tie"
