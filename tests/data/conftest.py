"""Footage and an S3 server for the tests of the data room."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cinesynth.data.scripted import write_scripted_clips


@pytest.fixture(scope="session")
def small_footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four small scripted clips; copy the folder before changing it."""
    folder = tmp_path_factory.mktemp("small footage")
    write_scripted_clips(folder, 4, seed=6, height=48, width=72)
    return folder


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
