"""Whether a video fits beside the whole weights, by arithmetic against what a GPU measured."""

from __future__ import annotations

import json
import logging

import pytest
import torch

from cinesynth.generate import placing
from cinesynth.generate.placing import choose_placing, generation_memory, video_bytes
from cinesynth.generate.ranks import Ranks
from tests.conftest import REPOSITORY

WEIGHTS, VAE = 32_800_000_000, 508_000_000
WIDTH = 5120
RESULTS = REPOSITORY / "benchmarks" / "results" / "gpu_generate_nvidia_h200_wan14bx81.json"


def measured(variant: str) -> float:
    rows = json.loads(RESULTS.read_text())["figures"]["832x480"]
    return float(rows[variant]["peak_gib"]) * 2**30 - WEIGHTS - VAE


def test_the_estimate_is_what_was_measured() -> None:
    tokens, pixels = 21 * 30 * 52, 832 * 480
    assert video_bytes(tokens, WIDTH, pixels) == pytest.approx(measured("decode"), rel=0.05)
    assert video_bytes(tokens, WIDTH, pixels, ranks=8) == pytest.approx(measured("ours"), rel=0.05)


def test_what_a_group_shares_follows_from_its_devices(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "cinesynth")
    sizes = [(9, 64, 96), (5, 64, 96)]
    memory = generation_memory("nano", torch.float32, sizes, 2)
    assert list(memory.activations) == ["9x96x64", "5x96x64"]
    assert memory.whole["encoders"] > 10**6

    class Two(Ranks):
        def least(self, value: int) -> int:
            return value

    ranks = Two(0, 2)
    node = 2 * memory.on_each()  # the two share it
    for room, wanted in ((node / 0.9, "replicate"), (node / 0.94, "fsdp2")):
        monkeypatch.setattr(placing, "device_bytes", lambda device, room=room: int(room))
        assert choose_placing("nano", "auto", sizes, ranks) == wanted
        assert choose_placing("nano", "replicate", sizes, ranks) == "replicate"
        assert choose_placing("nano", "fsdp2", sizes, ranks) == "fsdp2"
        assert choose_placing("nano", "auto", sizes, Ranks()) == "replicate"
    assert "/ 2 + encoders" in caplog.text
