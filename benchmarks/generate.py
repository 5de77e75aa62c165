"""How fast videos are made: `python -m benchmarks.generate [--pairs 7] [--steps 3]`.

- One process against diffusers' `WanImageToVideoPipeline`, in turn, with the same steps, guidance and seed; and whether
  the frames are the same.
- A group of two ranks with one thread each against one process with one thread, on a random model of nano's shape and a
  video so large that attention is most of the work: efficiency is T1 / (2 T2). CFG-parallel (guided) and Ulysses.
- How long a group on Ray takes from `cancel` until it is idle, beyond the step that it is in.
- Seams of long shots: LPIPS and optical flow between the two frames of a seam over those between neighbouring frames
  inside segments (medians over 20 seams), and how far colour and sharpness drift over ten segments.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from diffusers import UniPCMultistepScheduler, WanImageToVideoPipeline
from PIL import Image

from benchmarks.gpu_model import random_transformer, random_windows
from cinesynth.config import SamplerSettings
from cinesynth.generate.course import Cancelled, Course
from cinesynth.generate.denoise import Conditions, denoise
from cinesynth.generate.expansion import join, segments_of
from cinesynth.generate.group import RankGroup
from cinesynth.generate.messages import VideoRequest
from cinesynth.generate.ranks import Ranks, choose_plan
from cinesynth.generate.sampler import Generator
from cinesynth.generate.shape import GroupShape
from cinesynth.metrics.networks.lpips import frame_distances, load_lpips
from cinesynth.pictures import png_bytes
from cinesynth.scripted.series import scripted_clip
from cinesynth.session import connect
from cinesynth.storage import Storage
from cinesynth.wan.folder import model_folder, model_spec
from cluster.local import LocalHead, end_on_sigterm

TARGETS = {
    "seconds_over_pipeline": ("<=", 0.9),
    "largest_difference": ("<=", 1),
    "cancel_seconds_beyond_step": ("<=", 0.5),
    "seam_lpips_over_inside": ("<=", 1.1),
    "seam_flow_over_inside": ("<=", 2.0),
    "inside_flow_over_seam": ("<=", 2.0),
}
PROMPT = "a blue square slides to the left"
SIZE = 17, 64, 96
WIDE = 33, 160, 240
"""A video of 1,350 tokens: with 256 features a token, attention is the larger part."""


def main(argv: list[str] | None = None) -> None:
    """Measure everything. The last line holds the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generate", description=__doc__)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="steps of the group's videos, after one")
    parser.add_argument("--seams", type=int, default=20)
    given = parser.parse_args(argv)
    end_on_sigterm()
    figures = against_pipeline(given.pairs) | groups(given.steps) | cancelling() | seams(given.seams)
    for name, value in figures.items():
        print(f"  {name:40} {value}")
    passed = all(figures[name] <= bound for name, (_, bound) in TARGETS.items())
    targets = {name: f"{sign} {bound}" for name, (sign, bound) in TARGETS.items()}
    print(json.dumps({"name": "generate", "figures": figures, "targets": targets, "pass": passed}))


def first_frame() -> Image.Image:
    """Of a scripted clip."""
    return Image.fromarray(scripted_clip(11, 0, height=SIZE[1], width=SIZE[2]).frames[0])


def against_pipeline(pairs: int) -> dict[str, float]:
    """Seconds of a video over those of diffusers' pipeline (median over pairs); the largest difference of frames."""
    frames, height, width = SIZE
    image = first_frame()
    generator = Generator("nano")
    pipeline = WanImageToVideoPipeline.from_pretrained(model_folder("nano"), torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    sampler = SamplerSettings(steps=8, guidance_scale=4.0, negative_prompt="blurry", seed=3)

    def theirs() -> np.ndarray:
        made = pipeline(
            image,
            PROMPT,
            negative_prompt=sampler.negative_prompt,
            height=height,
            width=width,
            num_frames=frames,
            num_inference_steps=sampler.steps,
            guidance_scale=sampler.guidance_scale,
            generator=torch.Generator().manual_seed(sampler.seed),
            output_type="np",
        )
        return np.asarray((made.frames[0] * 255).round(), np.uint8)

    both: dict[str, Callable[[], np.ndarray]] = {
        "ours": lambda: generator.generate(image, PROMPT, frames, height, width, sampler).frames,
        "theirs": theirs,
    }
    seconds: dict[str, list[float]] = {name: [] for name in both}
    made: dict[str, np.ndarray] = {}
    for number in range(pairs + 1):
        for name in list(both) if number % 2 else list(reversed(both)):
            started = time.perf_counter()
            made[name] = both[name]()
            seconds[name].append(time.perf_counter() - started)
    ours, others = (values[1:] for values in seconds.values())
    return {
        "video_seconds": round(statistics.median(ours), 3),
        "pipeline_video_seconds": round(statistics.median(others), 3),
        "seconds_over_pipeline": round(statistics.median(a / b for a, b in zip(ours, others, strict=True)), 3),
        "largest_difference": int(np.abs(made["ours"].astype(int) - made["theirs"]).max()),
    }


# --- a group of two ------------------------------------------------------------------------------------------


def groups(steps: int) -> dict[str, float]:
    """Efficiency of two ranks, guided and not, and the share of a step that a rank spends in exchanges."""
    with tempfile.TemporaryDirectory() as folder:
        for size in (1, 2):
            mp.spawn(_rank, (folder, size, steps), nprocs=size)
        one, two = (json.loads(Path(folder, f"{size}.json").read_text()) for size in (1, 2))
    found: dict[str, float] = {}
    for name in ("guided", "plain"):
        alone, together = one[name]["seconds"], two[name]["seconds"]
        found[f"{name}_step_seconds_1"] = round(alone, 3)
        found[f"{name}_step_seconds_2"] = round(together, 3)
        found[f"{name}_efficiency_2"] = round(alone / (2 * together), 3)
        found[f"{name}_exchange_share"] = round(two[name]["exchanging"] / together, 4)
    return found


def _rank(rank: int, folder: str, size: int, steps: int) -> None:
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    if size > 1:
        store = dist.FileStore(f"{folder}/rendezvous", size)
        dist.init_process_group("cpu:gloo", store=store, rank=rank, world_size=size)
    torch.manual_seed(0)
    transformer, ranks = random_transformer("nano", torch.float32, "cpu"), Ranks(rank, size)
    (window,) = random_windows("nano", *WIDE, count=1)
    conditions = Conditions.of_row({k: v for k, v in window.items() if k != "latents"}, window["prompt_embeds"])
    found = {}
    for name, guidance in (("guided", 3.0), ("plain", 1.0)):
        found[name] = _steps(transformer, ranks, conditions, SamplerSettings(steps=steps + 1, guidance_scale=guidance))
    if rank == 0:
        Path(folder, f"{size}.json").write_text(json.dumps(found))
    if size > 1:
        dist.destroy_process_group()


def _steps(transformer: Any, ranks: Ranks, conditions: Conditions, sampler: SamplerSettings) -> dict[str, float]:
    """Median seconds of a step after the first, and those of it that went into exchanges, with waiting for others."""
    spec = model_spec("nano")
    tokens = spec.family.tokens(*conditions.condition_latents.shape[1:])
    ranks.divide([transformer], choose_plan(ranks.size, sampler.guidance_scale > 1, tokens))
    at, exchanged = [time.perf_counter()], [0.0]
    with _timed_exchanges() as spent:

        def stepped(step: int, total: int) -> None:
            at.append(time.perf_counter())
            exchanged.append(spent[0])

        experts = {spec.family.experts[0]: transformer}
        scheduler = UniPCMultistepScheduler.from_pretrained(model_folder("nano"), subfolder="scheduler")
        denoise(spec, experts, scheduler, conditions, sampler, "cpu", torch.float32, Course(on_step=stepped), ranks)
    seconds = [b - a for a, b in pairwise(at[1:])]
    exchanging = [b - a for a, b in pairwise(exchanged[1:])]
    return {"seconds": statistics.median(seconds), "exchanging": statistics.median(exchanging)}


@contextmanager
def _timed_exchanges() -> Iterator[list[float]]:
    """Seconds that this process spends in collectives."""
    from diffusers.models import attention_dispatch

    spent = [0.0]

    def timed(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent[0] += time.perf_counter() - started

        return call

    places = [(attention_dispatch, "_all_to_all_single"), (dist, "all_gather"), (dist, "all_reduce")]
    kept = [getattr(module, name) for module, name in places]
    for (module, name), function in zip(places, kept, strict=True):
        setattr(module, name, timed(function))
    try:
        yield spent
    finally:
        for (module, name), function in zip(places, kept, strict=True):
            setattr(module, name, function)


# --- seams ---------------------------------------------------------------------------------------------------


def seams(count: int, overlap: int = 4) -> dict[str, float]:
    """Medians over the seams of shots of eleven segments."""
    lpips, generator = load_lpips(), Generator("nano")
    found: dict[str, list[float]] = {"lpips": [], "flow": [], "colour": [], "sharpness": []}
    for shot in range(-(-count // 10)):
        segments = segments_of(generator.spec.family, 11 * 12 + 5, 17, overlap)
        clip = scripted_clip(11, shot, height=SIZE[1], width=SIZE[2])
        image, parts = Image.fromarray(clip.frames[0]), []
        for number, segment in enumerate(segments):
            sampler = SamplerSettings(steps=8, guidance_scale=1.0, seed=100 * shot + number)
            parts.append(generator.generate(image, clip.caption, segment.frames, *SIZE[1:], sampler).frames)
            if number + 1 < len(segments):
                image = Image.fromarray(parts[-1][segments[number + 1].start - segment.start])
        video = join(parts, segments, segments[-1].start + segments[-1].frames)
        distances, flows = frame_distances(lpips, video[:-1], video[1:]), _flows(video)
        places = [segment.start for segment in segments[1:]]
        shared = {place + i for place in places for i in range(overlap + 1)}
        inside = [i for i in range(len(video) - 1) if i not in shared]
        # A seam is the largest step among its blended frames: inside, too, the largest of equally many.
        runs = [range(i, i + overlap + 1) for i in inside if shared.isdisjoint(range(i, i + overlap + 1))]
        largest = float(np.median([max(distances[i] for i in run if i < len(distances)) for run in runs]))
        for place in places:
            across = [place + i for i in range(overlap + 1) if place + i < len(video) - 1]
            found["lpips"].append(float(distances[across].max() / largest))
            found["flow"].append(float(np.median(flows[across]) / np.median(flows[inside])))
        first, last = video[: segments[0].frames], video[-segments[-1].frames :]
        found["colour"].append(float(np.abs(last.mean((0, 1, 2)) - first.mean((0, 1, 2))).max()))
        found["sharpness"].append(_sharpness(last) / _sharpness(first))
    flow = statistics.median(found["flow"])
    return {
        "seams": len(found["lpips"]),
        "seam_lpips_over_inside": round(statistics.median(found["lpips"]), 3),
        "seam_flow_over_inside": round(flow, 3),
        "inside_flow_over_seam": round(1 / max(flow, 1e-6), 3),
        "colour_drift_of_255": round(statistics.median(found["colour"]), 2),
        "sharpness_last_over_first": round(statistics.median(found["sharpness"]), 3),
    }


def _flows(video: np.ndarray) -> np.ndarray:
    """Mean optical flow between neighbouring frames, in pixels."""
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in video]
    flows = [cv2.calcOpticalFlowFarneback(a, b, None, 0.5, 3, 15, 3, 5, 1.2, 0) for a, b in pairwise(grey)]
    return np.array([np.linalg.norm(flow, axis=-1).mean() for flow in flows])


def _sharpness(video: np.ndarray) -> float:
    return float(np.mean([cv2.Laplacian(cv2.cvtColor(f, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var() for f in video]))


# --- calling off ---------------------------------------------------------------------------------------------


def cancelling(times: int = 5) -> dict[str, float]:
    """Median seconds from `cancel` of a group of two until it is idle, less the seconds of a step."""
    with tempfile.TemporaryDirectory() as folder, LocalHead(log=Path(folder) / "head.log") as head:
        os.environ |= {k: v for k, v in head.environment.items() if k.startswith("RAY_")}
        import ray  # reads the environment
        from ray.util.placement_group import placement_group

        connect(head.address, "head", log_to_driver=False)
        shape = GroupShape("nano", ranks=2)
        placement = placement_group(shape.bundles(), strategy="STRICT_PACK")
        placement.wait(60)
        group = RankGroup(shape, placement)
        frames, height, width = SIZE
        request = VideoRequest(
            storage=Storage.open(folder).reference(),
            output=Storage.open(folder).reference(),
            file="video.mp4",
            sampler=SamplerSettings(steps=200, guidance_scale=3.0, negative_prompt="", seed=1),
            image=png_bytes(np.asarray(first_frame())),
            prompt=PROMPT,
            num_frames=frames,
            height=height,
            width=width,
        )
        idle, steps = [], []
        for _ in range(times):
            group.start(request)
            while group.progress().step < 5:
                time.sleep(0.02)
            began, first = time.perf_counter(), group.progress().step
            time.sleep(1)
            steps.append((time.perf_counter() - began) / max(1, group.progress().step - first))
            cancelled = time.perf_counter()
            group.cancel()
            try:
                group.result()
            except Cancelled:
                idle.append(time.perf_counter() - cancelled)
        group.close()
        ray.shutdown()
    step = statistics.median(steps)
    return {
        "cancel_seconds": round(statistics.median(idle), 3),
        "cancel_seconds_beyond_step": round(statistics.median(idle) - step, 3),
    }


if __name__ == "__main__":
    main()
