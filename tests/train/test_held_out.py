"""A window's held-out noise is its own, wherever it stands and whatever else is held out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cinesynth.train.batch import ListedClips
from cinesynth.train.strategy import World
from cinesynth.train.validation import held_out_loss, held_out_set
from cinesynth.wan.family import WAN21_I2V
from cinesynth.wan.load import load_transformer
from tests.nano_clips import encoded_clips


@pytest.fixture(scope="module")
def windows() -> list[dict[str, Any]]:
    return [{**clip, "window_id": f"w{i}"} for i, clip in enumerate(encoded_clips()[:3])]


def loss(windows: list[dict[str, Any]], sigmas: list[float]) -> dict[str, float]:
    arguments = (ListedClips(windows), sigmas, 8, torch.float32, World())
    return held_out_loss(WAN21_I2V, load_transformer("nano"), *arguments)


def test_order_and_other_noise_levels_do_not_change_a_loss(windows: list[dict[str, Any]]) -> None:
    one = loss(windows, [0.3, 0.7])
    other = loss(windows[::-1], [0.7])
    assert other["val_loss/0.7"] == pytest.approx(one["val_loss/0.7"], rel=1e-6)
    alone = [loss([window], [0.7])["val_loss/0.7"] for window in windows]
    assert sum(alone) / 3 == pytest.approx(one["val_loss/0.7"], rel=1e-6)


def test_a_set_is_named_by_its_windows_and_noise_levels(windows: list[dict[str, Any]]) -> None:
    clips = ListedClips(windows)
    names = {
        held_out_set(clips, [0.3], 8),
        held_out_set(clips, [0.3, 0.7], 8),
        held_out_set(clips, [0.3], 2),
        held_out_set(ListedClips(windows[1:]), [0.3], 8),
    }
    assert len(names) == 4
    assert held_out_set(clips, [0.3], 3) == held_out_set(clips, [0.3], 8)
