"""What PEFT itself says of an adapter."""

from __future__ import annotations

import torch
from peft import get_peft_model_state_dict


def adapter_state(transformer: torch.nn.Module, name: str = "default") -> dict[str, torch.Tensor]:
    """The adapter's tensors on the CPU, under PEFT's names (`blocks.0.attn2.to_q.lora_A.weight`)."""
    state = get_peft_model_state_dict(transformer, adapter_name=name)
    return {k: v.detach().cpu().contiguous() for k, v in state.items()}
