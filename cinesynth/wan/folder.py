"""A model's folder and its content: what can be known of it before any weight is read, and without PyTorch.

Everything becomes a local diffusers folder first (a hub id through the hub's cache, offline when the files are there).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from cinesynth.errors import ModelError
from cinesynth.storage import sha256_file, sha256_json

ENCODERS = ("vae", "image_encoder", "image_processor", "text_encoder", "tokenizer")
COMPONENTS = ("transformer", "scheduler", *ENCODERS)
SHIPPED = Path(__file__).parent / "weights" / "nano"
MANIFEST = "sha256.json"


@dataclass(frozen=True)
class ModelShapes:
    """What a model's own configuration says about its tensors."""

    latent_channels: int
    temporal_stride: int
    spatial_stride: int
    heads: int

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """[C, F, h, w] of the latents of a video of `num_frames` (4n+1) x `height` x `width`."""
        frames = (num_frames - 1) // self.temporal_stride + 1
        return self.latent_channels, frames, height // self.spatial_stride, width // self.spatial_stride


def model_folder(model: str) -> Path:
    """The local diffusers folder of 'nano', a folder path or a hub id.

    Raises ModelError when it is missing, incomplete, or no Wan2.1 image-to-video model.
    """
    if model == "nano":
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
    entries = read_json(index, model)
    for name in COMPONENTS:
        if not entries.get(name, [None])[0] or not (folder / name).is_dir():
            raise ModelError(
                f"model {model!r}: component {name!r} is missing in {folder}; "
                "a Wan2.1 image-to-video model has " + ", ".join(COMPONENTS)
            )
    config = read_json(folder / "transformer" / "config.json", model)
    if config.get("image_dim") is None or config.get("in_channels") != 36:
        raise ModelError(
            f"model {model!r}: in_channels {config.get('in_channels')} and image_dim {config.get('image_dim')}: "
            "not a Wan2.1 image-to-video transformer (36 channels with image projections)"
        )


def read_json(path: Path, model: str) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as e:
        raise ModelError(f"model {model!r}: {path} cannot be read: {e}") from e


def model_shapes(model: str) -> ModelShapes:
    """Shapes from the configuration files alone; no weights are read."""
    folder = model_folder(model)
    transformer = read_json(folder / "transformer" / "config.json", model)
    vae = read_json(folder / "vae" / "config.json", model)
    return ModelShapes(
        latent_channels=vae["z_dim"],
        temporal_stride=vae.get("scale_factor_temporal") or 4,
        spatial_stride=vae.get("scale_factor_spatial") or 8,
        heads=transformer["num_attention_heads"],
    )


def model_hash(model: str) -> str:
    """Content hash of the whole model: all its components' files."""
    folder = model_folder(model)
    return sha256_json([_component_hash(folder, name) for name in COMPONENTS])


def base_hash(model: str) -> str:
    """Content hash of the transformer: what an adapter was trained on."""
    return _component_hash(model_folder(model), "transformer")


def encoder_hash(model: str) -> str:
    """Content hash of the VAE and the text and image encoders: what a clips dataset was encoded with."""
    folder = model_folder(model)
    return sha256_json([_component_hash(folder, name) for name in ENCODERS])


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


def nano_folder() -> Path:
    """The shipped model's folder, each file checked once in a process.

    Raises ModelError naming the file that is missing or damaged, and the commands that bring it back.
    """
    _check_shipped(SHIPPED)
    return SHIPPED


@lru_cache(maxsize=4)
def _check_shipped(folder: Path) -> None:
    advice = (
        "; bring it back with `pip install --force-reinstall cinesynth`, in a clone with "
        "`git checkout -- cinesynth/wan/weights`, or train it again with `make nano`"
    )
    if not (folder / MANIFEST).is_file():
        raise ModelError(f"model 'nano': {folder / MANIFEST} is missing{advice}")
    for name, sha256 in json.loads((folder / MANIFEST).read_text()).items():
        if not (folder / name).is_file():
            raise ModelError(f"model 'nano': {folder / name} is missing{advice}")
        if (found := sha256_file(folder / name)) != sha256:
            raise ModelError(
                f"model 'nano': {folder / name} is damaged: sha256 {found[:16]}, expected {sha256[:16]}{advice}"
            )


def write_manifest(folder: Path) -> None:
    """Record the sha256 of every file, for `nano_folder` to check."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    hashes = {p.relative_to(folder).as_posix(): sha256_file(p) for p in files}
    (folder / MANIFEST).write_text(json.dumps(hashes, indent=1) + "\n")
