"""Captions, and groups, from files beside the footage.

The most specific caption that is there: the shot's in the JSON file ("shots": [{"start_s", "end_s", "caption"}]), the
text file, "caption" in the JSON file, that of the list's row or of the source, a captioner's, the dataset's default.
The trigger phrase precedes it. "group" in the JSON file names what the video belongs to: files of one group are never
divided between splits.

`clip.mp4` has `clip.mp4.txt` or `clip.txt`, and `clip.mp4.json` or `clip.json`, beside it. The case of the suffix and
the Unicode normal form of the name do not matter.
"""

from __future__ import annotations

import codecs
import json
import math
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cinesynth.data.footage.formats import suffix_of
from cinesynth.data.footage.sources import Source
from cinesynth.errors import MediaError, StorageError
from cinesynth.storage import Storage, public_uri, split_options

MAX_CAPTION = 10_000
CAPTION_SUFFIXES = (".txt", ".json")
_MAX_BYTES = {".txt": 1 << 20, ".json": 1 << 26}
# UTF-32's mark begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


@dataclass(frozen=True)
class ShotCaption:
    """A caption for a part of a file, in seconds from its first frame."""

    start_s: float
    end_s: float
    caption: str


@dataclass(frozen=True)
class Captions:
    """What is written beside one file.

    Attributes:
        whole: the file's caption; empty where there is none.
        shots: captions of parts of it.
        group: what it belongs to.
        whole_from: `txt` or `json`: where `whole` stands; empty where it is.
        unused: names of caption files, each with what of it cannot be used.
    """

    whole: str = ""
    shots: tuple[ShotCaption, ...] = ()
    group: str | None = None
    # The identity of a run's footage is made of the representation; these two are left out of it.
    whole_from: str = field(default="", repr=False)
    unused: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    def at(self, time_s: float) -> str:
        """The caption of what is to be seen `time_s` seconds after the file's first frame; may be empty."""
        return self._shot(time_s) or self.whole

    def _shot(self, time_s: float) -> str:
        return next((s.caption for s in self.shots if s.start_s <= time_s < s.end_s), "")

    def found(self, time_s: float, source: Source) -> tuple[str, str]:
        """The caption at a time, or else the source's, and where it stands: `shot`, `txt`, `json` or `footage`.

        Both are empty where only a captioner and the dataset's default are left.
        """
        if shot := self._shot(time_s):
            return shot, "shot"
        if self.whole:
            return self.whole, self.whole_from
        return (source.caption, "footage") if source.caption else ("", "")


def with_trigger(caption: str, trigger: str) -> str:
    """The caption behind the trigger phrase."""
    phrase = _tidy(trigger).rstrip(",")
    return f"{phrase}, {caption}" if phrase else caption


def caption_files(names: Iterable[str]) -> dict[str, list[str]]:
    """The text and JSON files among a folder's names, by what `caption_files_of` looks for."""
    found: dict[str, list[str]] = {}
    for name in names:
        suffix = suffix_of(name)
        if suffix in CAPTION_SUFFIXES:
            found.setdefault(_normal(name[: -len(suffix)]) + suffix, []).append(name)
    return found


def caption_files_of(video: str, files: Mapping[str, list[str]]) -> tuple[str, ...]:
    """The names of the caption files of a video of the same folder: at most one text file, and one JSON file."""
    stems = [video, video[: -len(suffix)]] if (suffix := suffix_of(video)) else [video]
    chosen = []
    for kind in CAPTION_SUFFIXES:
        for stem in stems:
            if found := files.get(_normal(stem) + kind):
                chosen.append(stem + kind if stem + kind in found else min(found))
                break
    return tuple(chosen)


def read_captions(location: str, files: Iterable[str] | None = None) -> Captions:
    """Captions beside the video at `location`.

    Args:
        location: of the video.
        files: names of its caption files; None: they are looked for in its folder.

    Raises MediaError, naming file, key and value, for a caption file that cannot be read or used, unless the other
    one has a caption: then the video keeps that, and `unused` says the rest.
    """
    folder, name = split_location(location)
    try:
        storage = Storage.open(folder)
        files = caption_files_of(name, caption_files(storage.list())) if files is None else files
        text, sidecar, problems = "", Captions(), []
        for file in files:
            suffix = suffix_of(file)
            try:
                content = decode_text(_read_at_most(storage, file, _MAX_BYTES[suffix]))
                if suffix == ".txt":
                    text = _caption(content, "the caption")
                else:
                    sidecar, wrong = _parse(content)
                    problems += [(file, what) for what in wrong]
            except ValueError as e:
                if suffix == ".txt":
                    raise MediaError(f"{public_uri(location)}: caption file {file} cannot be used: {e}") from e
                problems.append((file, str(e)))
    except (OSError, StorageError) as e:
        raise MediaError(f"captions beside {public_uri(location)} cannot be read: {e}") from e
    if problems and not (text or sidecar.whole):
        file, what = problems[0]
        raise MediaError(f"{public_uri(location)}: caption file {file} cannot be used: {what}")
    whole_from = "txt" if text else "json" if sidecar.whole else ""
    return Captions(text or sidecar.whole, sidecar.shots, sidecar.group, whole_from, tuple(problems))


def split_location(location: str) -> tuple[str, str]:
    """The folder of a file or object, with what opens it, and the name in it."""
    path, options = split_options(location)
    folder, _, name = path.rpartition("/")
    return (folder or "/") + options, name


def decode_text(data: bytes) -> str:
    """Text of a file that people write: UTF-8, or what its byte-order mark says.

    Raises ValueError for anything else.
    """
    mark = next((mark for mark in _MARKS if data.startswith(mark)), b"")
    encoding = _MARKS.get(mark, "utf-8")
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as e:
        wrong = f"byte {data[len(mark) + e.start]:#04x} at {len(mark) + e.start}"
        raise ValueError(f"it is not {encoding.upper()} ({wrong}); save it as UTF-8") from e
    if "\0" in text:
        raise ValueError("it holds NUL characters, as UTF-16 without a byte-order mark does; save it as UTF-8")
    return text


def text_or_number(value: Any) -> Any:
    """A whole number as its digits, as a group may be; anything else as it is."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _read_at_most(storage: Storage, name: str, limit: int) -> bytes:
    with storage.filesystem.open_input_stream(storage.child(name).path) as f:
        data = f.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"it is longer than {limit:,} bytes")
    return data


def _parse(text: str) -> tuple[Captions, list[str]]:
    """What a JSON file says, and what of it cannot be used. Raises ValueError when it is no object."""
    if not text.strip():
        return Captions(), []
    try:
        sidecar = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"it is not JSON: {e}") from e
    if not isinstance(sidecar, dict):
        raise ValueError(f"it holds {_shown(sidecar)}, not an object with 'caption'")
    wrong: list[str] = []
    values: dict[str, str] = {}
    for key in ("caption", "group"):
        value = sidecar.get(key)
        try:
            values[key] = "" if value is None else _caption(text_or_number(value) if key == "group" else value, key)
        except ValueError as e:
            wrong.append(str(e))
    shots = []
    found = sidecar.get("shots") or []
    if not isinstance(found, list):
        wrong.append(f"shots = {_shown(found)} is not a list")
    for number, entry in enumerate(found if isinstance(found, list) else []):
        try:
            if (shot := _shot(entry, f"shots.{number}")).caption:
                shots.append(shot)
        except ValueError as e:
            wrong.append(str(e))
    return Captions(values.get("caption", ""), tuple(shots), values.get("group") or None), wrong


def _shot(entry: Any, key: str) -> ShotCaption:
    if not isinstance(entry, dict):
        raise ValueError(f"{key} = {_shown(entry)} is not an object")
    times = []
    for name in ("start_s", "end_s"):
        try:
            times.append(float(entry.get(name)))  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            times.append(math.nan)
        if not math.isfinite(times[-1]):
            raise ValueError(f"{key}.{name} = {_shown(entry.get(name))} is not a number of seconds")
    if times[0] >= times[1]:
        raise ValueError(f"{key}: start_s = {times[0]:g} is not before end_s = {times[1]:g}")
    caption = entry.get("caption")
    return ShotCaption(times[0], times[1], "" if caption is None else _caption(caption, f"{key}.caption"))


def _caption(value: Any, key: str) -> str:
    """A value as one line of text. Raises ValueError, naming the key, for what is no text, or is too long."""
    if not isinstance(value, str):
        raise ValueError(f"{key} = {_shown(value)} is not text")
    try:
        text = _tidy(value)
    except UnicodeEncodeError as e:  # JSON may hold halves of characters
        raise ValueError(f"{key} = {_shown(value)} is not text that UTF-8 can write") from e
    if "\0" in text:
        raise ValueError(f"{key} = {_shown(value)} holds a NUL character")
    if len(text) > MAX_CAPTION:
        raise ValueError(f"{key} has {len(text):,} characters; at most {MAX_CAPTION:,}")
    return text


def _shown(value: Any) -> str:
    """A JSON value, its first characters when it is long."""
    try:
        text = json.dumps(value)
    except RecursionError:  # what was just deep enough to be read
        return "a value that is nested too deeply"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _tidy(text: str) -> str:
    text.encode()
    return " ".join(text.split())


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)
