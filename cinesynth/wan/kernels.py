"""How a transformer is computed: the kernel of its attention, compiled or not. Chosen on a driver, without PyTorch."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cinesynth.errors import ConfigError

if TYPE_CHECKING:
    from diffusers import WanTransformer3DModel

Attention = Literal["auto", "flash", "cudnn", "efficient", "math"]


@dataclass(frozen=True)
class Kernels:
    """How a transformer is computed, which changes its results by rounding only.

    Attributes:
        attention: kernel of PyTorch's attention; `auto`: PyTorch chooses.
        compiled: the blocks are compiled, one for all. Each new shape, and each set of adapters, is slow at first.
    """

    attention: Attention = "auto"
    compiled: bool = False

    def check(self, gpu: bool, ranks: int = 1, strategy: str = "auto") -> None:
        """Raise ConfigError where a transformer cannot be computed so.

        Args:
            gpu: the device is one.
            ranks: that divide a video's tokens.
            strategy: how its weights lie on them.
        """
        if strategy == "fsdp2" and ranks == 1:
            raise ConfigError("strategy fsdp2 shares the base between the ranks of a worker; set ranks above 1")
        if strategy == "fsdp2" and self.compiled:
            raise ConfigError("compile does not go with strategy fsdp2; set compile=false")
        if self.attention in ("cudnn", "efficient") and not gpu:
            raise ConfigError(
                f"attention {self.attention} needs use_gpu true: it is a kernel of GPUs; leave it at auto on CPUs"
            )
        if ranks == 1:
            return
        if self.attention in ("efficient", "math"):  # diffusers takes each rank's share of the tokens for the whole
            raise ConfigError(
                f"attention {self.attention} does not divide over ranks; leave it at auto, or set ranks=1"
            )
        if self.attention == "flash" and not gpu:
            raise ConfigError(
                "attention flash does not divide over the ranks of CPUs; leave it at auto, or set ranks=1"
            )

    def choose(self, transformer: WanTransformer3DModel) -> None:
        """Let a transformer be computed so."""
        if self.attention != "auto":
            transformer.set_attention_backend(f"_native_{self.attention}")
        if self.compiled:
            transformer.compile_repeated_blocks()

    def eager(self, wanted: bool) -> AbstractContextManager[Any]:
        """While it lasts nothing runs compiled, where that is wanted."""
        import torch

        return torch.compiler.set_stance("force_eager") if self.compiled and wanted else nullcontext()

    def adapters_changed(self) -> None:
        """Forget what was compiled with others: a process keeps few versions, and is slow once it has these."""
        if self.compiled:
            import torch

            torch.compiler.reset()
