"""The figures of a nano model: on its home domain, on other footage, and after an adaptation to the film look.

`python -m benchmarks.nano` prints them for the shipped weights.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cinesynth.config import SamplerSettings, TrainSettings
from cinesynth.data.footage.packages import sample_footage
from cinesynth.data.plan.geometry import crop_resize
from cinesynth.data.video import read_video
from cinesynth.generate.sampler import Generator
from cinesynth.metrics.record import Comparison
from cinesynth.nano import figures
from cinesynth.nano.architecture import build_nano
from cinesynth.nano.domain import (
    FRAMES,
    HEIGHT,
    WIDTH,
    HomeWindow,
    film_look_windows,
    held_out_windows,
    training_windows,
)
from cinesynth.nano.figures import RealWindow
from cinesynth.nano.motion import camera_speeds
from cinesynth.nano.transformer import EncodedWindows, encode_windows, train_transformer
from cinesynth.nano.vae import pca_floor
from cinesynth.pictures import Frames
from cinesynth.scripted.photographs import PACKAGED
from cinesynth.wan.adapter import save_adapter
from cinesynth.wan.card import AdapterCard
from cinesynth.wan.folder import base_hash
from cinesynth.wan.load import load_transformer, load_vae

log = logging.getLogger("cinesynth.nano")

SAMPLER = SamplerSettings(steps=8, guidance_scale=2.0)  # chosen on other windows than those that are measured
BIKES_CAPTION = "cars and bicycles in a city street, live-action film"
_BIKES_SHOTS = ((0, 30), (30, 76), (76, 137), (137, 187), (187, 242))  # frames; the cuts are known


@dataclass
class Figures:
    """Figures by name, and the videos that they were measured on."""

    values: dict[str, float]
    videos: dict[str, list[Frames]]
    samples: Sequence[RealWindow]


def home_samples(windows: Sequence[HomeWindow]) -> list[RealWindow]:
    """Windows of scripted shots as samples. Each is a group of its own."""
    return [
        RealWindow(f"window-{i:03d}", frames, w.caption, f"shot-{i:03d}", w.shot.camera, w.still(frames[0]))
        for i, w in enumerate(windows)
        for frames in (w.render(),)
    ]


def bikes_samples(stride: int = 4) -> list[RealWindow]:
    """Runs of `FRAMES` frames of the shots of bikes.mp4, at its own 25 fps. A shot is a group."""
    frames = crop_resize(read_video(sample_footage() / "bikes.mp4")[0], HEIGHT, WIDTH)
    return [
        RealWindow(f"bikes-{start:03d}", frames[start : start + FRAMES], BIKES_CAPTION, f"shot-{shot}")
        for shot, (first, stop) in enumerate(_BIKES_SHOTS)
        for start in range(first, stop - FRAMES + 1, stride)
    ]


def measure(model: str, samples: Sequence[RealWindow], folder: Path) -> Figures:
    """All figures of a model on samples of one domain.

    The model is compared with random weights and with a repeated first frame. Where the light is known, the first frame
    is repeated under the changing light, too. Videos, encoded windows and the model with random weights stay in
    `folder`.
    """
    encoded = encode_windows(samples, model, folder / "encoded")
    vae = figures.vae_figures(load_vae(model), samples)
    values = {f"vae_{name}": value for name, value in vae.items()}
    values["vae_drift"] = vae["psnr_first"] - vae["psnr_last"]
    videos = {"repeat": figures.repeat_first(samples)}
    if samples[0].still is not None:
        videos["repeat_lit"] = [sample.still for sample in samples if sample.still is not None]
    for name, location in (("nano", model), ("random", str(build_nano(folder / "random-weights")))):
        started = time.monotonic()
        videos[name] = figures.generate_all(Generator(location), samples, SAMPLER)
        seconds = (time.monotonic() - started) / len(samples)
        log.info("generated %d videos with %s: %.1f s each", len(samples), name, seconds)
    record = figures.compare_arms(samples, videos, folder / "videos")
    values["first_frame_psnr"] = figures.first_frame_psnr(samples, videos["nano"])
    for metric in ("kvd", "lpips_late"):
        for arm in videos:
            values[f"{metric}_{arm}"] = _number(record.value(metric, arm).value)
        values |= _ends(f"{metric}_nano_minus_repeat", record.comparison(metric, "nano"))
    values["kvd_share_of_random"] = values["kvd_nano"] / values["kvd_random"]
    real = [sample.frames for sample in samples]
    if samples[0].camera is not None:
        values["moves_found"] = figures.moves_found(samples, videos["nano"])
        values["moves_found_real"] = figures.moves_found(samples, real)
    smooth = figures.temporal_ssim(videos["nano"]), figures.temporal_ssim(real)
    values["temporal_ssim_share_of_real"] = smooth[0] / smooth[1]
    values |= _use_of_conditions(model, samples, encoded)
    return Figures(values, videos, samples)


def home_figures(model: str, count: int, folder: Path) -> Figures:
    """`measure` on held-out windows of the home domain, with the PCA floor of the VAE."""
    samples = home_samples(held_out_windows(count))
    found = measure(model, samples, folder)
    train = np.stack([window.render() for window in training_windows(512, PACKAGED)])
    found.values["vae_floor"] = pca_floor(train, np.stack([s.frames for s in samples]))["psnr"]
    return found


def adaptation_figures(model: str, settings: TrainSettings, folder: Path, count: tuple[int, int] = (96, 32)) -> Figures:
    """A style LoRA on the film look: trained on `count[0]` windows, measured on `count[1]` others."""
    windows = film_look_windows(sum(count))
    train, test = windows[: count[0]], windows[count[0] :]
    samples = home_samples(test)
    shown, unseen = (encode_windows(part, model, folder / "encoded") for part in (train, samples))
    started = time.monotonic()
    loop = train_transformer(settings, model, shown, unseen, folder / "training")
    values: dict[str, float] = {"training_minutes": (time.monotonic() - started) / 60}
    adapter = folder / "adapter"
    card = AdapterCard(
        base_model=model,
        base_sha256=base_hash(model),
        parents=[],
        stage=settings.stage,
        dataset="film look",
        dataset_sha256="",
        config=settings.model_dump(mode="json"),
        metrics=loop.figures,
        step=loop.step,
    )
    save_adapter(adapter, loop.adapter(), loop.transformer.peft_config["default"], card)
    rows = [unseen[i] for i in range(len(samples))]
    with_adapter = figures.window_losses(loop.transformer.eval(), rows)
    base = figures.window_losses(load_transformer(model), rows)
    values |= {"loss_base": float(base.mean()), "loss_adapter": float(with_adapter.mean())}
    values |= _interval("loss_adapter_minus_base", figures.paired_difference(samples, with_adapter, base))
    maker = Generator(model)
    videos = {"base": figures.generate_all(maker, samples, SAMPLER)}
    maker.load_adapters([(adapter, 1.0)])
    videos["adapter"] = figures.generate_all(maker, samples, SAMPLER)
    record = figures.compare_arms(samples, videos, folder / "videos")
    for metric in ("kvd", "lpips_late"):
        values |= {f"{metric}_{arm}": _number(record.value(metric, arm).value) for arm in videos}
        values |= _ends(f"{metric}_adapter_minus_base", record.comparison(metric, "adapter"))
    for name, frames in {"real": [s.frames for s in samples], **videos}.items():
        # Inside the letterbox: its bars stand still.
        zooms = [camera_speeds(v[:, HEIGHT // 8 : -HEIGHT // 8])["zoom"] for v in frames]
        values[f"push_in_{name}"] = sum(zooms) / len(zooms)
    return Figures(values, videos, samples)


def _use_of_conditions(model: str, samples: Sequence[RealWindow], encoded: EncodedWindows) -> dict[str, float]:
    """How much worse the loss gets with another window's first frame, and with another window's caption."""
    transformer, rows = load_transformer(model), [encoded[i] for i in range(len(samples))]
    other = figures.other_windows(samples)
    right = figures.window_losses(transformer, rows)
    values = {"loss": float(right.mean())}
    for name, given in (("first_frame", {"first_of": other}), ("caption", {"caption_of": other})):
        wrong = figures.window_losses(transformer, rows, **given)
        values |= _interval(f"loss_wrong_{name}_minus_right", figures.paired_difference(samples, wrong, right))
    return values


def _interval(name: str, difference: dict[str, float]) -> dict[str, float]:
    """A difference and, where it has an interval, its ends."""
    ends = {f"{name}_{end}": difference[end] for end in ("low", "high") if end in difference}
    return {name: difference["difference"], **ends}


def _ends(name: str, comparison: Comparison) -> dict[str, float]:
    """A comparison and, where it has an interval, its ends."""
    interval = comparison.interval
    ends = {} if interval is None else {f"{name}_low": interval.low, f"{name}_high": interval.high}
    return {name: _number(comparison.difference), **ends}


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
