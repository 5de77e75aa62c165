"""The training loop: it trains a Wan transformer, or a LoRA on it, by flow matching. It knows nothing of Ray.

It runs under plain torch and inside a Ray Train worker (`worker`) alike. The same seed gives the
same losses with any number of workers, and a run that was stopped and continued gives those of an uninterrupted one.
"""

from __future__ import annotations

import logging
import math
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch

from cinesynth.errors import TrainingError
from cinesynth.train.batch import Clips, Forward, collate, share_out
from cinesynth.train.events import SIGMA_BANDS
from cinesynth.train.memory import REMEDY
from cinesynth.train.randomness import (
    drops_caption,
    generator,
    noise,
    sample_index,
    use_deterministic_kernels,
)
from cinesynth.train.reader import ReadAhead
from cinesynth.train.recompute import set_recompute
from cinesynth.train.state import Checkpoints, Saved, trained
from cinesynth.train.strategy import Strategy, World
from cinesynth.train.validation import held_out_loss, held_out_set
from cinesynth.wan.device_memory import is_out_of_memory
from cinesynth.wan.family import Family
from cinesynth.wan.flops import peak_tflops, transformer_flops
from cinesynth.wan.flow import flow_loss, sample_sigma
from cinesynth.wan.lora import adapter_of, add_lora

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


class Watch(Protocol):
    """Validates checkpoints by the videos that they make, and may end the training. Every worker calls every method."""

    def due(self, step: int) -> bool:
        """Whether the checkpoint of this step is one to validate."""

    def validate(self, step: int, model: torch.nn.Module) -> None:
        """Called with the model of such a step, once its checkpoint is being written, and again where training goes on
        from that."""

    def ends(self) -> bool:
        """Whether this worker knows that the training is to end. Asked at every step: it must not wait."""


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
        watch: validates checkpoints by the videos that they make, and may end the training; default: nothing does.
        ends: whether this worker knows that the training was called off. Asked at every step: it must not wait.
        observe: takes the event of each step and of each validation, on rank 0 only.
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
        watch: Watch | None = None,
        ends: Callable[[], bool] = lambda: False,
        observe: Callable[[Event], None] = lambda event: None,
    ) -> None:
        self.settings, self.family = settings, family
        self.train, self.held_out, self.empty_prompt = train, held_out, empty_prompt
        self.checkpoints, self.write_events = checkpoints, write_events
        self.world = world or World()
        self.dtype = dtype
        self.watch, self.ends, self.observe = watch, ends, observe
        self.transformer = transformer
        if settings.mode == "lora":
            lora = settings.lora
            add_lora(family, transformer, lora.rank, lora.alpha, lora.targets, settings.seed)
        else:
            transformer.requires_grad_(True)
        if self.world.device.startswith("cuda"):
            use_deterministic_kernels(settings.deterministic)
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
        self._ended = False
        self._peak = None
        if self.world.device.startswith("cuda"):
            self._peak = peak_tflops(torch.cuda.get_device_name(self.world.device))
        self._image_tokens = len(train[0]["image_embeds"]) if "image_embeds" in family.tensors else 0
        self._restore()

    def run(self, stop_at: int | None = None) -> dict[str, float]:
        """Train to the last step, to where `watch` or `ends` ends it, or to `stop_at`, as if interrupted there.

        Returns the last figures. All checkpoints are written then.
        """
        total = self.settings.optimizer.steps
        if self.step == 0:
            self.validate()
        elif self.step == total:  # a run of before there were adapters in checkpoints may lack this one's
            self.checkpoint()
        if self.step and self.watch is not None and self.watch.due(self.step):  # the try before ended within it
            self.watch.validate(self.step, self.strategy.model)
        while self.step < (total if stop_at is None else min(stop_at, total)) and not self._ended:
            started = time.monotonic()
            event = self.train_step(self.step)
            event |= self._speed(self.step, time.monotonic() - started)
            self.step += 1
            self._record(event)
            # A new dictionary: the thread that writes the checkpoint before holds the old one.
            self.figures = self.figures | {"loss": event["loss"], "grad_norm": event["grad_norm"]}
            if self.step % self.settings.log_every == 0 or self.step == total:
                self._log_progress(event)
            if self.step % self.settings.validation.every == 0 or self.step == total:
                self.validate()
            watched = self.watch is not None and self.watch.due(self.step)
            if watched or self.step % self.settings.checkpoint_every == 0 or self.step == total:
                self.checkpoint()
            if watched and self.watch is not None:
                self.watch.validate(self.step, self.strategy.model)
        if self._ended and self.world.rank == 0:
            self.write_events(self._segment, self._events)
        self.checkpoints.flush()
        return self.figures

    def train_step(self, step: int) -> Event:
        """One optimiser step over this worker's share of the global batch; the event holds global figures.

        Raises TrainingError where the step would fail again: a figure that is not finite, or too little memory.
        """
        rate = learning_rate(step, self.settings.optimizer)
        # Whether the training is to end; then the loss, and its sum and count by noise level: one sum over the workers.
        total = torch.zeros(2 + 2 * SIGMA_BANDS, dtype=torch.float64, device=self.world.device)
        total[0] = self.ends() or (self.watch is not None and self.watch.ends())
        for forward, windows in self._read(step):
            try:
                losses = self.forward(step, forward.places, windows)
                loss = losses.sum() / self.settings.optimizer.batch_size
                self.strategy.backward(loss if forward.counts else 0 * loss)
            except Exception as e:
                if not is_out_of_memory(e):
                    raise
                raise self._too_little_memory(step, forward) from e
            if forward.counts:
                total[1] += loss.detach()
                for place, value in zip(forward.places, losses.detach(), strict=True):
                    band = min(int(self._sigma(step, place) * SIGMA_BANDS), SIGMA_BANDS - 1)
                    total[2 + band] += value
                    total[2 + SIGMA_BANDS + band] += 1
        ends, loss_value, *by_band = self.world.sum(total).tolist()
        norm = self.strategy.step(rate)
        self._ended = ends > 0
        if not math.isfinite(loss_value) or not math.isfinite(norm):
            raise TrainingError(
                f"step {step + 1}: loss {loss_value}, gradient norm {norm}, on windows "
                f"{', '.join(self._window_ids(step, range(self.settings.optimizer.batch_size)))}; {self._last_good()}; "
                "lower optimizer.lr or optimizer.max_grad_norm under another name, or take these windows out"
            )
        sums, counts = by_band[:SIGMA_BANDS], by_band[SIGMA_BANDS:]
        means = {f"{band / SIGMA_BANDS:g}": s / n for band, (s, n) in enumerate(zip(sums, counts, strict=True)) if n}
        return {"step": step + 1, "loss": loss_value, "lr": rate, "grad_norm": norm, "loss_from_sigma": means}

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
        sigma = torch.stack([self._sigma(step, place) for place in places])
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
        self._record({"step": self.step, "val_set": taken_on, **losses})
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
        return adapter_of(trained(self.strategy.state()))

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
            f"({', '.join(self._window_ids(step, forward.places))}); {self._last_good()}; {REMEDY}"
        )

    def _last_good(self) -> str:
        self.checkpoints.flush()
        return f"the last checkpoint is of step {self._segment}" if self._segment else "there is no checkpoint yet"

    def _record(self, event: Event) -> None:
        event["time"] = round(time.time(), 3)
        self._events.append(event)
        if self.world.rank == 0:
            self.observe(event)

    def _sigma(self, step: int, place: int) -> torch.Tensor:
        s = self.settings
        return sample_sigma(generator(s.seed, "sigma", step, place), s.flow.distribution, s.flow.shift)

    def _speed(self, step: int, seconds: float) -> Event:
        """How fast a step was (seconds, windows a second, and MFU where the device's peak is known), and the most
        memory that this worker took by then, in 1e9 bytes: on a GPU what PyTorch allocated, else what the process held.
        """
        self._seconds, self._steps_timed = self._seconds + seconds, self._steps_timed + 1
        found = {"step_seconds": seconds, "samples_per_second": self.settings.optimizer.batch_size / seconds}
        if self._peak is not None:
            found["mfu"] = self._flops(step) / seconds / (self._peak * 1e12 * self.world.size)
        if self.world.device.startswith("cuda"):
            peak_bytes = torch.cuda.max_memory_allocated(self.world.device)
        else:
            peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return found | {"peak_memory_gb": peak_bytes / 1e9}

    def _flops(self, step: int) -> float:
        """Of a step, over all workers; nothing computed again counts."""
        frozen = self.settings.mode == "lora"
        total = 0.0
        for place in range(self.settings.optimizer.batch_size):
            _, frames, rows, columns = self.train.latent_shape(self._window(step, place))
            context = self.family.text_tokens + self._image_tokens
            total += transformer_flops(self.transformer.config, frames, rows, columns, context).training(frozen)
        return total

    def _log_progress(self, event: Event) -> None:
        if self.world.rank == 0:
            total, seconds = self.settings.optimizer.steps, self._seconds / self._steps_timed
            figures = f"loss {event['loss']:.4f}  lr {event['lr']:.2e}  grad {event['grad_norm']:.3f}"
            speed = f"{seconds:.2f} s/step  {self.settings.optimizer.batch_size / seconds:.2f} samples/s"
            if "mfu" in event:
                speed += f"  MFU {event['mfu']:.1%}"
            log.info("step %d/%d  %s  %s  ETA %.0f s", self.step, total, figures, speed, seconds * (total - self.step))
