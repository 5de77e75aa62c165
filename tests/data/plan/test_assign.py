"""Filters, near-duplicates, groups and splits: what is assigned stays, and nothing leaks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cinesynth.data.config import DuplicateSettings, PrepareResources, PrepareSettings, Range, SplitSettings, fitted
from cinesynth.data.dataset import read_table, write_table
from cinesynth.data.plan.assign import Assigned, assign, assign_split, filter_windows
from cinesynth.data.plan.duplicates import BANDS, MAX_SAMPLES, VALUES, Pictures, clusters, near_duplicates
from cinesynth.data.plan.planning import settle_windows
from cinesynth.data.records import Window, read_plan, write_plan
from cinesynth.data.scan.scan import FrameScores
from cinesynth.data.scan.scores import grey, perceptual_hash, tints
from cinesynth.scripted.photographs import TRAINED_ON
from cinesynth.scripted.rendering import render_shot
from cinesynth.scripted.screenplay import draw_screenplay
from cinesynth.scripted.series import scripted_clip
from cinesynth.storage import Storage
from tests.data.preparing import prepare_config


def window(shot: str, group: str = "", domain: str = "film", **scores: float) -> Window:
    return Window(
        window_id=f"id-{shot}",
        source_uri=f"/{shot}.mp4",
        source_sha256=shot * 8,
        shot_id=shot,
        group=group or f"group-{shot}",
        start_s=0.0,
        end_s=1.0,
        fps=16,
        num_frames=17,
        height=32,
        width=48,
        bucket="48x32x17",
        caption="",
        domain=domain,
        split="",
        scores=scores,
        location=f"/{shot}.mp4",
        stamp=(0, 0),
        frame_pts=(0, 1),
        box=(0.0, 0.0, 48.0, 32.0),
    )


def settings(**values: Any) -> PrepareSettings:
    return PrepareSettings.model_validate({"footage": [{"path": "x"}], "split": {"val": 0.2, "test": 0.3}, **values})


WINDOWS = [window(f"s{i:02d}") for i in range(40)]


def test_scores_outside_their_range_are_left_out_and_missing_ones_are_not() -> None:
    windows = [window("a", motion=0.001), window("b", motion=0.1), window("c", motion=5.0), window("d")]
    kept, rejects = filter_windows(windows, {"motion": Range(min=0.01, max=1.0), "text": Range(max=0.1)})
    assert [w.shot_id for w in kept] == ["b", "d"]
    assert [(r.reason, r.detail, r.window_id) for r in rejects] == [
        ("filter_motion", "window at 0.00-1.00 s: motion 0.001 is below 0.01", "id-a"),
        ("filter_motion", "window at 0.00-1.00 s: motion 5 is above 1", "id-c"),
    ]


def test_splits_are_by_group_and_what_was_assigned_never_moves() -> None:
    first, _ = assign(WINDOWS[:30], [], settings(), {})
    before = {w.shot_id: Assigned(w.group, w.split) for w in first}
    assert {w.split for w in first} == {"train", "val", "test"}
    later, _ = assign(WINDOWS, [], settings(), before)
    assert {w.shot_id: w.split for w in later if w.shot_id in before} == {s: a.split for s, a in before.items()}
    whole, _ = assign(WINDOWS, [], settings(), {})
    assert [w.split for w in later] == [w.split for w in whole], "hashes do not depend on the order of arrival"
    # Even against its hash: what an earlier plan said counts.
    moved = {s: Assigned("kept together", "test") for s in before}
    assert {(w.group, w.split) for w in assign(WINDOWS[:30], [], settings(), moved)[0]} == {("kept together", "test")}


def test_a_domain_with_fewer_than_three_groups_is_trained_on_whole() -> None:
    few = [window(f"f{i}", group=f"g{i % 2}", domain="few") for i in range(6)]
    assigned, _ = assign([*WINDOWS, *few], [], settings(split={"val": 0.4, "test": 0.5}), {})
    assert {w.split for w in assigned if w.domain == "few"} == {"train"}
    assert {w.split for w in assigned if w.domain == "film"} == {"train", "val", "test"}


def test_near_duplicates_share_a_group() -> None:
    alike = [("s00", "s07"), ("s07", "s11"), ("s20", "s21")]
    linked, rejects = assign(WINDOWS, alike, settings(), {})
    group = {w.shot_id: w.group for w in linked}
    assert group["s00"] == group["s07"] == group["s11"] == "group-s00"
    assert group["s20"] == group["s21"]
    assert len(set(group.values())) == 40 - 3
    assert not rejects
    split = {w.shot_id: w.split for w in linked}
    assert split["s00"] == split["s07"] == split["s11"]
    apart, _ = assign(WINDOWS, alike, settings(duplicates={"action": "keep"}), {})
    assert len({w.group for w in apart}) == 40


def test_dropping_keeps_one_shot_of_each_cluster_and_rather_one_that_is_there() -> None:
    alike = [("s00", "s07"), ("s07", "s11")]
    kept, rejects = assign(WINDOWS, alike, settings(duplicates={"action": "drop"}), {})
    assert {w.shot_id for w in WINDOWS} - {w.shot_id for w in kept} == {"s07", "s11"}
    assert [(r.reason, r.window_id) for r in rejects] == [("near_duplicate", "id-s07"), ("near_duplicate", "id-s11")]
    later, _ = assign(WINDOWS, alike, settings(duplicates={"action": "drop"}), {"s11": Assigned("group-s11", "test")})
    assert {w.shot_id for w in WINDOWS} - {w.shot_id for w in later} == {"s00", "s07"}


def test_a_new_shot_joins_the_group_that_it_resembles_and_is_left_out_between_two_splits() -> None:
    before = {"s00": Assigned("group-s00", "train"), "s01": Assigned("group-s01", "test")}
    joined, _ = assign(WINDOWS[:3], [("s01", "s02")], settings(), before)
    assert (joined[2].group, joined[2].split) == ("group-s01", "test")
    divided, rejects = assign(WINDOWS[:3], [("s00", "s02"), ("s01", "s02")], settings(), before)
    assert [w.shot_id for w in divided] == ["s00", "s01"]
    assert {w.shot_id: w.split for w in divided} == {"s00": "train", "s01": "test"}
    assert (rejects[0].reason, rejects[0].window_id) == ("divided_duplicate", "id-s02")
    assert "in test and in train" in rejects[0].detail


def test_splits_are_near_their_shares_and_never_drawn_anew() -> None:
    shares = SplitSettings(val=0.1, test=0.2, salt="s")
    groups = [f"group-{i}" for i in range(4000)]
    splits = [assign_split(group, "film", shares) for group in groups]
    # Binomial: three standard deviations of 4000 draws.
    assert splits.count("test") / 4000 == pytest.approx(0.2, abs=0.019)
    assert splits.count("val") / 4000 == pytest.approx(0.1, abs=0.0143)
    more = SplitSettings(val=0.1, test=0.4, salt="s")
    assert all(assign_split(g, "film", more) == "test" for g, s in zip(groups, splits, strict=True) if s == "test")
    assert splits != [assign_split(group, "street", shares) for group in groups]
    # Golden values: datasets that exist must not be divided anew by a later version.
    golden = ["train", "val", "train", "train", "train", "val", "train", "test", "test", "train", "train", "train"]
    assert [assign_split(f"group-{i}", "film", shares) for i in range(12)] == golden


def test_what_is_said_of_new_footage_holds_for_footage_that_is_there_too() -> None:
    """A group that is given later, a file that was linked into another's group, and footage that is listed no more."""
    before = {"s00": Assigned("group-s00", "test"), "s01": Assigned("linked", "test"), "old": Assigned("scene", "test")}
    named = [window("s00", "scene 12"), window("s02", "scene 12")]
    assert {(w.group, w.split) for w in assign(named, [], settings(), before)[0]} == {("group-s00", "test")}
    of_file = [
        replace(window("s01", "file"), source_sha256="file"),
        replace(window("s03", "file"), source_sha256="file"),
    ]
    assert {(w.group, w.split) for w in assign(of_file, [], settings(), before)[0]} == {("linked", "test")}
    gone = replace(window("old", "scene"), split="test")
    later, _ = assign([gone, window("s04", "scene"), *WINDOWS[5:]], [], settings(), before)
    assert [(w.group, w.split) for w in later[:2]] == [("scene", "test")] * 2
    alike, _ = assign([gone, window("s04"), *WINDOWS[5:]], [("old", "s04")], settings(), before)
    assert (alike[1].group, alike[1].split) == ("scene", "test")


def test_a_new_part_of_a_shot_joins_the_part_that_is_there_under_its_earlier_name() -> None:
    """Earlier versions named the group of a part by the part's first frame, not by the shot's."""
    before = {"shot-100": Assigned("shot-100", "test")}
    parts = [window("shot-100", "shot-0"), window("shot-200", "shot-0")]
    assert {(w.group, w.split) for w in assign(parts, [], settings(), before)[0]} == {("shot-100", "test")}


def test_a_group_holds_together_once_its_footage_is_gone_that_was_linked_into_another(tmp_path: Path) -> None:
    config = prepare_config(tmp_path, tmp_path)
    first, _ = assign([window("a", "ga"), window("b", "gb")], [("a", "b")], config, {})
    assert {w.group for w in first} == {"ga"}
    dataset = Storage.open(tmp_path)
    write_plan(dataset, "i", [replace(w, split="val") for w in first])
    found = [window("c", "gb"), window("d", "gd"), window("e", "ge")]
    for _ in range(2):  # the third run takes it from the plan of the second
        before = read_plan(dataset, "i")
        encoded = {w.window_id: w.caption for w in before}
        windows, _ = settle_windows(config, {}, found, before, encoded, ())
        assert {(w.group, w.split) for w in windows if w.shot_id in "abc"} == {("ga", "val")}
        write_plan(dataset, "i", [w for w in windows if w.shot_id != "c"])
    older = read_table(dataset, "plan.parquet").drop_columns(["own_group"])
    write_table(dataset, "plan.parquet", older)
    assert {w.own_group for w in read_plan(dataset, "i")} == {""}


# --- the join ------------------------------------------------------------------------------------------------


def _sample(frame: np.ndarray) -> FrameScores:
    return FrameScores(0, None, 0.5, 0.5, 0.0, perceptual_hash(grey(frame)), tints(frame).hex())


def _all_pairs(pictures: Pictures, distance: int) -> set[tuple[int, int]]:
    return {
        (int(a), int(b))
        for band in range(BANDS)
        for value in range(VALUES)
        for a, b in pictures.alike(band, value, distance)
    }


def test_the_partitions_of_the_join_find_every_pair_within_the_distance() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(1, 2**63, 300, dtype=np.uint64)
    for i in range(0, 300, 3):  # a third: a copy with up to 7 bits flipped
        flips = rng.choice(64, rng.integers(0, 8), replace=False)
        hashes[i + 1] = hashes[i] ^ np.uint64(sum(1 << int(bit) for bit in flips))
    pictures = Pictures(hashes, np.zeros((300, 144), np.float32), np.arange(300))
    bits = np.bitwise_count(hashes[:, None] ^ hashes[None])
    expected = {(i, j) for i, j in zip(*np.nonzero(bits <= 7), strict=True) if i < j}
    assert _all_pairs(pictures, 7) == expected
    assert len(expected) >= 100


def test_pictures_of_other_colours_are_not_alike_and_one_shot_is_not_its_own_duplicate() -> None:
    picture = grey(scripted_clip(3, 3, 64, 96).frames[0])[..., None] / 2 + 80
    frame, recoloured = ((picture * tint).astype(np.uint8) for tint in ([1.0, 0.7, 0.4], [0.4, 0.9, 1.0]))
    assert perceptual_hash(grey(frame)) != 0
    seen = _sample(frame)
    back = [seen, replace(seen, hash=seen.hash ^ 0xFFFFF), seen]
    shots = [back, [seen], [_sample(recoloured)]]
    found = {(int(p), int(q)) for p, q in _all_pairs(Pictures.of(shots), 7)}
    shot_of = [0, 0, 0, 1, 2]
    assert {(shot_of[p], shot_of[q]) for p, q in found} == {(0, 1)}


def test_a_long_shot_is_spread_over_its_length_and_flat_pictures_say_nothing() -> None:
    codes = [0, *(int(code) for code in np.random.default_rng(0).integers(1, 2**63, 5000))]
    samples = [replace(_sample(np.zeros((8, 8, 3), np.uint8)), hash=code) for code in codes]
    pictures = Pictures.of([samples])
    assert MAX_SAMPLES / 2 < len(pictures.hashes) <= MAX_SAMPLES
    assert pictures.hashes[-1] in codes[-3:]
    assert 0 not in pictures.hashes


def test_planted_duplicates_are_all_found_and_nothing_else(ray_head: Any) -> None:
    """Shots again: encoded hard, cropped a little, a shade darker, smaller, and only a part of them."""
    drawn = [draw_screenplay(11, i, TRAINED_ON).shots[0] for i in range(60)]
    originals = [render_shot(replace(shot, light="steady"), 96, 24, 96, 144) for shot in drawn]
    planted = []
    for number, frames in enumerate(originals[:20]):
        copy = frames[:, 2:-2, 3:-3] if number % 2 else frames
        copy = copy[30:] if number % 3 == 0 else copy
        small = [cv2.resize(frame, (96, 64), interpolation=cv2.INTER_AREA) for frame in copy]
        coded = [
            cv2.imencode(".jpg", (frame * 0.9).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 25])[1] for frame in small
        ]
        planted.append([np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR)) for data in coded])
    shots = [[_sample(np.asarray(frame)) for frame in frames[::6]] for frames in [*originals, *planted]]
    found = set(near_duplicates(shots, DuplicateSettings()))
    expected = {(i, 60 + i) for i in range(20)}
    assert found >= expected
    assert len(found - expected) <= 0.01 * len(shots)


def test_a_short_excerpt_of_a_long_shot_is_found(ray_head: Any) -> None:
    flat = _sample(np.zeros((8, 8, 3), np.uint8))
    codes = [int(code) for code in np.random.default_rng(0).integers(1, 2**63, 1200)]  # ten minutes that move
    long = [replace(flat, hash=code) for code in codes]
    assert near_duplicates([long, long[700:710], long[:1] * 3], DuplicateSettings()) == [(0, 1), (0, 2)]
    still = [replace(flat, hash=(1 << 40) + (1 << i % 3)) for i in range(1800)]
    assert len(Pictures.of([still]).hashes) == 1, "what does not move counts once"


def test_clusters_are_connected_components_named_by_their_smallest() -> None:
    assert clusters([("b", "c"), ("a", "b"), ("x", "y")]) == {"a": "a", "b": "a", "c": "a", "x": "x", "y": "x"}


def test_resources_become_what_the_cluster_has(caplog: pytest.LogCaptureFixture) -> None:
    asked = PrepareResources.model_validate(
        {"vae": {"workers": 2, "cpus": 2}, "clip": {"cpus": 1}, "text": {"cpus": 4, "gpus": 1}, "decode": {"cpus": 0.5}}
    )
    plenty = fitted(asked, {"CPU": 32, "GPU": 1})
    assert plenty.vae == asked.vae
    assert plenty.decode.workers == 16, "8 for each worker of vae"
    assert fitted(asked, {"CPU": 8, "GPU": 1}).decode.workers == 6
    assert not caplog.records
    small = fitted(asked, {"CPU": 2})
    assert small.text.cpus == 2
    assert 1.9 < 2 * small.vae.cpus + small.clip.cpus + small.decode.cpus <= 2
    assert small.decode.workers == 1
    assert "text: 1 GPUs asked for, the cluster has 0: this waits until there are more" in caplog.messages


def test_settings_bound_the_distance_that_the_join_can_promise() -> None:
    with pytest.raises(ValueError, match="less than or equal to 7"):
        DuplicateSettings(distance=8)
