"""What the Dispatcher tells Prometheus of jobs and engines; `cinesynth/telemetry.py` has the table of series."""

from __future__ import annotations

from typing import Literal

from cinesynth.telemetry import Telemetry
from cinesynth.wan.family import DEFAULT_FAMILY
from serve.jobs import Observer
from serve.records import Backlog, ErrorCode, Job

_telemetry = Telemetry()


class JobTelemetry(Observer):
    """Counts what becomes of the jobs of the Dispatcher's table."""

    def leased(self, job: Job, waited_s: float | None) -> None:
        """Count the wait of a job that an engine takes for the first time."""
        if waited_s is not None:
            _telemetry.observe("cinesynth_serve_queue_wait_seconds", waited_s)

    def completed(self, job: Job) -> None:
        """Count a video, what it took and how long it plays."""
        _telemetry.add("cinesynth_serve_videos_total", outcome="completed", reason="")
        _telemetry.observe("cinesynth_serve_engine_seconds", job.seconds)
        # The first frame is the picture that was sent (`serve/schema.py` counts so, too). Jobs of versions with one
        # family state no rate.
        played = (job.request["num_frames"] - 1) / job.request.get("fps", DEFAULT_FAMILY.fps)
        _telemetry.add("cinesynth_serve_made_video_seconds_total", played)

    def failed(self, code: ErrorCode) -> None:
        """Count a job that failed for good."""
        _telemetry.add("cinesynth_serve_videos_total", outcome="failed", reason=code)

    def lost(self, code: ErrorCode) -> None:
        """Count a lease that ended without an outcome."""
        _telemetry.add("cinesynth_serve_leases_lost_total", reason=code)


def show_queue(backlog: Backlog, oldest_wait_s: float, calls: int) -> None:
    """Show the queue as it stands, and the engines that are asked for."""
    _telemetry.set("cinesynth_serve_queued_videos", backlog.queued)
    _telemetry.set("cinesynth_serve_running_videos", backlog.running)
    _telemetry.set("cinesynth_serve_backlog_seconds", backlog.seconds)
    _telemetry.set("cinesynth_serve_oldest_wait_seconds", oldest_wait_s)
    _telemetry.set("cinesynth_serve_engine_calls", calls)


def count_restart(part: Literal["group", "replica"]) -> None:
    """Count an engine that makes its group anew, or whose replica ended by itself."""
    _telemetry.add("cinesynth_serve_engine_restarts_total", part=part)
