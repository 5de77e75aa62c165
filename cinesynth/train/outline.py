"""What a training stage would do: on which windows, for how many steps, with what."""

from __future__ import annotations

from cinesynth.config import TrainConfig
from cinesynth.outline import Facts, Outline, cluster_of, sized, state_of, worker_fact
from cinesynth.train.check import check_training
from cinesynth.wan.lora import told_modules


def outline_training(config: TrainConfig) -> Outline:
    """Check everything that a training checks before a worker starts. Raises CinesynthError as `plan_training` does."""
    checked = check_training(config)
    dataset, inputs = checked.dataset, checked.inputs
    windows, held_out = len(dataset.windows("train")), len(dataset.windows("val"))
    optimizer = config.optimizer
    buckets = ", ".join(sorted(dataset.manifest["buckets"]))
    parents: Facts = [
        (f"parent {i}", f"{ref} x {scale:g} ({inputs[f'parent_{i}'][:12]})")
        for i, (ref, scale) in enumerate(checked.parents)
    ]
    what = "all weights"
    if config.mode == "lora":
        what = f"LoRA of rank {config.lora.rank} on {told_modules(checked.modules)}"
    epochs = optimizer.steps * optimizer.batch_size / windows
    validated = min(held_out, config.validation.max_windows)
    return Outline(
        title=f"train {config.name}",
        state=state_of(config, inputs),
        inputs=[
            ("dataset", f"{dataset.storage.uri} ({inputs['dataset'][:12]})"),
            ("windows", f"{windows:,} to train on, {held_out:,} held out for validation; {buckets}"),
            ("base", f"{config.model} ({inputs['base'][:12]})"),
            *parents,
        ],
        work=[
            ("trained", f"{what}, stage {config.stage}"),
            ("steps", f"{optimizer.steps:,} of {sized(optimizer.batch_size, 'window')}: each about {epochs:.1f} times"),
            ("validation", f"on {sized(validated, 'window')}, every {sized(config.validation.every, 'step')}"),
            *_by_videos(config),
            ("checkpoints", f"every {sized(config.checkpoint_every, 'step')}"),
        ],
        resources=[
            cluster_of(config),
            worker_fact(config.workers, config.cpus_per_worker, 1.0 if config.use_gpu else 0.0, config.resources),
            ("strategy", f"{config.strategy}, {config.dtype}"),
            ("memory", f"{checked.memory.told()} on a device that holds a whole copy, estimated"),
        ],
    )


def _by_videos(config: TrainConfig) -> Facts:
    if config.validation_videos is None:
        return []
    videos, stop = config.validation_videos, config.early_stop
    told = f"at most {sized(videos.max_windows, 'window')}, every {sized(videos.every, 'step')}, {videos.placement}"
    ends = [] if stop is None else [("early stop", f"after {sized(stop.patience, 'validation')} without a lower LPIPS")]
    return [("videos", told), *ends]
