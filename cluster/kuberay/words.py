"""Keys of the maps that a schema leaves open, such as labels: a key that is nearly a known one is a slip of the pen."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from functools import cache
from typing import Any

import click

from cluster.kuberay.manifests import PRIORITY_LABEL, QUEUE_LABEL
from cluster.pools import ACCELERATOR_LABEL, MARKET_LABEL, POOL_LABEL

RAY_NODE_LABEL = "ray.io/is-ray-node"
"""Label that KubeRay gives to each pod of a Ray cluster; also `ray.io/cluster`."""

_LABELS = {
    *(POOL_LABEL, ACCELERATOR_LABEL, MARKET_LABEL, RAY_NODE_LABEL, "ray.io/cluster", QUEUE_LABEL, PRIORITY_LABEL),
    *("app.kubernetes.io/name", "app.kubernetes.io/part-of", "app.kubernetes.io/component"),
    *("kubernetes.io/metadata.name", "pod-security.kubernetes.io/enforce", "pod-security.kubernetes.io/warn"),
}
_NEARLY = {
    "labels": _LABELS,
    "matchLabels": _LABELS,
    "nodeSelector": _LABELS,
    "nodeLabels": _LABELS,
    "annotations": {"cluster-autoscaler.kubernetes.io/safe-to-evict"},
    "metadata": {"job_name", "run", "storage", "report"},  # that of a RayJob's specification
}
"""Field to known keys; others are the site's own, unless they nearly are one of these."""
_QUANTITIES = {"cpu", "memory", "ephemeral-storage", "storage", "nvidia.com/gpu"}


def word_problems(value: Any, where: str = "") -> Iterator[str]:
    """Slips in the keys of a manifest's open maps, and parameters that `ray start` does not have."""
    if isinstance(value, list):
        for place, part in enumerate(value):
            yield from word_problems(part, f"{where}{place}.")
    if not isinstance(value, dict):
        return
    for name, part in value.items():
        yield from word_problems(part, f"{where}{name}.")
        if not isinstance(part, dict):
            continue
        for key in part:
            if name in ("requests", "limits") and key not in _QUANTITIES:
                yield f"{where}{name}: {key} is none of {', '.join(sorted(_QUANTITIES))}"
            if name == "rayStartParams" and key not in ray_start_options():
                yield f"{where}{name}: `ray start` has no option --{key}"
            if name in _NEARLY and key not in _NEARLY[name]:
                close = difflib.get_close_matches(key, _NEARLY[name], n=1, cutoff=0.8)
                if close:
                    yield f"{where}{name}: {key}; did you mean {close[0]}?"


@cache
def ray_start_options() -> frozenset[str]:
    """Options of `ray start`, without their dashes."""
    from ray.scripts.scripts import start

    assert isinstance(start, click.Command)
    names = [name for option in start.params for name in option.opts]
    return frozenset(name.removeprefix("--") for name in names if name.startswith("--"))
