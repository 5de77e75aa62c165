"""A dataset of a few tiny windows of noise, made by prepare's own stages without Ray."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cinesynth.data.dataset import ClipsDataset, write_table
from cinesynth.data.encode.assemble import assemble, empty_prompt_entry
from cinesynth.data.encode.commits import Commits, write_blocks
from cinesynth.data.encode.encode import DECODED, EncodeCaptions, EncodeImages, EncodeLatents, preview
from cinesynth.data.records import Window, window_to_json
from cinesynth.data.video import write_video
from cinesynth.storage import Storage
from cinesynth.wan.folder import encoder_hash, model_folder, model_spec

FRAMES, HEIGHT, WIDTH = 5, 32, 48


def picture(seed: int, frames: int) -> np.ndarray:
    """uint8 [T, H, W, 3]: blocks of colour that change from frame to frame."""
    blocks = np.random.default_rng(seed).integers(0, 256, (frames, HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
    return blocks.repeat(8, axis=1).repeat(8, axis=2)


def decoded(splits: Sequence[str], length: int = FRAMES, first: int = 0) -> tuple[list[Window], pa.Table]:
    """A window of so many frames of each split, and the block that the decoding stage makes of them.

    The files that they are of are numbered from `first` on.
    """
    windows, rows = [], []
    for i, split in enumerate(splits, first):
        frames = picture(i, length)
        window = Window(
            f"{i:064x}", f"/footage/{i}.mp4", f"{i:064x}", f"shot-{i}", f"group-{i}", 0.0, length / 16, 16, length,
            HEIGHT, WIDTH, f"{WIDTH}x{HEIGHT}x{length}", f"caption {i}", "film", split, {}, "", (0, 0),
            tuple(range(length)), (0.0, 0.0, float(WIDTH), float(HEIGHT)),
        )  # fmt: skip
        windows.append(window)
        row = {"window": window_to_json(window), "reject": "", "preview": preview(frames), "pixels_sha256": ""}
        rows.append(row | {"pixels": frames.tobytes()})
    return windows, pa.Table.from_pylist(rows, schema=DECODED)


def encoded_dataset(
    location: Storage, model: str, splits: Sequence[str] = ("train", "train"), length: int = FRAMES, first: int = 0
) -> ClipsDataset:
    """A complete dataset of a window in each split, by prepare's own stages; held-out pixels are not kept.

    `length` and `first` are those of `decoded`.
    """
    windows, block = decoded(splits, length, first)
    family, encoders = model_spec(model).family, encoder_hash(model)
    captions = pa.table({"caption": [*(w.caption for w in windows), ""]})
    errors = EncodeCaptions(model, "cpu", location.reference())(captions)["error"].to_pylist()
    assert not any(errors)
    coded = EncodeLatents(model, "cpu")(block)
    if family.image_encoder:
        coded = EncodeImages(model, "cpu")(coded)
    commits = Commits(location)
    commits.add(write_blocks(location.reference(), family, encoders, coded))
    write_table(
        location,
        "sources.parquet",
        pa.table({"sha256": [w.source_sha256 for w in windows], "seconds": [1] * len(windows)}),
    )
    facts: dict[str, Any] = {"name": "d", "model": model, "family": family.name, "encoder_hash": encoders}
    facts |= {"window": {}, "unmeasured": [], "empty_prompt": empty_prompt_entry(location)}
    assemble(location, facts, windows, [], commits, lambda *_: None)
    return ClipsDataset.open(location)


def model_and_footage(folder: Path) -> Path:
    """Put nano's files at `model` and a clip into `footage`: what stands in for a hub id and a bucket in a plan."""
    shutil.copytree(model_folder("nano"), folder / "model")
    (folder / "footage").mkdir()
    write_video(folder / "footage" / "a.mp4", picture(0, 40))
    return folder
