"""What a generation would do: which videos, of what, with what."""

from __future__ import annotations

from collections import Counter

from cinesynth.config import GenerateConfig
from cinesynth.generate.driver import check_generation
from cinesynth.generate.windows import held_out_windows
from cinesynth.outline import Facts, Outline, cluster_of, sized, state_of, worker_fact


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
            ("sampling", f"{sized(sampler.steps, 'step')}, {passes * videos:,} passes of the transformer in all"),
        ],
        resources=[
            cluster_of(config),
            worker_fact(config.workers, config.cpus_per_worker, 1.0 if config.use_gpu else 0.0, config.resources),
        ],
    )
