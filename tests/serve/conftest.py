"""Fixtures of the service's tests: a small configuration, a first frame, published adapters."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from cinesynth.registry import Published, Registry
from cinesynth.settings import parse_config
from cinesynth.storage import Storage, sha256_file
from cinesynth.wan.card import CARD_FILE, DIFFUSERS_FILE, AdapterCard, Parent
from serve.api import create_api
from serve.auth import KeyRing, create_key
from serve.config import ServeConfig
from serve.dispatch import open_store
from serve.jobs import JobStore, LocalJobs

BASE_SHA256 = "ab" * 32


@pytest.fixture
def config(tmp_path: Path) -> ServeConfig:
    values: dict[str, Any] = {
        "model": "nano",
        "served_name": "drawing",
        "storage": str(tmp_path / "storage"),
        "sizes": [[64, 96], [96, 64]],
        "max_frames": 33,
        "default_frames": 17,
        "defaults": {"num_inference_steps": 4, "guidance_scale": 1.0},
        "queue_cap": 3,
        "lease_s": 5,
        "heartbeat_s": 0.05,
        "engine": {"warm_up": False},
        "image": {"max_bytes": 200_000, "max_side": 2000, "max_pixels": 1_000_000},
    }
    return parse_config(ServeConfig, values).resolved()


@pytest.fixture
def key(config: ServeConfig) -> str:
    return create_key(config.keys_path(), "alice")


@pytest.fixture
def store(config: ServeConfig) -> JobStore:
    return open_store(config)


@pytest.fixture
def client(config: ServeConfig, key: str, store: JobStore) -> Iterator[TestClient]:
    """The application over the store, without Ray, asked with alice's key."""
    registry = Registry(Storage.open(config.storage))
    api = create_api(config, LocalJobs(store), KeyRing(config.keys_path()), registry, BASE_SHA256)
    with TestClient(api, headers={"Authorization": f"Bearer {key}"}, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="session")
def png() -> bytes:
    """A 60x40 gradient."""
    y, x = np.mgrid[0:40, 0:60]
    buffer = io.BytesIO()
    Image.fromarray(np.stack([x * 4, y * 6, x + y], -1).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def publish(config: ServeConfig, tmp_path: Path) -> Callable[..., Published]:
    """Publish a folder with a card; its weights are a few bytes. `parents` are (published, scale) below it."""

    def make(name: str, base: str = BASE_SHA256, parents: Sequence[tuple[Published, float]] = ()) -> Published:
        folder = tmp_path / f"adapter-{name}"
        folder.mkdir()
        (folder / DIFFUSERS_FILE).write_bytes(name.encode())
        card = AdapterCard(
            base_model="/srv/models/wan",
            base_sha256=base,
            parents=[Parent(sha256=parent.card["sha256"], scale=scale) for parent, scale in parents],
            stage="style",
            dataset="clips",
            dataset_sha256="00" * 32,
            config={},
            step=1,
            sha256=sha256_file(folder / DIFFUSERS_FILE),
        )
        (folder / CARD_FILE).write_text(card.model_dump_json())
        return Registry(Storage.open(config.storage)).publish(folder, name, alias="latest")

    return make
