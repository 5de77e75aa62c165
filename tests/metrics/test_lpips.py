from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from cinesynth.config import EvaluateSettings
from cinesynth.errors import MediaError, WeightsUnavailable
from cinesynth.metrics import catalogue
from cinesynth.metrics.networks.lpips import frame_distances, load_lpips, load_published


@pytest.fixture(scope="module")
def alex():
    return load_lpips("alex")


def _black_and_white(frames=1, side=64):
    return np.zeros((frames, side, side, 3), np.uint8), np.full((frames, side, side, 3), 255, np.uint8)


def test_alex_gives_the_golden_value(alex):
    assert frame_distances(alex, *_black_and_white()) == pytest.approx(0.81395, abs=1e-4)


def test_the_metric_lpips_vgg_gives_the_golden_value_of_vgg_and_is_secondary():
    metric = catalogue.find("lpips_vgg")
    found = metric.network.run(metric.network.load(EvaluateSettings()), [_black_and_white(frames=2)])
    assert found[0] == pytest.approx([0.45384, 0.45384], abs=1e-4)
    assert (metric.primary, metric.first_frame, metric.needs) == (False, 1, ["pair"])
    assert {name.partition("-heads")[0] for name in metric.network.weights(EvaluateSettings())} == {"lpips-vgg"}


@pytest.mark.parametrize("name", ["lpips", "r_lpips"])
def test_lpips_and_r_lpips_are_of_alexnet(name, tmp_path):
    (tmp_path / "w.pth").write_bytes(b"x")
    settings = EvaluateSettings(metrics=[name], r_lpips_weights=str(tmp_path / "w.pth"))
    assert "lpips-alex" in catalogue.find(name).network.weights(settings)


def test_zero_for_equal_frames_symmetric_and_rising_with_noise(alex):
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:64, :96]
    clean = np.stack([127 + 100 * np.sin(x / (5 + t) + y / 9)[..., None].repeat(3, -1) for t in range(3)])
    noisy = [(clean + s * rng.normal(size=clean.shape)).clip(0, 255).astype(np.uint8) for s in (0, 15, 60)]
    assert frame_distances(alex, noisy[0], noisy[0]).tolist() == [0, 0, 0]
    little, much = (frame_distances(alex, noisy[0], n) for n in noisy[1:])
    assert (little > 0).all()
    assert (little < much).all()
    assert frame_distances(alex, noisy[2], noisy[0]) == pytest.approx(much, rel=1e-5)


def test_many_frames_in_chunks_equal_single_frames(alex, monkeypatch):
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 256, (2, 5, 64, 64, 3), dtype=np.uint8)
    together = frame_distances(alex, a, b)
    monkeypatch.setattr("cinesynth.metrics.networks.lpips._PIXELS_AT_ONCE", 1)
    assert frame_distances(alex, a, b) == pytest.approx(together, rel=1e-5)


def test_shapes_that_cannot_be_compared_are_refused(alex):
    black, white = _black_and_white()
    with pytest.raises(MediaError, match="one shape"):
        frame_distances(alex, black, white[:, :32])
    with pytest.raises(MediaError, match="at least 32"):
        frame_distances(alex, *_black_and_white(side=16))


HEADS = Path(find_spec("lpips").origin).parent / "weights" / "v0.1" / "alex.pth"


@pytest.mark.parametrize("layout", ["heads", "heads and trunk", "of several GPUs"])
def test_r_lpips_with_the_weights_of_lpips_is_lpips(alex, tmp_path, layout):
    file = tmp_path / "latest_net_linf_x0.pth"
    prefix = "module." if layout == "of several GPUs" else ""
    state = torch.load(HEADS, "cpu", weights_only=True) if layout == "heads" else alex.state_dict()
    torch.save({prefix + name: value for name, value in state.items()}, file)
    given = np.random.default_rng(2).integers(0, 256, (2, 3, 64, 96, 3), dtype=np.uint8)
    settings = EvaluateSettings(metrics=["r_lpips"], r_lpips_weights=str(file))
    metric = catalogue.find("r_lpips")
    found = metric.network.run(metric.network.load(settings), [tuple(given)])
    assert found[0] == pytest.approx(frame_distances(alex, *given), abs=1e-6)
    changed = {name: value * 2 if ".lin" in f".{name}" else value for name, value in torch.load(file, "cpu").items()}
    before = catalogue.metric_identity(settings)["metric_r_lpips"]
    torch.save(changed, file)
    assert catalogue.metric_identity(settings)["metric_r_lpips"] != before
    assert frame_distances(load_published(file), *given) == pytest.approx(2 * found[0], rel=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("lin3.model.1.weight"), r"lacks 1 tensors, such as 'lin3\.model\.1\.weight'"),
        (lambda state: state.update(other=torch.zeros(1)), "holds the unknown 1 tensors, such as 'other'"),
        (lambda state: state.update({"lin0.model.1.weight": torch.zeros(1)}), "has another shape of 1 tensors"),
        (lambda state: state.update({"lin0.model.1.weight": "text"}), "holds no state dict of tensors"),
    ],
)
def test_other_weights_than_those_of_lpips_are_refused(tmp_path, change, message):
    state = torch.load(HEADS, "cpu", weights_only=True)
    change(state)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsUnavailable, match=message):
        load_published(tmp_path / "w.pth")


def test_a_pickle_that_runs_something_is_refused(tmp_path):
    torch.save({"lin0.model.1.weight": Path("x")}, tmp_path / "w.pth")
    with pytest.raises(WeightsUnavailable, match="cannot be read as a state dict"):
        load_published(tmp_path / "w.pth")


def test_without_its_weights_r_lpips_is_refused_and_lpips_is_named():
    with pytest.raises(ValueError, match=r"set r_lpips_weights to the file .*or ask for lpips"):
        EvaluateSettings(metrics=["fvd", "r_lpips"])
