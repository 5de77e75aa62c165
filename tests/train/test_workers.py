"""Groups of gloo workers, each spawned once: all strategies agree with one worker, and continue each other's runs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from cinesynth.storage import Storage
from cinesynth.train.batch import ListedClips
from cinesynth.train.checkpoint import StoredCheckpoints
from cinesynth.train.loop import TrainLoop
from cinesynth.train.state import Saved
from cinesynth.train.strategy import World, make_strategy
from cinesynth.wan.family import WAN21_I2V
from cinesynth.wan.load import load_transformer, prepare_attention
from cinesynth.wan.stream import StoredWeights
from tests.train.test_loop import settings

STEPS = 4
RUNS = {
    2: ("replicate", "fsdp2", "replicate streamed mixed", "fsdp2 streamed mixed"),
    4: ("hsdp streamed mixed",),
}
"""What groups of so many workers train, one after the other."""


class RankCheckpoints(StoredCheckpoints):
    """Rank 0 writes for all; everyone waits for it."""

    def save(self, saved: Saved) -> None:
        super().save(saved)
        if dist.is_initialized():
            dist.barrier()


def _mixed(clips: list[Any]) -> list[Any]:
    """Every third window is shorter: other shapes, so that micro-batches are unequal."""
    short = [{k: v[:, :2] if "latents" in k else v for k, v in clip.items()} for clip in clips]
    return [short[i] if i % 3 == 0 else clip for i, clip in enumerate(clips)]


def _train(name: str, world: World, clips: list[Any], folder: Path, stop_at: int | None = None) -> dict[str, Any]:
    events: list[dict[str, Any]] = []
    config = settings(checkpoint_every=1, micro_batch=2)
    weights = StoredWeights("nano") if "streamed" in name else None
    transformer = load_transformer("nano")
    if weights is not None:
        transformer = weights.empty_transformer()
        prepare_attention(transformer, "nano", world.device)
    if "mixed" in name:
        clips = _mixed(clips)
    loop = TrainLoop(
        config,
        WAN21_I2V,
        transformer,
        ListedClips(clips[:6]),
        ListedClips(clips[6:]),
        clips[0]["prompt_embeds"][:1],
        make_strategy(name.split()[0], world, weights, 2),  # type: ignore[arg-type]
        RankCheckpoints(Storage.open(folder), writes=world.rank == 0),
        lambda _, segment: events.extend(segment),
        world,
    )
    loop.run(stop_at=stop_at if stop_at is not None else STEPS)
    return {
        "losses": {str(e["step"]): e["loss"] for e in events if "loss" in e},
        "held_out": [e["val_loss"] for e in events if "val_loss" in e],
        "adapter": {k: v.tolist() for k, v in loop.adapter().items() if "lora_B" in k or "blocks.0." in k},
    }


def _rank(rank: int, folder: str, size: int) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1")
    store = dist.FileStore(f"{folder}/rendezvous-{size}", size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    clips = torch.load(f"{folder}/clips.pt", weights_only=True)
    results = {}
    for name in RUNS[size]:
        results[name] = _train(name, World(rank, size), clips, Path(folder) / name)
    if size == 2:  # a run that one worker began, continued by two sharded ones
        results["continued"] = _train("fsdp2", World(rank, size), clips, Path(folder) / "begun-by-one")
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
    alone = _train("replicate", World(), clips, folder / "alone")
    mixed = _train("replicate mixed", World(), clips, folder / "alone mixed")
    _train("replicate", World(), clips, folder / "begun-by-one", stop_at=1)
    found: dict[str, Any] = {}
    for size in RUNS:
        mp.spawn(_rank, (str(folder), size), nprocs=size)
        found |= json.loads((folder / f"results-{size}.json").read_text())
    return {"alone": alone, "alone mixed": mixed, **found}


@pytest.mark.parametrize("strategy", [name for names in RUNS.values() for name in names])
def test_several_workers_agree_with_one(runs: dict[str, Any], strategy: str) -> None:
    one, two = runs["alone mixed" if "mixed" in strategy else "alone"], runs[strategy]
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert two["held_out"] == pytest.approx(one["held_out"], rel=1e-4)
    for name, values in one["adapter"].items():
        expected, found = torch.tensor(values), torch.tensor(two["adapter"][name])
        # Where gradients are near its epsilon, AdamW scales their rounding up: hence the absolute part.
        assert (found - expected).norm() <= 1e-4 * expected.norm() + 1e-5, name


def test_two_sharded_workers_continue_what_one_began(runs: dict[str, Any]) -> None:
    rest = {step: loss for step, loss in runs["alone"]["losses"].items() if int(step) > 1}
    assert runs["continued"]["losses"] == pytest.approx(rest, rel=1e-4)
