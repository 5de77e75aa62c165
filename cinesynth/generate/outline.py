"""What a generation would do: which videos, of what, with what."""

from __future__ import annotations

from collections import Counter

from cinesynth.config import GenerateConfig
from cinesynth.generate.driver import check_generation, shot_segments
from cinesynth.generate.windows import held_out_windows
from cinesynth.outline import Facts, Outline, cluster_of, sized, state_of, worker_fact
from cinesynth.wan.folder import model_spec


def outline_generation(config: GenerateConfig) -> Outline:
    """Check everything that a generation checks before Ray starts. Raises CinesynthError as `generate` does."""
    arms, dataset, inputs = check_generation(config)
    facts: Facts = [("model", f"{config.model} ({inputs['model'][:12]})")]
    facts += [
        (f"{arm} {i}", f"{adapter.ref} x {adapter.scale:g} ({inputs[f'{arm}_{i}'][:12]})")
        for arm, adapters in arms.items()
        for i, adapter in enumerate(adapters)
    ]
    if dataset is None:
        sizes = Counter((s.num_frames, s.width, s.height) for s in config.shots)
        videos, where = len(config.shots), ""
        facts.append(("images", sized(videos, "first frame")))
    else:
        windows = held_out_windows(config, dataset)
        sizes = Counter((w.num_frames, w.width, w.height) for w in windows)
        videos, where = len(windows) * len(arms), f", {sized(len(windows), 'window')} in {' and '.join(arms)}"
        facts.append(("dataset", f"{dataset.storage.uri} ({inputs['dataset'][:12]}), split {config.split}"))
    sampler = config.sampler
    passes = sampler.steps * (2 if sampler.guidance_scale > 1 else 1)
    shapes = ", ".join(f"{frames} frames of {width}x{height}" for frames, width, height in sorted(sizes))
    return Outline(
        title=f"generate {config.name}",
        state=state_of(config, inputs),
        inputs=facts,
        work=[
            ("videos", f"{videos:,}{where}: {shapes}"),
            *_parts_of_shots(config),
            ("sampling", f"{sized(sampler.steps, 'step')}, {passes * videos:,} passes of the transformer in all"),
        ],
        resources=[
            cluster_of(config),
            worker_fact(
                config.workers * config.ranks, config.cpus_per_worker, 1.0 if config.use_gpu else 0.0, config.resources
            ),
            *([("ranks", f"{config.ranks} make each video together, on one node")] if config.ranks > 1 else []),
        ],
    )


def _parts_of_shots(config: GenerateConfig) -> Facts:
    """Keyframes and segments, where shots have any."""
    family = model_spec(config.model).family
    segments = [len(shot_segments(config, family, shot)) for shot in config.shots]
    candidates = [shot.keyframe.candidates for shot in config.shots if shot.keyframe is not None]
    facts: Facts = []
    if candidates:
        facts.append(("keyframes", f"{len(candidates)}, of {sized(sum(candidates), 'candidate')}"))
    if sum(segments) > len(segments):
        assert config.expansion is not None
        facts.append(("segments", f"{sum(segments)}, each of at most {config.expansion.segment_frames} frames"))
    return facts
