"""Captions, and groups, from files beside the footage.

The most specific caption that is there: the shot's in `<stem>.json` ("shots": [{"start_s", "end_s", "caption"}]),
`<stem>.txt`, "caption" in `<stem>.json`, the source's default, a captioner's, the dataset's default. The trigger
phrase precedes it. "group" in `<stem>.json` names what the file belongs to: files of one group are never divided
between splits.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from cinesynth.errors import MediaError, StorageError
from cinesynth.storage import Storage, public_uri, split_options

MAX_CAPTION = 10_000


@dataclass(frozen=True)
class ShotCaption:
    """A caption for a part of a file, in seconds from its first frame."""

    start_s: float
    end_s: float
    caption: str


@dataclass(frozen=True)
class Captions:
    """What is written beside one file. `whole` is empty where nothing is."""

    whole: str = ""
    shots: tuple[ShotCaption, ...] = ()
    group: str | None = None

    def at(self, time_s: float) -> str:
        """The caption of what is to be seen `time_s` seconds after the file's first frame; may be empty."""
        return next((s.caption for s in self.shots if s.start_s <= time_s < s.end_s), self.whole)


def with_trigger(caption: str, trigger: str) -> str:
    """The caption behind the trigger phrase."""
    phrase = _tidy(trigger).rstrip(",")
    return f"{phrase}, {caption}" if phrase else caption


def read_captions(location: str) -> Captions:
    """Captions beside the video at `location`.

    Raises MediaError for a sidecar that is not UTF-8, not JSON, of another shape, or longer than 10,000 characters.
    """
    try:
        text = _tidy(_beside(location, ".txt"))
        found = _beside(location, ".json")
        whole, shots, group = _parse(json.loads(found) if found else {})
        longest = max(len(caption) for caption in (text, whole, *(s.caption for s in shots)))
        if longest > MAX_CAPTION:
            raise ValueError(f"it has {longest:,} characters; at most {MAX_CAPTION:,}")
    except (OSError, StorageError, KeyError, TypeError, ValueError) as e:
        raise MediaError(f"caption beside {public_uri(location)} cannot be read: {type(e).__name__}: {e}") from e
    return Captions(text or whole, shots, group)


def _beside(location: str, suffix: str) -> str:
    """The text of the file with another suffix; empty where there is none."""
    path, options = split_options(location)
    storage = Storage.open(path.rpartition(".")[0] + suffix + options)
    return storage.read_text("") if storage.exists("") else ""


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
    text.encode()  # JSON may hold halves of characters; this raises a ValueError
    return " ".join(text.split())
