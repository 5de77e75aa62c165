"""`make demo`: from footage to a served video on this machine. This script starts all that is needed, and stops it.

It writes below `demo-output/<time>/`, and at the end prints where the report, the video and the dashboard are.
"""

from __future__ import annotations

import argparse
import base64
import os
import re
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from cinesynth.data.video import read_metadata, read_video
from cinesynth.pictures import png_bytes
from cinesynth.scripted.photographs import HELD_OUT
from cinesynth.scripted.series import scripted_clip, write_scripted_clips
from cinesynth.wan.folder import model_folder
from cluster.local import LocalHead, end_on_sigterm, free_ports

REPOSITORY = Path(__file__).resolve().parent.parent
CLIPS = 32
TUNE = (
    *("name=nano-tune", "dataset=nano-prepare", "budget.trials=2", "baseline_seeds=1", "final_seeds=0"),
    *("objectives=[lpips, lpips_late]", "max_windows=3", "train.optimizer.steps=10"),
)
"""A search that is as small as one can be: no comparison at its end, and few windows to score on."""
PROMPT_CLIP = 1000
"""Index of a scripted clip that is not in the dataset. Its first frame and caption are sent over HTTP."""


class DemoError(RuntimeError):
    """A step of the demo failed. Its output is above the message."""


def main(argv: list[str] | None = None) -> None:
    """Run the demo. Exit code 1: a step failed, and the last line names it."""
    parser = argparse.ArgumentParser(prog="python -m cluster.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "demo-output", help="where the results go")
    arguments = parser.parse_args(argv)
    out = (arguments.out / datetime.now().strftime("%Y%m%d-%H%M%S")).absolute()
    out.mkdir(parents=True)
    end_on_sigterm()
    started = time.monotonic()
    try:
        dashboard, video = _run(out)
    except DemoError as e:
        print(f"error: {e}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("Stopped; what was started is ended.", file=sys.stderr)
        raise SystemExit(130) from None
    print(f"\nDone in {(time.monotonic() - started) / 60:.1f} minutes.")
    print(f"  Report:    {out / 'storage' / 'runs' / 'nano' / 'report.html'}")
    print(f"  Search:    {out / 'storage' / 'runs' / 'nano-tune' / 'report.html'}")
    print(f"  Video:     {video}")
    print(f"  Dashboard: {dashboard} (it ran there; it is stopped now)")


def _run(out: Path) -> tuple[str, Path]:
    _say(f"Footage: {CLIPS} clips in a film look (grade, grain, letterbox, push-in), which the base model never saw")
    footage = out / "footage"
    write_scripted_clips(footage, CLIPS, seed=0, photographs=HELD_OUT, look="film")
    model_folder("nano")
    _say("Ray: starting a local head")
    with LocalHead(log=out / "ray-head.log") as head:
        print(f"Dashboard: {head.dashboard}  (RAY_AUTH_TOKEN={head.token})")
        _say("Pipeline: one submitted job (prepare, style, motion, generate, evaluate, publish)")
        storage = f"storage={out / 'storage'}"
        pipeline = ("--config", "jobs/configs/nano/pipeline.yaml", storage, f"prepare.footage.0.path={footage}")
        _submit(head, out, "pipeline", *pipeline)
        _say("Tune: two trials of a search over rank, alpha and learning rate, the first of them the baseline")
        _submit(head, out, "tune", "--config", "jobs/configs/nano/tune.yaml", storage, *TUNE)
        _say("Serve: the published adapter over HTTP")
        url, key = _start_serve(head, out)
        video = _ask_for_video(url, key, out)
        return head.dashboard, video


def _say(text: str) -> None:
    print(f"\n--- {text}", flush=True)


def _submit(head: LocalHead, out: Path, job: str, *arguments: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.submit", job, *arguments],
        env=head.environment,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        with open(out / f"{job}.log", "w") as log:
            for line in process.stdout:
                log.write(line)
                if not re.search(r"packaging\.py|dashboard_sdk\.py|cli\.py:3\d\d", line):
                    print(line, end="", flush=True)
        if process.wait() != 0:
            raise DemoError(f"the {job} job failed; its log: {out / f'{job}.log'}")
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def _start_serve(head: LocalHead, out: Path) -> tuple[str, str]:
    keys = out / "storage" / "serve" / "keys.json"
    key = _python(head, "-m", "serve.keys", "create", "--file", str(keys), "--name", "demo").strip().splitlines()[-1]
    port = free_ports(1)[0]
    printed = _python(
        head,
        *("-m", "serve.run", "--config", "serve/config/nano.yaml"),
        *(f"storage={out / 'storage'}", f"port={port}", f"keys_file={keys}"),
    )
    print(printed.strip().splitlines()[-1])
    return f"http://127.0.0.1:{port}", key


def _python(head: LocalHead, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], env=head.environment, cwd=REPOSITORY, capture_output=True, text=True
    )
    if done.returncode:
        print(done.stdout + done.stderr, file=sys.stderr)
        raise DemoError(f"python {' '.join(arguments[:2])} ended with code {done.returncode}")
    return done.stdout


def _ask_for_video(url: str, key: str, out: Path) -> Path:
    clip = scripted_clip(0, PROMPT_CLIP, height=64, width=96, photographs=HELD_OUT, look="film")
    first_frame = base64.b64encode(png_bytes(clip.frames[0])).decode()
    body: dict[str, Any] = {
        "prompt": clip.caption,
        "seconds": "2",
        "size": "96x64",
        "seed": 0,
        "lora": "nano-film@latest",
        "input_reference": {"image_url": f"data:image/png;base64,{first_frame}"},
    }
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as client:
        video = _json(client.post("/v1/videos", json=body))
        print(f"POST /v1/videos -> {video['id']} {video['status']}: {clip.caption!r}", flush=True)
        deadline = time.monotonic() + 180
        while video["status"] in ("queued", "in_progress"):
            if time.monotonic() > deadline:
                raise DemoError(f"video {video['id']} is still {video['status']} after 180 s")
            time.sleep(0.5)
            video = _json(client.get(f"/v1/videos/{video['id']}"))
        if video["status"] != "completed":
            raise DemoError(f"video {video['id']} {video['status']}: {video.get('error')}")
        content = client.get(f"/v1/videos/{video['id']}/content")
        content.raise_for_status()
    path = out / "video.mp4"
    path.write_bytes(content.content)
    frames, fps = read_video(path)
    adapters = read_metadata(path)["adapters"]
    print(f"GET .../content -> {len(frames)} frames at {fps:g} fps, {len(content.content)} bytes, adapters {adapters}")
    return path


def _json(response: httpx.Response) -> dict[str, Any]:
    if response.status_code >= 400:
        raise DemoError(f"{response.request.method} {response.request.url}: {response.status_code} {response.text}")
    return dict(response.json())


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
