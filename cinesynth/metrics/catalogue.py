"""The catalogue of metrics. A new metric is a file in this folder, shaped as `metric.py` says, and a line in `_FILES`.

Free of torch, so that configuration, pages and a run's inputs may read it anywhere.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from cinesynth.errors import ConfigError
from cinesynth.metrics.metric import Metric
from cinesynth.storage import sha256_json

if TYPE_CHECKING:
    from cinesynth.config import EvaluateSettings

_FILES = (
    "distribution",
    "perceptual",
    "pixel",
    "temporal",
    "motion",
    "inception",
    "clip_similarity",
)


def read_metrics(files: Sequence[str]) -> dict[str, Metric]:
    """Name to metric, of files in this folder. Raises ValueError where two metrics share a name."""
    found: dict[str, Metric] = {}
    for file in files:
        for metric in import_module(f"cinesynth.metrics.{file}").METRICS:
            if metric.name in found:
                raise ValueError(f"cinesynth/metrics/{file}.py: there is another metric {metric.name!r}; rename one")
            found[metric.name] = metric
    return found


METRICS = read_metrics(_FILES)

_UNDEFINED = ("lpro", "vidcomp")
"""Names in papers, without `-` and `_`, of which no published definition was found."""


def find(name: str) -> Metric:
    """The metric of that name. Raises ConfigError, with the names that exist, when there is none."""
    if name in METRICS:
        return METRICS[name]
    if name.lower().replace("-", "").replace("_", "") in _UNDEFINED:
        raise ConfigError("no published definition was found; use tof, tlp or tssim")
    close = difflib.get_close_matches(name, METRICS, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ConfigError(f"is not a metric; {hint}known are {', '.join(METRICS)}")


def label(name: str) -> str:
    """A metric's name as people write it; of a metric that is no longer known, its name."""
    return METRICS[name].label if name in METRICS else name


def chosen(names: Sequence[str]) -> list[Metric]:
    """The named metrics and those that accompany them, the primary ones first."""
    found = [m for m in METRICS.values() if m.name in names or set(m.beside) & set(names)]
    return sorted(found, key=lambda m: not m.primary)


def metric_identity(settings: EvaluateSettings) -> dict[str, str]:
    """What a run's inputs must hold of its metrics: `metric_<name>` to the sha256 of all that defines its numbers.

    That is the metric's version, its network's version, weights and preprocessing, and the first frame that counts.
    """
    identity = {}
    for metric in chosen(settings.metrics):
        defined: dict[str, Any] = {
            "version": metric.version,
            "weights": metric.network.weights(settings),
            "preprocessing": dict(metric.network.preprocessing),
            "first_frame": metric.first_frame,
        }
        if metric.network.version > 1:  # absent means 1: runs were recorded without it
            defined["network_version"] = metric.network.version
        identity[f"metric_{metric.name}"] = sha256_json(defined)
    return identity
