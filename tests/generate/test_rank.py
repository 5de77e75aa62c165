"""How a rank's end is told, without Ray."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from cinesynth.config import GenerateConfig, SamplerSettings
from cinesynth.errors import GenerationError, RankLost
from cinesynth.generate.driver import _common, check_generation
from cinesynth.generate.group import RankGroup
from cinesynth.generate.messages import Outcome, Status, VideoRequest
from cinesynth.generate.rank import Rank
from cinesynth.generate.ranks import Ranks
from cinesynth.generate.sampler import GeneratedVideo, Generator
from cinesynth.generate.shape import GroupShape
from cinesynth.runs import Run
from cinesynth.settings import parse_config
from cinesynth.wan.card import check_adapters
from tests.adapters import adapter_folder

REQUEST = VideoRequest(storage=("", "", ""), output=("", "", ""), file="a.mp4", sampler=SamplerSettings())


def outcome_of(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> Outcome:
    def fails(request: VideoRequest) -> dict[str, Any]:
        raise error

    rank = Rank(GroupShape("nano"), 0)
    monkeypatch.setattr(rank, "_make", fails)
    rank._run(REQUEST)
    found = rank.outcome()
    assert found is not None
    return found


class Told(RankGroup):
    """A group whose only rank ended so."""

    def __init__(self, outcome: Outcome) -> None:
        self._ranks = [_Actor()]
        self.outcome = outcome

    def progress(self) -> Status:
        return Status()

    def _call(self, refs: list[Any]) -> list[Any]:
        return [self.outcome]

    def _end(self, number: int, reason: str) -> RankLost:
        return RankLost(f"rank {number} failed: {reason}")


class _Actor:
    class outcome:
        remote = staticmethod(lambda wait_s: None)


class _Lingering(threading.Event):
    """Set some time before the thread that sets it ends."""

    def set(self) -> None:
        super().set()
        time.sleep(0.2)


def test_the_next_video_begins_though_the_thread_of_the_last_one_is_still_ending(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rank = Rank(GroupShape("nano"), 0)
    goes_on = threading.Event()
    monkeypatch.setattr(rank, "_make", lambda request: {"waited": goes_on.wait(10)})
    rank._ended = _Lingering()
    for _ in range(2):
        goes_on.clear()
        rank.start(REQUEST)
        with pytest.raises(RuntimeError, match="a video is being made"):
            rank.start(REQUEST)
        goes_on.set()
        assert rank.outcome(10) == Outcome("made", made={"waited": True})


class _Loaded:
    """A generator that loads adapters and makes nothing."""

    ranks = Ranks()
    fps = 16

    def load_adapters(self, adapters: list[tuple[Path, float]]) -> None:
        self.applied = check_adapters(adapters, "b")


def test_an_adapter_that_was_exchanged_since_it_was_checked_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = adapter_folder(tmp_path / "given", "b", []).sha256
    image = tmp_path / "first.png"
    Image.new("RGB", (96, 64)).save(image)
    monkeypatch.setattr("cinesynth.generate.driver.base_hash", lambda model: "b")
    shot = {"image": str(image), "prompt": "p", "height": 64, "width": 96}
    values = {"name": "g", "storage": str(tmp_path), "shots": [shot], "adapters": [{"ref": str(tmp_path / "given")}]}
    config = parse_config(GenerateConfig, values)
    arms, _, inputs = check_generation(config)
    common = _common(config, arms["adapter"], Run.open(config, inputs), "0000.mp4")
    rank = Rank(GroupShape("nano"), 0)
    rank._generator = cast(Generator, _Loaded())
    made = GeneratedVideo(np.zeros((1, 64, 96, 3), np.uint8), {})
    monkeypatch.setattr(rank, "_video", lambda *_: made)
    monkeypatch.setattr("cinesynth.generate.rank.write_video", lambda path, *_: path.write_bytes(b"video"))
    rank._run(VideoRequest(**common))
    found = rank.outcome()
    assert found is not None
    assert found.kind == "made"
    shutil.rmtree(tmp_path / "given")
    other = adapter_folder(tmp_path / "other", "b", []).sha256
    (tmp_path / "other").rename(tmp_path / "given")
    rank._run(VideoRequest(**common))
    found = rank.outcome()
    assert found is not None
    assert (found.kind, found.error) == ("refused", "AdapterError")
    assert f"another one now ({other[:12]}, not {checked[:12]}" in found.reason


def test_out_of_memory_is_no_loss_that_another_group_would_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = outcome_of(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), monkeypatch)
    with pytest.raises(GenerationError, match=r"out of memory on cpu \(CUDA out of memory\. Tried .* smaller videos"):
        Told(memory).result()
    other = outcome_of(RuntimeError("NCCL"), monkeypatch)
    with pytest.raises(RankLost, match="rank 0 failed: RuntimeError: NCCL"):
        Told(other).result()
