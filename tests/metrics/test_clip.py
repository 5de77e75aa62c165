"""CLIP's image encoder, on a small architecture of open_clip with random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cinesynth.errors import WeightsUnavailable
from cinesynth.metrics.networks.clip import Clip
from tests.small_clip import small_clip


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return small_clip(tmp_path)


def test_distance_is_one_less_the_cosine_of_image_embeddings(weights: Path) -> None:
    import open_clip
    from PIL import Image

    rng = np.random.default_rng(0)
    one, other = (rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(2))
    clip = Clip("small", weights)
    assert clip.distance(one, one) == pytest.approx(0, abs=1e-6)
    model, _, prepare = open_clip.create_model_and_transforms("small")
    model.load_state_dict(torch.load(weights, weights_only=True))
    with torch.no_grad():
        features = [model.eval().encode_image(prepare(Image.fromarray(p))[None])[0] for p in (one, other)]
    expected = 1 - float(torch.cosine_similarity(*features, dim=0))
    assert clip.distance(one, other) == pytest.approx(expected, abs=1e-6)
    assert expected > 1e-4


def test_what_is_no_model_or_holds_no_weights_of_it_is_refused(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailable, match=r"clip\.model 'ViT-Z' is not one of open_clip's"):
        Clip("ViT-Z", weights)
    (tmp_path / "broken.pt").write_bytes(b"no weights")
    with pytest.raises(WeightsUnavailable, match=r"broken\.pt does not hold the weights of small"):
        Clip("small", tmp_path / "broken.pt")
    with pytest.raises(WeightsUnavailable, match=r"gone\.pt does not hold"):
        Clip("small", tmp_path / "gone.pt")
