"""How a transformer is computed: the kernel of its attention, compiled or not. Chosen on a driver, without PyTorch."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

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
