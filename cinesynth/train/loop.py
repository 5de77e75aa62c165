"""The training loop: it trains a Wan transformer, or a LoRA on it, by flow matching. It knows nothing of Ray.

It runs under plain torch and inside a Ray Train worker (`worker`) alike. The same seed gives the
same losses with any number of workers, and a run that was stopped and continued gives those of an uninterrupted one.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from cinesynth.errors import TrainingError
from cinesynth.train.batch import Clips, Forward, collate, share_out
from cinesynth.train.randomness import drops_caption, generator, noise, sample_index
from cinesynth.train.reader import ReadAhead
from cinesynth.train.recompute import set_recompute
from cinesynth.train.state import Checkpoints, Saved
from cinesynth.train.strategy import Strategy, World
from cinesynth.train.validation import held_out_loss, held_out_set
from cinesynth.wan.family import Family
from cinesynth.wan.flow import flow_loss, sample_sigma
from cinesynth.wan.lora import adapter_state, add_lora

if TYPE_CHECKING:
    from cinesynth.config import OptimizerSettings, TrainSettings

log = logging.getLogger("cinesynth.train")

Event = dict[str, Any]


def learning_rate(step: int, settings: OptimizerSettings) -> float:
    """The rate at `step`, counted from 0: a linear warm-up, then a cosine that ends at zero."""
    warmup = round(settings.warmup * settings.steps)
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, settings.steps - warmup)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * progress))


class TrainLoop:
    """One training stage on this worker.

    Args:
        settings: the stage's configuration.
        family: of the model.
        transformer: with its parents on it. In mode `lora` it stays frozen and gets an adapter here; in mode `full` all
            of it is trained, and it has to be in fp32.
        train: windows to train on.
        held_out: windows for the validation loss; may be empty.
        empty_prompt: [L, D] embedding of the empty prompt, for caption dropout.
        strategy: places the base on the workers.
        checkpoints: keeps the state, and gives the newest one back.
        write_events: takes (first step of the segment, events); called before each checkpoint, on rank 0 only.
        world: this worker among all.
        dtype: of the computation. Frozen weights have it; fp32 weights in training are cast to it on the way.
    """

    def __init__(
        self,
        settings: TrainSettings,
        family: Family,
        transformer: Any,
        train: Clips,
        held_out: Clips,
        empty_prompt: torch.Tensor,
        strategy: Strategy,
        checkpoints: Checkpoints,
        write_events: Callable[[int, list[Event]], None],
        world: World | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.settings, self.family = settings, family
        self.train, self.held_out, self.empty_prompt = train, held_out, empty_prompt
        self.checkpoints, self.write_events = checkpoints, write_events
        self.world = world or World()
        self.dtype = dtype
        self.transformer = transformer
        if settings.mode == "lora":
            lora = settings.lora
            add_lora(family, transformer, lora.rank, lora.alpha, lora.targets, settings.seed)
        else:
            transformer.requires_grad_(True)
        set_recompute(transformer, settings.activation_checkpointing, settings.compile)
        if settings.attention != "auto":
            transformer.set_attention_backend(f"_native_{settings.attention}")
        strategy.prepare(transformer, settings.optimizer)
        transformer.train()
        self.strategy = strategy
        self.step = 0
        self.figures: dict[str, float] = {}
        self._read = ReadAhead(self._read_step, settings.optimizer.steps)
        self._seconds, self._steps_timed = 0.0, 0
        self._events: list[Event] = []
        self._segment = 0
        self._restore()

    def run(self, stop_at: int | None = None) -> dict[str, float]:
        """Train to the last step (or to `stop_at`, as if interrupted there); returns the last figures."""
        total = self.settings.optimizer.steps
        if self.step == 0:
            self.validate()
        while self.step < (total if stop_at is None else min(stop_at, total)):
            started = time.monotonic()
            event = self.train_step(self.step)
            self._seconds, self._steps_timed = self._seconds + time.monotonic() - started, self._steps_timed + 1
            self.step += 1
            self._events.append(event)
            self.figures |= {"loss": event["loss"], "grad_norm": event["grad_norm"]}
            if self.step % self.settings.log_every == 0 or self.step == total:
                self._log_progress(event, self._seconds / self._steps_timed)
            if self.step % self.settings.validation.every == 0 or self.step == total:
                self.validate()
            if self.step % self.settings.checkpoint_every == 0 or self.step == total:
                self.checkpoint()
        return self.figures

    def train_step(self, step: int) -> Event:
        """One optimiser step over this worker's share of the global batch; the event holds global figures.

        Raises TrainingError where the step would fail again: a figure that is not finite, or too little memory.
        """
        rate = learning_rate(step, self.settings.optimizer)
        total = torch.zeros((), dtype=torch.float64, device=self.world.device)
        for forward, windows in self._read(step):
            try:
                loss = self.forward(step, forward.places, windows).sum() / self.settings.optimizer.batch_size
                self.strategy.backward(loss if forward.counts else 0 * loss)
            except torch.OutOfMemoryError as e:
                raise self._too_little_memory(step, forward) from e
            if forward.counts:
                total += loss.detach()
        loss_value, norm = self.world.sum(total).item(), self.strategy.step(rate)
        if not math.isfinite(loss_value) or not math.isfinite(norm):
            raise TrainingError(
                f"step {step + 1}: loss {loss_value}, gradient norm {norm}, on windows "
                f"{', '.join(self._window_ids(step, range(self.settings.optimizer.batch_size)))}; {self._last_good()}; "
                "lower optimizer.lr or optimizer.max_grad_norm under another name, or take these windows out"
            )
        return {"step": step + 1, "loss": loss_value, "lr": rate, "grad_norm": norm}

    def forward(
        self, step: int, places: Sequence[int], windows: Sequence[Mapping[str, Any]] | None = None
    ) -> torch.Tensor:
        """The loss of each sample [B].

        Args:
            step: from 0.
            places: of the samples in the global batch of this step.
            windows: that stand there; default: they are read.
        """
        s = self.settings
        if windows is None:
            windows = self._windows(step, places)
        dropped = {
            sample: self.empty_prompt
            for sample, place in enumerate(places)
            if drops_caption(s.seed, step, place, s.caption_dropout)
        }
        batch = collate(self.family, windows, self.world.device, dropped)
        shape = tuple(batch["latents"].shape[1:])
        sigma = torch.stack(
            [sample_sigma(generator(s.seed, "sigma", step, i), s.flow.distribution, s.flow.shift) for i in places]
        )
        noises = torch.stack([noise(s.seed, step, i, shape) for i in places])
        device = self.world.device
        with self._autocast():
            inputs = (batch, noises.to(device), sigma.to(device), self._input_dtype)
            return flow_loss(self.family, self.strategy.model, *inputs)

    def validate(self) -> None:
        """Record the held-out loss, if anything is held out."""
        if not len(self.held_out):
            return
        v = self.settings.validation
        with self._autocast():
            arguments = (self.held_out, v.sigmas, v.max_windows, self._input_dtype, self.world)
            losses = held_out_loss(self.family, self.strategy.model, *arguments)
        taken_on = held_out_set(self.held_out, v.sigmas, v.max_windows)
        self._events.append({"step": self.step, "val_set": taken_on, **losses})
        self.figures = {k: v for k, v in self.figures.items() if not k.startswith("val_loss/")} | losses
        if self.world.rank == 0:
            log.info("step %d: held-out loss %.5f", self.step, losses["val_loss"])

    def checkpoint(self) -> None:
        """Write the events, then the state, which commits both."""
        if self.world.rank == 0:
            self.write_events(self._segment, self._events)
        self.checkpoints.save(Saved(self.strategy.state(), self.step, self.figures))
        self._events, self._segment = [], self.step

    def adapter(self) -> dict[str, torch.Tensor]:
        """The adapter's tensors on the CPU. All workers have to call this."""
        with self.strategy.whole():
            return adapter_state(self.transformer)

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """What is trained, by name."""
        return self.strategy.parameters

    @property
    def _input_dtype(self) -> torch.dtype:
        return torch.float32 if self.settings.mode == "full" else self.dtype

    def _autocast(self) -> torch.autocast:
        """Casts fp32 weights in training to the dtype of the computation."""
        device = self.world.device.split(":")[0]
        return torch.autocast(device, self.dtype, enabled=self._input_dtype != self.dtype)

    def _restore(self) -> None:
        saved = self.checkpoints.latest()
        if saved is None:
            return
        self.strategy.restore(saved.tensors)
        self.step, self.figures = saved.step, dict(saved.figures)
        self._segment = self.step
        if self.world.rank == 0:
            log.info("continuing after step %d", self.step)

    def _window(self, step: int, index: int) -> int:
        return sample_index(self.settings.seed, step, index, self.settings.optimizer.batch_size, len(self.train))

    def _windows(self, step: int, places: Sequence[int]) -> list[Mapping[str, Any]]:
        return [self.train[self._window(step, place)] for place in places]

    def _window_ids(self, step: int, places: Sequence[int]) -> list[str]:
        return [self.train.window_id(self._window(step, place)) for place in places]

    def _read_step(self, step: int) -> list[tuple[Forward, list[Mapping[str, Any]]]]:
        """This worker's forward passes of a step, with their windows."""
        optimizer, world = self.settings.optimizer, self.world
        shapes = [self.train.latent_shape(self._window(step, place)) for place in range(optimizer.batch_size)]
        mine = share_out(shapes, world.data_size, self.settings.micro_batch, self.strategy.in_step)[world.data_rank]
        return [(forward, self._windows(step, forward.places)) for forward in mine]

    def _too_little_memory(self, step: int, forward: Forward) -> TrainingError:
        shape = self.train.latent_shape(self._window(step, forward.places[0]))
        return TrainingError(
            f"step {step + 1}: out of memory on {self.world.device} of rank {self.world.rank} with "
            f"{len(forward.places)} window(s) of latents {'x'.join(map(str, shape))} "
            f"({', '.join(self._window_ids(step, forward.places))}); {self._last_good()}; lower micro_batch, set "
            "activation_checkpointing=full or strategy=fsdp2, or take smaller windows"
        )

    def _last_good(self) -> str:
        return f"the last checkpoint is of step {self._segment}" if self._segment else "there is no checkpoint yet"

    def _log_progress(self, event: Event, seconds: float) -> None:
        if self.world.rank == 0:
            total = self.settings.optimizer.steps
            figures = f"loss {event['loss']:.4f}  lr {event['lr']:.2e}  grad {event['grad_norm']:.3f}"
            eta = seconds * (total - self.step)
            log.info("step %d/%d  %s  %.2f s/step  ETA %.0f s", self.step, total, figures, seconds, eta)
