"""The making of the nano model: twenty steps of each kind, stopped and continued, and the gate."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan

from cinesynth.errors import CinesynthError
from cinesynth.nano import build
from cinesynth.nano.architecture import nano_parts
from cinesynth.nano.build import Build, GateError
from cinesynth.nano.fit import Schedule, fit
from cinesynth.nano.recipe import smoke_recipe
from cinesynth.nano.transformer import _write_events, training_curve
from cinesynth.wan.folder import encoder_hash, model_folder, model_hash
from tests.report.loading import fetched


def test_a_stopped_fit_continues_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    def run(folder: Path, stop_at: int | None = None) -> tuple[torch.Tensor, list[dict[str, float]]]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))

        def loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
            if step == stop_at:
                raise KeyboardInterrupt
            x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
            return (model(x) - x[:, :2]).square().mean(), {}

        schedule = Schedule(30, 1e-2, warmup=3, log_every=5, checkpoint_every=10)
        curve = fit("toy", model, loss, schedule, folder, lambda: {"held_out": float(model[0].weight.detach().sum())})
        return torch.cat([p.flatten() for p in model.parameters()]), curve

    whole, curve = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", stop_at=17)
    continued, continued_curve = run(tmp_path / "stopped")
    assert torch.equal(continued, whole)
    assert continued_curve == curve
    assert [event["step"] for event in curve] == [5, 10, 15, 20, 25, 30]
    again, _ = run(tmp_path / "whole", stop_at=0)  # finished: nothing is trained
    assert torch.equal(again, whole)


@pytest.fixture
def killed_in_place(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A file that is written in its place is left half written, by a kill."""

    def half(path: Path, text: str) -> None:
        path.write_bytes(text.encode()[: len(text) // 2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", half)
        yield


def test_records_are_never_half_written(tmp_path: Path, killed_in_place: None) -> None:
    model, schedule = torch.nn.Linear(2, 2), Schedule(1, 1e-2, warmup=1, log_every=1, checkpoint_every=1)
    for _ in range(2):
        with suppress(KeyboardInterrupt):
            Build(smoke_recipe(), tmp_path)
        with suppress(KeyboardInterrupt):
            fit("toy", model, lambda step: (model(torch.ones(1, 2)).sum(), {}), schedule, tmp_path, dict)
        with suppress(KeyboardInterrupt):
            _write_events(tmp_path, 0, [{"step": 1}])
    assert json.loads((tmp_path / "recipe.json").read_text())
    assert [event["step"] for event in json.loads((tmp_path / "curve.json").read_text())] == [1]
    assert training_curve(tmp_path) == [{"step": 1}]


def test_a_vae_that_was_half_saved_is_saved_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {"psnr": 2.0, "psnr_first": 2.0, "psnr_last": 2.0}
    trained: list[str] = []
    for name, value in (("pca_floor", {"psnr": 1.0}), ("channel_statistics", ([0.0] * 16, [1.0] * 16))):
        monkeypatch.setattr(build, name, lambda *_, value=value: value)
    for name in ("train_skeleton", "train_phase", "load_lpips"):
        monkeypatch.setattr(build, name, lambda *_, name=name: trained.append(name))
    monkeypatch.setattr(build, "reconstruction", lambda *_: figures)

    def killed(vae: AutoencoderKLWan, folder: Path) -> None:
        vae.save_config(folder)  # as diffusers does, before the weights
        raise KeyboardInterrupt

    pixels = np.zeros((1, 1, 8, 8, 3), np.uint8)
    with monkeypatch.context() as patched:
        patched.setattr(AutoencoderKLWan, "save_pretrained", killed)
        with pytest.raises(KeyboardInterrupt):
            Build(smoke_recipe(), tmp_path)._vae(nano_parts(0), pixels, pixels)
    parts = nano_parts(0)
    expected = {name: value.clone() for name, value in parts.vae.state_dict().items()}
    Build(smoke_recipe(), tmp_path)._vae(parts, pixels, pixels)
    assert all(torch.equal(value, expected[name]) for name, value in parts.vae.state_dict().items())
    before = len(trained)
    Build(smoke_recipe(), tmp_path)._vae(parts, pixels, pixels)
    assert len(trained) == before


def test_twenty_steps_of_everything_leave_a_model_and_a_page(tmp_path: Path) -> None:
    recipe = smoke_recipe()
    model = Build(recipe, tmp_path, gate=False).run()
    assert model_folder(str(model)) == model
    assert encoder_hash(str(model)) == encoder_hash(str(tmp_path / "base"))
    assert model_hash(str(model)) != model_hash(str(tmp_path / "base"))
    seconds = json.loads((tmp_path / "seconds.json").read_text())
    assert {"footage", "vae", "encoders", "encode", "transformer"} <= set(seconds)
    page = (tmp_path / "index.html").read_text()
    assert fetched(page) == []
    assert "Held-out reconstruction" in page
    assert "Training loss and learning rate" in page

    before = model_hash(str(model))
    assert model_hash(str(Build(recipe, tmp_path, gate=False).run())) == before  # all stages are passed over
    with pytest.raises(CinesynthError, match="another recipe"):
        Build(replace(recipe, seed=1), tmp_path)
    with pytest.raises(GateError, match="a PCA of its latent budget"):
        Build(recipe, tmp_path).run()


def test_a_model_is_installed_whole_with_its_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, shipped = tmp_path / "model", tmp_path / "weights" / "nano"
    (source / "vae").mkdir(parents=True)
    (source / "vae" / "config.json").write_text("{}")
    monkeypatch.setattr(build, "SHIPPED", shipped)
    build.install(source)
    assert set(json.loads((shipped / "sha256.json").read_text())) == {"vae/config.json"}
