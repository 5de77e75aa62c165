"""Cross-attention without the work for padding. On a CPU a step of nano takes two thirds of the time.

Wan has no mask for its text tokens, so the padding of a short prompt is part of its input: hundreds of equal tokens
that each get a share of the attention. n equal tokens act as one whose score is raised by log n, so the result is the
same.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel

from cinesynth.wan.family import Family


def collapse_padding(transformer: WanTransformer3DModel, family: Family) -> None:
    """Let every cross-attention of the transformer treat equal text tokens at the end as one."""
    for block in transformer.blocks:
        block.attn2.set_processor(CollapsedPadding(family.text_tokens))


class CollapsedPadding:
    """A processor for diffusers' `WanAttention`; where there is an image encoder, its tokens precede the text's."""

    def __init__(self, text_tokens: int) -> None:
        self.text_tokens = text_tokens

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: Any = None,
    ) -> torch.Tensor:
        images = encoder_hidden_states.shape[1] - self.text_tokens
        image_BND, text_BLD = encoder_hidden_states[:, :images], encoder_hidden_states[:, images:]
        distinct = distinct_tokens(text_BLD)
        copies = text_BLD.shape[1] - distinct
        score = None
        if copies > 1:
            text_BLD = text_BLD[:, : distinct + 1]
            score = text_BLD.new_zeros(distinct + 1)
            score[-1] = math.log(copies)
        query = _heads(attn, attn.norm_q(attn.to_q(hidden_states)))
        out = F.scaled_dot_product_attention(
            query,
            _heads(attn, attn.norm_k(attn.to_k(text_BLD))),
            _heads(attn, attn.to_v(text_BLD)),
            attn_mask=None if score is None else score.to(query.dtype)[None, None, None],
        )
        if attn.add_k_proj is not None:
            out = out + F.scaled_dot_product_attention(
                query,
                _heads(attn, attn.norm_added_k(attn.add_k_proj(image_BND))),
                _heads(attn, attn.add_v_proj(image_BND)),
            )
        out = out.transpose(1, 2).flatten(2).type_as(hidden_states)
        return attn.to_out[1](attn.to_out[0](out))


def distinct_tokens(text_BLD: torch.Tensor) -> int:
    """The number of tokens before the equal ones at the end, in the longest prompt of the batch."""
    differs = (text_BLD != text_BLD[:, -1:]).any(-1).any(0)
    places = differs.nonzero()
    return int(places[-1]) + 1 if len(places) else 0


def _heads(attn: Any, states_BLD: torch.Tensor) -> torch.Tensor:
    return states_BLD.unflatten(2, (attn.heads, -1)).transpose(1, 2)
