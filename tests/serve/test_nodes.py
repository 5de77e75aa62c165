"""Whether a node lives, by what the cluster says and by a real connection."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from serve import nodes
from serve.nodes import node_lives


@pytest.fixture
def port() -> Iterator[int]:
    """One that takes connections, as a raylet's does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed() -> int:
    """One that takes none: its server has just ended."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def cluster(monkeypatch: pytest.MonkeyPatch, **rows: tuple[bool, str, int]) -> None:
    """What `ray.nodes()` says: id=(alive, address, port)."""
    listed: list[dict[str, Any]] = [
        {"NodeID": name, "Alive": alive, "NodeManagerAddress": address, "NodeManagerPort": number}
        for name, (alive, address, number) in rows.items()
    ]
    monkeypatch.setattr(ray, "nodes", lambda: listed)


def test_a_node_lives_that_the_cluster_counts_in_and_that_takes_connections(
    monkeypatch: pytest.MonkeyPatch, port: int, closed: int
) -> None:
    cluster(
        monkeypatch, here=(True, "127.0.0.1", port), dead=(False, "127.0.0.1", port), gone=(True, "127.0.0.1", closed)
    )
    assert node_lives("here")
    assert not node_lives("dead"), "the cluster says so"
    assert not node_lives("gone"), "the cluster has not noticed it"
    assert not node_lives("of an earlier head")


def test_a_node_that_does_not_answer_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "CONNECT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        waiting = []
        for _ in range(8):  # fill the queue of connections, so that the next one gets no answer
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(server.getsockname())
            waiting.append(client)
        cluster(monkeypatch, silent=(True, "127.0.0.1", server.getsockname()[1]))
        assert not node_lives("silent")
        for client in waiting:
            client.close()
