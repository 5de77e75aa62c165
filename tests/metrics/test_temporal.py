"""tOF, tLP and flicker against OpenCV, the `lpips` package and double loops."""

import cv2
import lpips
import numpy as np
import pytest
import torch

from cinesynth.config import EvaluateSettings
from cinesynth.data.video import write_video
from cinesynth.metrics import catalogue
from cinesynth.metrics.evaluate import compare
from cinesynth.metrics.networks.lpips import load_lpips


def _video(seed, frames=4, size=(32, 40), speed=1.0):
    rng = np.random.default_rng(seed)
    (a, b), (t, y, x) = rng.uniform(0.2, 0.5, 2), np.mgrid[:frames, : size[0], : size[1]]
    waves = 127 + 90 * np.sin(a * x + b * y + speed * t)
    return (waves[..., None] + 10 * rng.normal(size=(frames, *size, 3))).clip(0, 255).astype(np.uint8)


REAL, FAKE = _video(0), _video(1, speed=0.5)


def _run(name, *items, model=None):
    return catalogue.find(name).network.run(model, items)


def _opencv_flow(before, after):
    before, after = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (before, after))
    return cv2.calcOpticalFlowFarneback(before, after, None, 0.5, 3, 15, 3, 5, 1.2, 0)


def test_tof_is_the_mean_length_of_the_difference_of_two_flows():
    expected = []
    for t in range(3):
        of_real, of_fake = (_opencv_flow(video[t], video[t + 1]) for video in (REAL, FAKE))
        distances = [
            np.sqrt((of_real[y, x, 0] - of_fake[y, x, 0]) ** 2 + (of_real[y, x, 1] - of_fake[y, x, 1]) ** 2)
            for y in range(32)
            for x in range(40)
        ]
        expected.append(np.mean(distances))
    assert _run("tof", (REAL, FAKE))[0] == pytest.approx(expected, rel=1e-5)
    assert _run("tof", (REAL, REAL))[0].tolist() == [0, 0, 0]
    still = np.repeat(REAL[:1], 4, axis=0)
    lengths = [np.linalg.norm(_opencv_flow(REAL[t], REAL[t + 1]), axis=-1).mean() for t in range(3)]
    assert _run("tof", (REAL, still))[0] == pytest.approx(lengths, rel=1e-3), "a still video has no flow"


@pytest.fixture(scope="module")
def alex():
    return load_lpips()


def test_tlp_is_the_difference_of_what_the_lpips_package_finds_from_frame_to_frame(alex):
    assert isinstance(alex, lpips.LPIPS)

    def change(video, t):
        a, b = (torch.tensor(video[i]).permute(2, 0, 1)[None].float() / 127.5 - 1 for i in (t, t + 1))
        with torch.no_grad():
            return float(alex(a, b))

    expected = [abs(change(REAL, t) - change(FAKE, t)) for t in range(3)]
    assert _run("tlp", (REAL, FAKE), model=alex)[0] == pytest.approx(expected, abs=1e-6)
    assert min(expected) > 1e-3
    assert _run("tlp", (FAKE, FAKE), model=alex)[0].tolist() == [0, 0, 0]
    both = _run("tlp", (REAL, FAKE), (FAKE, REAL), model=alex)
    np.testing.assert_allclose(both[0], both[1], rtol=1e-5)


def test_flicker_is_one_less_the_mean_absolute_difference_of_consecutive_frames():
    expected = []
    for t in range(3):
        values = zip(REAL[t].reshape(-1).tolist(), REAL[t + 1].reshape(-1).tolist(), strict=True)
        total = sum(abs(before - after) for before, after in values)
        expected.append((255 - total / (32 * 40 * 3)) / 255)
    assert _run("flicker", (REAL,))[0] == pytest.approx(expected, rel=1e-12)
    blinking = np.zeros((3, 8, 8, 3), np.uint8)
    blinking[1] = 255
    assert _run("flicker", (blinking,))[0].tolist() == [0, 0]
    assert _run("flicker", (blinking[[0, 0]],))[0].tolist() == [1]


def test_the_pair_of_the_given_first_frame_does_not_count(tmp_path):
    """Frames 1 and later are those of the real video: whatever frame 0 is, tOF and tLP are 0."""
    for i in range(2):
        fake = _video(i)
        fake[0] = 255 - fake[0]
        write_video(tmp_path / "real" / f"w{i}.mkv", _video(i), codec="ffv1")
        write_video(tmp_path / "fake" / f"w{i}.mkv", fake, codec="ffv1")
    settings = EvaluateSettings(metrics=["tof", "tlp", "flicker"])
    record = compare(tmp_path / "real", {"fake": tmp_path / "fake"}, settings=settings)
    assert [record.value(name, "fake").value for name in ("tof", "tlp")] == [0, 0]
    assert record.value("flicker", "fake").value < record.value("flicker", "fake").real
    assert record.definitions["tof"].frames.startswith("1 to 3; from each to the next")
    assert record.definitions["tlp"].weights == record_weights()
    assert not any(record.definitions[name].primary for name in ("tof", "tlp", "flicker"))


def record_weights():
    return catalogue.find("lpips").network.weights(EvaluateSettings())
