"""Two gloo workers, spawned once: replicate and fsdp2 agree with one worker, and continue each other's runs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from cinesynth.train.checkpoint import LocalCheckpoints
from cinesynth.train.loop import TrainLoop
from cinesynth.train.strategy import World, make_strategy
from cinesynth.wan.family import WAN21_I2V
from cinesynth.wan.load import load_transformer
from tests.train.test_loop import settings

STEPS = 3


class RankCheckpoints(LocalCheckpoints):
    """Rank 0 writes for all; everyone waits for it."""

    def save(self, state: dict[str, torch.Tensor], step: int, figures: dict[str, float]) -> None:
        if not dist.is_initialized() or dist.get_rank() == 0:
            super().save(state, step, figures)
        if dist.is_initialized():
            dist.barrier()


def _train(name: str, world: World, clips: list[Any], folder: Path, stop_at: int | None = None) -> dict[str, Any]:
    events: list[dict[str, Any]] = []
    config = settings(checkpoint_every=1, micro_batch=2)
    loop = TrainLoop(
        config,
        WAN21_I2V,
        load_transformer("nano"),
        clips[:6],
        clips[6:],
        clips[0]["prompt_embeds"][:1],
        make_strategy("fsdp2" if name == "fsdp2" else "replicate", world),
        RankCheckpoints(folder),
        lambda _, segment: events.extend(segment),
        world,
    )
    loop.run(stop_at=stop_at if stop_at is not None else STEPS)
    return {
        "losses": {str(e["step"]): e["loss"] for e in events if "loss" in e},
        "held_out": [e["val_loss"] for e in events if "val_loss" in e],
        "adapter": sum(v.double().sum().item() for v in loop.adapter().values()),
    }


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1")
    store = dist.FileStore(f"{folder}/rendezvous", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    clips = torch.load(f"{folder}/clips.pt", weights_only=True)
    results = {}
    for name in ("replicate", "fsdp2"):
        results[name] = _train(name, World(rank, 2), clips, Path(folder) / name)
    # A run that one worker began, continued by two sharded ones.
    results["continued"] = _train("fsdp2", World(rank, 2), clips, Path(folder) / "begun-by-one")
    if rank == 0:
        (Path(folder) / "results.json").write_text(json.dumps(results))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from tests.nano_clips import encoded_clips

    folder = tmp_path_factory.mktemp("workers")
    names = WAN21_I2V.tensors
    clips = [{name: clip[name] for name in names} for clip in encoded_clips()]
    torch.save(clips, folder / "clips.pt")
    alone = _train("replicate", World(), clips, folder / "alone")
    _train("replicate", World(), clips, folder / "begun-by-one", stop_at=1)
    mp.spawn(_rank, (str(folder),), nprocs=2)
    return {"alone": alone, **json.loads((folder / "results.json").read_text())}


@pytest.mark.parametrize("strategy", ["replicate", "fsdp2"])
def test_two_workers_agree_with_one(runs: dict[str, Any], strategy: str) -> None:
    one, two = runs["alone"], runs[strategy]
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert two["held_out"] == pytest.approx(one["held_out"], rel=1e-4)
    assert two["adapter"] == pytest.approx(one["adapter"], rel=1e-4, abs=1e-3)


def test_two_sharded_workers_continue_what_one_began(runs: dict[str, Any]) -> None:
    rest = {step: loss for step, loss in runs["alone"]["losses"].items() if int(step) > 1}
    assert runs["continued"]["losses"] == pytest.approx(rest, rel=1e-4)
