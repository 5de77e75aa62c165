"""The stages of the encode graph, and the commits that make it resumable.

Windows go through an actor pool (decode, encode) into a stage that writes shards under unique names; the driver
commits each shard as a small numbered object. What is in no commit does not exist: it is encoded again.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pyarrow as pa

from cinesynth.data.footage import PyAVDecoder, crop_resize
from cinesynth.data.shards import TENSORS, row_sha256, tensor_columns, write_shard, write_table
from cinesynth.data.video import Frames, write_video
from cinesynth.data.windows import Reject, Window
from cinesynth.errors import MediaError
from cinesynth.storage import Storage

if TYPE_CHECKING:
    import torch

# Between the stages. Arrow on both sides: a list of bytes that becomes a numpy array loses its trailing zeros.
_ENCODED = pa.schema(
    [
        ("window", pa.string()),  # JSON
        ("reject", pa.string()),  # JSON, or empty
        ("shapes", pa.string()),  # JSON: tensor name to shape
        ("preview", pa.large_binary()),
        *((name, pa.large_binary()) for name in TENSORS),
    ]
)
EMPTY_PROMPT = "empty_prompt.parquet"
_HELD_OUT = ("val", "test")
_PREVIEW_HEIGHT = 96
# Reasons that another attempt does not change.
FINAL_REASONS = ("undecodable", "not_finite")


def open_dataset(storage: str, name: str) -> Storage:
    """Where the dataset `name` lies below a storage location."""
    return Storage.open(storage).child("datasets", name)


def to_rows(windows: list[Window]) -> list[dict[str, str]]:
    """Windows as rows for Ray Data: one text column, so that no block's schema is guessed from its values."""
    return [{"window": json.dumps(asdict(window))} for window in windows]


class EncodeWindows:
    """Actor-pool stage: windows in, tensors or rejects out.

    Args:
        model: 'nano', a hub id or a folder.
        device: torch device of the encoders.
        storage: location as the configuration gives it, options included.
        name: name of the dataset there.
    """

    def __init__(self, model: str, device: str, storage: str, name: str) -> None:
        from transformers.utils import logging as transformers_logging

        from cinesynth.wan.condition import ConditionEncoder

        transformers_logging.disable_progress_bar()
        self._dataset = open_dataset(storage, name)
        self._decoder = PyAVDecoder()
        self._pixel_aspect = lru_cache(maxsize=64)(lambda path: self._decoder.probe(path).pixel_aspect)
        self._encoder = ConditionEncoder(model, device)
        if not self._dataset.exists(EMPTY_PROMPT):
            row = tensor_columns("prompt_embeds", self._encoder.prompt_embeds(""))
            write_table(self._dataset, EMPTY_PROMPT, pa.Table.from_pylist([row]))

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = [self._row(Window(**json.loads(text))) for text in batch["window"].to_pylist()]
        return pa.Table.from_pylist(rows, schema=_ENCODED)

    def _row(self, window: Window) -> dict[str, Any]:
        row = {"window": json.dumps(asdict(window)), "reject": "", "preview": b"", "shapes": "{}"}
        row |= dict.fromkeys(TENSORS, b"")
        try:
            frames = self._frames(window)
            tensors = self._encode(window, frames)
            if window.split in _HELD_OUT:
                self._keep_pixels(window, frames)
        except MediaError as e:
            return row | {"reject": _reject(window, "undecodable", str(e))}
        except FloatingPointError as e:
            return row | {"reject": _reject(window, "not_finite", str(e))}
        except Exception as e:
            # One odd window must not end the run, but running out of memory is no property of a window.
            if type(e).__name__ == "OutOfMemoryError" or isinstance(e, MemoryError | OSError):
                raise
            return row | {"reject": _reject(window, "encode_failed", f"{type(e).__name__}: {e}")}
        columns: dict[str, Any] = {}
        for name, value in tensors.items():
            columns |= tensor_columns(name, value)
        shapes = {name: columns.pop(f"{name}_shape") for name in TENSORS}
        return row | columns | {"preview": preview(frames), "shapes": json.dumps(shapes)}

    def _frames(self, window: Window) -> Frames:
        frames = self._decoder.read(window.source_uri, window.frame_pts)
        aspect: Fraction = self._pixel_aspect(window.source_uri)
        return crop_resize(frames, window.height, window.width, aspect)

    def _encode(self, window: Window, frames: Frames) -> dict[str, torch.Tensor]:
        latents, condition = self._encoder.window_latents(frames)
        tensors = {
            "latents": latents,
            "condition_latents": condition,
            "image_embeds": self._encoder.image_embeds(frames[0]),
            "prompt_embeds": self._encoder.prompt_embeds(window.caption),
        }
        for name, value in tensors.items():
            if not value.half().isfinite().all():
                raise FloatingPointError(f"{name} has values that fp16 cannot hold")
        return tensors

    def _keep_pixels(self, window: Window, frames: Frames) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = write_video(Path(folder) / "pixels.mkv", frames, fps=window.fps, codec="ffv1")
            self._dataset.upload(path, f"pixels/{window.window_id}.mkv")


class WriteShards:
    """Write stage: rows of `EncodeWindows` in, one row a shard out: its commit as JSON."""

    def __init__(self, storage: str, name: str, encoder_hash: str) -> None:
        self._location = (storage, name)
        self._encoder_hash = encoder_hash

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows, rejects = [], []
        for encoded in batch.to_pylist():
            if encoded["reject"]:
                rejects.append(json.loads(encoded["reject"]))
                continue
            row = json.loads(encoded["window"]) | {name: encoded[name] for name in (*TENSORS, "preview")}
            row |= {f"{name}_shape": shape for name, shape in json.loads(encoded["shapes"]).items()}
            rows.append(row | {"scores": [], "encoder_hash": self._encoder_hash})
        commit: dict[str, Any] = {"rejected": rejects, "windows": []}
        if rows:
            commit["shard"] = write_shard(open_dataset(*self._location), rows)
            commit["windows"] = [{"window_id": row["window_id"], "sha256": row_sha256(row)} for row in rows]
        return pa.table({"commit": [json.dumps(commit)]})


class Commits:
    """The commits of a dataset, in order: which shards count, and which windows need no encoding."""

    def __init__(self, dataset: Storage) -> None:
        self._dataset = dataset
        self._entries: list[dict[str, Any]] = [dataset.read_json(name) for name in dataset.list("commits")]
        self.done = {window_id for entry in self._entries for window_id in _settled(entry)}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._entries)

    def add(self, commit: dict[str, Any]) -> int:
        """Write one commit; returns how many windows it settles. A shard whose windows are committed is left out."""
        new = _settled(commit)
        if new & self.done:
            return 0
        self._dataset.write_json(f"commits/{len(self._entries):06d}.json", commit)
        self._entries.append(commit)
        self.done |= new
        return len(new)

    def rejects(self) -> list[Reject]:
        """Windows that were rejected and not encoded since, by window_id."""
        encoded = {w["window_id"] for entry in self._entries for w in entry["windows"]}
        latest = {r["window_id"]: Reject(**r) for entry in self._entries for r in entry["rejected"]}
        return [latest[key] for key in sorted(latest) if key not in encoded]


def preview(frames_THWC: Frames) -> bytes:
    """JPEG of the first, middle and last frame side by side."""
    height, width = frames_THWC.shape[1:3]
    size = (round(width * _PREVIEW_HEIGHT / height), _PREVIEW_HEIGHT)
    chosen = [frames_THWC[0], frames_THWC[len(frames_THWC) // 2], frames_THWC[-1]]
    strip = np.concatenate([cv2.resize(f, size, interpolation=cv2.INTER_AREA) for f in chosen], axis=1)
    ok, data = cv2.imencode(".jpg", cv2.cvtColor(strip, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])
    assert ok
    return data.tobytes()


def object_sha256(dataset: Storage, name: str) -> str:
    """Hex sha256 of a small object."""
    return hashlib.sha256(dataset.read_bytes(name)).hexdigest()


def _settled(commit: dict[str, Any]) -> set[str]:
    encoded = {w["window_id"] for w in commit["windows"]}
    return encoded | {r["window_id"] for r in commit["rejected"] if r["reason"] in FINAL_REASONS}


def _reject(window: Window, reason: str, detail: str) -> str:
    return json.dumps(asdict(Reject(window.source_uri, reason, detail, window.window_id)))
