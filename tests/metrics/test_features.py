"""How networks are run: in which number format, and with which frames and rates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cinesynth.config import EvaluateSettings
from cinesynth.data.video import write_video
from cinesynth.metrics import videos
from cinesynth.metrics.extraction import _unfit
from cinesynth.metrics.features import Call, Decoded, Networks
from cinesynth.metrics.kept import RowKey
from cinesynth.metrics.metric import Network


@pytest.mark.parametrize("fails", [False, True])
def test_networks_run_without_tf32_and_what_the_process_had_set_is_restored(fails: bool) -> None:
    seen = []

    def run(_: Any, items: Any) -> Any:
        seen.append((torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.allow_tf32))
        if fails:
            raise ValueError("in the network")
        return np.zeros((len(items), 1))

    before = torch.backends.cudnn.allow_tf32
    networks = Networks([Network("n", "n", run)], EvaluateSettings())
    torch.set_float32_matmul_precision("high")  # as a training loop may
    try:
        if fails:
            with pytest.raises(ValueError, match="in the network"):
                networks.run("n", [(np.zeros((1, 8, 8, 3), np.uint8),)])
        else:
            networks.run("n", [(np.zeros((1, 8, 8, 3), np.uint8),)])
        assert seen == [("ieee", False)]
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.allow_tf32 == before
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("pair", [False, True])
def test_a_network_that_reads_the_frame_rate_gets_that_of_the_video_before_its_caption(pair: bool) -> None:
    network = Network("n", "n", lambda _, items: np.zeros((len(items), 1)), pair=pair, fps=True, caption=True)
    still = np.zeros((5, 8, 8, 3), np.uint8)
    decoded = [Decoded(still, fps, still if pair else None) for fps in (12.0, 30.0)]
    key = RowKey("a", 1, 4, "b" if pair else None, "c")
    call = Call(network, (1, 0), (key, key), ("of the second", "of the first"))
    shown = [
        tuple(len(part) if isinstance(part, np.ndarray) else part for part in item) for item in call.items(decoded)
    ]
    frames = (3, 3) if pair else (3,)
    assert shown == [(*frames, 30.0, "of the second"), (*frames, 12.0, "of the first")]


def test_a_network_that_reads_the_frame_rate_is_unavailable_where_a_video_states_none(tmp_path: Path) -> None:
    write_video(tmp_path / "real" / "w.mkv", np.zeros((3, 8, 8, 3), np.uint8), codec="ffv1")
    real = videos.open_sets({"real": tmp_path / "real"}, None)[0]
    network = Network("n", "speed", lambda _, items: np.zeros((len(items), 1)), fps=True)
    unstated = replace(real, name="fake", fps=frozenset({0.0, 16.0}))
    assert _unfit(network, real, unstated, ["w"]) == "speed needs the frame rate, and a video of fake states none"
    assert _unfit(network, real, real, ["w"]) is None
