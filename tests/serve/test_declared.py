"""The application as `serve deploy` and KubeRay's RayService declare it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from ray import serve as ray_serve

from cluster.local import free_ports
from serve.auth import create_key
from tests.conftest import Head
from tests.serve.service import until

pytestmark = pytest.mark.slow


def test_a_declared_service_makes_a_video(ray_head: Head, tmp_path: Path, png: bytes) -> None:
    (port,) = free_ports(1)
    keys = tmp_path / "keys.json"
    arguments = {
        "model": "nano",
        "storage": str(tmp_path / "storage"),
        "keys_file": str(keys),
        "sizes": [[64, 96]],
        "max_frames": 17,
        "default_frames": 9,
        "defaults": {"num_inference_steps": 2, "guidance_scale": 1.0},
        "engine": {"group": {"ranks": 2, "cpus_per_rank": 0.5}},
    }
    application = {"name": "cinesynth", "route_prefix": "/", "import_path": "serve.app:build", "args": arguments}
    declared = {"http_options": {"host": "127.0.0.1", "port": port}, "applications": [application]}
    file = tmp_path / "service.yaml"
    file.write_text(json.dumps(declared))  # JSON is YAML
    headers = {"Authorization": f"Bearer {create_key(keys, 'alice')}"}
    command = [sys.executable, "-m", "ray.serve.scripts", "deploy", str(file), "--address", ray_head.dashboard]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=30) as client:

            def ready() -> bool:
                try:
                    return client.get("/readyz").status_code == 200
                except httpx.TransportError:
                    return False

            until(ready, "the declared service")
            files = {"input_reference": ("first.png", png)}
            created = client.post("/v1/videos", data={"prompt": "a bar"}, files=files)
            assert created.status_code == 200, created.text
            url = f"/v1/videos/{created.json()['id']}"
            video = until(lambda: (v := client.get(url).json())["status"] in ("completed", "failed") and v, "its end")
            assert video["status"] == "completed", video
            assert client.get(f"{url}/content").headers["content-type"] == "video/mp4"
    finally:
        ray_serve.shutdown()
