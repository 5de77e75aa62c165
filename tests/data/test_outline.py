"""What `dry_run` says of footage, without preparing it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cinesynth.config import PrepareConfig
from cinesynth.data.outline import outline_prepare
from cinesynth.settings import parse_config


@pytest.mark.parametrize("pattern", ["", "**/*.mp4"])
def test_a_dry_run_counts_the_files_that_prepare_would_take(pattern: str, tmp_path: Path) -> None:
    for name in ("take.mp4", "serve/results/video.mp4", "runs/g/videos/real/0.mp4", "datasets/p/pixels/0.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"no video")
    footage = [{"path": str(tmp_path / pattern), "domain": "film"}]
    window = {"num_frames": 17, "sizes": "96x64"}
    given = {"name": "p", "storage": str(tmp_path), "model": "nano", "footage": footage, "window": window}
    told = outline_prepare(parse_config(PrepareConfig, given)).text()
    assert "1 file of domain film" in told
    assert "1 new file" in told
