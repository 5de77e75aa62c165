"""Generation on Ray: shots from images and prompts, or every held-out window in each arm, such as without and with an
adapter."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from cinesynth.config import GenerateConfig, ShotRequest
from cinesynth.data.dataset import ClipsDataset, WindowRow, pixels_file
from cinesynth.data.video import read_video
from cinesynth.errors import WeightsUnavailable
from cinesynth.generate.expansion import Segment, make_shot, segments_of
from cinesynth.generate.group import RankGroup
from cinesynth.generate.groups import Work, make_videos, shape_of, whole
from cinesynth.generate.held_out import window_seed
from cinesynth.generate.keyframes import make_keyframe
from cinesynth.generate.messages import VideoRequest
from cinesynth.generate.shape import GroupShape, check_group
from cinesynth.generate.windows import GROUPS, copy_real, held_out_windows, settle_windows
from cinesynth.lease import Lease, held
from cinesynth.locate import adapter_chain, locate_adapter, locate_dataset
from cinesynth.metrics.networks.clip import Clip
from cinesynth.pictures import check_picture, png_bytes
from cinesynth.report.generation import write_generation_report
from cinesynth.runs import Run, records_its_end
from cinesynth.session import interruptible, ray_session
from cinesynth.storage import Storage, sha256_file, sha256_json
from cinesynth.wan.card import check_adapters
from cinesynth.wan.family import Family
from cinesynth.wan.folder import base_hash, model_hash, model_spec

log = logging.getLogger("cinesynth.generate")


SECONDS = "seconds.json"
"""File of a run with what each video took."""


class Applied(NamedTuple):
    """An adapter of an arm."""

    ref: str
    """Pinned: no alias, though what lies at a path may be exchanged."""
    folder: Path
    scale: float
    sha256: str
    """Of its weights, as they were checked."""


Size = tuple[int, int, int]
"""Frames, height and width."""

Arms = dict[str, list[Applied]]
"""Arm name to its adapters in the order they are applied, with those that they were trained on."""

Checked = tuple[Arms, ClipsDataset | None, dict[str, str]]


def check_generation(config: GenerateConfig) -> Checked:
    """Check model, adapters, sizes and dataset without Ray.

    Returns the adapters of each arm, the dataset where windows are made again, and the hashes of what is read.
    Raises CinesynthError.
    """
    if config.sampler.negative_prompt and config.sampler.guidance_scale <= 1:
        log.warning(
            "sampler.negative_prompt is not used: with guidance_scale %g there is no guidance; set it above 1",
            config.sampler.guidance_scale,
        )
    storage = Storage.open(config.storage)
    inputs = {"model": model_hash(config.model)}
    spec = model_spec(config.model)
    check_group(config.ranks, spec.heads, "ranks")
    arms: Arms = {}
    for arm, adapters in config.adapters_by_arm().items():
        chain = adapter_chain(storage, [(a.ref, a.scale) for a in adapters])
        found = [(locate_adapter(storage, ref), scale) for ref, scale in chain]
        checked = check_adapters(found, base_hash(config.model))
        arms[arm] = [
            Applied(ref, folder, scale, adapter.sha256)
            for (ref, _), (folder, scale), adapter in zip(chain, found, checked, strict=True)
        ]
        inputs |= {f"{arm}_{i}": adapter.sha256 for i, adapter in enumerate(checked)}
    dataset = None
    if config.split is not None:
        dataset = locate_dataset(storage, str(config.dataset))
        inputs["dataset"] = dataset.manifest_sha256
        for size in sorted(sizes_of_windows(config, spec.family, dataset.windows(config.split))):
            spec.check_size(*size, f"dataset {config.dataset!r}")
    else:
        for i, shot in enumerate(config.shots):
            check_picture(shot.image, f"shots.{i}.image")
            for size in sizes_of_shot(config, spec.family, shot):
                spec.check_size(*size, f"shots.{i}")
            if shot.keyframe is not None and (clip := shot.keyframe.clip) is not None:
                try:
                    Clip.load(clip.model, clip.weights)
                except WeightsUnavailable as e:
                    raise WeightsUnavailable(f"shots.{i}.keyframe.{e}") from e
                inputs[f"clip_{i}"] = sha256_file(Path(clip.weights).expanduser())
        inputs["images"] = sha256_json([sha256_file(Path(s.image).expanduser()) for s in config.shots])
    return arms, dataset, inputs


def sizes_of_windows(config: GenerateConfig, family: Family, windows: Iterable[WindowRow]) -> set[Size]:
    """Frames, height and width of what held-out windows are made in."""
    return {
        (segment.frames, w.height, w.width)
        for w in windows
        for segment in window_segments(config, family, w.num_frames)
    }


def sizes_of_shot(config: GenerateConfig, family: Family, shot: ShotRequest) -> list[Size]:
    """Frames, height and width of what a shot is made in."""
    keyframe = [] if shot.keyframe is None else [shot.keyframe.frames]
    made = [*keyframe, *(s.frames for s in shot_segments(config, family, shot))]
    return [(frames, shot.height, shot.width) for frames in made]


@records_its_end
def generate(config: GenerateConfig) -> dict[str, Any]:
    """Make the videos that are not there yet, so that a stopped run continues."""
    arms, dataset, inputs = check_generation(config)
    if dataset is not None:
        held_out_windows(config, dataset)
    run = Run.open(config, inputs)
    if (done := run.result()) is not None and _made(run) >= done["figures"]["videos"]:
        log.info("run %s is complete; nothing to do", config.name)
        return done
    windows = [] if dataset is None else settle_windows(run.folder, config, dataset)
    if dataset is not None:
        copy_real(run.folder, dataset, windows)
    videos = _shots(config, arms, run) if dataset is None else _windows(config, arms, run, dataset, windows)
    started = time.monotonic()
    left = {file: work for file, work in videos.items() if not run.folder.exists(file)}
    log.info("%d videos to make, %d of them there already", len(videos), len(videos) - len(left))
    figures: dict[str, Any] = {"videos": len(videos)}
    if left:
        with held(run) as lease, ray_session(config):
            figures |= seconds_of(_make(config, _shape(config, windows), left, lease, keeper_of_seconds(run.folder)))
    for unfinished in ("states", "segments"):
        run.folder.delete_folder(unfinished)
    figures["seconds"] = round(time.monotonic() - started, 1)
    told = {arm: [f"{a.ref} × {a.scale:g}" for a in applied] for arm, applied in arms.items()}
    outputs = {
        "videos": run.folder.child("videos").uri,
        "report": write_generation_report(config, run, figures, told),
    }
    if dataset is not None:
        outputs["groups"] = run.folder.child(GROUPS).uri
        if beyond := len(dataset.windows(config.split)) - len(windows):
            return run.finish(outputs, figures, {"max_windows": f"{beyond:,} windows of split {config.split}"})
    return run.finish(outputs, figures)


def seconds_of(made: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Median seconds of starting a group with its model (`load_seconds`), of making a video (`video_seconds`), and of
    each stage of it (`seconds/<stage>`).

    Args:
        made: what the groups say of each video. Without any there are no medians.
    """
    loads = {(row["group"], row["load_seconds"]): row["load_seconds"] for row in made}
    figures = {"load_seconds": list(loads.values()), "video_seconds": [sum(row["seconds"].values()) for row in made]}
    for stage in dict.fromkeys(stage for row in made for stage in row["seconds"]):
        figures[f"seconds/{stage}"] = [row["seconds"].get(stage, 0.0) for row in made]
    return {name: round(float(median(values)), 2) for name, values in figures.items() if values}


def keeper_of_seconds(folder: Storage) -> Callable[[dict[str, Any]], None]:
    """What keeps the seconds of each video as it is made, so that none are lost with the attempt.

    `seconds.json` has of each, as they were made, its file, the attempt, the number and the device of its group, the
    seconds in which that was there with its model, and those of the video by stage.
    """
    rows = folder.read_json(SECONDS)["videos"] if folder.exists(SECONDS) else []
    attempt = 1 + max((row["attempt"] for row in rows), default=0)
    fields = ("file", "group", "device", "load_seconds", "seconds")

    def keep(row: dict[str, Any]) -> None:
        rows.append({"attempt": attempt, **{name: row[name] for name in fields}})
        folder.write_json(SECONDS, {"videos": rows})

    return keep


def _made(run: Run) -> int:
    """How many videos are there, the real ones apart."""
    return sum(not name.startswith("videos/real/") for name in run.folder.list("videos", recursive=True))


def _shots(config: GenerateConfig, arms: Arms, run: Run) -> dict[str, Work]:
    """Images are read here and go along: no other node needs the file."""
    family = model_spec(config.model).family
    found: dict[str, Work] = {}
    for i, shot in enumerate(config.shots):
        request = VideoRequest(
            **_common(config, arms["adapter"], run, f"{i:04d}.mp4"),
            image=Path(shot.image).expanduser().read_bytes(),
            prompt=shot.prompt,
            num_frames=shot.num_frames,
            height=shot.height,
            width=shot.width,
        )
        found[request.file] = _shot(request, shot, shot_segments(config, family, shot), family.fps)
    return found


def _shot(request: VideoRequest, shot: ShotRequest, segments: list[Segment], fps: int) -> Work:
    """A shot: its keyframe, where it has one, and its segments."""

    def work(group: RankGroup) -> dict[str, Any]:
        told: dict[str, Any] = {}
        begun = request
        if shot.keyframe is not None:
            image, told["keyframe"] = make_keyframe(group, request, shot.keyframe)
            begun = replace(request, image=image)
        made = whole(begun)(group) if len(segments) == 1 else make_shot(group, begun, segments, fps)
        return {**made, **told}

    return work


def shot_segments(config: GenerateConfig, family: Family, shot: ShotRequest) -> list[Segment]:
    """The segments of a shot; one where it is made at once."""
    return window_segments(config, family, shot.num_frames)


def window_segments(config: GenerateConfig, family: Family, num_frames: int) -> list[Segment]:
    """The segments of a video of so many frames; one where it is made at once."""
    if config.expansion is None:
        return [Segment(0, num_frames)]
    return segments_of(family, num_frames, config.expansion.segment_frames, config.expansion.overlap)


def _windows(
    config: GenerateConfig, arms: Arms, run: Run, dataset: ClipsDataset, windows: list[WindowRow]
) -> dict[str, Work]:
    found: dict[str, Work] = {}
    family = model_spec(config.model).family
    for arm, adapters in arms.items():
        for window in windows:
            common = _common(config, adapters, run, f"{arm}/{window.window_id}.mkv")
            found[common["file"]] = window_work(config, common, dataset, window, family)
    return found


def window_work(
    config: GenerateConfig, common: dict[str, Any], dataset: ClipsDataset, window: WindowRow, family: Family
) -> Work:
    """A window made at once from what the dataset has of it or, where it is longer than a segment, as a shot of its
    first frame."""
    assert config.split is not None
    segments = window_segments(config, family, window.num_frames)
    if len(segments) == 1:
        place = dataset.storage.reference(), config.split, window.window_id
        return whole(VideoRequest(**common, window=place))
    seed = window_seed(config.sampler.seed, window.window_id)
    request = VideoRequest(
        **{**common, "sampler": config.sampler.model_copy(update={"seed": seed})},
        prompt=window.caption,
        num_frames=window.num_frames,
        height=window.height,
        width=window.width,
    )
    file = pixels_file(window.window_id)

    def work(group: RankGroup) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as scratch:
            frames, _ = read_video(dataset.storage.download(file, Path(scratch) / "window.mkv"), 1)
        return make_shot(group, replace(request, image=png_bytes(frames[0])), segments, family.fps)

    return work


def _common(config: GenerateConfig, adapters: list[Applied], run: Run, file: str) -> dict[str, Any]:
    return {
        "storage": Storage.open(config.storage).reference(),
        "output": run.folder.reference(),
        "file": f"videos/{file}",
        "sampler": config.sampler,
        "adapters": tuple((adapter.ref, adapter.scale) for adapter in adapters),
        "adapter_sha256": tuple(adapter.sha256 for adapter in adapters),
        "state": f"states/{file}.safetensors" if config.keep_every else None,
        "keep_every": config.keep_every,
    }


def _shape(config: GenerateConfig, windows: Sequence[WindowRow]) -> GroupShape:
    family = model_spec(config.model).family
    if config.split is not None:
        return shape_of(config, sizes_of_windows(config, family, windows))
    return shape_of(config, (size for shot in config.shots for size in sizes_of_shot(config, family, shot)))


def _make(
    config: GenerateConfig,
    shape: GroupShape,
    videos: dict[str, Work],
    lease: Lease,
    keep: Callable[[dict[str, Any]], None],
) -> list[dict[str, Any]]:
    """Make the videos. Returns what the groups say of each; it is given to `keep` at once."""
    started = time.monotonic()
    rows: list[dict[str, Any]] = []

    def made(row: dict[str, Any]) -> None:
        rows.append(row)
        keep(row)
        count = len(rows)
        if count % 8 == 0 or count == len(videos):
            rate = (time.monotonic() - started) / count
            log.info("%d/%d videos  %.2f s each  ETA %.0f s", count, len(videos), rate, rate * (len(videos) - count))

    interruptible(lambda: make_videos(config, shape, videos, made), lease.check)
    return rows
