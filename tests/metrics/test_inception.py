"""Inception-v3 of 2015 against torch-fidelity's, with drawn weights; FID and KID of drawn features."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cinesynth.config import EvaluateSettings
from cinesynth.data.video import write_video
from cinesynth.errors import WeightsUnavailable
from cinesynth.metrics import catalogue
from cinesynth.metrics.evaluate import compare
from cinesynth.metrics.frechet import frechet_distance
from cinesynth.metrics.metric import Sample
from cinesynth.metrics.mmd import KernelSums
from cinesynth.metrics.networks import INCEPTION_WEIGHTS, inception
from cinesynth.metrics.networks.inception import Inception, frame_features, read_inception, resize_as_tensorflow_1
from cinesynth.metrics.weights import WEIGHTS

FID, KID = catalogue.METRICS["fid"], catalogue.METRICS["kid"]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state dict with the tensors of the published one. Every layer keeps the spread of what it is given."""
    torch.manual_seed(0)
    state = dict(Inception().state_dict()) | {"fc.weight": torch.randn(1008, 2048), "fc.bias": torch.randn(1008)}
    for name, value in state.items():
        if name.endswith("conv.weight"):
            torch.nn.init.kaiming_normal_(value, nonlinearity="relu")
        elif name.endswith(("bn.weight", "bn.running_var")):
            value.uniform_(0.8, 1.2)
        elif name.endswith(("bn.bias", "bn.running_mean")):
            value.normal_(0, 0.2)
    path = tmp_path_factory.mktemp("inception") / "state.pth"
    torch.save(state, path)
    return path


def test_features_equal_those_of_torch_fidelity(file: Path) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    theirs = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(file))
    frames = np.random.default_rng(0).integers(0, 256, (1, 37, 53, 3), dtype=np.uint8)
    with torch.inference_mode():
        found = frame_features(read_inception(file), [frames])
        (expected,) = theirs(torch.from_numpy(frames).permute(0, 3, 1, 2))
    assert found.shape == (1, 1, 2048)
    assert expected.std() > 1e-2
    np.testing.assert_allclose(found[0], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [(37, 53), (299, 299), (720, 416)])
def test_frames_are_resized_bit_for_bit_as_tensorflow_1_does(shape: tuple[int, int]) -> None:
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    x = torch.randint(0, 256, (1, 3, *shape), generator=torch.Generator().manual_seed(0)).float()
    expected = interpolate_bilinear_2d_like_tensorflow1x(x, size=(299, 299), align_corners=False)
    assert torch.equal(resize_as_tensorflow_1(x), expected)


@pytest.fixture
def folder(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of weights with the drawn ones under the published file's name, which is pinned to their content."""
    published, content = WEIGHTS[INCEPTION_WEIGHTS], file.read_bytes()
    (tmp_path / published.file).write_bytes(content)
    pinned = replace(published, sha256=hashlib.sha256(content).hexdigest(), size=len(content))
    monkeypatch.setitem(WEIGHTS, INCEPTION_WEIGHTS, pinned)
    return tmp_path


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames at 75x75 in place of 299x299: the least that the network takes, a sixteenth of the time."""
    monkeypatch.setattr(inception, "resize_as_tensorflow_1", partial(resize_as_tensorflow_1, side=75))


def _video(seed: int) -> NDArray[np.uint8]:
    """Of two frames; those of other seeds are darker."""
    return np.random.default_rng(seed).integers(0, 256 - 60 * seed, (2, 37, 53, 3), dtype=np.uint8)


@pytest.mark.usefixtures("small")
def test_fid_and_kid_of_videos_rest_on_the_features_of_their_frames(
    file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = FID.network.of_frames(1, 1, "1 from frame 1 on")
    for metric in (FID, KID):
        monkeypatch.setitem(catalogue.METRICS, f"{metric.name}_1f", metric.of_frames(last))
    seeds = {"real": [0, 1], "base": [1, 2]}
    for name, drawn in seeds.items():
        for i, seed in enumerate(drawn):
            write_video(folder / name / f"w{i}.mkv", _video(seed), codec="ffv1")
    settings = EvaluateSettings(metrics=["fid", "kid", "fid_1f", "kid_1f"], weights=str(folder))
    record = compare(folder / "real", {"base": folder / "base"}, settings=settings)

    with torch.inference_mode():
        features = frame_features(read_inception(file), [np.concatenate([_video(seed) for seed in range(3)])])
    features = features.reshape(3, 2, 2048)
    for suffix, first in (("", 0), ("_1f", 1)):
        real, base = (features[drawn, first:].reshape(-1, 2048) for drawn in seeds.values())
        groups = [key for key in ("w0", "w1") for _ in range(2 - first)]
        fid, kid = (record.value(f"{name}{suffix}", "base") for name in ("fid", "kid"))
        assert fid.value == pytest.approx(frechet_distance(real, base, ddof=1), rel=1e-4)
        assert kid.value == pytest.approx(KernelSums(real, base, groups, groups).value(), rel=1e-4)
        assert f"N = {len(groups)} frames is below d = 2048" in (fid.reason or "")
    assert record.value("fid_1f", "base").value != pytest.approx(record.value("fid", "base").value, rel=1e-2)
    assert (record.definitions["fid"].frames, record.definitions["fid_1f"].frames) == ("0 to 1", "1 to 1")
    assert record.definitions["kid"].weights == {INCEPTION_WEIGHTS: WEIGHTS[INCEPTION_WEIGHTS].sha256}


@pytest.mark.usefixtures("small")
def test_one_clip_of_one_frame_has_no_fid_and_the_reason_has_the_counts(folder: Path) -> None:
    for name, seed in (("real", 0), ("base", 1)):
        write_video(folder / name / "w.mkv", _video(seed)[:1], codec="ffv1")
    settings = EvaluateSettings(metrics=["fid", "kid"], weights=str(folder))
    record = compare(folder / "real", {"base": folder / "base"}, settings=settings)
    for value in record.values:
        assert (value.value, value.reason) == (None, "real has 1 group, base has 1; at least 2 are needed")


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    torch.save({"Conv2d_1a_3x3.conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(WeightsUnavailable, match=r"other\.pth holds no Inception-v3 of 2015"):
        read_inception(tmp_path / "other.pth")
    (tmp_path / "broken.pth").write_bytes(b"no weights")
    with pytest.raises(WeightsUnavailable, match=r"broken\.pth holds no"):
        read_inception(tmp_path / "broken.pth")


_D = 5


def _sample(name: str, seed: int, videos: int, frames: int, group: str = "", shift: float = 0.0) -> Sample:
    rows = np.random.default_rng(seed).normal(shift, 1, (videos, frames, _D))
    ids = [f"v{i:02}" for i in range(videos)]
    return Sample(name, dict(zip(ids, rows, strict=True)), {key: f"{group}{key}" for key in ids})


def test_fid_of_all_frames_is_that_of_torch_fidelity() -> None:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    real, base, adapter = _sample("real", 0, 6, 3), _sample("base", 1, 6, 3), _sample("adapter", 2, 6, 3, shift=1)
    found = FID.measure(FID, real, [base, adapter])
    statistics = [
        fid_features_to_statistics(torch.from_numpy(np.concatenate(list(s.rows.values()))))
        for s in (real, base, adapter)
    ]
    for value, statistic in zip(found.values, statistics[1:], strict=True):
        expected = fid_statistics_to_metric(statistics[0], statistic, verbose=False)
        assert value.value == pytest.approx(expected["frechet_inception_distance"])
        assert (value.n, value.n_real, value.interval) == (6, 6, None)
    assert found.comparisons[0].difference == pytest.approx(found.values[1].value - found.values[0].value)
    assert "no valid interval" in found.comparisons[0].reason


def test_fid_of_few_frames_is_warned_of_beside_its_floor() -> None:
    few = FID.measure(FID, _sample("real", 0, 4, 1), [_sample("base", 1, 4, 1)])
    assert "N = 4 frames is below d = 5: mostly bias" in few.values[0].reason
    assert few.values[0].floor.n == 2
    assert few.warnings == ["FID below 5 frames a set is mostly bias (real 4, base 4); compare KID instead"]
    assert FID.measure(FID, _sample("real", 0, 4, 2), [_sample("base", 1, 4, 2)]).warnings == []


def test_kid_of_videos_of_one_frame_is_that_of_torch_fidelity() -> None:
    from torch_fidelity.metric_kid import kernel_mmd

    real, arm = _sample("real", 0, 9, 1), _sample("base", 1, 9, 1, group="other ")
    expected = kernel_mmd(real.matrix, arm.matrix)
    assert KID.measure(KID, real, [arm]).values[0].value == pytest.approx(expected)


def test_kid_compares_frames_of_different_groups_only() -> None:
    real, arm = _sample("real", 0, 4, 2), _sample("base", 1, 4, 2)
    means = []
    for one, other in ((real, real), (arm, arm), (real, arm)):
        kernel = [
            (x @ y / _D + 1) ** 3
            for a, xs in one.rows.items()
            for b, ys in other.rows.items()
            if a != b
            for x in xs
            for y in ys
        ]
        assert len(kernel) == 4 * 3 * 2 * 2
        means.append(np.mean(kernel))
    value = KID.measure(KID, real, [arm]).values[0]
    assert value.value == pytest.approx(means[0] + means[1] - 2 * means[2])
    assert KID.measure(KID, real, [Sample("same", real.rows, real.groups)]).values[0].value == 0


def test_what_fid_128_sees_follows_the_given_frame() -> None:
    for name in ("fid_128f", "kid_128f"):
        network = catalogue.METRICS[name].network
        assert (network.start, network.count, network.frames_needed) == (1, 128, 129)
        assert network.weights(EvaluateSettings()) == FID.network.weights(EvaluateSettings())
    assert FID.network.frames_needed == 1


def test_the_pinned_file_has_room_for_the_tensors_and_no_more() -> None:
    with torch.device("meta"):
        tensors = [*Inception().state_dict().values(), torch.empty(1008, 2048), torch.empty(1008)]
    lies = sum(tensor.nbytes for tensor in tensors)
    assert lies < WEIGHTS[INCEPTION_WEIGHTS].size < lies + 200_000  # names, and the archive's own records
