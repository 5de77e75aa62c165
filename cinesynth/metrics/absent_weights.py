"""Metrics that a record has no number of for want of weights, and whether these can be had by now."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cinesynth.config import EvaluateSettings
from cinesynth.errors import WeightsUnavailable
from cinesynth.metrics.catalogue import METRICS
from cinesynth.metrics.features import NO_WEIGHTS
from cinesynth.metrics.record import MetricsRecord


def metrics_without_weights(record: MetricsRecord) -> list[str]:
    """Names of the metrics that were left out because their weights were absent, which may be there by now."""
    lacking = (value.metric for value in record.values if (value.reason or "").startswith(NO_WEIGHTS))
    return list(dict.fromkeys(lacking))


class LaterWeights:
    """Whether weights that were absent can be had by now. They are looked for, and fetched, once."""

    def __init__(self) -> None:
        self._found: dict[tuple[Callable[[EvaluateSettings], Any], str | None, str | None], bool] = {}

    def are_there(self, metric: str, settings: EvaluateSettings) -> bool:
        """Whether a metric's network loads its weights; False for a metric that is unknown, or has none."""
        load = METRICS[metric].network.load if metric in METRICS else None
        if load is None:
            return False
        key = load, settings.weights, settings.r_lpips_weights
        if key not in self._found:
            self._found[key] = _loads(load, settings)
        return self._found[key]


def _loads(load: Callable[[EvaluateSettings], Any], settings: EvaluateSettings) -> bool:
    try:
        load(settings)
    except (WeightsUnavailable, OSError):  # OSError: a cache that cannot be written
        return False
    return True
