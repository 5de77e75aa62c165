"""What the dashboard and the logs call the actors: by the model, the place in a group, the study, the networks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import pytest
import torch

from cinesynth.config import EvaluateSettings, TuneConfig
from cinesynth.generate.group import RankProcess
from cinesynth.generate.rank import Rank
from cinesynth.generate.shape import GroupShape
from cinesynth.metrics import catalogue
from cinesynth.metrics.distributed import MetricWorker
from cinesynth.metrics.features import Networks
from cinesynth.settings import parse_config
from tune.scorer import Scorer


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """An actor sets its process's threads; this process keeps its own."""
    before = torch.get_num_threads(), cv2.getNumThreads()
    yield
    torch.set_num_threads(before[0])
    cv2.setNumThreads(before[1])


def scorer() -> Scorer:
    """One that opened no dataset and loaded no model."""
    made = object.__new__(Scorer)
    made.config = parse_config(TuneConfig, {"name": "noir-tune", "dataset": "d", "train": {}})
    return made


def metric_worker() -> MetricWorker:
    networks = [catalogue.find(name).network for name in ("psnr", "ssim")]
    return MetricWorker(Networks(networks, EvaluateSettings()), use_gpu=False, cpus=1.0)


@pytest.mark.parametrize(
    ("actor", "name"),
    [
        (lambda: Rank(GroupShape("nano", ranks=4), 2), "Rank(2 of 4, nano)"),
        (lambda: RankProcess(GroupShape("nano", ranks=2), 0), "Rank(0 of 2, nano)"),
        (scorer, "Scorer(noir-tune)"),
        (metric_worker, "MetricWorker(psnr, ssim)"),
    ],
)
def test_an_actor_is_named_by_what_it_works_on(actor: Any, name: str) -> None:
    assert repr(actor()) == name
