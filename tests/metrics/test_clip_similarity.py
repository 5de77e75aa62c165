"""CLIP-SIM of videos, on a small architecture of open_clip with random weights, against open_clip itself."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from cinesynth.config import EvaluateSettings
from cinesynth.data.video import write_video
from cinesynth.errors import WeightsUnavailable
from cinesynth.metrics import weights
from cinesynth.metrics.evaluate import compare
from cinesynth.metrics.frechet import frechet_distance
from cinesynth.metrics.networks import CLIP_MODEL, CLIP_WEIGHTS, clip
from tests.small_clip import small_clip

CAPTIONS = {f"w{i}": f"a {color} wall at night" for i, color in enumerate(("red", "green"))}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of weights with the small model under the file name of CLIP's, which is pinned to its content."""
    state = torch.load(small_clip(tmp_path), weights_only=True)
    name = weights.WEIGHTS[CLIP_WEIGHTS].file
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / name)
    content = (tmp_path / name).read_bytes()
    entry = weights.WeightFile(name, hashlib.sha256(content).hexdigest(), len(content), "MIT", ())
    monkeypatch.setitem(weights.WEIGHTS, CLIP_WEIGHTS, entry)
    monkeypatch.setattr(clip, "CLIP_MODEL", "small")
    return tmp_path


def _video(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (3, 40, 48, 3), dtype=np.uint8)


def test_similarities_and_distance_are_those_of_open_clips_embeddings(folder: Path) -> None:
    import open_clip

    for name, first in (("real", 0), ("base", 2)):
        for i in range(2):
            write_video(folder / name / f"w{i}.mkv", _video(first + i), codec="ffv1")
    settings = EvaluateSettings(metrics=["clip_sim_text", "clip_sim_frames", "clip_fid"], weights=str(folder))
    record = compare(folder / "real", {"base": folder / "base"}, settings=settings, captions=CAPTIONS)

    model, _, prepare = open_clip.create_model_and_transforms("small", pretrained=str(folder / "small.pt"))
    tokens = open_clip.get_tokenizer("small")(list(CAPTIONS.values()))
    with torch.no_grad():
        texts = model.eval().encode_text(tokens)
        images = [
            model.encode_image(torch.stack([prepare(Image.fromarray(f)) for f in _video(2 + i)])) for i in range(2)
        ]
    cosine = torch.nn.functional.cosine_similarity
    by_text = np.mean([float(cosine(images[i], texts[i][None]).mean()) for i in range(2)])
    by_frames = np.mean([float(cosine(images[i][:-1], images[i][1:]).mean()) for i in range(2)])
    assert record.value("clip_sim_text", "base").value == pytest.approx(by_text, abs=1e-6)
    assert record.value("clip_sim_frames", "base").value == pytest.approx(by_frames, abs=1e-6)
    assert record.value("clip_sim_frames", "base").real != pytest.approx(by_frames, abs=1e-6)
    swapped = np.mean([float(cosine(images[i], texts[1 - i][None]).mean()) for i in range(2)])
    assert abs(swapped - by_text) > 1e-5
    features = [
        np.concatenate(
            [model.encode_image(torch.stack([prepare(Image.fromarray(f)) for f in _video(s)])).detach() for s in seeds]
        )
        for seeds in ((0, 1), (2, 3))
    ]
    assert record.value("clip_fid", "base").value == pytest.approx(frechet_distance(*features, ddof=1), rel=1e-4)
    assert "N = 6 frames is below d = 16" in record.value("clip_fid", "base").reason
    assert record.definitions["clip_sim_text"].needs == ["caption"]
    assert record.definitions["clip_sim_frames"].weights == {CLIP_WEIGHTS: weights.WEIGHTS[CLIP_WEIGHTS].sha256}


def test_without_the_weights_the_network_says_so(tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailable, match=r"clip-vit-b-32: .*clip-vit-b-32\.safetensors does not exist"):
        clip.load_clip(str(tmp_path))


def test_the_pinned_file_has_room_for_the_tensors_of_the_model_and_no_more() -> None:
    import open_clip

    with torch.device("meta"):
        model = open_clip.CLIP(**open_clip.get_model_config(CLIP_MODEL))
    lies = sum(tensor.nbytes for tensor in model.state_dict().values())
    assert lies < weights.WEIGHTS[CLIP_WEIGHTS].size < lies + 100_000  # the header with the names
