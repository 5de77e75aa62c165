"""Measurements of what the nano model can do: reconstruct, generate, and use its conditions.

Videos are written losslessly and measured by the project's own metrics. Every difference is paired by window.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from cinesynth.config import EvaluateSettings, SamplerSettings
from cinesynth.data.video import write_video
from cinesynth.generate.sampler import Generator
from cinesynth.metrics.evaluate import compare
from cinesynth.metrics.record import MetricsRecord
from cinesynth.metrics.statistics import NoInterval, group_mean, group_mean_interval
from cinesynth.nano.motion import camera_move
from cinesynth.nano.recipe import SIGMAS
from cinesynth.nano.vae import VaeModel, psnr_of_frames, to_video
from cinesynth.pictures import Frames
from cinesynth.train.batch import collate
from cinesynth.train.randomness import generator
from cinesynth.wan.family import WAN21_I2V
from cinesynth.wan.flow import flow_loss
from cinesynth.wan.latents import to_frames

_AT_ONCE = 4


@dataclass(frozen=True)
class RealWindow:
    """Pixels, caption and group of a window of real footage.

    `camera` names the camera move, and `still` is the first frame under the window's changing light, where they are
    known.
    """

    name: str
    frames: Frames
    caption: str
    group: str
    camera: str | None = None
    still: Frames | None = None

    def render(self) -> Frames:
        """The frames, as `HomeWindow` renders its own."""
        return self.frames


def vae_figures(model: Any, samples: Sequence[RealWindow]) -> dict[str, float]:
    """PSNR (dB; whole, first and last frame) and colour error (CIE76) of reconstructions, means over windows."""
    reconstruct, rows = VaeModel(model), []
    for sample in samples:
        video = to_video(sample.frames[None])
        with torch.no_grad():
            rebuilt = reconstruct(video)
        frames = to_frames(rebuilt[0].permute(1, 2, 3, 0))
        rows.append((*psnr_of_frames(rebuilt, video), colour_error(frames, sample.frames)))
    psnr, first, last, colour = np.mean(rows, 0)
    return {"psnr": psnr, "psnr_first": first, "psnr_last": last, "colour_error": colour}


def generate_all(
    maker: Generator,
    samples: Sequence[RealWindow],
    sampler: SamplerSettings,
    report: Callable[[int], None] = lambda done: None,
) -> list[Frames]:
    """One generation from the first frame and the caption of each sample."""
    videos = []
    for sample in samples:
        conditions = maker.conditions(sample.frames[0], sample.caption, len(sample.frames), sampler)
        videos.append(maker.generate_from(conditions, sampler).frames)
        report(len(videos))
    return videos


def repeat_first(samples: Sequence[RealWindow]) -> list[Frames]:
    """The first frame, standing still. A model has to be better than this."""
    return [np.repeat(sample.frames[:1], len(sample.frames), axis=0) for sample in samples]


def compare_arms(samples: Sequence[RealWindow], arms: dict[str, list[Frames]], folder: Path) -> MetricsRecord:
    """FVD, KVD and LPIPS of each arm against the samples; the first arm is the baseline. Videos stay in `folder`."""
    for name, videos in {"real": [s.frames for s in samples], **arms}.items():
        for sample, frames in zip(samples, videos, strict=True):
            write_video(folder / name / f"{sample.name}.mkv", frames, codec="ffv1")
    groups = {sample.name: sample.group for sample in samples}
    settings = EvaluateSettings(require=True)
    return compare(folder / "real", {name: folder / name for name in arms}, groups, settings)


def first_frame_psnr(samples: Sequence[RealWindow], videos: Sequence[Frames]) -> float:
    """PSNR in dB of the first generated frame and the frame that was given, mean over windows."""
    pairs = zip(samples, videos, strict=True)
    errors = [np.square(v[0].astype(float) / 255 - s.frames[0].astype(float) / 255).mean() for s, v in pairs]
    return float(np.mean(-10 * np.log10(np.maximum(errors, 1e-6))))


def moves_found(samples: Sequence[RealWindow], videos: Sequence[Frames]) -> float:
    """Share of the videos whose optical flow shows the camera move that the caption states."""
    known = [(s.camera, v) for s, v in zip(samples, videos, strict=True) if s.camera is not None]
    return float(np.mean([camera_move(video) == camera for camera, video in known]))


def temporal_ssim(videos: Sequence[Frames]) -> float:
    """Mean SSIM of successive frames over all videos. It is near 1 where nothing flickers."""
    from skimage.metrics import structural_similarity

    means = []
    for video in videos:
        pairs = pairwise(video)
        means.append(np.mean([structural_similarity(a, b, channel_axis=-1, data_range=255) for a, b in pairs]))
    return float(np.mean(means))


def colour_error(a_THWC: Frames, b_THWC: Frames) -> float:
    """CIE76: mean Euclidean distance in L*a*b* (D65, L* from 0 to 100)."""
    lab = [
        cv2.cvtColor(x.reshape(1, -1, 3).astype(np.float32) / 255, cv2.COLOR_RGB2LAB).reshape(-1, 3)
        for x in (a_THWC, b_THWC)
    ]
    return float(np.linalg.norm(lab[0] - lab[1], axis=1).mean())


def window_losses(
    transformer: torch.nn.Module,
    encoded: Sequence[Mapping[str, Any]],
    first_of: Sequence[int] | None = None,
    caption_of: Sequence[int] | None = None,
) -> NDArray[np.float64]:
    """Flow loss of each window [N] at fixed noise and noise levels.

    Args:
        transformer: in evaluation mode.
        encoded: windows of one shape.
        first_of: for each window, which window's first frame it is given; default: its own.
        caption_of: for each window, which window's caption it is given; default: its own.
    """
    total = np.zeros(len(encoded))
    for start in range(0, len(encoded), _AT_ONCE):
        places = range(start, min(start + _AT_ONCE, len(encoded)))
        windows: list[Mapping[str, Any]] = []
        for i in places:
            first = encoded[first_of[i] if first_of is not None else i]
            caption = encoded[caption_of[i] if caption_of is not None else i]
            given = {key: first[key] for key in ("condition_latents", "image_embeds")}
            windows.append({**encoded[i], **given, "prompt_embeds": caption["prompt_embeds"]})
        batch = collate(WAN21_I2V, windows)
        shape = tuple(batch["latents"].shape[1:])
        for place, sigma in enumerate(SIGMAS):
            noises = torch.stack([torch.randn(shape, generator=generator(0, "validation", i, place)) for i in places])
            with torch.inference_mode():
                levels = torch.full((len(windows),), sigma)
                losses = flow_loss(WAN21_I2V, transformer, batch, noises, levels, torch.float32)
            total[start : start + len(windows)] += losses.numpy() / len(SIGMAS)
    return total


def other_windows(samples: Sequence[RealWindow]) -> list[int]:
    """For each window another one, with another camera move where moves are known."""
    count = len(samples)
    found = []
    for i, sample in enumerate(samples):
        others = [(i + step) % count for step in range(1, count)]
        found.append(next((j for j in others if samples[j].camera != sample.camera), others[0]))
    return found


def paired_difference(
    samples: Sequence[RealWindow], values: NDArray[np.float64], baseline: NDArray[np.float64]
) -> dict[str, float]:
    """Mean of values - baseline over groups, with its 95 % interval where there are groups enough for one."""
    differences = {s.name: float(v) for s, v in zip(samples, values - baseline, strict=True)}
    groups = {s.name: s.group for s in samples}
    found = {"difference": group_mean(differences, groups)}
    try:
        interval = group_mean_interval(differences, groups, "these windows")
    except NoInterval:
        return found
    return {**found, "low": interval.low, "high": interval.high}
