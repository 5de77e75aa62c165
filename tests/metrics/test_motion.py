"""MotionScore against OpenCV's flow in a double loop, and against pictures that move by a known way."""

from itertools import pairwise

import cv2
import numpy as np
import pytest

from cinesynth.config import EvaluateSettings
from cinesynth.data.video import write_video
from cinesynth.metrics import catalogue
from cinesynth.metrics.evaluate import compare
from cinesynth.metrics.flow import MIN_SIDE, flow
from cinesynth.metrics.motion import sampling_step

MOTION = catalogue.METRICS["motion_score"]


def _texture(height, width, seed=0):
    """Soft noise that goes on at the other side."""
    noise = np.random.default_rng(seed).normal(size=(height, width, 3)).astype(np.float32)
    soft = cv2.GaussianBlur(np.pad(noise, ((8, 8), (8, 8), (0, 0)), "wrap"), (0, 0), 2)[8:-8, 8:-8]
    return (127 + 250 * soft).clip(0, 255).astype(np.uint8)


def _moving(frames=9, speed=0.25, size=(48, 64)):
    """A texture that moves to the right by `speed` pixels a frame, in whole pixels; what leaves comes in again."""
    picture = _texture(*size)
    return np.stack([np.roll(picture, round(speed * t), 1) for t in range(frames)])


def _score(frames, fps):
    return MOTION.network.run(None, [(frames, fps)])[0]


def test_it_is_the_mean_length_of_opencvs_flow_over_sampled_frames():
    frames = _moving(speed=0.5, size=(20, 31))
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames[[0, 4, 8]]]
    expected = []
    for before, after in pairwise(grey):
        vectors = cv2.calcOpticalFlowFarneback(before, after, None, 0.5, 3, 15, 3, 5, 1.2, 0)
        total = sum(float(np.hypot(*vectors[y, x])) for y in range(20) for x in range(31))
        expected.append(total / (20 * 31))
    assert _score(frames, 8) == pytest.approx([np.mean(expected)], rel=1e-6)


def test_a_texture_that_moves_by_two_pixels_in_half_a_second_scores_two():
    assert _score(_moving(frames=9, speed=0.5), 8)[0] == pytest.approx(2, rel=0.1)
    assert _score(_moving(frames=17, speed=0.25), 16)[0] == pytest.approx(2, rel=0.1), "whatever the frame rate"
    assert _score(_moving(speed=0), 8)[0] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(
    ("fps", "num_frames", "step"),
    [(16, 33, 8), (24, 33, 12), (25, 100, 12), (30, 61, 15), (2, 9, 1), (1, 9, 1), (3, 9, 2), (16, 5, 4), (16, 2, 1)],
)
def test_frames_are_sampled_as_data_juicer_samples_them(fps, num_frames, step):
    """round(fps / min(2, fps)), at most to the last frame, at least one."""
    assert sampling_step(fps, num_frames) == step


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 900), (900, 7), (MIN_SIDE, MIN_SIDE), (17, 1500)])
def test_tiny_and_wide_pictures_have_a_flow_and_do_not_crash(size):
    picture = cv2.cvtColor(_texture(*size), cv2.COLOR_RGB2GRAY).reshape(size)
    vectors = flow(picture, np.roll(picture, 1, 1))
    assert vectors.shape == (*size, 2)
    assert np.isfinite(vectors).all()


def test_pictures_too_small_for_a_flow_leave_it_out_with_the_reason(tmp_path):
    for name in ("real", "fake"):
        write_video(tmp_path / name / "w.mkv", _moving(size=(MIN_SIDE - 1, 64)), 8, codec="ffv1")
    settings = EvaluateSettings(metrics=["motion_score", "tof", "flicker"])
    record = compare(tmp_path / "real", {"fake": tmp_path / "fake"}, settings=settings)
    for name in ("motion_score", "tof"):
        assert f"needs sides of at least {MIN_SIDE}" in record.value(name, "fake").reason
    assert record.value("flicker", "fake").value is not None


@pytest.mark.parametrize("name", ["tssim", "flicker"])
def test_it_stands_beside_every_consistency_score_and_shows_the_frozen_video(tmp_path, name):
    for folder, speed in (("real", 0.5), ("near", 0.4), ("frozen", 0)):
        for i in range(2):
            write_video(tmp_path / folder / f"w{i}.mkv", _moving(speed=speed), 8, codec="ffv1")
    arms = {arm: tmp_path / arm for arm in ("near", "frozen")}
    record = compare(tmp_path / "real", arms, settings=EvaluateSettings(metrics=[name]))
    assert set(record.definitions) == {name, "motion_score"}
    assert record.value(name, "frozen").value == pytest.approx(1)
    assert record.value("motion_score", "frozen").value == pytest.approx(0, abs=1e-3)
    assert record.value("motion_score", "near").real == pytest.approx(2, rel=0.1)
    for metric in record.definitions:
        assert record.comparison(metric, "frozen").difference > 0, "further from the real set"
    assert not any(definition.primary for definition in record.definitions.values())


def test_it_accompanies_no_metric_of_pairs_or_sets():
    accompanied = [name for name in catalogue.METRICS if "motion_score" in [m.name for m in catalogue.chosen([name])]]
    assert {"tssim", "flicker", "clip_sim_frames", "motion_score"} <= set(accompanied)
    assert not {"fvd", "kvd", "lpips", "psnr", "ssim", "tof", "tlp"} & set(accompanied)
