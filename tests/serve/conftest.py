"""Fixtures of the service's tests: a small configuration, a first frame, published adapters."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cinesynth.registry import Published, Registry
from cinesynth.settings import parse_config
from cinesynth.storage import Storage
from serve.auth import create_key
from serve.config import ServeConfig
from serve.dispatch import open_store
from serve.jobs import JobStore

BASE_SHA256 = "ab" * 32


@pytest.fixture
def config(tmp_path: Path) -> ServeConfig:
    values: dict[str, Any] = {
        "model": "drawing",
        "family": "wan2.1-i2v",
        "storage": str(tmp_path / "storage"),
        "sizes": [[64, 96], [96, 64]],
        "max_frames": 33,
        "default_frames": 17,
        "defaults": {"num_inference_steps": 4, "guidance_scale": 1.0},
        "queue_cap": 3,
        "lease_s": 5,
        "heartbeat_s": 0.05,
        "image": {"max_bytes": 200_000, "max_side": 2000, "max_pixels": 1_000_000},
    }
    return parse_config(ServeConfig, values).resolved()


@pytest.fixture
def key(config: ServeConfig) -> str:
    return create_key(config.keys_path(), "alice")


@pytest.fixture
def store(config: ServeConfig) -> JobStore:
    return open_store(config)


@pytest.fixture(scope="session")
def png() -> bytes:
    """A 60x40 gradient."""
    y, x = np.mgrid[0:40, 0:60]
    buffer = io.BytesIO()
    Image.fromarray(np.stack([x * 4, y * 6, x + y], -1).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def publish(config: ServeConfig, tmp_path: Path) -> Callable[..., Published]:
    """Publish a folder with a card; its weights are a few bytes."""

    def make(name: str, base: str = BASE_SHA256, parents: list[Any] | None = None) -> Published:
        folder = tmp_path / f"adapter-{name}"
        folder.mkdir()
        (folder / "card.json").write_text(json.dumps({"base_sha256": base, "parents": parents or []}))
        (folder / "weights.bin").write_bytes(name.encode())
        return Registry(Storage.open(config.storage)).publish(folder, name, alias="latest")

    return make
