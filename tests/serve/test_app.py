"""The deployed application with the nano model: a real Ray Serve, a real HTTP client, a real adapter."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from cinesynth.config import SamplerSettings
from cinesynth.data.video import read_metadata, read_video, write_video
from cinesynth.generate.sampler import Generator
from cinesynth.registry import Registry
from cinesynth.settings import parse_config
from cinesynth.storage import Storage, sha256_json
from cinesynth.wan.adapter import save_adapter
from cinesynth.wan.card import AdapterCard
from cinesynth.wan.family import WAN21_I2V
from cinesynth.wan.folder import base_hash
from cinesynth.wan.load import load_transformer
from cinesynth.wan.lora import add_lora
from cluster.local import free_ports
from serve.auth import create_key
from serve.config import ServeConfig
from serve.run import deploy
from tests.adapters import adapter_state
from tests.conftest import Head

STEPS, SEED = 3, 11


@dataclass
class Service:
    config: ServeConfig
    client: httpx.Client

    def create(self, image: bytes, **fields: str) -> httpx.Response:
        return self.client.post("/v1/videos", data=fields, files={"input_reference": ("first.png", image)})

    def wait(self, video_id: str, timeout_s: float = 240) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            shown = self.client.get(f"/v1/videos/{video_id}").json()
            if shown["status"] in ("completed", "failed"):
                return shown
            time.sleep(0.05)
        pytest.fail(f"not finished after {timeout_s} s: {shown}")

    def video(self, image: bytes, path: Path, **fields: str) -> np.ndarray:
        """Ask for a video, wait, download to `path`; returns its frames."""
        created = self.create(image, **fields)
        assert created.status_code == 200, created.text
        shown = self.wait(created.json()["id"])
        assert shown["status"] == "completed", shown
        content = self.client.get(f"/v1/videos/{shown['id']}/content")
        assert (content.status_code, content.headers["content-type"]) == (200, "video/mp4")
        path.write_bytes(content.content)
        return read_video(path)[0]


@pytest.fixture(scope="module")
def service(ray_head: Head, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    from ray import serve as ray_serve

    values = {
        "model": "nano",
        "storage": str(tmp_path_factory.mktemp("a storage")),
        "port": free_ports(1)[0],
        "sizes": [[64, 96]],
        "max_frames": 17,
        "default_frames": 9,
        "defaults": {"num_inference_steps": STEPS, "guidance_scale": 1.0},
        "engine": {"drain_s": 0, "group": {"ranks": 2, "cpus_per_rank": 0.5}},
    }
    config = parse_config(ServeConfig, values)
    key = create_key(config.keys_path(), "alice")
    try:
        url = deploy(config)
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=30) as client:
            yield Service(config, client)
    finally:
        ray_serve.shutdown()


@pytest.fixture(scope="module")
def adapter(service: Service, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The reference of a published adapter that changes the model."""
    transformer = load_transformer("nano")
    add_lora(WAN21_I2V, transformer, rank=4, alpha=8, targets="cross_attention", seed=0)
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5, generator=torch.Generator().manual_seed(len(name)))
    card = AdapterCard(
        base_model="nano",
        base_sha256=base_hash("nano"),
        stage="style",
        dataset="none",
        dataset_sha256=sha256_json([]),
        config={},
        step=1,
    )
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(folder, adapter_state(transformer), transformer.peft_config["default"], card)
    return Registry(Storage.open(service.config.storage)).publish(folder, "film-look", alias="latest").ref


def test_a_served_video_is_what_the_library_generates(service: Service, png: bytes, tmp_path: Path) -> None:
    frames = service.video(png, tmp_path / "served.mp4", prompt="a car", seconds="0.5", seed=str(SEED))
    assert frames.shape == (9, 64, 96, 3)
    sampler = SamplerSettings(steps=STEPS, guidance_scale=1.0, seed=SEED)
    (tmp_path / "first.png").write_bytes(png)
    first = Image.open(tmp_path / "first.png")
    generator = Generator("nano")
    made = generator.generate(first, "a car", 9, 64, 96, sampler)
    other = generator.generate(first, "a car", 9, 64, 96, sampler.model_copy(update={"seed": SEED + 1}))
    # Through the same codec: what H.264 takes from noise is no difference between the two.
    ours, by_chance = (
        read_video(write_video(tmp_path / f"{name}.mp4", video.frames, generator.fps))[0].astype(float)
        for name, video in (("ours", made), ("by-chance", other))
    )
    assert np.abs(frames - ours).mean() < 0.2 * np.abs(frames - by_chance).mean()
    metadata = read_metadata(tmp_path / "served.mp4")
    assert metadata["model_sha256"] == made.provenance["model_sha256"]
    assert metadata["sampler"] == made.provenance["sampler"]


def test_a_published_adapter_changes_the_video(service: Service, adapter: str, png: bytes, tmp_path: Path) -> None:
    asked = {"prompt": "a car", "num_frames": "9", "seed": str(SEED)}
    base = service.video(png, tmp_path / "base.mp4", **asked)
    styled = service.video(png, tmp_path / "styled.mp4", **asked, lora="film-look")
    again = service.video(png, tmp_path / "again.mp4", **asked)
    assert np.abs(base.astype(float) - styled).mean() > 1
    assert np.array_equal(base, again), "the adapter is taken off again, and a seed repeats a video"
    assert read_metadata(tmp_path / "styled.mp4")["request"]["adapters"][0]["ref"] == adapter
    assert read_metadata(tmp_path / "styled.mp4")["adapters"] != []


def test_ranges_and_refusals_pass_through_the_proxy(service: Service, png: bytes) -> None:
    video_id = service.create(png, prompt="a car", num_frames="5").json()["id"]
    service.wait(video_id)
    part = service.client.get(f"/v1/videos/{video_id}/content", headers={"Range": "bytes=4-7"})
    assert (part.status_code, part.content) == (206, b"ftyp")
    assert service.client.get("/healthz", headers={"Authorization": ""}).status_code == 200
    assert service.client.get(f"/v1/videos/{video_id}", headers={"Authorization": ""}).status_code == 401
    refused = service.create(png, prompt="a car", seconds="60")
    assert refused.status_code == 400
    assert refused.json()["error"]["allowed_shapes"][0]["size"] == "96x64"
    too_large = service.create(b"\0" * (service.config.image.max_bytes + 1_000_000), prompt="a car")
    assert too_large.status_code == 413
    assert too_large.json()["error"]["code"] == "too_large"


def test_a_hundred_bodies_that_do_not_end_keep_nobody_waiting(service: Service, png: bytes) -> None:
    host, port = service.client.base_url.host, service.client.base_url.port
    key = service.client.headers["authorization"]
    half = (
        f"POST /v1/videos HTTP/1.1\r\nHost: {host}\r\nAuthorization: {key}\r\nContent-Length: 90000\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
    ).encode()
    with ExitStack() as sockets:
        for _ in range(100):
            sockets.enter_context(socket.create_connection((host, port))).sendall(half)
        deadline = time.monotonic() + 60
        while (refused := service.create(png, prompt="a car", num_frames="5")).status_code != 429:
            assert time.monotonic() < deadline, "the bodies have not arrived"
        assert refused.json()["error"]["code"] == "too_many_uploads"
        seconds = []
        for _ in range(5):
            asked = time.monotonic()
            assert service.client.get("/healthz").status_code == 200
            seconds.append(time.monotonic() - asked)
        assert min(seconds) < 1
    deadline = time.monotonic() + 60
    while (taken := service.create(png, prompt="a car", num_frames="5")).status_code != 200:
        assert time.monotonic() < deadline, "clients that went away hold nothing"
    assert service.wait(taken.json()["id"])["status"] == "completed"
