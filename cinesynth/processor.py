"""What this machine's processor is called, and what it computes fast."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

import torch


def device_title(device: str) -> str:
    """The name of a GPU, or of this machine's processor, as its maker calls it."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


@cache
def fast_float() -> torch.dtype:
    """bf16 on a processor with 512-bit vectors, else fp32: without them a product in bf16 takes up to a hundred times
    as long as one in fp32."""
    return torch.bfloat16 if "AVX512" in torch.backends.cpu.get_cpu_capability() else torch.float32


def fast_autocast() -> torch.autocast:
    """Computes in `fast_float` on the processor, for as long as the block runs."""
    return torch.autocast("cpu", torch.bfloat16, enabled=fast_float() == torch.bfloat16)
