"""The folder of a model: where it lies, what its files say, and their hashes. Needs no PyTorch and reads no weights.

Every model is a local diffusers folder. A hub id becomes one through the hub's cache, offline when the files are there.
"""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from cinesynth.errors import ModelError
from cinesynth.storage import sha256_file, sha256_json
from cinesynth.wan.family import Family, ModelSpec, find_family

SHIPPED = Path(__file__).parent / "weights" / "nano"
MANIFEST = "sha256.json"


def model_folder(model: str) -> Path:
    """The local diffusers folder of 'nano', a folder path or a hub id (`owner/name`, or `owner/name@revision`).

    Raises ModelError when it is missing, incomplete, or of no known family.
    """
    return _folder_and_family(model)[0]


def pinned_model(model: str) -> str:
    """The same model by a name that cannot come to mean another one: a hub id gets the commit that it stands for."""
    folder = model_folder(model)
    on_hub = model != "nano" and not Path(model).expanduser().is_dir()
    return f"{split_revision(model)[0]}@{folder.name}" if on_hub and folder.parent.name == "snapshots" else model


def split_revision(model: str) -> tuple[str, str | None]:
    """(model, revision that it is pinned to): only a hub id has one."""
    name, _, revision = model.partition("@")
    return (model, None) if not revision or Path(model).expanduser().is_dir() else (name, revision)


def _folder_and_family(model: str) -> tuple[Path, Family]:
    if model == "nano":
        folder = nano_folder()
    elif Path(model).expanduser().is_dir():
        folder = Path(model).expanduser()
    else:
        folder = _from_hub(model)
    return folder, _check(folder, model)


def _from_hub(model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    name, revision = split_revision(model)
    if name.count("/") != 1:
        raise ModelError(f"model {model!r} is neither 'nano', nor an existing folder, nor a hub id (owner/name)")
    patterns = ["*.json", "*.safetensors", "*.model", "*.txt"]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as e:
        raise ModelError(
            f"model {model!r} is not in the hub cache and cannot be downloaded ({type(e).__name__}: {str(e)[:200]}); "
            "check the id and the network, or give a folder with the files"
        ) from e


def _check(folder: Path, model: str) -> Family:
    """The family of the model in a folder, all of whose components are there."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise ModelError(f"model {model!r}: {folder} has no model_index.json, so it is not a diffusers folder")
    entries = read_json(index, model)
    if not (folder / "transformer").is_dir():
        raise ModelError(f"model {model!r}: component 'transformer' is missing in {folder}")
    family = find_family(model, entries, read_json(folder / "transformer" / "config.json", model))
    for name in family.components:
        if not (entries.get(name) or [None])[0] or not (folder / name).is_dir():
            raise ModelError(
                f"model {model!r}: component {name!r} is missing in {folder}; "
                f"a {family.title} model has " + ", ".join(family.components)
            )
    return family


def read_json(path: Path, model: str) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as e:
        raise ModelError(f"model {model!r}: {path} cannot be read: {e}") from e


def model_spec(model: str) -> ModelSpec:
    """What a model's configuration files say of it; no weights are read.

    Raises ModelError when it is missing, of no known family, or not as its family is.
    """
    folder, family = _folder_and_family(model)
    index = read_json(folder / "model_index.json", model)
    configs = {name: folder / name / "config.json" for name in family.components}
    transformer = read_json(configs[family.experts[0]], model)
    vae, text = read_json(configs["vae"], model), read_json(configs["text_encoder"], model)
    image = read_json(configs["image_encoder"], model) if family.image_encoder else {}
    try:
        _check_strides(model, family, transformer, vae)
        return ModelSpec(
            model=model,
            family=family,
            heads=transformer["num_attention_heads"],
            positions=transformer.get("rope_max_seq_len") or 1024,  # the transformer's own default
            text_dim=text["d_model"],
            image_tokens=(image["image_size"] // image["patch_size"]) ** 2 + 1 if image else 0,
            image_dim=image["hidden_size"] if image else 0,
            latents_mean=tuple(vae["latents_mean"]),
            latents_std=tuple(vae["latents_std"]),
            boundary=index["boundary_ratio"] if len(family.experts) > 1 else None,
        )
    except KeyError as e:
        raise ModelError(f"model {model!r}: the configuration files in {folder} do not state {e}") from e


def _check_strides(model: str, family: Family, transformer: dict[str, Any], vae: dict[str, Any]) -> None:
    """A model whose strides are not its family's would be given datasets that do not fit it."""
    found = {
        "vae.z_dim": (vae["z_dim"], family.latent_channels),
        "vae.scale_factor_temporal": (vae.get("scale_factor_temporal"), family.temporal_stride),
        "vae.scale_factor_spatial": (vae.get("scale_factor_spatial"), family.spatial_stride),
        "transformer.patch_size": (transformer.get("patch_size"), [1, family.patch, family.patch]),
    }
    for name, (value, wanted) in found.items():
        if value is not None and value != wanted:
            raise ModelError(f"model {model!r}: {name} is {value}, that of {family.title} is {wanted}")


def model_hash(model: str) -> str:
    """Content hash of the whole model: all its components' files."""
    folder, family = _folder_and_family(model)
    return sha256_json([_component_hash(folder, name) for name in family.components])


def base_hash(model: str) -> str:
    """Content hash of what denoises, the transformer (or both experts): what an adapter was trained on."""
    folder, family = _folder_and_family(model)
    hashes = [_component_hash(folder, name) for name in family.experts]
    return hashes[0] if len(hashes) == 1 else sha256_json(hashes)


def encoder_hash(model: str) -> str:
    """Content hash of the VAE and of the text and image encoders: what a clips dataset was encoded with."""
    folder, family = _folder_and_family(model)
    return sha256_json([_component_hash(folder, name) for name in family.encoders])


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
