"""The part of a cluster that a job's workers run on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from cinesynth.settings import Settings, runtime

_A_LITTLE = 0.001
"""Of a node's resource `accelerator_type:...`, of which it has 1."""

Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Labels = dict[str, Label | Annotated[list[Label], Field(min_length=1)]]
LABELS = "labels that the nodes have, each with its value, or with the values that will do"


class Pool(Settings):
    """Which of the cluster's nodes take the workers; default: any that have room."""

    accelerator: str | None = runtime(
        None, min_length=1, description="GPU of the nodes, as their `accelerator_type` names it, such as A100-80G"
    )
    labels: Labels = runtime({}, description=LABELS)

    def options(self, gpus: float) -> dict[str, Any]:
        """Ray's options of an actor or task with so many GPUs. One without any may run beside any accelerator."""
        found: dict[str, Any] = {}
        if self.accelerator and gpus:
            found["accelerator_type"] = self.accelerator
        if self.labels:
            found["label_selector"] = self.selector()
        return found

    def resources(self, gpus: float) -> dict[str, float]:
        """What a worker takes of its node beside CPUs and GPUs."""
        return {f"accelerator_type:{self.accelerator}": _A_LITTLE} if self.accelerator and gpus else {}

    def takes(self, labels: Mapping[str, str]) -> bool:
        """Whether a node with these labels is one of the pool."""
        return all(labels.get(name) in _values(value) for name, value in self.labels.items())

    def selector(self) -> dict[str, str]:
        """The labels as Ray's `label_selector` has them."""
        values = {name: _values(value) for name, value in self.labels.items()}
        return {name: those[0] if len(those) == 1 else f"in({','.join(those)})" for name, those in values.items()}

    def told(self) -> str:
        """In words; empty where any node is taken."""
        parts = [self.accelerator] if self.accelerator else []
        parts += [f"{name}={' or '.join(_values(value))}" for name, value in self.labels.items()]
        return ", ".join(parts)


def _values(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value
