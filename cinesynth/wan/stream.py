"""A transformer's stored weights, read tensor by tensor, so that no process holds a whole checkpoint in its memory.

The transformer is made on PyTorch's `meta` device, which has shapes and no values. Whoever places it then reads each
tensor, or the rows of it that belong to one rank, and puts them where they are computed with.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from safetensors import SafetensorError, safe_open

from cinesynth.errors import ModelError
from cinesynth.wan.folder import model_folder, read_json
from cinesynth.wan.parameters import bare_name, put

_FILE = "diffusion_pytorch_model.safetensors"
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def values_in(path: Path) -> int:
    """How many values a safetensors file holds, by its header."""
    with safe_open(path, framework="pt") as opened:
        return sum(math.prod(opened.get_slice(name).get_shape()) for name in opened.keys())  # noqa: SIM118


class StoredWeights:
    """The weights of one transformer in a model's folder. Only headers are read until a tensor is asked for.

    Args:
        model: 'nano', a folder or a hub id.
        dtype: that most weights are read in; those that the model keeps in fp32 are read in fp32.
        expert: component of the model.

    Raises ModelError where a file is missing or damaged, and for weights of a dtype that has to be scaled (fp8).
    """

    def __init__(self, model: str, dtype: torch.dtype = torch.float32, expert: str = "transformer") -> None:
        self.model, self.dtype, self.expert = model, dtype, expert
        self.folder = model_folder(model) / expert
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._stored: dict[str, torch.dtype] = {}
        self._files: dict[str, Any] = {}
        for path in self._paths():
            try:
                opened = safe_open(path, framework="pt")
                names = list(opened.keys())
            except (SafetensorError, OSError) as e:
                raise self._damaged(path, e) from e
            for name in names:
                header = opened.get_slice(name)
                if header.get_dtype() not in _DTYPES:
                    raise ModelError(
                        f"model {model!r}: {expert} has weights of dtype {header.get_dtype()} ({name} in {path.name}); "
                        "give one in bf16, fp16 or fp32"
                    )
                self._shapes[name] = tuple(header.get_shape())
                self._stored[name] = _DTYPES[header.get_dtype()]
                self._files[name] = opened

    def dtype_of(self, name: str) -> torch.dtype:
        """The dtype that a tensor is read in."""
        kept = WanTransformer3DModel._keep_in_fp32_modules
        return torch.float32 if any(part in kept for part in name.split(".")) else self.dtype

    @property
    def stored_dtypes(self) -> dict[str, torch.dtype]:
        """The dtype of each tensor in its file."""
        return dict(self._stored)

    @property
    def bytes(self) -> int:
        """Size of all of them in the dtypes that they are read in."""
        return sum(math.prod(shape) * self.dtype_of(name).itemsize for name, shape in self._shapes.items())

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """A tensor, or rows of it, on the CPU. The name is that of the bare transformer or of one with adapters."""
        name = bare_name(name)
        try:
            stored = self._files[name].get_slice(name)
            value = stored[rows] if rows is not None else self._files[name].get_tensor(name)
        except (SafetensorError, OSError) as e:
            raise self._damaged(self.folder, e) from e
        return value.to(self.dtype_of(name), copy=True)  # not a view of the file

    def empty_transformer(self) -> WanTransformer3DModel:
        """The transformer on the `meta` device, in eval mode and frozen; its table of positions has values.

        Raises ModelError where the files lack a tensor of it, or hold one of another shape.
        """
        config = read_json(self.folder / "config.json", self.model)
        with torch.device("meta"):
            transformer = WanTransformer3DModel.from_config(config)
        for name, parameter in list(transformer.named_parameters()):
            if self._shapes.get(name) != tuple(parameter.shape):
                found = self._shapes.get(name, "missing")
                raise ModelError(
                    f"model {self.model!r}: component {self.expert!r} in {self.folder}: {name} is {found}, the "
                    f"configuration says {tuple(parameter.shape)}; fetch the model again"
                )
            put(transformer, name, torch.empty_like(parameter, dtype=self.dtype_of(name)))
        sizes = transformer.config
        transformer.rope = WanRotaryPosEmbed(sizes.attention_head_dim, sizes.patch_size, sizes.rope_max_seq_len)
        return transformer.requires_grad_(False).eval()

    def fill(self, transformer: torch.nn.Module, device: str) -> None:
        """Read every parameter that has no values yet to a device, one after the other."""
        for name, parameter in list(transformer.named_parameters()):
            if parameter.is_meta:
                put(transformer, name, self.read(name).to(device))

    def _paths(self) -> list[Path]:
        index, names = self.folder / f"{_FILE}.index.json", [_FILE]
        if index.is_file():
            names = sorted(set(read_json(index, self.model)["weight_map"].values()))
        for name in names:
            if not (self.folder / name).is_file():
                raise ModelError(f"model {self.model!r}: {self.folder / name} is missing; fetch the model again")
        return [self.folder / name for name in names]

    def _damaged(self, path: Path, error: Exception) -> ModelError:
        return ModelError(
            f"model {self.model!r}: component {self.expert!r} in {path} cannot be loaded ({type(error).__name__}: "
            f"{str(error)[:300]}); fetch the model again"
        )
