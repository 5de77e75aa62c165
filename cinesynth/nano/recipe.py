"""The numbers of the nano model's training: the whole recipe, and a smoke run of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from cinesynth.config import FlowSettings, OptimizerSettings, TrainSettings, ValidationSettings
from cinesynth.nano.fit import Schedule
from cinesynth.nano.vae import Phase
from cinesynth.scripted.photographs import PACKAGED, TRAINED_ON

SIGMAS = [0.2, 0.4, 0.6, 0.8]
"""Noise levels of the held-out loss."""


def _transformer(steps: int, batch: int) -> TrainSettings:
    return TrainSettings(
        mode="full",
        optimizer=OptimizerSettings(
            algorithm="muon",
            steps=steps,
            lr=1.5e-2,
            warmup=0.02,
            betas=(0.9, 0.99),
            weight_decay=0.01,
            batch_size=batch,
        ),
        flow=FlowSettings(distribution="uniform", shift=5.0),
        caption_dropout=0.1,
        dtype="bf16",
        validation=ValidationSettings(every=max(1, steps // 20), sigmas=SIGMAS, max_windows=32),
        micro_batch=batch,
        activation_checkpointing="none",
        checkpoint_every=max(1, steps // 40),
        log_every=max(1, steps // 200),
    )


@dataclass(frozen=True)
class Recipe:
    """All that the result depends on.

    Attributes:
        seed: of all that is drawn.
        photographs: that the training windows show.
        train_windows, held_out_windows: of the home domain.
        vae_windows: held-out windows that the VAE's curve is measured on; its gate takes all.
        skeleton, phases: of the VAE: its linear skeleton, then the whole network.
        encoders: of the text and image encoders.
        transformer: the training loop's settings.
    """

    seed: int
    photographs: tuple[str, ...]
    train_windows: int
    held_out_windows: int
    vae_windows: int
    skeleton: Schedule
    phases: tuple[Phase, ...]
    encoders: Schedule
    transformer: TrainSettings

    def identity(self) -> dict[str, Any]:
        """All of it as plain values, for the record beside the result."""
        return asdict(self) | {"transformer": self.transformer.model_dump(mode="json")}


def full_recipe() -> Recipe:
    """The recipe of the shipped weights."""
    return Recipe(
        seed=0,
        photographs=TRAINED_ON,
        train_windows=4096,
        held_out_windows=96,
        vae_windows=16,
        skeleton=Schedule(1600, 2e-2, checkpoint_every=400, log_every=100),
        phases=(
            Phase("vae-13", 13, 8, (32, 48), Schedule(1000, 8e-4, warmup=100, checkpoint_every=200, log_every=50)),
            Phase("vae-33", 33, 2, (64, 96), Schedule(200, 3e-4, checkpoint_every=50, log_every=25)),
        ),
        encoders=Schedule(600, 5e-3, checkpoint_every=100, log_every=50),
        transformer=_transformer(7500, 8),
    )


def smoke_recipe() -> Recipe:
    """Twenty steps of each kind. They show that training runs, not that it learns, and need no Debian package."""
    return Recipe(
        seed=0,
        photographs=PACKAGED,
        train_windows=24,
        held_out_windows=3,
        vae_windows=1,
        skeleton=Schedule(20, 1e-2, warmup=5, checkpoint_every=20, log_every=10),
        phases=(
            Phase("vae-13", 13, 2, (32, 48), Schedule(14, 1e-3, warmup=5, checkpoint_every=20, log_every=10)),
            Phase("vae-33", 33, 1, (32, 48), Schedule(6, 3e-4, warmup=2, checkpoint_every=20, log_every=10)),
        ),
        encoders=Schedule(20, 5e-3, warmup=5, checkpoint_every=20, log_every=10),
        transformer=_transformer(20, 4),
    )
