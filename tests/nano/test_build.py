"""The making of the nano model: twenty steps of each kind, stopped and continued, and the gate."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cinesynth.errors import CinesynthError
from cinesynth.nano import build
from cinesynth.nano.build import Build, GateError
from cinesynth.nano.fit import Schedule, fit
from cinesynth.nano.recipe import smoke_recipe
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
