"""Load a Wan image-to-video model: 'nano', a folder, or a hub id, all through one function.

Everything becomes a local diffusers folder first (a hub id through the hub's cache, offline when the files are
there), so that its content hash and its shapes are known before any weight is read.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers import AutoencoderKLWan, SchedulerMixin, WanTransformer3DModel
from safetensors import safe_open

from cinesynth.errors import ModelError
from cinesynth.storage import sha256_file, sha256_json
from cinesynth.wan.padding import collapse_padding

ENCODERS = ("vae", "image_encoder", "image_processor", "text_encoder", "tokenizer")
COMPONENTS = ("transformer", "scheduler", *ENCODERS)
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class ModelShapes:
    """What a model's own configuration says about its tensors."""

    latent_channels: int
    temporal_stride: int
    spatial_stride: int
    text_dim: int
    text_tokens: int
    image_dim: int
    heads: int
    head_dim: int
    layers: int

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """[C, F, h, w] of the latents of a video of `num_frames` (4n+1) x `height` x `width`."""
        frames = (num_frames - 1) // self.temporal_stride + 1
        return self.latent_channels, frames, height // self.spatial_stride, width // self.spatial_stride


def model_folder(model: str) -> Path:
    """The local diffusers folder of 'nano', a folder path or a hub id.

    Raises ModelError when it is missing, incomplete, or no Wan2.1 image-to-video model.
    """
    if model == "nano":
        from cinesynth.wan.nano import nano_folder

        folder = nano_folder()
    elif Path(model).expanduser().is_dir():
        folder = Path(model).expanduser()
    else:
        folder = _from_hub(model)
    _check(folder, model)
    return folder


def _from_hub(model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    if model.count("/") != 1:
        raise ModelError(f"model {model!r} is neither 'nano', nor an existing folder, nor a hub id (owner/name)")
    try:
        return Path(snapshot_download(model, allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as e:
        raise ModelError(
            f"model {model!r} is not in the hub cache and cannot be downloaded ({type(e).__name__}: {str(e)[:200]}); "
            "check the id and the network, or give a folder with the files"
        ) from e


def _check(folder: Path, model: str) -> None:
    index = folder / "model_index.json"
    if not index.is_file():
        raise ModelError(f"model {model!r}: {folder} has no model_index.json, so it is not a diffusers folder")
    entries = _json(index, model)
    for name in COMPONENTS:
        if not entries.get(name, [None])[0] or not (folder / name).is_dir():
            raise ModelError(
                f"model {model!r}: component {name!r} is missing in {folder}; "
                "a Wan2.1 image-to-video model has " + ", ".join(COMPONENTS)
            )
    config = _json(folder / "transformer" / "config.json", model)
    if config.get("image_dim") is None or config.get("in_channels") != 36:
        raise ModelError(
            f"model {model!r}: in_channels {config.get('in_channels')} and image_dim {config.get('image_dim')}: "
            "not a Wan2.1 image-to-video transformer (36 channels with image projections)"
        )


def _json(path: Path, model: str) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as e:
        raise ModelError(f"model {model!r}: {path} cannot be read: {e}") from e


def model_shapes(model: str) -> ModelShapes:
    """Shapes from the configuration files alone; no weights are read."""
    folder = model_folder(model)
    transformer = _json(folder / "transformer" / "config.json", model)
    vae = _json(folder / "vae" / "config.json", model)
    return ModelShapes(
        latent_channels=vae["z_dim"],
        temporal_stride=vae.get("scale_factor_temporal") or 4,
        spatial_stride=vae.get("scale_factor_spatial") or 8,
        text_dim=transformer["text_dim"],
        text_tokens=512,
        image_dim=transformer["image_dim"],
        heads=transformer["num_attention_heads"],
        head_dim=transformer["attention_head_dim"],
        layers=transformer["num_layers"],
    )


def model_hash(model: str) -> str:
    """Content hash of the whole model: all its components' files."""
    return sha256_json([_component_hash(model_folder(model), name) for name in COMPONENTS])


def base_hash(model: str) -> str:
    """Content hash of the transformer: what an adapter was trained on."""
    return _component_hash(model_folder(model), "transformer")


def encoder_hash(model: str) -> str:
    """Content hash of the VAE and the text and image encoders: what a clips dataset was encoded with."""
    return sha256_json([_component_hash(model_folder(model), name) for name in ENCODERS])


def _component_hash(folder: Path, name: str) -> str:
    files = sorted(p for p in (folder / name).rglob("*") if p.is_file())
    return sha256_json([(p.relative_to(folder).as_posix(), _file_hash(p)) for p in files])


def _file_hash(path: Path) -> str:
    # The hub's cache names large files by their sha256, which saves reading tens of gigabytes.
    target = path.resolve()
    if path.is_symlink() and target.parent.name == "blobs" and len(target.name) == 64:
        return target.name
    status = path.stat()
    return _hash_once(os.fspath(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4096)
def _hash_once(path: str, size: int, modified: int) -> str:
    return sha256_file(path)


def load_transformer(model: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> WanTransformer3DModel:
    """The frozen transformer in eval mode. Raises ModelError when its weights are damaged."""
    transformer = _load(WanTransformer3DModel, model, "transformer", torch_dtype=dtype)
    if device == "cpu":
        collapse_padding(transformer)  # on a GPU a mask would cost the faster attention kernels
    return transformer.requires_grad_(False).eval().to(device)


def save_model(transformer: WanTransformer3DModel, base: str, folder: str | os.PathLike[str]) -> Path:
    """Write a model folder: the transformer, each weight in the dtype of `base`, and everything else copied from it."""
    source, target = model_folder(base), Path(folder)
    shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("transformer"))
    dtypes = _stored_dtypes(source / "transformer")
    whole = copy.deepcopy(transformer)
    for name, parameter in whole.named_parameters():
        parameter.data = parameter.data.to(dtypes[name])
    whole.save_pretrained(target / "transformer", safe_serialization=True)
    return target


def _stored_dtypes(folder: Path) -> dict[str, torch.dtype]:
    dtypes: dict[str, torch.dtype] = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            dtypes |= {name: _DTYPES[tensors.get_slice(name).get_dtype()] for name in tensors.keys()}  # noqa: SIM118
    return dtypes


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
    name = _json(folder / "model_index.json", model)["scheduler"][1]
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
            f"{str(e)[:300]}); fetch the model again, or delete the folder if it is the nano model in the cache"
        ) from e
