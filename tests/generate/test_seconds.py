"""The seconds of a generation's videos, which outlive the attempt that made them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cinesynth.config import GenerateConfig
from cinesynth.errors import RankLost
from cinesynth.generate import driver
from cinesynth.runs import Run
from cinesynth.settings import parse_config

SHOT = {"image": "a.png", "prompt": "a ship", "num_frames": 5, "height": 64, "width": 96}


class Lease:
    def check(self) -> None:
        """Nobody else has the run."""


def _row(file: str) -> dict[str, Any]:
    return {"file": file, "group": 0, "device": "cpu", "load_seconds": 2.0, "seconds": {"denoise": 1.5}, "sha256": "0"}


def test_the_seconds_of_videos_are_there_when_their_attempt_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = parse_config(GenerateConfig, {"name": "shots", "storage": str(tmp_path), "shots": [SHOT]})
    run = Run.open(config, {})

    def attempt(*files: str) -> None:
        def lost(_: Any, __: Any, ___: Any, made: Callable[[dict[str, Any]], None]) -> None:
            for file in files:
                made(_row(file))
            raise RankLost("it was killed")

        monkeypatch.setattr(driver, "make_videos", lost)
        with pytest.raises(RankLost):
            driver._make(config, None, dict.fromkeys("abc"), Lease(), driver.keeper_of_seconds(run.folder))  # type: ignore[arg-type]

    attempt("a", "b")
    attempt("c")
    kept = run.folder.read_json(driver.SECONDS)["videos"]
    assert [(row["attempt"], row["file"]) for row in kept] == [(1, "a"), (1, "b"), (2, "c")]
    assert kept[0] == {"attempt": 1, **{name: value for name, value in _row("a").items() if name != "sha256"}}
