"""Deploys the service with engines that draw and wait for a file: `python -m tests.hosts.deploy FOLDER ADDRESS`."""

from __future__ import annotations

import socket
import sys
from functools import partial
from pathlib import Path
from typing import Any

from cinesynth.generate.sampler import GeneratedVideo
from cinesynth.settings import parse_config
from serve.auth import create_key
from serve.config import ServeConfig
from serve.engine import rank_group
from serve.run import deploy
from tests.serve.drawing import FileGated


def configuration(folder: Path) -> ServeConfig:
    """Of a service with its state below `folder` and an engine on each of two hosts."""
    values = {
        "model": "nano",
        "storage": str(folder / "storage"),
        "host": "0.0.0.0",
        "sizes": [[64, 96]],
        "max_frames": 17,
        "default_frames": 9,
        "defaults": {"num_inference_steps": 12, "guidance_scale": 1.0},
        "lease_s": 5,
        "heartbeat_s": 0.5,
        "target_wait_s": 1,
        "engine": {
            **{"min_replicas": 2, "max_replicas": 2, "drain_s": 0, "keep_every": 2},
            "group": {"cpus_per_rank": 2, "pool": {"labels": {"host": "worker"}}},
        },
    }
    return parse_config(ServeConfig, values)


class OnHost(FileGated):
    """Writes the name of its host to `<folder>/hosts` when it starts a video."""

    def generate(self, *args: Any, **kwargs: Any) -> GeneratedVideo:
        if args[1] != "warm-up":
            with open(self.folder / "hosts", "a") as f:
                f.write(f"{socket.gethostname()}\n")
        return super().generate(*args, **kwargs)


def main(folder: Path, address: str) -> None:
    """Deploy on the cluster at an address; prints a key."""
    import ray

    from tests.hosts.deploy import OnHost as Importable  # by its own name, not as __main__'s

    config = configuration(folder)
    key = create_key(config.keys_path(), "laptop")
    (folder / "gate").mkdir()
    ray.init(address=address, log_to_driver=False)
    deploy(config, partial(rank_group, generator=partial(Importable, str(folder / "gate"))))
    print(f"key {key}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
