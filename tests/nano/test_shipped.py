"""The shipped weights: what `python -m benchmarks.nano` measures in full, on a few windows and with room to spare."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from cinesynth.generate.sampler import Generator
from cinesynth.metrics.catalogue import METRICS
from cinesynth.nano import figures
from cinesynth.nano.card import write_card
from cinesynth.nano.domain import held_out_windows, training_windows
from cinesynth.nano.evaluation import SAMPLER, home_samples
from cinesynth.nano.figures import RealWindow
from cinesynth.nano.motion import camera_speeds
from cinesynth.nano.recipe import smoke_recipe
from cinesynth.nano.transformer import encode_windows
from cinesynth.nano.vae import pca_floor
from cinesynth.scripted.photographs import PACKAGED
from cinesynth.scripted.rendering import PAN_SPEED
from cinesynth.storage import sha256_file
from cinesynth.wan.folder import nano_folder
from cinesynth.wan.load import load_transformer, load_vae

COUNT = 12


@pytest.fixture(scope="module")
def samples() -> list[RealWindow]:
    return home_samples(held_out_windows(COUNT))


def test_the_checkpoint_is_small_and_in_fp16_with_a_card() -> None:
    files = [path for path in nano_folder().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 24e6
    weights = [path for path in files if path.suffix == ".safetensors"]
    assert len(weights) == 4
    for path in weights:
        with safe_open(path, "pt") as tensors:
            assert {tensors.get_slice(name).get_dtype() for name in tensors.keys()} <= {"F16", "I64"}  # noqa: SIM118
    card = (nano_folder() / "README.md").read_text()
    for part in ("Licence", "## Sizes", "## Data", "## Recipe", "KVD in the tables is version 2.", "## Limits"):
        assert part in card
    assert (
        sha256_file(nano_folder() / "README.md") == json.loads((nano_folder() / "sha256.json").read_text())["README.md"]
    )


def test_a_card_says_which_version_of_kvd_its_figures_are(tmp_path: Path) -> None:
    card = write_card(tmp_path, smoke_recipe(), {"home": {"kvd_nano": 1.0}}, {"vae": 60.0}).read_text()
    told = f"KVD in the tables is version {METRICS['kvd'].version}.\n\n## Figures: home\n"
    assert told in card
    assert "| kvd_nano | 1.0000 |" in card


def test_the_vae_is_above_the_pca_of_its_budget_and_does_not_drift(samples: list[RealWindow]) -> None:
    found = figures.vae_figures(load_vae("nano"), samples)
    train = np.stack([window.render() for window in training_windows(64, PACKAGED)])
    floor = pca_floor(train, np.stack([sample.frames for sample in samples]))["psnr"]
    assert found["psnr"] > max(floor, 27)
    assert found["psnr_last"] > found["psnr_first"] - 1
    assert found["colour_error"] < 3


def test_the_caption_and_the_first_frame_decide_the_loss(samples: list[RealWindow], tmp_path: Path) -> None:
    encoded = encode_windows(samples, "nano", tmp_path)
    rows, other = [encoded[i] for i in range(COUNT)], figures.other_windows(samples)
    transformer = load_transformer("nano")
    right = figures.window_losses(transformer, rows)
    for given in ({"first_of": other}, {"caption_of": other}):
        wrong = figures.window_losses(transformer, rows, **given)
        assert figures.paired_difference(samples, wrong, right)["low"] > 0


def test_generations_keep_the_first_frame_and_move_as_stated() -> None:
    """Pans and tilts, which it makes at about half their speed."""
    signs = {"pan right": 1, "pan left": -1, "tilt down": 1, "tilt up": -1}
    some = [sample for sample in home_samples(held_out_windows(24)) if sample.camera in signs][:6]
    videos = figures.generate_all(Generator("nano"), some, SAMPLER)
    assert figures.first_frame_psnr(some, videos) > 24
    real = [sample.frames for sample in some]
    assert figures.temporal_ssim(videos) > 0.9 * figures.temporal_ssim(real)
    cameras = [str(sample.camera) for sample in some]
    speeds = [camera_speeds(v)[c.split()[0]] * signs[c] for c, v in zip(cameras, videos, strict=True)]
    assert np.mean(speeds) > 0.25 * PAN_SPEED
