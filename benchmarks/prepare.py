"""How fast footage becomes shards: `python -m benchmarks.prepare [--clips 150] [--runs 3] [--long-clips 240]`.

Speed is compared with a straightforward script (PySceneDetect, PyAV, the same encoders, one process), on one thread and
on the default number of threads. All three run in turn on the same scripted clips. Beside that it measures:

- how much of the cores' time is stage work, in a run of 20 minutes on larger windows. Starting Python processes takes a
  core's minute, however much there is to do;
- decoding against PyAV's own rate, and the milliseconds a frame of each score;
- peak memory with 20 and with 200 files, of everything (driver, Ray's head, workers) and of the driver alone, which is
  what knows all files.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from benchmarks.conclusion import conclude
from cinesynth.data.encode.commits import Commits
from cinesynth.scripted.series import write_scripted_clips
from cinesynth.session import connect
from cinesynth.storage import Storage
from cluster.local import LocalHead, end_on_sigterm

TARGETS = {
    "stage_share_of_cores": (">=", 0.85),
    "speed_up_over_one_thread": (">=", 1.6),
    "speed_up_over_default_threads": (">=", 1.1),
    "decode_share_of_pyav": (">=", 0.9),
    "memory_200_files_over_20": ("<=", 1.1),
}
SIZE, LARGE = "96x64", "384x256"
_CPUS = os.cpu_count() or 1
_OBJECT_STORE = 4_000_000_000  # bytes; Ray's default is a share of the machine's memory


def main(argv: list[str] | None = None) -> None:
    """Measure everything. The last line holds the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prepare", description=__doc__)
    parser.add_argument("--clips", type=int, default=150)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--long-clips", type=int, default=240)
    parser.add_argument("--size", default=SIZE, help=argparse.SUPPRESS)
    parser.add_argument("--part", choices=["ours", "script"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    end_on_sigterm()
    if given.part:
        done = ours(given.folder, given.size) if given.part == "ours" else script(given.folder, given.threads)
        print(json.dumps(done))
        return
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="cinesynth-prepare-") as scratch:
        footage = Path(scratch) / "footage"
        write_scripted_clips(footage, given.clips, seed=5, height=128, width=192)
        figures |= _speed(footage, given.runs)
        longer = Path(scratch) / "longer"
        write_scripted_clips(longer, given.long_clips, seed=6, height=256, width=384)
        figures |= _share(longer)
        figures |= _decoding(footage)
        figures |= _memory(Path(scratch))
    conclude("prepare", figures, TARGETS)


# --- speed ---------------------------------------------------------------------------------------------------


def _speed(footage: Path, runs: int) -> dict[str, Any]:
    """Medians of runs in turn: ours, and the script on one thread and on the default number of threads."""
    found: dict[str, list[dict[str, float]]] = {"ours": [], "one_thread": [], "default_threads": []}
    for run in range(runs):
        found["ours"].append(_in_process("--part", "ours", "--folder", str(footage)))
        found["one_thread"].append(_in_process("--part", "script", "--folder", str(footage), "--threads", "1"))
        found["default_threads"].append(_in_process("--part", "script", "--folder", str(footage)))
        rates = ", ".join(f"{name} {values[-1]['windows_per_s']:.2f}" for name, values in found.items())
        print(f"run {run + 1}: windows/s: {rates}", flush=True)
    rate = {name: statistics.median(v["windows_per_s"] for v in values) for name, values in found.items()}
    share = statistics.median(v["stage_share"] for v in found["ours"])
    return {
        "windows": int(found["ours"][0]["windows"]),
        "windows_per_s": round(rate["ours"], 2),
        "windows_per_s_one_thread": round(rate["one_thread"], 2),
        "windows_per_s_default_threads": round(rate["default_threads"], 2),
        "speed_up_over_one_thread": round(rate["ours"] / rate["one_thread"], 2),
        "speed_up_over_default_threads": round(rate["ours"] / rate["default_threads"], 2),
        "stage_share_of_cores_short_run": round(share, 3),
    }


def _share(footage: Path) -> dict[str, Any]:
    found = _in_process("--part", "ours", "--folder", str(footage), "--size", LARGE)
    return {
        "windows_long_run": int(found["windows"]),
        "seconds_long_run": round(found["windows"] / found["windows_per_s"]),
        "stage_share_of_cores": round(found["stage_share"], 3),
        **{f"{name}_long_run": round(found[name]) for name in found if name.endswith("_cpu_s")},
    }


def _in_process(*arguments: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.prepare", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            told, errors = process.communicate()
        except BaseException:
            process.terminate()  # it ends its head
            raise
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{told[-3000:]}\n{errors[-3000:]}")
    return json.loads(told.splitlines()[-1])


def ours(footage: Path, size: str) -> dict[str, float]:
    """One `prepare` on a private head. The workers' start counts, the head's does not."""
    from cinesynth.config import PrepareConfig
    from cinesynth.data.prepare import prepare
    from cinesynth.settings import parse_config

    with tempfile.TemporaryDirectory(prefix="cinesynth-ours-") as storage, LocalHead(_CPUS, _OBJECT_STORE) as head:
        os.environ |= {k: v for k, v in head.environment.items() if k.startswith("RAY_")}
        import ray  # reads the environment

        connect(head.address, "head", log_to_driver=False)
        values = {
            "name": "b",
            "storage": storage,
            "footage": [{"path": str(footage)}],
            "window": {"num_frames": 33, "sizes": [size], "stride": 16},
            "resources": resources(),
        }
        try:
            started = time.monotonic()
            result = prepare(parse_config(PrepareConfig, values))
            seconds = time.monotonic() - started
            dataset = Storage.open(storage).child("datasets", "b")
            stages = Counter({"scan": sum(row["cpu_s"] for row in _scan_rows(dataset))})
            for commit in Commits(dataset):
                stages.update(commit["cpu_s"])
        finally:
            ray.shutdown()
    windows = result["figures"]["windows"]
    return {
        "windows": windows,
        "windows_per_s": windows / seconds,
        "stage_share": stages.total() / seconds / _CPUS,
        **{f"{stage}_cpu_s": spent for stage, spent in stages.items()},
    }


def resources() -> dict[str, Any]:
    """One VAE worker for each core, and the other stages beside them."""
    return {
        "decode": {"workers": 1, "cpus": 0.5},
        "vae": {"workers": _CPUS, "cpus": 0.5},
        "clip": {"workers": 1, "cpus": 0.25},
        "text": {"workers": 1, "cpus": 0.5},
    }


def _scan_rows(dataset: Storage) -> list[dict[str, Any]]:
    from cinesynth.data.dataset import read_table

    return [row for name in dataset.list("scans") for row in read_table(dataset, name).to_pylist()]


def script(footage: Path, threads: int) -> dict[str, float]:
    """A script of an afternoon: it detects, decodes and encodes file after file, and writes one Parquet file."""
    started = time.monotonic()
    import av
    import cv2
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch
    from PIL import Image
    from scenedetect import ContentDetector, detect

    from cinesynth.data.footage.captions import read_captions
    from cinesynth.wan.condition import ConditionEncoder
    from cinesynth.wan.family import WAN21_I2V

    if threads:
        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)
    encoder = ConditionEncoder("nano")
    rows = []
    for path in sorted(footage.glob("*.mp4")):
        scenes = [(a.frame_num, b.frame_num) for a, b in detect(str(path), ContentDetector(min_scene_len=8))]
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO" if not threads else "NONE"
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
            rate = float(stream.average_rate)
        caption = read_captions(str(path)).whole
        for first, last in scenes or [(0, len(frames))]:
            samples = int((last - first) / rate * WAN21_I2V.fps)
            for start in range(0, samples - 33 + 1, 16):
                chosen = [frames[min(last - 1, first + int((start + i) / WAN21_I2V.fps * rate))] for i in range(33)]
                video = np.stack(
                    [np.asarray(Image.fromarray(f).resize((96, 64), Image.Resampling.LANCZOS)) for f in chosen]
                )
                tensors = [
                    encoder.latents(video),
                    encoder.condition_latents(video[0], 33),
                    encoder.image_embeds(video[0]),
                    encoder.prompt_embeds(caption),
                ]
                rows.append({str(i): t.half().numpy().tobytes() for i, t in enumerate(tensors)} | {"caption": caption})
    with tempfile.TemporaryDirectory() as folder:
        pq.write_table(pa.Table.from_pylist(rows), Path(folder) / "shard.parquet")
    return {"windows": len(rows), "windows_per_s": len(rows) / (time.monotonic() - started)}


# --- decoding and memory -------------------------------------------------------------------------------------


def _decoding(footage: Path) -> dict[str, Any]:
    """The speed of our scan without scores as a share of PyAV's own loop, on 720p film; and the cost of each score."""
    import av

    from cinesynth.data.encode.annotate import TextOverlay
    from cinesynth.data.footage.packages import sample_footage
    from cinesynth.data.scan import scores
    from cinesynth.data.scan.decoder_pyav import scan

    path = str(sample_footage() / "bigbuckbunny.mp4")

    def raw() -> int:
        with av.open(path) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            return sum(1 for _ in container.decode(stream))

    raw_s, scan_s = _in_turn([raw, lambda: sum(1 for _ in scan(path))], 5)
    pictures = [(f.rgb(256), scores.grey(f.rgb(512)), scores.grey(f.rgb(1280))) for f in scan(path)]
    frames, shown, large = (list(column) for column in zip(*pictures, strict=True))
    small = [scores.grey(frame) for frame in frames]
    every: dict[str, Callable[[int], Any]] = {
        "grey": lambda i: scores.grey(frames[i]),
        "unchanged": lambda i: scores.unchanged(small[i], small[i - 1]),
    }
    sampled: dict[str, Callable[[int], Any]] = {
        "motion": lambda i: scores.motion(small[i], small[i - 1], 0.5),
        "blur": lambda i: scores.blur(shown[i]),
        "exposure": lambda i: scores.exposure(small[i]),
        "black_bars": lambda i: scores.edge_profile(large[i]),
        "perceptual_hash": lambda i: scores.perceptual_hash(small[i]),
    }
    costs = {f"ms_per_frame_{name}": _ms(f, len(frames)) for name, f in every.items()}
    costs |= {f"ms_per_sample_{name}": _ms(f, len(frames)) for name, f in sampled.items()}
    for name in ("content", "adaptive", "hash", "transnet"):
        costs[f"ms_per_frame_cuts_{name}"] = _ms_of_cuts(name, frames)
    overlay, picture = TextOverlay(), large[0][None, :480, :832, None].repeat(3, axis=3)
    costs["ms_per_picture_text"] = _ms(lambda i: overlay(picture), 5)
    return {"decode_share_of_pyav": round(raw_s / scan_s, 3), **costs}


def _ms_of_cuts(detector: Any, frames: list[Any]) -> float:
    from cinesynth.data.config import ShotSettings
    from cinesynth.data.scan.shots import make_cut_detector

    for _ in range(2):  # the first pass loads weights
        cuts = make_cut_detector(ShotSettings(detector=detector))
        started = time.perf_counter()
        for frame in frames:
            cuts.feed(frame)
        cuts.finish()
        seconds = time.perf_counter() - started
    return round(1000 * seconds / len(frames), 3)


def _ms(function: Callable[[int], Any], count: int) -> float:
    started = time.perf_counter()
    for i in range(count):
        function(i)
    return round(1000 * (time.perf_counter() - started) / count, 3)


def _in_turn(functions: list[Callable[[], Any]], runs: int) -> list[float]:
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(runs):
        for place, function in enumerate(functions):
            started = time.perf_counter()
            function()
            seconds[place].append(time.perf_counter() - started)
    return [statistics.median(values) for values in seconds]


def _memory(scratch: Path) -> dict[str, Any]:
    """Peak memory of a run on 20 and on 200 short files: driver, head and workers, with shared pages counted once."""
    peaks, drivers = {}, {}
    for count in (20, 200):
        footage = scratch / f"files-{count}"
        write_scripted_clips(footage, count, seed=count, height=64, width=96)
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.prepare", "--part", "ours", "--folder", str(footage)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        peaks[count], drivers[count] = _peak(process)
    return {
        "peak_mb_20_files": round(peaks[20] / 1e6),
        "peak_mb_200_files": round(peaks[200] / 1e6),
        "memory_200_files_over_20": round(peaks[200] / peaks[20], 3),
        "driver_mb_20_files": round(drivers[20] / 1e6),
        "driver_mb_200_files": round(drivers[200] / 1e6),
    }


def _peak(process: subprocess.Popen[bytes]) -> tuple[int, int]:
    """The most bytes that all processes together had, and that the driver had."""
    peak = driver = 0
    while process.poll() is None:
        pss = []
        for child in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
            try:
                pss.append(child.memory_full_info().pss)
            except psutil.Error:
                pss.append(0)
        peak, driver = max(peak, sum(pss)), max(driver, pss[0])
        time.sleep(0.5)
    if process.returncode:
        raise SystemExit(f"the run for the memory figure failed with code {process.returncode}")
    return peak, driver


if __name__ == "__main__":
    main()
