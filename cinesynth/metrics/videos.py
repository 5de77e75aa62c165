"""Folders of videos: which files count, what they are, how they are grouped, and what a reader is to be warned of.

Everything that is wrong with them is found here, before any network runs: by decoding each once frame by frame, or from
what is kept of an earlier check of the same content.
"""

from __future__ import annotations

import csv
import io
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

from cinesynth.data.footage.formats import is_video_name
from cinesynth.data.records import Reject, Stamp
from cinesynth.data.video import VideoFacts, inspect_video
from cinesynth.errors import ConfigError, DatasetError, MediaError
from cinesynth.metrics.kept import KeptWork
from cinesynth.storage import Storage, sha256_file, sha256_json

log = logging.getLogger("cinesynth.metrics")

_CHECKS = min(4, os.cpu_count() or 1)  # videos that are checked at once; decoding holds no lock of Python's


class Bucket(NamedTuple):
    """Shape of a video as it is shown: pixels, and frames that count."""

    width: int
    height: int
    num_frames: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}x{self.num_frames}"


class VideoFile(NamedTuple):
    """A file with the content that is evaluated."""

    path: Path
    sha256: str
    stamp: Stamp

    @classmethod
    def of(cls, path: Path) -> VideoFile:
        """The file as it is now."""
        stamp = _stamp(path)
        return cls(path, _sha256_of(path, stamp), stamp)

    def check(self) -> None:
        """Raise MediaError where the file has changed."""
        if _stamp(self.path) != self.stamp:
            raise MediaError(f"{self.path} changed while it was evaluated; start again when nothing writes to it")


@lru_cache(65536)
def _sha256_of(path: Path, stamp: Stamp) -> str:
    return sha256_file(path)


def _stamp(path: Path) -> Stamp:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


@dataclass(frozen=True)
class VideoSet:
    """A folder of videos.

    Attributes:
        name: `real`, or the arm's name.
        files: id (path below the folder, without suffix) to file, sorted by id.
        buckets: id to shape.
        fps: average frame rates that occur.
        codecs: codecs that occur.
        passed_over: what else lies in the folder, by kind, with its number.
        contents: id to file with its content.
    """

    name: str
    files: dict[str, Path]
    buckets: dict[str, Bucket]
    fps: frozenset[float]
    codecs: frozenset[str]
    passed_over: Mapping[str, int]
    contents: Mapping[str, VideoFile] = field(default_factory=dict)

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """Id to (height, width)."""
        return {key: (bucket.height, bucket.width) for key, bucket in self.buckets.items()}

    @property
    def num_frames(self) -> int:
        """Frames that count of the shortest video."""
        return min(bucket.num_frames for bucket in self.buckets.values())

    @property
    def most_frames(self) -> int:
        """Frames that count of the longest video."""
        return max(bucket.num_frames for bucket in self.buckets.values())

    def with_frames(self, num_frames: int) -> Path | None:
        """A video of that length."""
        return next((self.files[key] for key, b in self.buckets.items() if b.num_frames == num_frames), None)


def list_videos(name: str, folder: Path) -> dict[str, Path]:
    """Id to file of every video below `folder`, sorted by id. Hidden names are left out, linked folders not entered.

    Raises:
        DatasetError: there is none, or two share an id (`a.mp4` and `a.mkv`).
        MediaError: a folder named like a video, or a link to nothing.
    """
    found: dict[str, Path] = {}
    for path, kind in _entries(folder):
        if kind != "video":
            continue
        if path.is_dir():
            raise MediaError(f"{name}: {path} is a folder that is named like a video; rename it")
        if not path.exists():
            raise MediaError(f"{name}: {path} is a link to nothing; remove it, or put the file there")
        key = path.relative_to(folder).with_suffix("").as_posix()
        if key in found:
            raise DatasetError(f"{name}: {found[key]} and {path} have one name; keep one of them")
        found[key] = path
    if not found:
        others = _counted(passed_over(folder))
        raise DatasetError(f"{name}: {folder} holds no video file{f'; it holds {others}' if others else ''}")
    return dict(sorted(found.items()))


def passed_over(folder: Path) -> dict[str, int]:
    """Number of what `list_videos` passes over, by kind: `.gif`, `linked folder`. Hidden names do not count."""
    return dict(sorted(Counter(kind for _, kind in _entries(folder) if kind != "video").items()))


def _entries(folder: Path) -> Iterator[tuple[Path, str]]:
    """Each file, linked folder and folder named like a video below a folder, sorted, with its kind."""
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            path = Path(root, name)
            if is_video_name(name):
                yield path, "video"
            elif path.is_symlink():
                yield path, "linked folder"
        for name in sorted(name for name in files if not name.startswith(".")):
            yield Path(root, name), "video" if is_video_name(name) else Path(name).suffix.lower() or "without a suffix"


def content_hash(files: Mapping[str, Path]) -> str:
    """Sha256 over the ids and the contents of the files."""
    return sha256_json({key: VideoFile.of(path).sha256 for key, path in files.items()})


def open_sets(folders: Mapping[str, Path], frames: int | None, kept: KeptWork | None = None) -> list[VideoSet]:
    """Decode every video once, frame by frame, to know what it is. The first set is the real one.

    Args:
        folders: set name to folder.
        frames: count only the first frames of each video; None: all.
        kept: has what earlier checks found: a video that is known by its content is not decoded again.

    Raises:
        DatasetError: a folder without videos, or sets of unequal lengths (see `check_lengths`).
        MediaError: a video that cannot be decoded or has fewer than `frames` frames.
    """
    sets = [_open_set(name, folder, frames, kept) for name, folder in folders.items()]
    for arm in sets[1:]:
        check_lengths(sets[0], arm)
    return sets


def _open_set(name: str, folder: Path, frames: int | None, kept: KeptWork | None) -> VideoSet:
    contents = {key: VideoFile.of(path) for key, path in list_videos(name, folder).items()}
    buckets, rates, codecs = {}, set(), set()
    logged = time.monotonic()
    with ThreadPoolExecutor(_CHECKS) as pool:
        checked = pool.map(partial(_checked, frames=frames, kept=kept), contents.values())
        try:
            for (key, file), facts in zip(contents.items(), checked, strict=True):
                if frames is not None and facts.num_frames < frames:
                    raise MediaError(f"{file.path} has {facts.num_frames} frames, fewer than frames={frames}; lower it")
                buckets[key] = Bucket(facts.width, facts.height, facts.num_frames)
                rates.add(round(facts.fps, 3))
                codecs.add(facts.codec)
                if time.monotonic() - logged > 10:
                    logged = time.monotonic()
                    log.info("checking %s: %d/%d videos", name, len(buckets), len(contents))
        except MediaError:
            pool.shutdown(cancel_futures=True)
            raise
    files = {key: file.path for key, file in contents.items()}
    return VideoSet(name, files, buckets, frozenset(rates), frozenset(codecs), passed_over(folder), contents)


def _checked(file: VideoFile, frames: int | None, kept: KeptWork | None) -> VideoFacts:
    """What a video is, from what is kept of it, or from decoding it."""
    facts = None if kept is None else kept.facts(file.sha256, frames)
    if facts is None:
        facts = inspect_video(file.path, frames)
        file.check()
        if kept is not None:
            kept.keep_facts(file.sha256, frames, facts)
    return facts


def check_lengths(real: VideoSet, arm: VideoSet) -> None:
    """Raise DatasetError, naming two files, where pairs differ in length or a length occurs in one set only.

    Otherwise metrics of sets would measure the lengths.
    """
    for key in arm.files.keys() & real.files.keys():
        if arm.buckets[key].num_frames != real.buckets[key].num_frames:
            raise _unequal(arm.files[key], arm.buckets[key].num_frames, real.files[key], real.buckets[key].num_frames)
    lengths = [{bucket.num_frames for bucket in s.buckets.values()} for s in (real, arm)]
    for n in sorted(lengths[0] ^ lengths[1]):
        here, there = (real, arm) if n in lengths[0] else (arm, real)
        path, other = here.with_frames(n), there.with_frames(there.num_frames)
        assert path is not None
        assert other is not None
        raise _unequal(path, n, other, there.num_frames)


def _unequal(path: Path, count: int, other: Path, other_count: int) -> DatasetError:
    return DatasetError(
        f"{path} has {count} frames, {other} has {other_count}; metrics compare videos of one length: "
        f"cut them, or set frames={min(count, other_count)} to use the first frames of each"
    )


def notes(sets: Sequence[VideoSet], pairs: bool) -> list[str]:
    """Warnings of the record: several buckets, files that were passed over, and names that do not pair.

    Args:
        sets: the real one first.
        pairs: a metric compares videos of one name.
    """
    real, *arms = sets
    found = [f"{s.name}: passed over {_counted(s.passed_over)}" for s in sets if s.passed_over]
    counts = {s.name: Counter(str(bucket) for bucket in s.buckets.values()) for s in sets}
    if any(len(count) > 1 for count in counts.values()):
        found.append(f"real holds videos of {_counted(counts['real'])}: metrics of sets pool them")
    for arm in arms:
        if _shares(counts[arm.name]) != _shares(counts["real"]):
            shown = f"{_counted(counts[arm.name])}, real {_counted(counts['real'])}"
            found.append(f"{arm.name} holds {shown}: metrics of sets count that difference too")
        paired = len(arm.files.keys() & real.files.keys())
        alone = f"{len(arm.files) - paired} of {arm.name}, {len(real.files) - paired} of real"
        if pairs and 0 < paired < max(len(arm.files), len(real.files)):
            found.append(f"{paired} videos of {arm.name} are compared in pairs; names without a pair: {alone}")
    return found


def rejects(folders: Mapping[str, Path], files: Mapping[str, Mapping[str, Path]], pairs: bool) -> list[Reject]:
    """What an evaluation does not take: files that were passed over, and videos whose name has no pair.

    Args:
        folders: set name to folder, the real one first.
        files: set name to its videos, as `list_videos` gives them.
        pairs: a metric compares videos of one name.
    """
    found = [
        Reject(f"{name}: {path.relative_to(folder)}", "passed_over", kind)
        for name, folder in folders.items()
        for path, kind in _entries(folder)
        if kind != "video"
    ]
    real, *arms = files
    for arm in arms if pairs else []:
        for name, other in ((arm, real), (real, arm)):
            alone = [key for key in files[name] if key not in files[other]]
            found += [Reject(f"{name}: {key}", "no_pair", f"{other} has no video of that name") for key in alone]
    return found


def _shares(counts: Mapping[str, int]) -> dict[str, float]:
    total = sum(counts.values())
    return {bucket: round(count / total, 9) for bucket, count in counts.items()}


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))


def read_groups(location: str) -> str:
    """The text of a groups file, without a UTF-8 mark. Raises ConfigError when it is not UTF-8."""
    try:
        return Storage.open(location).read_bytes("").decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise ConfigError(f"groups: {location} is not UTF-8 text (byte {e.start}); save it as CSV in UTF-8") from e


def parse_groups(text: str, where: str) -> dict[str, str]:
    """Video id to group from CSV text with the columns `video` (id or file name) and `group`.

    Raises ConfigError for missing columns, a row that is not whole, or a video with two groups.
    """
    rows = csv.DictReader(io.StringIO(text), strict=True)
    groups: dict[str, str] = {}
    try:
        if not {"video", "group"} <= set(rows.fieldnames or []):
            named = ", ".join(rows.fieldnames or [])
            raise ConfigError(f"groups: {where} needs the columns video, group; it has {named or 'none'}")
        for row in rows:
            line = f"groups: {where} line {rows.line_num}"
            for column in ("video", "group"):
                if not (row[column] or "").strip():
                    raise ConfigError(f"{line} has no {column}; fill it in, or remove the row")
            if any((value or "").strip() for value in row.get(None, [])):
                raise ConfigError(f"{line} has more values than the header has columns; quote those with commas")
            if groups.setdefault(video_id(row["video"]), row["group"]) != row["group"]:
                both = f"{groups[video_id(row['video'])]!r} and {row['group']!r}"
                raise ConfigError(f"groups: {where} gives {row['video']} the groups {both}; keep one")
    except csv.Error as e:
        raise ConfigError(f"groups: {where} line {rows.line_num + 1} begins a row that is not CSV: {e}") from e
    return groups


def parse_captions(text: str) -> dict[str, str]:
    """Video id to caption, from the column `caption` of the text that `parse_groups` reads; empty without one."""
    return _parse_column(text, "caption")


def parse_domains(text: str) -> dict[str, str]:
    """Video id to domain, from the column `domain` of the text that `parse_groups` reads; empty without one."""
    return _parse_column(text, "domain")


def _parse_column(text: str, column: str) -> dict[str, str]:
    rows = csv.DictReader(io.StringIO(text))
    if not {"video", column} <= set(rows.fieldnames or []):
        return {}
    return {video_id(row["video"]): row[column] or "" for row in rows}


def video_id(name: str) -> str:
    """A file's name below its folder as an id; an id stays as it is."""
    return Path(name).with_suffix("").as_posix() if is_video_name(name) else name


def assign_groups(sets: Sequence[VideoSet], groups: Mapping[str, str] | None) -> dict[str, str]:
    """Group of every video id; without a mapping each id is a group of its own.

    Raises ConfigError naming videos that the mapping leaves out.
    """
    ids = sorted({key for s in sets for key in s.files})
    if groups is None:
        return {key: key for key in ids}
    missing = [key for key in ids if key not in groups]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ConfigError(f"groups: no group is given for {', '.join(missing[:3])}{more}; add their rows")
    return {key: groups[key] for key in ids}
