"""The benchmark for a GPU at nano's shape, where most of our own requirements are missing."""

from __future__ import annotations

import json
import subprocess
import sys

MISSING = ("pydantic", "omegaconf", "pyarrow", "ray", "decord", "optuna", "lpips", "open_clip")
RUN = f"""
import runpy, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {MISSING}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
sys.argv[0] = "gpu_train"
runpy.run_module("benchmarks.gpu_train", run_name="__main__")
"""


def test_it_runs_without_our_other_requirements() -> None:
    small = ["--shape", "nano", "--device", "cpu", "--size", "64x64", "--frames", "5", "--steps", "1", "--warmup", "1"]
    chosen = ["--variants", "diffusers", "denoising, as loaded", "ours, attention kept"]
    done = subprocess.run([sys.executable, "-c", RUN, *small, *chosen], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    rows = {**result["figures"]["training"], **result["figures"]["denoising"]}
    assert set(rows) == {"diffusers' loop", "ours, attention kept", "denoising, as loaded"}
    assert all(row["s_per_step"] > 0 for row in rows.values())
    assert result["figures"]["best"] == "ours, attention kept"
