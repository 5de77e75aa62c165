"""Load the components of a Wan image-to-video model: 'nano', a folder, or a hub id."""

from __future__ import annotations

import copy
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers import AutoencoderKLWan, SchedulerMixin, WanTransformer3DModel

from cinesynth.errors import ModelError
from cinesynth.wan.folder import model_folder, model_spec, read_json
from cinesynth.wan.padding import collapse_padding
from cinesynth.wan.shards import divide_weights
from cinesynth.wan.stream import StoredWeights


def load_transformer(
    model: str,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    expert: str = "transformer",
    shard: tuple[int, int] | None = None,
) -> WanTransformer3DModel:
    """The frozen transformer, or one of two experts, in eval mode, read tensor by tensor to the device it computes on.

    Args:
        model: 'nano', a folder or a hub id.
        dtype: of most weights.
        device: that computes.
        expert: component of the model.
        shard: (rank, size) where the processes of the default group share one copy of the weights.

    Raises ModelError when its weights are damaged.
    """
    weights = StoredWeights(model, dtype, expert)
    transformer = weights.empty_transformer()
    if shard is None:
        weights.fill(transformer, device)
    else:
        rank, size = shard
        divide_weights(transformer, device, rank, size, size, weights)
    prepare_attention(transformer, model, device)
    return transformer.to(device)


def prepare_attention(transformer: WanTransformer3DModel, model: str, device: str) -> None:
    """Choose how cross-attention is computed, by the device that computes.

    On a CPU the padding of prompts is collapsed. On a GPU the mask for that would cost the faster kernels, and finding
    the padding a wait for the GPU in every block.
    """
    if torch.device(device).type == "cpu":
        collapse_padding(transformer, model_spec(model).family)


def save_model(transformer: WanTransformer3DModel, base: str, folder: str | os.PathLike[str]) -> Path:
    """Write a model folder with this transformer, its weights in the dtypes of `base`, and all else from `base`."""
    source, target = model_folder(base), Path(folder)
    shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("transformer"))
    dtypes = StoredWeights(base).stored_dtypes
    whole = copy.deepcopy(transformer)
    for name, parameter in whole.named_parameters():
        parameter.data = parameter.data.to(dtypes[name])
    whole.save_pretrained(target / "transformer", safe_serialization=True)
    return target


def load_vae(model: str, device: str = "cpu") -> AutoencoderKLWan:
    """The VAE, always in fp32 as in Wan's official code."""
    return _load(AutoencoderKLWan, model, "vae", torch_dtype=torch.float32).requires_grad_(False).eval().to(device)


def load_text_encoder(model: str, device: str = "cpu") -> tuple[Any, Any]:
    """(tokenizer, UMT5 encoder); bf16 on CUDA, fp32 elsewhere."""
    from transformers import AutoTokenizer, UMT5EncoderModel

    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    tokenizer = _load(AutoTokenizer, model, "tokenizer")
    encoder = _load(UMT5EncoderModel, model, "text_encoder", torch_dtype=dtype)
    return tokenizer, encoder.requires_grad_(False).eval().to(device)


def load_image_encoder(model: str, device: str = "cpu") -> tuple[Any, Any]:
    """(image processor, CLIP vision encoder in fp32)."""
    from transformers import CLIPImageProcessor, CLIPVisionModel

    processor = _load(CLIPImageProcessor, model, "image_processor")
    encoder = _load(CLIPVisionModel, model, "image_encoder", torch_dtype=torch.float32)
    return processor, encoder.requires_grad_(False).eval().to(device)


def load_scheduler(model: str, flow_shift: float | None = None) -> SchedulerMixin:
    """The model's scheduler, of the class that its index names; `flow_shift` overrides its shift."""
    import diffusers

    folder = model_folder(model)
    name = read_json(folder / "model_index.json", model)["scheduler"][1]
    scheduler_class = getattr(diffusers, name, None)
    if scheduler_class is None:
        raise ModelError(f"model {model!r}: scheduler class {name!r} is not in this diffusers version")
    scheduler = scheduler_class.from_pretrained(folder, subfolder="scheduler")
    if flow_shift is not None:
        key = "flow_shift" if "flow_shift" in scheduler.config else "shift"
        scheduler = scheduler_class.from_config(scheduler.config, **{key: flow_shift})
    return scheduler


def _load(loader: Any, model: str, component: str, **kwargs: Any) -> Any:
    folder = model_folder(model)
    transformers.utils.logging.disable_progress_bar()  # a job's log has our lines, not bars
    if "torch_dtype" in kwargs and loader.__module__.startswith("transformers"):
        kwargs["dtype"] = kwargs.pop("torch_dtype")
    try:
        return loader.from_pretrained(folder / component, local_files_only=True, **kwargs)
    except Exception as e:  # each library raises its own kinds for missing, truncated and mismatched files
        raise ModelError(
            f"model {model!r}: component {component!r} in {folder} cannot be loaded ({type(e).__name__}: "
            f"{str(e)[:300]}); fetch the model again"
        ) from e
