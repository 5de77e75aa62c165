"""Captions, and groups, from files beside the footage.

The most specific caption that is there: the shot's in `<stem>.json` ("shots": [{"start_s", "end_s", "caption"}]),
`<stem>.txt`, "caption" in `<stem>.json`, the source's default, the dataset's default. The trigger phrase precedes it.
"group" in `<stem>.json` names what the file belongs to: files of one group are never divided between splits.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cinesynth.errors import MediaError


@dataclass(frozen=True)
class ShotCaption:
    """A caption for a part of a file, in seconds from its first frame."""

    start_s: float
    end_s: float
    caption: str


@dataclass(frozen=True)
class Captions:
    """The captions of one file, and its group where a sidecar names one."""

    whole: str
    shots: tuple[ShotCaption, ...] = ()
    trigger: str = ""
    group: str | None = None

    def at(self, time_s: float) -> str:
        """The caption of what is to be seen `time_s` seconds after the file's first frame."""
        text = next((s.caption for s in self.shots if s.start_s <= time_s < s.end_s), self.whole)
        return f"{self.trigger}, {text}" if self.trigger else text


def read_captions(path: Path, default: str, trigger: str = "") -> Captions:
    """Captions of the video at `path`.

    Raises MediaError for a sidecar that is not UTF-8, not JSON, or of another shape.
    """
    text_file, json_file = path.with_suffix(".txt"), path.with_suffix(".json")
    try:
        text = _tidy(text_file.read_text(encoding="utf-8")) if text_file.is_file() else ""
        sidecar = json.loads(json_file.read_text(encoding="utf-8")) if json_file.is_file() else {}
        whole, shots, group = _parse(sidecar)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, ValueError) as e:
        raise MediaError(f"caption beside {path} cannot be read: {type(e).__name__}: {e}") from e
    return Captions(text or whole or _tidy(default), shots, _tidy(trigger).rstrip(","), group)


def _parse(sidecar: Any) -> tuple[str, tuple[ShotCaption, ...], str | None]:
    if not isinstance(sidecar, dict):
        raise ValueError(f"expected an object with 'caption', not {type(sidecar).__name__}")
    shots = tuple(
        ShotCaption(float(s["start_s"]), float(s["end_s"]), _tidy(s["caption"])) for s in sidecar.get("shots", [])
    )
    group = _tidy(sidecar.get("group", "")) or None
    return _tidy(sidecar.get("caption", "")), tuple(s for s in shots if s.caption), group


def _tidy(text: str) -> str:
    if not isinstance(text, str):
        raise ValueError(f"a caption is text, not {type(text).__name__}")
    return " ".join(text.split())
