"""What a group of ranks is made of. Told by a driver, and taken along to every rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from cinesynth.errors import ConfigError
from cinesynth.wan.kernels import Kernels


@dataclass(frozen=True)
class GroupShape:
    """What a group is made of.

    Attributes:
        model: 'nano', a folder or a hub id.
        ranks: that make each video together. They divide the model's attention heads.
        cpus, gpus: of each rank; gpus is 0 or 1.
        kernels: how the transformer is computed.
        strategy: how its weights lie on the ranks: `replicate`, `fsdp2`, or `auto`: whole where a video fits.
        sizes: (frames, height, width) of the videos to come, which `auto` decides by.
        merge: adapters are added to the weights, in place of being computed beside them.
        quiet_s: a rank that got nothing done for so long hangs: longer than a step, or the decode of a latent frame.
        answer_s: a rank that does not answer for so long is stopped or hangs.
        load_s: how long processes may take to start, to meet and to load the model.
        generator: makes what each rank runs, from the arguments of `cinesynth.generate.sampler.Generator`, which is the
            default.
    """

    model: str
    ranks: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    kernels: Kernels = field(default_factory=Kernels)
    strategy: Literal["auto", "replicate", "fsdp2"] = "auto"
    sizes: tuple[tuple[int, int, int], ...] = ()
    merge: bool = False
    quiet_s: float = 600.0
    answer_s: float = 15.0
    load_s: float = 1800.0
    generator: Callable[..., Any] | None = None

    def bundles(self) -> list[dict[str, float]]:
        """The placement group's bundles, one a rank; its strategy is STRICT_PACK."""
        each = {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {})}
        return [each for _ in range(self.ranks)]


def check_group(size: int, heads: int, key: str) -> None:
    """Raise ConfigError, with the option `key`, unless a group of this size can make every video, guided or not."""
    if heads % size:
        fitting = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
        raise ConfigError(
            f"{key} = {size}: the model's {heads} attention heads do not divide over so many ranks; take one of "
            f"{fitting}"
        )
