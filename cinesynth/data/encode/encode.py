"""The stages of the encode graph: decode and crop, VAE, CLIP; and text, once for each distinct caption.

A block of the graph holds windows of one bucket. A window that fails becomes a reject in a column, never an exception.
An error of the accelerator, or of memory or disk, is no property of a window: it ends the attempt.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pyarrow as pa

from cinesynth.data.config import Backend, DecodeSettings, Size
from cinesynth.data.dataset import HELD_OUT, pixels_file, tensor_columns, tensor_fields, write_table
from cinesynth.data.footage.cache import local_file
from cinesynth.data.plan.geometry import resize
from cinesynth.data.records import Box, Reject, Window, prompt_file, window_from_json
from cinesynth.data.scan.decoders import make_decoder
from cinesynth.data.scan.watch import watched
from cinesynth.data.video import read_video, write_video
from cinesynth.errors import AttemptFailed, MediaError, StorageError
from cinesynth.pictures import Frames
from cinesynth.storage import Storage, sha256_file

if TYPE_CHECKING:
    import torch

    from cinesynth.wan.condition import ConditionEncoder

_PREVIEW_HEIGHT = 96
STAGES = ("decode", "vae", "clip")

# Columns between the stages. Stages take and give Arrow tables: bytes in a numpy array lose their trailing zeros.
_BASE = [
    ("window", pa.string()),  # JSON
    ("reject", pa.string()),  # JSON, or empty
    ("preview", pa.large_binary()),
    ("pixels_sha256", pa.string()),  # of the stored file; empty where none is kept
    *((f"{stage}_cpu_s", pa.float64()) for stage in STAGES),
]
_PIXELS = [("pixels", pa.large_binary())]
DECODED = pa.schema([*_BASE, *_PIXELS])


def encoded_schema(tensors: Sequence[str], pixels: bool) -> pa.Schema:
    """Columns of encoded blocks: the tensors that there are so far, and the first frame's pixels for what follows."""
    return pa.schema([*_BASE, *(_PIXELS if pixels else []), *tensor_fields(tensors, pa.large_binary())])


def read_window(
    beat: Callable[[], None], backend: Backend, path: str, pts: Sequence[int], size: Size, box: Box
) -> tuple[Frames, float]:
    """The frames of a window in its bucket's size, and the CPU seconds they took; runs in the watched child.

    Where another backend cannot decode them, as decord no AV1, PyAV does: only what PyAV refuses is undecodable.
    """
    started = time.process_time()

    def read(by: Backend) -> Frames:
        return make_decoder(by).read(path, pts, lambda frame: resize(frame[None], size, box)[0], beat)

    try:
        frames = read(backend)
    except MediaError:
        if backend == "pyav":
            raise
        frames = read("pyav")
    return frames, time.process_time() - started


class DecodeWindows:
    """Turns windows into pixels of their bucket's size, previews and rejects. Keeps the pixels of val and test.

    It is an actor, because Ray ends the processes of waiting tasks, and with them the child that decodes.
    """

    def __init__(self, settings: DecodeSettings, dataset: tuple[Any, ...]) -> None:
        self._settings, self._dataset = settings, dataset

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = [self._row(text) for text in batch["window"].to_pylist()]
        return pa.Table.from_pylist(rows, schema=DECODED)

    def _row(self, text: str) -> dict[str, Any]:
        window = window_from_json(text)
        row: dict[str, Any] = {"window": text, "reject": ""}
        started = time.process_time()
        try:
            frames, cpu_s = decode_window(window, self._settings)
        except MediaError as e:
            return row | {"reject": _reject(window, "undecodable", str(e))}
        except AttemptFailed as e:
            return row | {"reject": _reject(window, "decode_failed", str(e))}
        kept = self._keep(window, frames) if window.split in HELD_OUT else ""
        row |= {"pixels": frames.tobytes(), "preview": preview(frames), "pixels_sha256": kept}
        return row | {"decode_cpu_s": cpu_s + time.process_time() - started}

    def _keep(self, window: Window, frames: Frames) -> str:
        """Store the frames, and return the sha256 of the file.

        A stored file with the same frames stays as it is: a published dataset may name it.
        """
        storage, name = Storage(*self._dataset), pixels_file(window.window_id)
        with tempfile.TemporaryDirectory() as folder:
            try:
                there = storage.download(name, Path(folder) / "there.mkv")
                if np.array_equal(read_video(there)[0], frames):
                    return sha256_file(there)
            except (StorageError, MediaError):  # there is none, or a damaged one
                pass
            path = write_video(Path(folder) / "pixels.mkv", frames, fps=window.fps, codec="ffv1")
            storage.upload(path, name)
            return sha256_file(path)


def decode_window(window: Window, settings: DecodeSettings) -> tuple[Frames, float]:
    """The frames of a window as uint8 [T, height, width, 3], and the CPU seconds of the child that decoded them.

    Raises MediaError when the window does not decode, and AttemptFailed when the attempt failed or took too long.
    """
    size = (window.width, window.height)
    what = f"{window.source_uri} at {window.start_s:.2f} s"
    with local_file(window.location, window.source_sha256, window.stamp, settings.cache_bytes) as path:
        child = watched(settings.limit_s, __name__)
        return child.call(what, read_window, settings.backend, path, window.frame_pts, size, window.box)


def is_of_machine(error: Exception) -> bool:
    """Whether an error comes from the machine, not from the window: memory, disk, or a broken accelerator."""
    accelerator = type(error).__name__ in ("OutOfMemoryError", "AcceleratorError") or "CUDA error" in str(error)
    return accelerator or isinstance(error, MemoryError | OSError)


class _Encoder:
    """An actor with one encoder of a model. It adds columns to the rows that are not rejected."""

    stage: str
    tensors: tuple[str, ...]
    """that this stage makes"""

    def __init__(self, model: str, device: str, vae_dtype: str = "fp32") -> None:
        import torch
        from transformers.utils import logging as transformers_logging

        from cinesynth.wan.condition import ConditionEncoder

        transformers_logging.disable_progress_bar()
        dtype = torch.bfloat16 if vae_dtype == "bf16" else torch.float32
        self._encoder: ConditionEncoder = ConditionEncoder(model, device, vae_dtype=dtype)
        wanted = self._encoder.spec.family.pixel_tensors
        made = wanted[: wanted.index(self.tensors[-1]) + 1]
        self.schema = encoded_schema(made, pixels=made != wanted)

    def __call__(self, batch: pa.Table) -> pa.Table:
        return pa.Table.from_pylist([self._row(row) for row in batch.to_pylist()], schema=self.schema)

    def encode(self, window: Window, row: dict[str, Any]) -> dict[str, Any]:
        """The new columns of a row."""
        raise NotImplementedError

    def _row(self, row: dict[str, Any]) -> dict[str, Any]:
        if row["reject"]:
            return row
        window = window_from_json(row["window"])
        started = time.process_time()
        try:
            new = self.encode(window, row)
            return row | new | {f"{self.stage}_cpu_s": time.process_time() - started}
        except FloatingPointError as e:
            return row | {"reject": _reject(window, "not_finite", str(e))}
        except Exception as e:
            if is_of_machine(e):
                raise
            return row | {"reject": _reject(window, "encode_failed", f"{type(e).__name__}: {e}")}


class EncodeLatents(_Encoder):
    """Turns pixels into latents of the window and of its first frame, and passes that frame on to an image encoder."""

    stage = "vae"
    tensors = ("latents", "condition_latents")

    def encode(self, window: Window, row: dict[str, Any]) -> dict[str, Any]:
        frames = _frames(row["pixels"], window)
        latents, condition = self._encoder.window_latents(frames)
        both = _columns("latents", latents) | _columns("condition_latents", condition)
        return both | {"pixels": frames[0].tobytes()}


class EncodeImages(_Encoder):
    """Turns first frames into embeddings of the image encoder. It is the last stage, of families that have one."""

    stage = "clip"
    tensors = ("image_embeds",)

    def encode(self, window: Window, row: dict[str, Any]) -> dict[str, Any]:
        first = _frames(row["pixels"], window)[0]
        return _columns("image_embeds", self._encoder.image_embeds(first))


class EncodeCaptions:
    """Encodes distinct captions, and stores each embedding as an object of its own."""

    def __init__(self, model: str, device: str, dataset: tuple[Any, ...]) -> None:
        from cinesynth.wan.condition import ConditionEncoder

        self._encoder, self._dataset = ConditionEncoder(model, device), Storage(*dataset)

    def __call__(self, batch: pa.Table) -> pa.Table:
        errors = [self._store(caption) for caption in batch["caption"].to_pylist()]
        return batch.append_column("error", pa.array(errors, pa.string()))

    def _store(self, caption: str) -> str:
        """Store the embedding of a caption. Returns the reason when it has none, else an empty text."""
        try:
            columns = _columns("prompt_embeds", self._encoder.prompt_embeds(caption))
        except FloatingPointError as e:
            return str(e)
        write_table(self._dataset, prompt_file(caption), pa.Table.from_pylist([columns]))
        return ""


def preview(frames_THWC: Frames) -> bytes:
    """JPEG of the first, middle and last frame side by side."""
    height, width = frames_THWC.shape[1:3]
    size = (max(1, round(width * _PREVIEW_HEIGHT / height)), _PREVIEW_HEIGHT)
    chosen = [frames_THWC[0], frames_THWC[len(frames_THWC) // 2], frames_THWC[-1]]
    strip = np.concatenate([cv2.resize(f, size, interpolation=cv2.INTER_AREA) for f in chosen], axis=1)
    ok, data = cv2.imencode(".jpg", cv2.cvtColor(strip, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])
    assert ok
    return data.tobytes()


def _frames(pixels: bytes, window: Window) -> Frames:
    return np.frombuffer(pixels, np.uint8).reshape(-1, window.height, window.width, 3)


def _columns(name: str, value: torch.Tensor) -> dict[str, Any]:
    if not value.half().isfinite().all():
        raise FloatingPointError(f"{name} has values that fp16 cannot hold")
    return tensor_columns(name, value)


def _reject(window: Window, reason: str, detail: str) -> str:
    return json.dumps(asdict(Reject(window.source_uri, reason, detail, window.window_id)))
