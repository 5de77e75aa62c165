"""How networks are run: in which number format, and with which frames and rates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from cinesynth.config import EvaluateSettings
from cinesynth.metrics.features import Networks
from cinesynth.metrics.means import group_means
from cinesynth.metrics.metric import Metric, Network


def _metric(network: Network) -> Metric:
    return Metric(network.name, network.label, 1, "for a test", network, group_means)


@pytest.mark.parametrize("fails", [False, True])
def test_networks_run_without_tf32_and_what_the_process_had_set_is_restored(fails: bool) -> None:
    seen = []

    def run(_: Any, items: Any) -> Any:
        seen.append((torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.allow_tf32))
        if fails:
            raise ValueError("in the network")
        return np.zeros((len(items), 1))

    networks = Networks([_metric(Network("n", "n", run))], EvaluateSettings())
    torch.set_float32_matmul_precision("high")  # as a training loop may
    try:
        if fails:
            with pytest.raises(ValueError, match="in the network"):
                networks.run("n", [(np.zeros((1, 8, 8, 3), np.uint8),)])
        else:
            networks.run("n", [(np.zeros((1, 8, 8, 3), np.uint8),)])
        assert seen == [("ieee", False)]
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.allow_tf32 is True
    finally:
        torch.set_float32_matmul_precision("highest")
