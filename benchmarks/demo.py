"""Wall-clock minutes of the demo, without the installation: `python -m benchmarks.demo [RUNS]`.

Each run has an output folder of its own. After the first run the metric weights are in the cache. There is no rival, as
no other system does all of the demo's steps.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time

TARGET_MINUTES = 6.0


def main(runs: int) -> None:
    """Run the demo `runs` times. The last line holds the figures as JSON."""
    minutes = []
    for run in range(runs):
        with tempfile.TemporaryDirectory(prefix="cinesynth demo ") as out:
            started = time.monotonic()
            done = subprocess.run(
                [sys.executable, "-m", "cluster.demo", "--out", out], capture_output=True, text=True, check=False
            )
            minutes.append((time.monotonic() - started) / 60)
        if done.returncode:
            print(done.stdout[-4000:], done.stderr[-4000:], sep="\n")
            raise SystemExit(f"run {run + 1} failed with code {done.returncode}")
        print(f"run {run + 1}: {minutes[-1]:.2f} minutes", flush=True)
    median = statistics.median(minutes)
    figures = {"median_minutes": round(median, 2), "minutes": [round(m, 2) for m in minutes]}
    passed = median < TARGET_MINUTES
    print(
        json.dumps({"name": "demo", "figures": figures, "targets": {"median_minutes": TARGET_MINUTES}, "pass": passed})
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
