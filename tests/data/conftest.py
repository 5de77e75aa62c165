"""Footage, a prepared dataset and an S3 server for the tests of the data room."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cinesynth.data.prepare import prepare
from cinesynth.data.video import read_video, write_video
from cinesynth.scripted.series import write_scripted_clips
from tests.data.preparing import prepare_config


@pytest.fixture(scope="session")
def media() -> Path:
    if "CINESYNTH_MEDIA" not in os.environ:
        pytest.skip("CINESYNTH_MEDIA names no folder with odd video files")
    return Path(os.environ["CINESYNTH_MEDIA"])


@pytest.fixture(scope="session")
def small_footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four small scripted clips; copy the folder before changing it."""
    folder = tmp_path_factory.mktemp("small footage")
    write_scripted_clips(folder, 4, seed=6, height=48, width=72)
    return folder


@pytest.fixture(scope="session")
def footage(small_footage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips, a copy of one under another name, another one encoded anew, a portrait, and a broken file."""
    folder = Path(shutil.copytree(small_footage, tmp_path_factory.mktemp("footage") / "with a space"))
    shutil.copy(folder / "scripted-0001.mp4", folder / "zz-copy.mp4")
    frames, fps = read_video(folder / "scripted-0002.mp4")
    write_video(folder / "again.mkv", frames[:, 2:-2, 2:-2], fps=fps, codec="ffv1")
    write_video(folder / "portrait.mp4", np.rot90(frames[:40], axes=(1, 2)), fps=fps)
    (folder / "broken.mp4").write_bytes(b"\0" * 2000)
    return folder


@pytest.fixture(scope="session")
def prepared(footage: Path, tmp_path_factory: pytest.TempPathFactory, ray_head: Any) -> tuple[Path, dict[str, Any]]:
    """A storage folder with the prepared dataset `clips`, and the run's result."""
    storage = tmp_path_factory.mktemp("storage")
    return storage, prepare(prepare_config(footage, storage))


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URI of an empty bucket on a local S3 server; it carries what other processes need to reach it."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        client = boto3.client(
            "s3",
            endpoint_url=f"http://{host}:{port}",
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
        client.create_bucket(Bucket="clips")
        yield f"s3://test:test@clips/studio?endpoint_override={host}:{port}&scheme=http&region=us-east-1"
    finally:
        server.stop()
