"""The loop without Ray: it learns, repeats itself, and continues exactly."""

from __future__ import annotations

import logging
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel

from cinesynth.config import FlowSettings, LoraSettings, OptimizerSettings, TrainSettings, ValidationSettings
from cinesynth.errors import ConfigError, TrainingError
from cinesynth.nano.architecture import build_nano
from cinesynth.report.training import Training
from cinesynth.storage import Storage
from cinesynth.train.batch import ListedClips
from cinesynth.train.checkpoint import StoredCheckpoints
from cinesynth.train.events import validations
from cinesynth.train.loop import TrainLoop, learning_rate
from cinesynth.train.state import Saved
from cinesynth.train.strategy import Replicate, World
from cinesynth.wan.adapter import load_adapters, save_adapter
from cinesynth.wan.card import AdapterCard
from cinesynth.wan.family import WAN21_I2V
from cinesynth.wan.folder import base_hash, encoder_hash, model_folder
from cinesynth.wan.load import load_transformer, save_model
from cinesynth.wan.merging import Merging
from cinesynth.wan.placement import Memory, choose_strategy
from cinesynth.wan.stream import StoredWeights
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
        self,
        folder: Path,
        config: TrainSettings,
        dtype: torch.dtype = torch.float32,
        model: str = "nano",
        on: WanTransformer3DModel | None = None,
    ) -> None:
        self.segments: dict[int, list[dict[str, Any]]] = {}
        clips = encoded_clips()
        self.loop = TrainLoop(
            config,
            WAN21_I2V,
            on or load_transformer(model),
            ListedClips(clips[:6]),
            ListedClips(clips[6:]),
            encoder().prompt_embeds(""),
            Replicate(World()),
            StoredCheckpoints(Storage.open(folder)),
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


def test_a_checkpoint_has_the_figures_of_its_step_however_long_it_takes(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path, settings(checkpoint_every=2))
    begun = {step: threading.Event() for step in range(STEPS)}

    def ends() -> bool:  # asked as each step begins
        begun[recorded.loop.step].set()
        return False

    def slow(folder: Path, state: Saved) -> None:
        folder.mkdir()
        assert state.step == STEPS or begun[state.step + 1].wait(60)  # the step after it is over

    recorded.loop.ends = ends
    recorded.loop.checkpoints = StoredCheckpoints(Storage.open(tmp_path), keep=3, write_adapter=slow)
    recorded.loop.run()
    losses = recorded.losses()
    kept = recorded.loop.checkpoints
    assert {step: kept.figures(step)["loss"] for step in kept.steps()} == {step: losses[step] for step in (2, 4, 6)}


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
    with pytest.raises(TrainingError, match=r"step 1: loss nan.* on windows \d, .*there is no checkpoint yet"):
        run.loop.train_step(0)


def test_too_little_memory_is_told_with_what_was_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Recorded(tmp_path, settings())
    run.loop.run(stop_at=2)

    def forward(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(run.loop, "forward", forward)
    told = r"step 3: out of memory on cpu.*16x3x8x12.*checkpoint is of step 2.*micro_batch"
    with pytest.raises(TrainingError, match=told):
        run.loop.train_step(2)


def test_another_validation_on_a_continued_run_is_another_curve(tmp_path: Path) -> None:
    first = Recorded(tmp_path, settings())
    first.loop.run(stop_at=4)
    changed = ValidationSettings(every=2, sigmas=[0.5], max_windows=1)
    second = Recorded(tmp_path, settings(validation=changed))
    figures = second.loop.run()
    assert [k for k in figures if k.startswith("val_loss/")] == ["val_loss/0.5"]
    events = [e for run in (first, second) for segment in run.segments.values() for e in segment]
    curve, others = validations(events)
    assert [e["step"] for e in curve] == [6]
    assert others == 2
    page = Training.of(settings(validation=changed), events)
    assert page.held_out_otherwise == 2
    assert page.sigmas == ["0.5"]


def test_each_window_is_read_once_a_step_and_ahead_of_it(tmp_path: Path) -> None:
    class Counting(ListedClips):
        read: list[int]

        def __getitem__(self, index: Any) -> Any:
            self.read.append(index)
            return super().__getitem__(index)

        def latent_shape(self, index: int) -> tuple[int, ...]:
            return (16, 3, 8, 12)

    run = Recorded(tmp_path, settings())
    run.loop.train = clips = Counting(run.loop.train)
    clips.read = []
    run.loop.train_step(0)
    run.loop._read(1)
    run.loop._read(2)
    assert len(clips.read) >= 12
    assert len(clips.read) % 4 == 0
    assert sorted(clips.read[:6] + clips.read[6:12]) == sorted(2 * [0, 1, 2, 3, 4, 5])


def test_seconds_a_step_leave_validation_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = Recorded(tmp_path, settings(log_every=1, validation=ValidationSettings(every=1)))
    monkeypatch.setattr(
        run.loop, "train_step", lambda step: {"step": step + 1, "loss": 1.0, "lr": 0.1, "grad_norm": 1.0}
    )
    monkeypatch.setattr(run.loop, "validate", lambda: time.sleep(0.2))
    with caplog.at_level(logging.INFO, logger="cinesynth.train"):
        run.loop.run(stop_at=3)
    lines = [told for told in caplog.messages if "s/step" in told]
    assert [re.findall(r"step (\d)/6 .* ([\d.]+) s/step .* ETA (\d+) s", told) for told in lines] == [
        [(str(step), "0.00", "0")] for step in (1, 2, 3)
    ]
    events = [event for segment in run.segments.values() for event in segment]
    assert len(events) == 2  # the third step has no checkpoint yet
    assert all(event["step_seconds"] < 0.1 < event["samples_per_second"] for event in events)


def test_parents_stay_as_they_are_and_generation_computes_what_was_trained(tmp_path: Path) -> None:
    base = base_hash("nano")
    parent = Recorded(tmp_path / "parent", settings(optimizer=OptimizerSettings(steps=2, lr=5e-3, batch_size=2)))
    parent.loop.run()
    card = AdapterCard(
        base_model="nano", base_sha256=base, stage="style", dataset="d", dataset_sha256="0", config={}, step=2
    )
    save_adapter(tmp_path / "a", parent.loop.adapter(), parent.loop.transformer.peft_config["default"], card)
    below = load_transformer("nano")
    parents = load_adapters(below, [(tmp_path / "a", 0.7)], base)
    before = {n: p.clone() for n, p in below.named_parameters() if "adapter_0" in n}
    short = settings(optimizer=OptimizerSettings(steps=2, lr=5e-3, batch_size=2))
    child = Recorded(tmp_path / "child", short, on=below)
    child.loop.run()
    assert before
    after = dict(child.loop.transformer.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not any("adapter_0" in name for name in child.loop.parameters)
    card = card.model_copy(update={"parents": parents, "stage": "motion"})
    save_adapter(tmp_path / "b", child.loop.adapter(), child.loop.transformer.peft_config["default"], card)
    served = load_transformer("nano")
    load_adapters(served, [(tmp_path / "a", 0.7), (tmp_path / "b", 1.0)], base)
    with torch.no_grad():
        trained = child.loop.forward(0, [0, 1])
        child.loop.strategy.model = served
        torch.testing.assert_close(child.loop.forward(0, [0, 1]), trained, rtol=1e-5, atol=1e-6)
        child.loop.strategy.model = load_transformer("nano")
        assert not torch.allclose(child.loop.forward(0, [0, 1]), trained, rtol=1e-4)


def test_merged_parents_train_the_same_adapter(tmp_path: Path) -> None:
    base = base_hash("nano")
    short = settings(optimizer=OptimizerSettings(steps=2, lr=5e-3, batch_size=2))
    parent = Recorded(tmp_path / "parent", short)
    parent.loop.run()
    card = AdapterCard(
        base_model="nano", base_sha256=base, stage="style", dataset="d", dataset_sha256="0", config={}, step=2
    )
    save_adapter(tmp_path / "a", parent.loop.adapter(), parent.loop.transformer.peft_config["default"], card)
    parents = [(tmp_path / "a", 0.7)]
    live, merged = load_transformer("nano"), load_transformer("nano")
    assert load_adapters(live, parents, base) == Merging(StoredWeights("nano")).load(merged, parents, base)
    children = [Recorded(tmp_path / name, short, on=on) for name, on in (("live", live), ("merged", merged))]
    for child in children:
        child.loop.run()
    one, other = (child.loop.adapter() for child in children)
    assert one.keys() == other.keys()
    assert all((other[n] - v).norm() <= 1e-4 * v.norm() + 1e-5 for n, v in one.items())
    assert any((parent.loop.adapter()[n] - v).norm() > 1e-3 for n, v in one.items())


def test_learning_rate_warms_up_and_ends_near_zero() -> None:
    optimizer = OptimizerSettings(steps=100, lr=1.0, warmup=0.1)
    rates = [learning_rate(step, optimizer) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5, abs=0.02)
    assert rates[-1] < 1e-3


def test_auto_replicates_what_fits_and_shards_what_does_not() -> None:
    buckets = {"5x60x104": 6 * 10**9, "13x60x104": 15 * 10**9, "9x60x104": 10 * 10**9}
    memory = Memory(33 * 10**9, {"trained values and gradients": 10**9, "optimiser": 10**9}, buckets)
    node = (8, 4)
    assert choose_strategy("auto", memory, 80 * 10**9, *node)[:2] == ("replicate", 1)
    name, shards, reason = choose_strategy("auto", memory, 40 * 10**9, *node)
    assert (name, shards) == ("hsdp", 4)
    assert (
        "weights 33.00 GB / 4 + trained values and gradients 1.00 GB + optimiser 1.00 GB + activations 15.00 GB "
        "(bucket 13x60x104, 10.00 GB 9x60x104, 6.00 GB 5x60x104) = 25.25 GB"
    ) in reason
    assert choose_strategy("auto", memory, 24 * 10**9, *node)[:2] == ("fsdp2", 8)
    assert choose_strategy("auto", memory, 40 * 10**9, 4, 4)[:2] == ("fsdp2", 4)
    assert choose_strategy("auto", memory, 40 * 10**9, 1, 1)[:2] == ("replicate", 1)
    assert choose_strategy("fsdp2", memory, 80 * 10**9, 1, 1) == ("fsdp2", 1, "asked for")
    assert choose_strategy("hsdp", memory, 80 * 10**9, *node, shards=2)[:2] == ("hsdp", 2)
    with pytest.raises(ConfigError, match="8 workers do not divide into groups of 3"):
        choose_strategy("hsdp", memory, 80 * 10**9, *node, shards=3)


def test_ranks_that_compute_a_window_together_count_once() -> None:
    worlds = [World(rank=rank, size=6, sequence=3) for rank in range(6)]
    assert [world.data_rank for world in worlds] == [0, 0, 0, 1, 1, 1]
    assert {world.data_size for world in worlds} == {2}
    assert (World(rank=3, size=4).data_rank, World(rank=3, size=4).data_size) == (3, 4)


def test_training_all_weights_is_refused_where_they_do_not_fit() -> None:
    memory = Memory(0, {"trained": 40 * 10**9}, {})
    assert choose_strategy("auto", memory, 80 * 10**9, 1, 1, full=True)[0] == "replicate"
    with pytest.raises(ConfigError, match=r"trained 40\.00 GB .*more than 92% of a device's 24\.0 GB"):
        choose_strategy("auto", memory, 24 * 10**9, 1, 1, full=True)
