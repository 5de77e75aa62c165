"""Scores and captions that need a model: text overlay, aesthetic score, a captioner. All are optional.

One stage of actors decodes a few pictures of each window and shows them to the models that the configuration names. A
score without weights is not measured; the page says so.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import pyarrow as pa
from PIL import Image

from cinesynth.config import PrepareConfig
from cinesynth.data.config import CaptionerSettings, DecodeSettings, PrepareSettings
from cinesynth.data.dataset import read_parts, write_part
from cinesynth.data.encode.encode import decode_window, is_of_machine
from cinesynth.data.progress import Progress, in_parts
from cinesynth.data.records import Reject, Window, window_from_json
from cinesynth.data.stages import actor_stage, device_of, to_blocks
from cinesynth.errors import AttemptFailed, ConfigError, MediaError, ModelError
from cinesynth.pictures import Frames
from cinesynth.storage import Storage, sha256_json

ANNOTATED = pa.schema(
    [(name, pa.string()) for name in ("key", "scores", "caption", "reason", "error")] + [("again", pa.bool_())]
)


class PictureScore(Protocol):
    """A model that turns pictures into a number."""

    def __call__(self, frames_THWC: Frames) -> float: ...


def annotation_key(settings: PrepareSettings) -> str:
    """Identity of the models and settings of `Annotate`; empty when the configuration asks for none."""
    asked = _asked(settings)
    return sha256_json(asked)[:16] if any(asked.values()) else ""


def annotation_row(window: Window) -> str:
    """Name under which a window's annotation is stored. The mark tells windows that need a caption from the others."""
    return window.window_id if window.caption else f"{window.window_id}?"


def unavailable(settings: PrepareSettings) -> dict[str, str]:
    """Scores that are not measured, and why."""
    missing = {}
    if not settings.detect_text:
        missing["text"] = "detect_text is off"
    if not settings.aesthetic:
        missing["aesthetic"] = "no weights are given (aesthetic)"
    return missing


def annotate_windows(
    config: PrepareConfig, dataset: Storage, windows: list[Window]
) -> tuple[list[Window], list[Reject]]:
    """Windows with the scores and captions of the models. Stored ones are used; missing ones are made."""
    import ray

    key = annotation_key(config)
    if not key:
        return windows, []
    folder = f"annotations/{key}"
    wanted = {annotation_row(w): w for w in windows}
    found = {row["key"]: row for part in read_parts(dataset, folder) for row in part.to_pylist()}
    missing = [w for name, w in wanted.items() if name not in found]
    if missing:
        resources = config.resources.models
        progress = Progress("annotate", config.name, len(missing), "windows")
        rows = ray.data.from_arrow(to_blocks(missing)).map_batches(
            Annotate,
            fn_constructor_args=(
                config.model_dump(mode="json", include=set(PrepareSettings.model_fields)),
                config.decode,
                device_of(resources),
            ),
            **actor_stage(resources, config.resources),
        )
        for table in in_parts(rows, progress):
            if len(settled := table.filter(pa.compute.invert(table["again"]))):
                write_part(dataset, folder, settled)
            found |= {row["key"]: row for row in table.to_pylist()}
    kept, rejects = [], []
    for name, window in wanted.items():
        row = found[name]
        if row["error"]:
            rejects.append(Reject(window.source_uri, row["reason"], row["error"], window.window_id))
        else:
            scores = window.scores | json.loads(row["scores"])
            window = replace(window, scores=scores)
            if not window.caption and row["caption"]:
                window = replace(window, caption=row["caption"], caption_from="captioner")
            kept.append(window)
    return kept, rejects


def check_models(settings: PrepareSettings) -> None:
    """Raise ConfigError for missing packages or weights, and for filters on scores that nothing measures."""
    if settings.detect_text:
        check_text_packages()
    if settings.aesthetic:
        check_aesthetic_folder(settings.aesthetic)
    for score, measured in (("text", settings.detect_text), ("aesthetic", bool(settings.aesthetic))):
        if score in settings.filters and not measured:
            name = "detect_text: true" if score == "text" else "aesthetic: FOLDER"
            raise ConfigError(f"filters.{score}: this score is not measured; set {name}, or remove the filter")


def check_text_packages() -> None:
    """Raise ConfigError when a package that `TextOverlay` needs is not installed."""
    for module in ("rapidocr", "onnxruntime"):
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f"detect_text: {module} is not installed; pip install 'cinesynth[text]'")


def check_aesthetic_folder(folder: str) -> None:
    """Raise ConfigError when a file that `Aesthetic` needs is missing."""
    for needed in ("clip/config.json", "predictor.safetensors"):
        if not (Path(folder) / needed).is_file():
            raise ConfigError(
                f"aesthetic: {folder}/{needed} is missing; give a folder with clip/ and predictor.safetensors"
            )


class Annotate:
    """Turns windows into rows with scores and captions, or with the reason why there are none."""

    def __init__(self, settings: dict[str, Any], decode: DecodeSettings, device: str) -> None:
        given = PrepareSettings.model_validate(settings)
        self._decode = decode
        self._scores: dict[str, PictureScore] = {}
        if given.detect_text:
            self._scores["text"] = TextOverlay()
        if given.aesthetic:
            self._scores["aesthetic"] = Aesthetic(given.aesthetic, device)
        self._captioner = Captioner(given.captioner, device) if given.captioner.model else None
        self._frames = given.captioner.frames

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = [self._row(text) for text in batch["window"].to_pylist()]
        return pa.Table.from_pylist(rows, schema=ANNOTATED)

    def _row(self, text: str) -> dict[str, Any]:
        window = window_from_json(text)
        row = {"key": annotation_row(window), "scores": "{}", "caption": "", "reason": "", "error": "", "again": False}
        try:
            scores, caption = self._found(window)
        except MediaError as e:
            return row | {"reason": "undecodable", "error": str(e)}
        except AttemptFailed as e:
            return row | {"reason": "decode_failed", "error": str(e), "again": True}
        except Exception as e:
            if is_of_machine(e):
                raise
            return row | {"reason": "annotate_failed", "error": f"{type(e).__name__}: {e}", "again": True}
        return row | {"scores": json.dumps(scores), "caption": caption}

    def _found(self, window: Window) -> tuple[dict[str, float], str]:
        frames, _ = decode_window(window, self._decode)
        places = np.linspace(0, len(frames) - 1, min(len(frames), self._frames)).round().astype(int)
        chosen = frames[places]
        caption = self._captioner(chosen) if self._captioner is not None and not window.caption else ""
        return {name: round(score(chosen), 4) for name, score in self._scores.items()}, caption


class TextOverlay:
    """Share of the picture inside boxes that rapidocr's detector takes for text (PP-OCR, weights in its package)."""

    def __init__(self) -> None:
        check_text_packages()
        from rapidocr import RapidOCR

        self._engine = RapidOCR(params={"Global.log_level": "critical"})

    def __call__(self, frames_THWC: Frames) -> float:
        shares = []
        for frame in frames_THWC:
            found = self._engine(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), use_det=True, use_cls=False, use_rec=False)
            mask = np.zeros(frame.shape[:2], np.uint8)
            boxes = getattr(found, "boxes", None)
            for box in [] if boxes is None else boxes:
                cv2.fillPoly(mask, [np.round(box).astype(np.int32)], 1)
            shares.append(float(mask.mean()))
        return float(np.mean(shares))


class Aesthetic:
    """LAION's aesthetic predictor: linear layers on CLIP's normalised image embedding; about 1 to 10.

    Args:
        folder: with `clip/` (a CLIP of transformers) and `predictor.safetensors` (its layers' weights and biases).
        device: torch device.
    """

    def __init__(self, folder: str, device: str) -> None:
        import torch
        from safetensors.torch import load_file
        from transformers import CLIPModel, CLIPProcessor

        root = Path(folder)
        check_aesthetic_folder(folder)
        self._torch, self._device = torch, device
        self._clip = CLIPModel.from_pretrained(root / "clip").eval().to(device)
        self._processor = CLIPProcessor.from_pretrained(root / "clip").image_processor
        weights = load_file(root / "predictor.safetensors", device=device)
        names = sorted(n for n in weights if n.endswith("weight") and weights[n].ndim == 2)
        self._layers = [(weights[n].float(), weights[n[: -len("weight")] + "bias"].float()) for n in names]
        if not self._layers or self._layers[-1][0].shape[0] != 1:
            raise ModelError(f"aesthetic: {root / 'predictor.safetensors'} does not end in a layer with one output")

    def __call__(self, frames_THWC: Frames) -> float:
        with self._torch.inference_mode():
            pixels = self._processor(images=[Image.fromarray(f) for f in frames_THWC], return_tensors="pt")
            x = self._clip.get_image_features(pixel_values=pixels.pixel_values.to(self._device))
            x = getattr(x, "pooler_output", x).float()
            x = x / x.norm(dim=-1, keepdim=True)
            for weight, bias in self._layers:
                x = x @ weight.T + bias
        return float(x.mean())


class Captioner:
    """An image-text-to-text model of transformers that describes pictures of a window in a sentence."""

    def __init__(self, settings: CaptionerSettings, device: str) -> None:
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        assert settings.model is not None
        self._torch, self._settings, self._device = torch, settings, device
        dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
        try:
            self._processor = AutoProcessor.from_pretrained(settings.model)
            model = AutoModelForImageTextToText.from_pretrained(settings.model, dtype=dtype)
        except (OSError, ValueError) as e:
            raise ModelError(f"captioner.model: {settings.model!r} cannot be loaded: {str(e).splitlines()[0]}") from e
        self._model = model.eval().to(device)

    def __call__(self, frames_THWC: Frames) -> str:
        pictures = [{"type": "image", "image": Image.fromarray(frame)} for frame in frames_THWC]
        messages = [{"role": "user", "content": [*pictures, {"type": "text", "text": self._settings.prompt}]}]
        inputs = self._processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ).to(self._device, self._model.dtype)
        with self._torch.inference_mode():
            out = self._model.generate(**inputs, max_new_tokens=self._settings.max_tokens, do_sample=False)
        text = self._processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
        return " ".join(text.split())


def _asked(settings: PrepareSettings) -> dict[str, Any]:
    captioner = settings.captioner.model_dump(mode="json") if settings.captioner.model else None
    return {"text": settings.detect_text, "aesthetic": settings.aesthetic, "captioner": captioner}
