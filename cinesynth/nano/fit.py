"""The training loop of the parts that flow matching does not train. It is seeded, continues, and leaves a curve."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from cinesynth.storage import Storage
from cinesynth.train.checkpoint import StoredCheckpoints
from cinesynth.train.muon import Muon
from cinesynth.train.state import Saved, collect_state, restore_state

log = logging.getLogger("cinesynth.nano")

Loss = Callable[[int], tuple[torch.Tensor, dict[str, float]]]
"""Gives the loss at a step, and figures to log. It depends on the step and the weights only."""
Curve = list[dict[str, float]]


@dataclass(frozen=True)
class Schedule:
    """Muon with a cosine to 1 % of `lr` after a warm-up."""

    steps: int
    lr: float
    warmup: int = 50
    log_every: int = 50
    checkpoint_every: int = 200

    def rate(self, step: int) -> float:
        progress = step / self.steps
        return self.lr * min(1.0, (step + 1) / self.warmup) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def fit(
    name: str,
    module: torch.nn.Module,
    loss: Loss,
    schedule: Schedule,
    folder: Path,
    validate: Callable[[], dict[str, float]],
) -> Curve:
    """Train `module` in place to the last step, from the newest checkpoint in `folder`; returns the curve.

    `validate` is called at every checkpoint. A run that is finished is only restored.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
    optimizer = Muon(parameters.values(), lr=schedule.lr)
    checkpoints = StoredCheckpoints(Storage.open(folder), keep=1)
    step = 0
    if (latest := checkpoints.latest()) is not None:
        restore_state(latest.tensors, parameters, optimizer)
        step = latest.step
    curve = [event for event in _read_curve(folder) if event["step"] <= step]
    since, first = time.monotonic(), step
    while step < schedule.steps:
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        optimizer.zero_grad(set_to_none=True)
        value, figures = loss(step)
        value.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        if not math.isfinite(value.item()) or not math.isfinite(norm.item()):
            raise FloatingPointError(f"{name}, step {step}: loss {value.item()}, gradient norm {norm.item()}")
        optimizer.step()
        step += 1
        event: dict[str, float] = {}
        if step % schedule.log_every == 0 or step == schedule.steps:
            event = {"loss": value.item(), **figures}
        if step % schedule.checkpoint_every == 0 or step == schedule.steps:
            event |= validate()
        if event:
            curve.append({"step": step, **event})
            rate = (time.monotonic() - since) / (step - first)
            shown = "  ".join(f"{key} {v:.4g}" for key, v in event.items())
            log.info(
                "%s %d/%d  %s  %.2f s/step  ETA %.0f s",
                name,
                step,
                schedule.steps,
                shown,
                rate,
                rate * (schedule.steps - step),
            )
        if step % schedule.checkpoint_every == 0 or step == schedule.steps:
            Storage.open(folder).write_text("curve.json", json.dumps(curve))
            checkpoints.save(Saved(collect_state(parameters, optimizer), step, {}))
            checkpoints.flush()  # it sweeps the folder, and with it what would be written there meanwhile
    return curve


def _read_curve(folder: Path) -> Curve:
    path = folder / "curve.json"
    return json.loads(path.read_text()) if path.is_file() else []
