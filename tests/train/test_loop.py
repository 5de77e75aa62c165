"""The loop without Ray: it learns, repeats itself, and continues exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cinesynth.config import FlowSettings, LoraSettings, OptimizerSettings, TrainSettings, ValidationSettings
from cinesynth.nano.architecture import build_nano
from cinesynth.train.checkpoint import LocalCheckpoints
from cinesynth.train.loop import TrainLoop, learning_rate
from cinesynth.train.strategy import Replicate, World, choose_strategy
from cinesynth.wan.family import WAN21_I2V
from cinesynth.wan.folder import base_hash, encoder_hash, model_folder
from cinesynth.wan.load import load_transformer, save_model
from tests.nano_clips import encoded_clips, encoder

STEPS = 6


def settings(**changes: Any) -> TrainSettings:
    base: dict[str, Any] = {
        "lora": LoraSettings(rank=4, alpha=8),
        "optimizer": OptimizerSettings(steps=STEPS, lr=5e-3, batch_size=4),
        "flow": FlowSettings(),
        "caption_dropout": 0.3,
        "validation": ValidationSettings(every=3, sigmas=[0.3, 0.7], max_windows=2),
        "checkpoint_every": 2,
        "log_every": 100,
        "micro_batch": 2,
    }
    return TrainSettings(**{**base, **changes})


class Recorded:
    """A loop in a folder, and the events it wrote."""

    def __init__(
        self, folder: Path, config: TrainSettings, dtype: torch.dtype = torch.float32, model: str = "nano"
    ) -> None:
        self.segments: dict[int, list[dict[str, Any]]] = {}
        clips = encoded_clips()
        self.loop = TrainLoop(
            config,
            WAN21_I2V,
            load_transformer(model),
            clips[:6],
            clips[6:],
            encoder().prompt_embeds(""),
            Replicate(World()),
            LocalCheckpoints(folder),
            self.segments.__setitem__,
            dtype=dtype,
        )

    def losses(self) -> dict[int, float]:
        return {e["step"]: e["loss"] for s in self.segments.values() for e in s if "loss" in e}

    def held_out(self) -> list[float]:
        return [e["val_loss"] for s in self.segments.values() for e in s if "val_loss" in e]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    run = Recorded(tmp_path_factory.mktemp("run"), settings())
    run.loop.run()
    return run


def test_held_out_loss_falls_and_the_adapter_is_not_zero(uninterrupted: Recorded) -> None:
    held_out = uninterrupted.held_out()
    assert len(held_out) == 3
    assert held_out[-1] < held_out[0]
    assert any(v.any() for k, v in uninterrupted.loop.adapter().items() if "lora_B" in k)


def test_one_seed_gives_the_same_losses_and_another_gives_others(uninterrupted: Recorded, tmp_path: Path) -> None:
    again = Recorded(tmp_path / "a", settings())
    again.loop.run()
    assert again.losses() == uninterrupted.losses()
    other = Recorded(tmp_path / "b", settings(seed=1))
    other.loop.run(stop_at=2)
    assert other.losses()[1] != uninterrupted.losses()[1]


def test_a_stopped_and_continued_run_equals_an_uninterrupted_one(uninterrupted: Recorded, tmp_path: Path) -> None:
    stopped = Recorded(tmp_path, settings())
    stopped.loop.run(stop_at=3)  # the third step is lost: the newest checkpoint is that of the second
    continued = Recorded(tmp_path, settings(checkpoint_every=3))
    continued.loop.run()
    assert min(continued.losses()) == 3
    assert stopped.losses() | continued.losses() == uninterrupted.losses()
    assert continued.held_out() == uninterrupted.held_out()[1:]
    ours, theirs = continued.loop.adapter(), uninterrupted.loop.adapter()
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


def test_a_run_killed_after_its_last_checkpoint_still_has_its_figures(tmp_path: Path) -> None:
    config = settings(optimizer=OptimizerSettings(steps=2, batch_size=2))
    figures = Recorded(tmp_path, config).loop.run()
    assert {"loss", "val_loss"} <= set(figures)
    assert Recorded(tmp_path, config).loop.run() == figures


def test_micro_batches_and_recomputation_do_not_change_the_result(uninterrupted: Recorded, tmp_path: Path) -> None:
    other = Recorded(tmp_path, settings(micro_batch=4, activation_checkpointing="none"))
    other.loop.run(stop_at=2)
    for step, loss in other.losses().items():
        assert loss == pytest.approx(uninterrupted.losses()[step], rel=1e-4)


def test_a_step_does_not_touch_the_frozen_base(uninterrupted: Recorded) -> None:
    fresh = dict(load_transformer("nano").named_parameters())
    for name, parameter in uninterrupted.loop.transformer.named_parameters():
        if "lora_" not in name:
            assert torch.equal(parameter, fresh[name.replace(".base_layer", "")]), name


def test_full_mode_trains_every_weight_and_leaves_a_model(tmp_path: Path) -> None:
    full = settings(mode="full", optimizer=OptimizerSettings(steps=4, lr=1e-3, batch_size=2))
    untrained = str(build_nano(tmp_path / "untrained"))
    run = Recorded(tmp_path / "whole", full, model=untrained)
    run.loop.run()
    assert run.held_out()[-1] < run.held_out()[0]
    saved = save_model(run.loop.transformer, untrained, tmp_path / "model")
    assert model_folder(str(saved)) == saved
    assert base_hash(str(saved)) != base_hash(untrained)
    assert encoder_hash(str(saved)) == encoder_hash(untrained)
    before, after = (dict(load_transformer(m).named_parameters()) for m in (untrained, str(saved)))
    unchanged = [name for name in before if torch.equal(before[name], after[name])]
    assert not unchanged
    stopped = Recorded(tmp_path / "stopped", full, model=untrained)
    stopped.loop.run(stop_at=2)
    continued = Recorded(tmp_path / "stopped", full, model=untrained)
    continued.loop.run()
    assert stopped.losses() | continued.losses() == run.losses()


def test_full_mode_casts_where_the_computation_is_not_fp32(tmp_path: Path) -> None:
    run = Recorded(tmp_path, settings(mode="full"), dtype=torch.bfloat16)
    assert {p.dtype for p in run.loop.parameters.values()} == {torch.float32}
    exact = Recorded(tmp_path / "fp32", settings(mode="full"))
    ours, theirs = (r.loop.forward(0, [0, 1]) for r in (run, exact))
    assert not torch.equal(ours, theirs)
    torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02)


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    run = Recorded(tmp_path, settings())
    run.loop.parameters[next(iter(run.loop.parameters))].data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="step 0"):
        run.loop.train_step(0)


def test_learning_rate_warms_up_and_ends_near_zero() -> None:
    optimizer = OptimizerSettings(steps=100, lr=1.0, warmup=0.1)
    rates = [learning_rate(step, optimizer) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5, abs=0.02)
    assert rates[-1] < 1e-3


def test_auto_replicates_what_fits_and_shards_what_does_not() -> None:
    assert choose_strategy("auto", 33 * 10**9, 80 * 10**9, 4)[0] == "replicate"
    name, reason = choose_strategy("auto", 33 * 10**9, 40 * 10**9, 4)
    assert name == "fsdp2"
    assert "33.00 GB" in reason
    assert choose_strategy("fsdp2", 1, 80 * 10**9, 1) == ("fsdp2", "asked for")
