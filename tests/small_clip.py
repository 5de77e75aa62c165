"""A small architecture of open_clip with random weights, in a file."""

from __future__ import annotations

import json
from pathlib import Path

import torch

SMALL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def small_clip(folder: Path) -> Path:
    """The weights of the architecture `small`, which open_clip knows from then on."""
    import open_clip

    (folder / "small.json").write_text(json.dumps(SMALL))
    open_clip.add_model_config(folder / "small.json")
    torch.manual_seed(0)
    torch.save(open_clip.create_model("small").state_dict(), folder / "small.pt")
    return folder / "small.pt"
