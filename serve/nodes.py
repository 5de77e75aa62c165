"""Whether a node of the Ray cluster lives: the evidence by which a lost engine counts against its job, or does not."""

from __future__ import annotations

import socket

CONNECT_S = 2.0


def node_lives(node: str) -> bool:
    """Whether the cluster counts a node in and its raylet takes connections. Blocks for up to some seconds.

    Both are asked, as a cluster notices that a node has vanished only some health checks later, and the engines' calls
    break before that. A node that the cluster does not know was one of an earlier head.

    Args:
        node: Ray's id of the node (`ray.get_runtime_context().get_node_id()`).
    """
    import ray

    for found in ray.nodes():
        if found["NodeID"] == node:
            return found["Alive"] and _takes_connections(found["NodeManagerAddress"], found["NodeManagerPort"])
    return False


def _takes_connections(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), CONNECT_S).close()
    except OSError:
        return False
    return True
