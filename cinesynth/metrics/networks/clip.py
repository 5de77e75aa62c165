"""CLIP's encoders of images and of text, of open_clip, with weights from a file."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from cinesynth.errors import WeightsUnavailable
from cinesynth.metrics import weights
from cinesynth.metrics.networks import CLIP_MODEL, CLIP_WEIGHTS
from cinesynth.pictures import Frames

_FRAMES_AT_ONCE = 32


class Clip(nn.Module):
    """Compares pictures with each other and with text by the angle between CLIP's embeddings.

    Args:
        model: name of the architecture in open_clip.
        file: its state dict, of `torch.save` or safetensors.

    Raises WeightsUnavailable for a name that open_clip does not have, and for a file without the model's weights.
    """

    def __init__(self, model: str, file: Path) -> None:
        import open_clip  # takes seconds

        super().__init__()
        if model not in open_clip.list_models():
            raise WeightsUnavailable(
                f"clip.model {model!r} is not one of open_clip's; open_clip.list_models() names them"
            )
        self._model, _, self._prepare = open_clip.create_model_and_transforms(model, pretrained=None)
        self._tokenize = open_clip.get_tokenizer(model)
        try:
            state = _read(file)
            self._model.load_state_dict(state.get("state_dict", state))
        except Exception as e:  # pickles, zip files and key sets fail each in their own way
            raise WeightsUnavailable(
                f"clip.weights {file} does not hold the weights of {model} ({type(e).__name__}: {str(e)[:200]})"
            ) from e
        self.eval().requires_grad_(False)

    @classmethod
    @lru_cache(maxsize=1)
    def load(cls, model: str, file: str) -> Clip:
        """The one of these weights; loaded once by a process that compares by it all the time."""
        return cls(model, Path(file).expanduser())

    @torch.inference_mode()
    def features(self, frames_THWC: Sequence[Frames] | Frames) -> Tensor:
        """Embeddings [T, d] of pictures, uint8 RGB [H, W, 3] each, of any size; of any length."""
        device = next(self.parameters()).device
        parts = []
        for start in range(0, len(frames_THWC), _FRAMES_AT_ONCE):
            pictures = [self._prepare(Image.fromarray(f)) for f in frames_THWC[start : start + _FRAMES_AT_ONCE]]
            parts.append(self._model.encode_image(torch.stack(pictures).to(device)).float())
        return torch.cat(parts)

    def images(self, frames_THWC: Sequence[Frames] | Frames) -> Tensor:
        """The same, of unit length."""
        return normalize(self.features(frames_THWC), dim=-1)

    @torch.inference_mode()
    def texts(self, captions: Sequence[str]) -> Tensor:
        """Embeddings of unit length [B, d] of captions; tokens past the model's context are cut off."""
        tokens = self._tokenize(list(captions)).to(next(self.parameters()).device)
        return normalize(self._model.encode_text(tokens).float(), dim=-1)

    def distance(self, one: Frames, other: Frames) -> float:
        """1 - cosine of two pictures' embeddings, in [0, 2].

        Args:
            one, other: uint8 RGB [H, W, 3], of any size.
        """
        first, second = self.images([one, other])
        return float(1 - first @ second)


def load_clip(folder: str | None = None) -> Clip:
    """OpenAI's CLIP ViT-B/32, float32, on the CPU.

    Args:
        folder: folder that holds the weight file; default: the cache (see `weights.locate`).

    Raises:
        WeightsUnavailable: see `weights.locate`.
    """
    return Clip(CLIP_MODEL, weights.locate(CLIP_WEIGHTS, folder))


def frame_features(model: Clip, videos: Sequence[Frames]) -> NDArray[np.float64]:
    """Embeddings [B, T, 512] of every frame of videos of one length, not normalised."""
    return torch.stack([model.features(video) for video in videos]).double().cpu().numpy()


def text_similarities(model: Clip, videos: Sequence[Frames], captions: Sequence[str]) -> NDArray[np.float64]:
    """Cosine [B, T] of every frame of videos of one length and the video's caption."""
    texts_BD = model.texts(captions)
    rows = [model.images(video) @ text for video, text in zip(videos, texts_BD, strict=True)]
    return torch.stack(rows).double().cpu().numpy()


def frame_similarities(model: Clip, videos: Sequence[Frames]) -> NDArray[np.float64]:
    """Cosine [B, T - 1] of every frame and the next, of videos of one length."""
    rows = []
    for video in videos:
        images_TD = model.images(video)
        rows.append((images_TD[:-1] * images_TD[1:]).sum(dim=-1))
    return torch.stack(rows).double().cpu().numpy()


def _read(file: Path) -> dict[str, Any]:
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    return torch.load(file, map_location="cpu", weights_only=True)
