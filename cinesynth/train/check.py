"""What is checked of a training before a worker starts: strategy, dataset, base, parents and the adapter's shape."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cinesynth.config import EvaluateSettings, TrainConfig
from cinesynth.data.dataset import ClipsDataset
from cinesynth.errors import ConfigError, DatasetError
from cinesynth.locate import adapter_chain, locate_adapter, locate_dataset
from cinesynth.metrics.catalogue import metric_identity
from cinesynth.storage import Storage, public_uri
from cinesynth.train.memory import adapted, compute_dtype, training_memory
from cinesynth.train.supported import check_supported
from cinesynth.train.videos import validated_windows
from cinesynth.wan.card import check_adapters
from cinesynth.wan.folder import base_hash, encoder_hash, model_spec
from cinesynth.wan.placement import Memory
from cinesynth.wan.stream import StoredWeights


@dataclass(frozen=True)
class Checked:
    """What a training reads and does, as it is known before a worker starts."""

    dataset: ClipsDataset
    inputs: dict[str, str]
    """Hashes of what is read, by name."""
    parents: list[tuple[str, float]]
    """(reference that cannot come to mean another adapter, scale), in the order they are applied."""
    modules: list[str]
    """Layers that get an adapter; empty where all weights are trained."""
    memory: Memory
    """Of a step, by arithmetic."""


def check_training(config: TrainConfig) -> Checked:
    """Check strategy, dataset, base, parents and the adapter's shape. Raises CinesynthError."""
    check_supported(config.strategy, config)
    spec = model_spec(config.model)
    if len(spec.family.experts) > 1:
        raise ConfigError(
            f"model: {config.model!r} has {len(spec.family.experts)} experts, each trained on its own noise levels; "
            "training takes models with one transformer"
        )
    dtype = compute_dtype(config, config.use_gpu)
    if config.merge and config.mode == "lora" and dtype != torch.float32:
        raise ConfigError(
            f"merge: true needs an fp32 base, and this one is loaded in {str(dtype).removeprefix('torch.')}, which "
            "rounds the parents to another function than the one that is served; set dtype=fp32, or merge=false"
        )
    weights = StoredWeights(config.model, torch.float32 if config.mode == "full" else dtype)
    transformer = weights.empty_transformer()
    layers = adapted(config, spec.family, transformer)
    _check_rank(config.lora.rank, layers)
    storage = Storage.open(config.storage)
    dataset, named = locate_dataset(storage, config.dataset), public_uri(config.dataset)
    if dataset.manifest["encoder_hash"] != encoder_hash(config.model):
        raise DatasetError(
            f"dataset {named!r} was encoded with another model's encoders "
            f"({dataset.manifest['encoder_hash'][:12]}) than those of {config.model!r} "
            f"({encoder_hash(config.model)[:12]}); prepare it with model={config.model}"
        )
    if not dataset.windows("train"):
        raise DatasetError(f"dataset {named!r} has no window in its train split; add footage")
    inputs = {"dataset": dataset.manifest_sha256, "base": base_hash(config.model)}
    parents = adapter_chain(storage, [(p.ref, p.scale) for p in config.parents])
    applied = check_adapters([(locate_adapter(storage, ref), scale) for ref, scale in parents], inputs["base"])
    inputs |= {f"parent_{i}": parent.sha256 for i, parent in enumerate(applied)}
    for frames, height, width in sorted({(w.num_frames, w.height, w.width) for w in dataset.windows()}):
        spec.check_size(frames, height, width, f"dataset {named!r}")
    if config.validation_videos is not None:
        validated_windows(config, dataset)
        metrics = metric_identity(EvaluateSettings(metrics=["lpips"]))
        inputs |= metrics if config.early_stop is not None else {}
    memory = training_memory(config, spec.family, transformer, weights.bytes, dataset, dtype)
    return Checked(dataset, inputs, parents, list(layers), memory)


def _check_rank(rank: int, layers: dict[str, torch.nn.Linear]) -> None:
    width = min((min(layer.in_features, layer.out_features) for layer in layers.values()), default=rank)
    if rank > width:
        raise ConfigError(
            f"lora.rank: {rank} is above the width {width} of the narrowest layer that gets an adapter; "
            "more rank than width changes nothing"
        )
