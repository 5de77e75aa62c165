"""Which strategy trains what: the combinations that tests train and compare, and no other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cinesynth.errors import ConfigError

if TYPE_CHECKING:
    from cinesynth.config import TrainSettings


@dataclass(frozen=True)
class Supported:
    """What a strategy takes."""

    modes: tuple[str, ...]
    optimizers: tuple[str, ...]
    activation_checkpointing: tuple[str, ...]
    compile: tuple[bool, ...]
    tested: str
    """On what."""

    @property
    def columns(self) -> tuple[tuple[object, ...], ...]:
        """All but `tested`, in order."""
        return self.modes, self.optimizers, self.activation_checkpointing, self.compile


_RECOMPUTE = ("none", "full", "attention")
SUPPORTED = {
    "replicate": Supported(
        ("lora", "full"), ("adamw", "muon"), _RECOMPUTE, (False, True), "1 and 2 workers; compiled on a GPU"
    ),
    "fsdp2": Supported(("lora",), ("adamw",), _RECOMPUTE, (False,), "2 workers"),
    "hsdp": Supported(("lora",), ("adamw",), ("full", "attention"), (False,), "4 workers, groups of 2"),
    "deepspeed zero-2": Supported(("lora",), ("adamw",), ("full", "attention"), (False,), "2 workers"),
    "deepspeed zero-3": Supported(("lora",), ("adamw",), ("full",), (False,), "2 workers"),
}
"""By strategy, and DeepSpeed's by `zero_stage`. What shards takes a frozen base, and AdamW: Muon lifts a sum's rounding
above what the tests allow, and needs whole matrices, which ZeRO does not leave. What ZeRO-3 does within a block is not
what selective recomputation has noted of its forward pass."""


def check_supported(strategy: str, settings: TrainSettings) -> None:
    """Raise ConfigError with both values where a strategy is not tested with a setting; `auto` passes."""
    if strategy == "auto":
        return
    row = f"deepspeed zero-{settings.zero_stage}" if strategy == "deepspeed" else strategy
    asked = {
        "mode": settings.mode,
        "optimizer.algorithm": settings.optimizer.algorithm,
        "activation_checkpointing": settings.activation_checkpointing,
        "compile": settings.compile,
    }
    for (name, value), taken in zip(asked.items(), SUPPORTED[row].columns, strict=True):
        if value not in taken:
            place = list(asked).index(name)
            others = [other for other, columns in SUPPORTED.items() if value in columns.columns[place]]
            raise ConfigError(
                f"strategy {row!r} does not go with {name} {_said(value)}: it takes {_list(taken)}; set one of "
                f"these, or strategy to {_list(tuple(others))}"
            )


def table() -> list[str]:
    """The lines of a Markdown table."""
    heads = ("strategy", "mode", "optimizer", "activation_checkpointing", "compile", "tested on CPUs with")
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for name, row in SUPPORTED.items():
        cells = " | ".join(", ".join(map(_said, cell)) for cell in row.columns)
        lines.append(f"| `{name}` | {cells} | {row.tested} |")
    return lines


def _list(values: tuple[object, ...]) -> str:
    return " or ".join(map(_said, values))


def _said(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
