"""Training of the nano transformer: its windows are encoded once, then the project's own loop trains all weights."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel

from cinesynth.config import TrainSettings
from cinesynth.pictures import Frames
from cinesynth.processor import fast_autocast, fast_float
from cinesynth.storage import Storage, sha256_json
from cinesynth.train.checkpoint import StoredCheckpoints
from cinesynth.train.loop import TrainLoop
from cinesynth.train.strategy import Replicate, World
from cinesynth.wan.condition import ConditionEncoder
from cinesynth.wan.family import WAN21_I2V
from cinesynth.wan.folder import encoder_hash
from cinesynth.wan.load import load_transformer

SHARD = 128


@dataclass(frozen=True)
class EncodedWindows:
    """Encoded windows by index, as the training loop reads them. Tensors are fp16, as in a clips dataset."""

    shards: list[dict[str, torch.Tensor]]
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        shard, row = self.shards[index // SHARD], index % SHARD
        length = int(shard["prompt_lengths"][row])
        tensors = {name: shard[name][row] for name in WAN21_I2V.pixel_tensors}
        return {**tensors, "prompt_embeds": shard["prompt_embeds"][row, :length]}

    def latent_shape(self, index: int) -> tuple[int, ...]:
        return tuple(self.shards[index // SHARD]["latents"].shape[1:])

    def window_id(self, index: int) -> str:
        """Its place: the windows of a series are seeded."""
        return str(index)


class Clip(Protocol):
    """A `HomeWindow`, or any other frames with a caption."""

    @property
    def caption(self) -> str: ...

    def render(self) -> Frames: ...


def encode_windows(
    windows: Sequence[Clip],
    model: str,
    folder: Path,
    processes: int = 1,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> EncodedWindows:
    """Encode windows with a model's VAE and encoders. Shards are kept, so a call that was stopped is continued.

    Args:
        windows: of one shape.
        model: folder whose encoders are used.
        folder: of the shards; those of other encoders or captions are not used.
        processes: that encode, on one thread each; with 1, this process encodes.
        report: called with (windows done, windows in all) after each shard.
    """
    folder = folder / sha256_json([encoder_hash(model), [w.caption for w in windows]])[:16]
    folder.mkdir(parents=True, exist_ok=True)
    ranges = [(start, min(start + SHARD, len(windows))) for start in range(0, len(windows), SHARD)]
    paths = [folder / f"{start:06d}-{stop:06d}.safetensors" for start, stop in ranges]
    tasks = [
        (model, windows[start:stop], path)
        for (start, stop), path in zip(ranges, paths, strict=True)
        if not path.is_file()
    ]
    done = len(windows) - sum(len(task[1]) for task in tasks)
    for count in _encode_all(tasks, min(processes, len(tasks))):
        done += count
        report(done, len(windows))
    return EncodedWindows([load_file(path) for path in paths], len(windows))


def train_transformer(
    settings: TrainSettings,
    model: str,
    train: EncodedWindows,
    held_out: EncodedWindows,
    folder: Path,
    world: World | None = None,
) -> TrainLoop:
    """Train the transformer of `model`, or an adapter on it; the loop that is returned holds the result.

    A training that was stopped is continued from the checkpoint in `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    world = world or World()
    dtype = torch.bfloat16 if settings.dtype == "bf16" or world.device.startswith("cuda") else torch.float32
    if world.device == "cpu" and dtype == torch.bfloat16:
        dtype = fast_float()
    loop = TrainLoop(
        settings,
        WAN21_I2V,
        load_transformer(model, torch.float32, world.device),
        train,
        held_out,
        ConditionEncoder(model).prompt_embeds(""),
        Replicate(world),
        StoredCheckpoints(Storage.open(folder / "checkpoints"), keep=1),
        lambda first, events: _write_events(folder, first, events),
        world,
        dtype,
    )
    # Flash attention in bf16 is slow backwards on a CPU: a third of a step for 216 tokens.
    plain = dtype == torch.bfloat16 and world.device == "cpu"
    with sdpa_kernel(SDPBackend.MATH) if plain else nullcontext():
        loop.run()
    return loop


def training_curve(folder: Path) -> list[dict[str, Any]]:
    """All events of a training in `folder`, by step."""
    return [event for path in sorted(folder.glob("events-*.json")) for event in json.loads(path.read_text())]


def _write_events(folder: Path, first: int, events: list[dict[str, Any]]) -> None:
    Storage.open(folder).write_text(f"events-{first:08d}.json", json.dumps(events))


Task = tuple[str, Sequence[Clip], Path]


def _encode_all(tasks: list[Task], processes: int) -> Iterator[int]:
    if processes < 2:
        yield from map(_encode_shard, tasks)
        return
    # Small convolutions gain little from threads: a process a core does more.
    with multiprocessing.get_context("spawn").Pool(processes, torch.set_num_threads, (1,)) as pool:
        yield from pool.imap_unordered(_encode_shard, tasks)


def _encode_shard(task: Task) -> int:
    model, windows, path = task
    rows = [_encode(_encoder(model), window.caption, window.render()) for window in windows]
    tensors = {name: torch.stack([row[name] for row in rows]).half().contiguous() for name in WAN21_I2V.pixel_tensors}
    prompts = [row["prompt_embeds"] for row in rows]
    tensors["prompt_embeds"] = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True).half()
    tensors["prompt_lengths"] = torch.tensor([len(prompt) for prompt in prompts])
    part = path.with_suffix(f".tmp-{os.getpid()}")
    save_file(tensors, part)
    os.replace(part, path)
    return len(windows)


@lru_cache(maxsize=1)
def _encoder(model: str) -> ConditionEncoder:
    return ConditionEncoder(model)


def _encode(encoder: ConditionEncoder, caption: str, frames: Frames) -> dict[str, torch.Tensor]:
    # bf16 changes latents by less than the noise of the VAE.
    with fast_autocast():
        latents, condition = encoder.window_latents(frames)
    return {
        "latents": latents,
        "condition_latents": condition,
        "image_embeds": encoder.image_embeds(frames[0]),
        "prompt_embeds": encoder.prompt_embeds(caption),
    }
