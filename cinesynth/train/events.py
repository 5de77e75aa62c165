"""Reading a training's events. Needs no PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Event = dict[str, Any]

SIGMA_BANDS = 4
"""Equal parts of the noise levels that the training loss is told for, each named by where it begins."""


def training_steps(events: Sequence[Event]) -> list[Event]:
    """Those of optimiser steps, by step. The last record of a step counts: a killed run does its last steps again."""
    steps = {event["step"]: event for event in events if "loss" in event}
    return [steps[step] for step in sorted(steps)]


def validations(events: Sequence[Event]) -> tuple[list[Event], int]:
    """(those that compare with the newest, by step; how many others there are).

    A held-out loss is taken on a set of windows and noise levels. A run that was continued with another set has losses
    of both, which are not one curve.
    """
    points = {event["step"]: event for event in events if "val_loss" in event}
    if not points:
        return [], 0
    newest = points[max(points)].get("val_set")  # events of 0.1.0 have none
    same = [points[step] for step in sorted(points) if points[step].get("val_set") == newest]
    return same, len(points) - len(same)
