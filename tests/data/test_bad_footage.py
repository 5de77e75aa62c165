"""A folder of everything that footage can be: what is usable is used, what is not is named, nothing ends the run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from cinesynth.config import PrepareConfig
from cinesynth.data.config import DecodeSettings
from cinesynth.data.encode.encode import DecodeWindows
from cinesynth.data.footage.packages import sample_footage
from cinesynth.data.footage.sources import fingerprint
from cinesynth.data.prepare import plan_footage
from cinesynth.data.scan.watch import watched
from cinesynth.data.stages import to_blocks
from cinesynth.data.video import read_video, write_video
from cinesynth.scripted.series import scripted_clip
from cinesynth.settings import parse_config
from cinesynth.storage import Storage, sha256_file
from tests.data.clips import encode_frames, flip_bytes, write_levels
from tests.data.plan.test_windows import config_of, cut
from tests.data.scan.test_decoder import _audio_only

ROOT = Path(__file__).resolve().parents[2]

# File name to the reasons that it is rejected for; None: it gives windows (and maybe rejects besides).
EXPECTED: dict[str, set[str] | None] = {
    "empty.mp4": {"unreadable"},
    "garbage.mp4": {"unreadable"},
    "index-last-cut.mp4": {"unreadable"},
    "audio.mp4": {"unreadable"},
    "zero-frames.avi": {"unreadable"},
    "itself.mp4": {"unreadable"},
    "pipe.mp4": {"unreadable"},
    "long-caption.mp4": {"unreadable"},
    "loop": {"duplicate"},
    "sound.wav": {"not_video"},
    "no-suffix-nor-video": {"not_video"},
    "unused.txt": {"unused"},
    "one-frame.mp4": {"shot_too_short"},
    "flipped-400.mp4": {"damaged"},
    "index-first-cut.mp4": None,
    "4k.mp4": None,
    "portrait.mp4": None,
    "vfr.mkv": None,
    "hevc.mp4": None,
    "av1.mkv": None,
    "ten-bit.mp4": None,
    "good.mp4": None,
    "no-suffix": None,
}


def _frames(index: int, height: int = 64, width: int = 96, count: int = 40) -> np.ndarray:
    return scripted_clip(9, index, height, width).frames[:count]


def _video_frames(index: int, **size: int) -> list[av.VideoFrame]:
    return [av.VideoFrame.from_ndarray(frame, format="rgb24") for frame in _frames(index, **size)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("odd footage")
    write_video(root / "good.mp4", _frames(0), fps=24)
    (root / "empty.mp4").touch()
    for name in ("sound.wav", "no-suffix-nor-video", "unused.txt"):
        (root / name).write_text("neither here nor there")
    write_levels(root / "levels.mkv", range(0, 2000, 40), size=64).rename(root / "no-suffix")
    (root / "garbage.mp4").write_bytes(np.random.default_rng(0).bytes(50_000))
    front = write_video(root / "x.mp4", _frames(1, count=90), fps=24).read_bytes()
    assert 0 < front.find(b"moov") < front.find(b"mdat")
    (root / "index-first-cut.mp4").write_bytes(front[: len(front) * 9 // 10])
    (root / "x.mp4").unlink()
    behind = encode_frames(root / "y.mp4", _video_frames(2)).read_bytes()
    assert behind.find(b"moov") > behind.find(b"mdat") > 0
    (root / "y.mp4").unlink()
    (root / "index-last-cut.mp4").write_bytes(behind[: len(behind) // 2])
    flip_bytes(sample_footage() / "bikes.mp4", root / "flipped-400.mp4", count=400, seed=1)
    _audio_only(root / "audio.mp4")
    _zero_frames(root / "zero-frames.avi")
    write_video(root / "one-frame.mp4", _frames(3)[:1], fps=24)
    write_video(root / "4k.mp4", np.repeat(np.repeat(_frames(4, count=14), 34, 1), 40, 2), fps=24)
    write_video(root / "portrait.mp4", np.rot90(_frames(5), axes=(1, 2)), fps=24)
    write_levels(root / "vfr.mkv", np.cumsum(np.random.default_rng(1).integers(15, 90, 60)).tolist(), size=64)
    encode_frames(root / "hevc.mp4", _video_frames(6), codec="libx265", options={"x265-params": "log-level=none"})
    with _no_real_time():
        encode_frames(
            root / "av1.mkv", _video_frames(7), codec="libsvtav1", options={"preset": "12", "svtav1-params": "lp=1"}
        )
    ten_bits = [frame.reformat(format="yuv420p10le") for frame in _video_frames(8)]
    encode_frames(root / "ten-bit.mp4", ten_bits, pixel_format="yuv420p10le")
    write_video(root / "long-caption.mp4", _frames(9), fps=24)
    (root / "long-caption.txt").write_text("word " * 2500)
    (root / "itself.mp4").symlink_to(root / "itself.mp4")
    (root / "loop").symlink_to(root)
    os.mkfifo(root / "pipe.mp4")
    return root


@contextmanager
def _no_real_time() -> Iterator[None]:
    """SVT-AV1 gives a process of root real-time priority, for good: all that it starts later would starve the rest."""
    yield
    for thread in os.listdir("/proc/self/task"):
        with suppress(ProcessLookupError):
            os.sched_setscheduler(int(thread), os.SCHED_OTHER, os.sched_param(0))


def _zero_frames(path: Path) -> None:
    """A file whose header promises a stream, and that holds no packet of it."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(24))
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()


@pytest.fixture(scope="module")
def indexed(folder: Path, tmp_path_factory: pytest.TempPathFactory, ray_head: Any) -> dict[str, Any]:
    values = {
        "name": "odd",
        "footage": [{"path": str(folder)}],
        "window": {"num_frames": 9, "sizes": ["48x32", "32x48"], "max_per_shot": 2},
        "decode": {"limit_s": 20},
    }
    dataset = Storage.open(tmp_path_factory.mktemp("odd"))
    windows, rejects = plan_footage(parse_config(PrepareConfig, values), dataset)
    by_name: dict[str, Any] = defaultdict(lambda: {"windows": [], "rejects": []})
    for window in windows:
        by_name[Path(window.source_uri).name]["windows"].append(window)
    for reject in rejects:
        by_name[Path(reject.source).name]["rejects"].append(reject)
    return by_name


def test_every_file_is_accounted_for(folder: Path, indexed: dict[str, Any]) -> None:
    files = {path.name for path in folder.iterdir()} - {"long-caption.txt"}  # it is read
    assert files == EXPECTED.keys() == indexed.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_what_becomes_of_it(name: str, indexed: dict[str, Any]) -> None:
    expected, found = EXPECTED[name], indexed[name]
    reasons = {reject.reason for reject in found["rejects"]}
    if expected is None:
        assert found["windows"], found["rejects"]
        assert "unreadable" not in reasons
    else:
        assert reasons >= expected
        if expected == {"unreadable"}:
            assert not found["windows"]
            assert len(found["rejects"]) == 1
            assert name in found["rejects"][0].detail


def test_portrait_gets_the_portrait_bucket(indexed: dict[str, Any]) -> None:
    assert {w.bucket for w in indexed["portrait.mp4"]["windows"]} == {"32x48x9"}
    assert {w.bucket for w in indexed["4k.mp4"]["windows"]} == {"48x32x9"}


def test_a_file_that_may_not_be_read_is_named(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "secret.mp4"
    path.write_bytes((folder / "good.mp4").read_bytes())
    path.chmod(0)
    script = (
        "import json, os, sys\n"
        "from cinesynth.data.footage.sources import content_sha256\n"
        "from cinesynth.errors import MediaError\n"
        "if os.getuid() == 0:\n    os.setuid(65534)\n"  # for root, no permission is missing
        "try:\n    content_sha256(sys.argv[1])\n"
        "except MediaError as e:\n    print(json.dumps(str(e)))\n"
    )
    child = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, cwd=ROOT)
    assert "Permission denied" in json.loads(child.stdout), child.stderr
    assert "secret.mp4 cannot be read" in json.loads(child.stdout)


def test_a_decoder_that_hangs_is_a_reject(folder: Path, tmp_path: Path) -> None:
    """A file that stops sending: the pipe that stands in for it never ends."""
    path = tmp_path / "endless.mp4"
    path.write_bytes((folder / "good.mp4").read_bytes())
    config = config_of(path)
    windows, _ = cut(path, config)
    stage = DecodeWindows(DecodeSettings(limit_s=1.0), Storage.open(tmp_path / "dataset").reference())
    good = stage(to_blocks(windows[:1])[0]).to_pylist()[0]
    assert not good["reject"]
    path.unlink()
    os.mkfifo(path)
    hanging = replace(windows[0], stamp=fingerprint(str(path)))
    row = stage(to_blocks([hanging])[0]).to_pylist()[0]
    reject = json.loads(row["reject"])
    assert (reject["reason"], reject["window_id"]) == ("decode_failed", windows[0].window_id)
    assert reject["detail"].endswith("no sign of life from the decoder for 1 s")
    assert row["pixels"] is None
    watched(1.0, DecodeWindows.__module__).close()


def test_kept_pixels_stay_as_they_are_unless_they_hold_other_frames(folder: Path, tmp_path: Path) -> None:
    """A published dataset names them by their sha256, and FFmpeg writes the same frames as other bytes each time."""
    windows, _ = cut(folder / "good.mp4", config_of(folder / "good.mp4"))
    stage = DecodeWindows(DecodeSettings(), Storage.open(tmp_path).reference())
    blocks = to_blocks([replace(windows[0], split="val")])
    kept = tmp_path / "pixels" / f"{windows[0].window_id}.mkv"
    first = stage(blocks[0]).to_pylist()[0]["pixels_sha256"]
    whole = kept.read_bytes()
    assert stage(blocks[0]).to_pylist()[0]["pixels_sha256"] == first == sha256_file(kept)
    assert kept.read_bytes() == whole
    kept.write_bytes(whole[: len(whole) // 2])
    again = stage(blocks[0]).to_pylist()[0]["pixels_sha256"]
    assert again == sha256_file(kept)
    pixels = np.frombuffer(stage(blocks[0]).to_pylist()[0]["pixels"], np.uint8)
    assert np.array_equal(read_video(kept)[0].ravel(), pixels)
    watched(60.0, DecodeWindows.__module__).close()
