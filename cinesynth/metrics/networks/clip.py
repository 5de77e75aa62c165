"""CLIP's image encoder, of open_clip, with weights from a file."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from cinesynth.errors import WeightsUnavailable
from cinesynth.pictures import Frames


class ClipImages:
    """Compares pictures by the angle between CLIP's image embeddings.

    Args:
        model: name of the architecture in open_clip.
        weights: file with its state dict.

    Raises WeightsUnavailable for a name that open_clip does not have, and for a file without the model's weights.
    """

    def __init__(self, model: str, weights: Path) -> None:
        import open_clip  # takes seconds

        if model not in open_clip.list_models():
            raise WeightsUnavailable(
                f"clip.model {model!r} is not one of open_clip's; open_clip.list_models() names them"
            )
        self._model, _, self._prepare = open_clip.create_model_and_transforms(model, pretrained=None)
        try:
            state: Any = torch.load(weights, map_location="cpu", weights_only=True)
            self._model.load_state_dict(state.get("state_dict", state))
        except Exception as e:  # pickles, zip files and key sets fail each in their own way
            raise WeightsUnavailable(
                f"clip.weights {weights} does not hold the weights of {model} ({type(e).__name__}: {str(e)[:200]})"
            ) from e
        self._model.eval()

    @classmethod
    @lru_cache(maxsize=1)
    def load(cls, model: str, weights: str) -> ClipImages:
        """The one of these weights; loaded once by a process that compares by it all the time."""
        return cls(model, Path(weights).expanduser())

    @torch.inference_mode()
    def distance(self, one: Frames, other: Frames) -> float:
        """1 - cosine of two pictures' embeddings, in [0, 2].

        Args:
            one, other: uint8 RGB [H, W, 3], of any size.
        """
        pictures = torch.stack([self._prepare(Image.fromarray(picture)) for picture in (one, other)])
        first, second = torch.nn.functional.normalize(self._model.encode_image(pictures).float(), dim=-1)
        return float(1 - first @ second)
