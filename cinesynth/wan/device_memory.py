"""Errors of devices without memory, which come in several classes."""

from __future__ import annotations

import torch

_TOLD = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "can't allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the host, has no memory left: the same work would meet it again."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(told in str(error) for told in _TOLD)


def told_out_of_memory(error: BaseException, device: str, remedy: str) -> str:
    """It in a line, with what to do."""
    lines = str(error).splitlines() or [type(error).__name__]
    return f"out of memory on {device} ({lines[0][:200]}); {remedy}"
