"""Groups of gloo workers, each spawned once: all strategies agree with one worker, and continue each other's runs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from cinesynth.config import SamplerSettings, TrainSettings, ValidationVideos
from cinesynth.errors import ConfigError
from cinesynth.generate.denoise import Conditions
from cinesynth.storage import Storage
from cinesynth.train.batch import ListedClips
from cinesynth.train.checkpoint import StoredCheckpoints
from cinesynth.train.choice import make_strategy
from cinesynth.train.loop import TrainLoop
from cinesynth.train.state import Saved, trained
from cinesynth.train.strategy import World
from cinesynth.train.supported import SUPPORTED, check_supported, table
from cinesynth.train.validations import Validations
from cinesynth.train.videos import VideoWatch
from cinesynth.wan.family import WAN21_I2V
from cinesynth.wan.load import load_transformer, prepare_attention
from cinesynth.wan.stream import StoredWeights
from tests.conftest import REPOSITORY
from tests.train.test_loop import settings

STEPS = 4
RUNS = {
    2: (
        "replicate none watched",
        "replicate streamed mixed attention",
        "replicate all-weights muon",
        "fsdp2 none watched",
        "fsdp2 streamed mixed attention",
        "deepspeed zero-2 streamed mixed attention",
        "deepspeed zero-3 streamed mixed watched",
    ),
    4: ("hsdp", "hsdp streamed mixed attention"),
}
"""What groups of so many workers train, one after the other."""


CONTINUED = {2: {"fsdp2": 1, "deepspeed zero-2": 1, "deepspeed zero-3": 1, "replicate": 2}, 4: {"hsdp attention": 1}}
"""By group: what it continues, and how many workers of another strategy and recomputation began that: one that
replicates, or two that shard."""
BEGUN = {1: "replicate none", 2: "fsdp2 none"}
"""What so many workers begin."""
ALL = [name for size in RUNS for name in RUNS[size]]


class RankCheckpoints(StoredCheckpoints):
    """Rank 0 writes for all; everyone waits for it."""

    def save(self, saved: Saved) -> None:
        super().save(saved)
        self.flush()
        if dist.is_initialized():
            dist.barrier()


class Inline:
    """Three windows that are made by the workers in training, in place of `VideoValidation`, and kept as they are."""

    model = "nano"

    def __init__(self, clips: list[Any], folder: Path) -> None:
        self.clips, self.folder = clips, folder
        self.windows = [SimpleNamespace(window_id=str(i)) for i in range(3)]

    def make(self, window: Any, make: Any) -> Any:
        conditions = Conditions.of_row(self.clips[int(window.window_id)])
        return make(conditions, SamplerSettings(steps=2, guidance_scale=1.0, seed=int(window.window_id)))

    def record(self, made: dict[str, Any], validations: Validations, step: int, started: float) -> str:
        for window_id, frames in made.items():
            np.save(self.folder / f"made-{step}-{window_id}.npy", frames)
        validations.write(step, {"figures": {"lpips": 0.5}, "started": started})
        return "made"


def _mixed(clips: list[Any]) -> list[Any]:
    """Every third window is shorter: other shapes, so that micro-batches are unequal."""
    short = [{k: v[:, :2] if "latents" in k else v for k, v in clip.items()} for clip in clips]
    return [short[i] if i % 3 == 0 else clip for i, clip in enumerate(clips)]


def _recompute(name: str) -> str:
    return next((mode for mode in ("none", "attention") if mode in name.split()), "full")


def _mode(name: str) -> str:
    return "full" if "all-weights" in name.split() else "lora"


def _algorithm(name: str) -> str:
    return "muon" if "muon" in name.split() else "adamw"


def _alike(name: str) -> str:
    """What one worker trains to compare with."""
    return " ".join(["alone", *(word for word in ("all-weights", "muon", "mixed") if word in name.split())])


def _train(name: str, world: World, clips: list[Any], folder: Path, stop_at: int | None = None) -> dict[str, Any]:
    events: list[dict[str, Any]] = []
    optimizer = settings().optimizer.model_copy(update={"algorithm": _algorithm(name)})
    config = settings(
        mode=_mode(name),
        optimizer=optimizer,
        checkpoint_every=1,
        activation_checkpointing=_recompute(name),
        validation_videos=ValidationVideos(every=STEPS) if "watched" in name else None,
    )
    weights = StoredWeights("nano") if "streamed" in name else None
    transformer = load_transformer("nano")
    if weights is not None:
        transformer = weights.empty_transformer()
        prepare_attention(transformer, "nano", world.device)
    if "mixed" in name:
        clips = _mixed(clips)
    watch = None
    if "watched" in name:
        inline: Any = Inline(clips, folder)
        watch = VideoWatch(Validations(Storage.open(folder / "run"), config), world, inline, torch.float32)
    loop = TrainLoop(
        config,
        WAN21_I2V,
        transformer,
        ListedClips(clips[:6]),
        ListedClips(clips[6:]),
        clips[0]["prompt_embeds"][:1],
        make_strategy(name.split()[0], world, weights, 2, 2 if "zero-2" in name else 3),  # type: ignore[arg-type]
        RankCheckpoints(Storage.open(folder), writes=world.rank == 0),
        lambda _, segment: events.extend(segment),
        world,
        watch=watch,
    )
    loop.run(stop_at=stop_at if stop_at is not None else STEPS)
    return {
        "losses": {str(e["step"]): e["loss"] for e in events if "loss" in e},
        "held_out": [e["val_loss"] for e in events if "val_loss" in e],
    }


def _rank(rank: int, folder: str, size: int) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", LOCAL_RANK=str(rank))
    store = dist.FileStore(f"{folder}/rendezvous-{size}", size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    clips = torch.load(f"{folder}/clips.pt", weights_only=True)
    results: dict[str, Any] = {}
    world = World(rank, size)
    for name in RUNS[size]:
        results[name] = _train(name, world, clips, Path(folder) / name)
    for name, begun_by in CONTINUED[size].items():
        place = Path(folder) / f"begun for {name}"
        if begun_by == size:
            _train(BEGUN[size], world, clips, place, stop_at=1)
        results[f"continued {name}"] = _train(name, world, clips, place)
    results[f"least of {size}"] = world.gather(world.least(7 + (rank + 1) % size))
    if rank == 0:
        (Path(folder) / f"results-{size}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from tests.nano_clips import encoded_clips

    folder = tmp_path_factory.mktemp("workers")
    names = WAN21_I2V.tensors
    clips = [{name: clip[name] for name in names} for clip in encoded_clips()]
    torch.save(clips, folder / "clips.pt")
    alone = {}
    for name in dict.fromkeys(map(_alike, ALL)):
        watched = " watched" if any("watched" in other for other in ALL if _alike(other) == name) else ""
        alone[name] = _train(name.replace("alone", "replicate") + watched, World(), clips, folder / name)
    for names in CONTINUED.values():
        for name in (name for name, begun_by in names.items() if begun_by == 1):
            _train(BEGUN[1], World(), clips, folder / f"begun for {name}", stop_at=1)
    found: dict[str, Any] = {}
    for size in RUNS:
        mp.spawn(_rank, (str(folder), size), nprocs=size)
        found |= json.loads((folder / f"results-{size}.json").read_text())
    return {"folder": folder, **alone, **found}


def _state(runs: dict[str, Any], name: str) -> dict[str, torch.Tensor]:
    """What a run left in its newest checkpoint."""
    saved = StoredCheckpoints(Storage.open(runs["folder"] / name)).latest()
    assert saved is not None
    assert saved.step == STEPS
    return saved.tensors


@pytest.mark.parametrize("strategy", ALL)
def test_several_workers_agree_with_one(runs: dict[str, Any], strategy: str) -> None:
    one, two = runs[_alike(strategy)], runs[strategy]
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert two["held_out"] == pytest.approx(one["held_out"], rel=1e-4)
    expected, found = (trained(_state(runs, name)) for name in (_alike(strategy), strategy))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # Where gradients are near its epsilon, AdamW scales their rounding up: hence the absolute part. Without it the
        # one tensor of nano that hardly moves (a norm of 0.005) is apart by up to 1.7e-3, all others by 7e-5.
        assert (found[name] - value).norm() <= 1e-4 * value.norm() + 1e-5, name


@pytest.mark.parametrize("strategy", [name for name in ALL if "watched" in name])
def test_workers_in_training_make_the_videos_that_one_makes(runs: dict[str, Any], strategy: str) -> None:
    """Three windows on two workers, of which one makes a window for nothing: all run equally many passes."""
    made = [
        [np.load(runs["folder"] / name / f"made-{STEPS}-{window}.npy").astype(int) for window in range(3)]
        for name in (_alike(strategy), strategy)
    ]
    for one, two in zip(*made, strict=True):
        assert one.shape == two.shape
        assert np.abs(one - two).max() <= 1
    assert np.abs(made[0][1] - made[0][2]).max() > 5


CONTINUATIONS = [name for size in CONTINUED for name in CONTINUED[size]]


@pytest.mark.parametrize("strategy", CONTINUATIONS)
def test_workers_continue_what_others_began(runs: dict[str, Any], strategy: str) -> None:
    """Another strategy, another number of workers, another recomputation."""
    rest = {step: loss for step, loss in runs["alone"]["losses"].items() if int(step) > 1}
    assert runs[f"continued {strategy}"]["losses"] == pytest.approx(rest, rel=1e-4)


@pytest.mark.parametrize("strategy", [*ALL, *(f"begun for {name}" for name in CONTINUATIONS)])
def test_every_strategy_leaves_the_same_state(runs: dict[str, Any], strategy: str) -> None:
    alike = "alone" if strategy.startswith("begun") else _alike(strategy)
    one, two = (_state(runs, name) for name in (alike, strategy))
    assert set(two) == set(one)
    assert all(two[name].shape == value.shape for name, value in one.items())
    assert all((two[n] - v).norm() <= 1e-3 * v.norm() + 1e-5 for n, v in one.items())


@pytest.mark.parametrize("size", RUNS)
def test_all_workers_hear_the_smallest_of_their_values(runs: dict[str, Any], size: int) -> None:
    assert runs[f"least of {size}"] == [7] * size


@pytest.mark.parametrize("strategy", SUPPORTED)
def test_what_is_said_to_go_together_is_what_was_trained_here(strategy: str) -> None:
    several = {size: [n for n in (*RUNS[size], *CONTINUED[size]) if n.startswith(strategy)] for size in RUNS}
    names = [name for told in several.values() for name in told]
    row = SUPPORTED[strategy]
    assert {_recompute(name) for name in names} == set(row.activation_checkpointing)
    assert {_mode(name) for name in names} == set(row.modes)
    assert {_algorithm(name) for name in names} == set(row.optimizers)
    assert [size for size, told in several.items() if told] == [n for n in RUNS if f"{n} workers" in row.tested]
    compiled = (False, True) if "compiled on a GPU" in row.tested else (False,)
    assert row.compile == compiled
    assert any("streamed mixed" in name for name in names)


def test_the_table_in_the_documents_is_this_one() -> None:
    assert "\n".join(table()) in (REPOSITORY / "docs" / "training.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategy": "fsdp2", "mode": "full"}, r"'fsdp2' does not go with mode full: it takes lora; .* to replicate"),
        (
            {"strategy": "deepspeed", "optimizer": {"algorithm": "muon"}},
            r"'deepspeed zero-3' does not go with optimizer\.algorithm muon: it takes adamw; .* to replicate",
        ),
        ({"strategy": "hsdp", "compile": True}, r"'hsdp' does not go with compile true: it takes false"),
        ({"strategy": "deepspeed", "zero_stage": 2, "activation_checkpointing": "none"}, "it takes full or attention"),
        ({"strategy": "deepspeed", "activation_checkpointing": "attention"}, "attention: it takes full;"),
    ],
)
def test_other_combinations_are_refused(changes: dict[str, Any], message: str) -> None:
    config = TrainSettings(**changes)
    with pytest.raises(ConfigError, match=message):
        check_supported(config.strategy, config)
    check_supported("replicate", config)
