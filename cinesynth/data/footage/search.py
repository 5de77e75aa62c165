"""Find footage: folders, files, globs, lists and bucket prefixes, as one list of sources.

Every file of a folder is accounted for: it is a source, holds the captions of one, or is a reject; hidden files and
folders alone are passed over. Nothing is opened here: what a name leaves open, `holds_video` decides later. What cannot
be a source is a reject, never the end.
"""

from __future__ import annotations

import glob
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import takewhile
from pathlib import Path

import pyarrow.fs as pafs

from cinesynth.data.config import FootageSource
from cinesynth.data.footage.captions import CAPTION_SUFFIXES, caption_files, caption_files_of, split_location
from cinesynth.data.footage.folders import walk_folder, what_is_wrong
from cinesynth.data.footage.formats import named_otherwise, suffix_of
from cinesynth.data.footage.lists import LIST_SUFFIXES, check_no_list, read_list
from cinesynth.data.footage.packages import resolve_footage
from cinesynth.data.footage.sources import Source, below, is_remote, is_unicode, printable
from cinesynth.data.records import Reject
from cinesynth.errors import ConfigError, StorageError
from cinesynth.storage import Storage, public_uri

_WRITTEN = ("datasets", "runs", "registry", "serve")  # below the storage of all jobs
_LISTED_AT_ONCE = 16  # folders of buckets
_ANY_DOMAIN = FootageSource.model_fields["domain"].default


@dataclass
class _Found:
    """What was found so far."""

    sources: dict[tuple[str, float, float, bool], Source] = field(default_factory=dict)
    rejects: dict[Reject, None] = field(default_factory=dict)  # each once, in order

    def reject(self, location: str, reason: str, detail: str) -> None:
        self.rejects.setdefault(Reject(public_uri(location), reason, detail))

    def add(self, source: Source) -> None:
        """Take a source, unless the same part of the file is there."""
        key = _key(source)
        before = self.sources.get(key)
        if not is_unicode(source.location):
            self.reject(source.location, "unreadable", f"the name of {source.uri} is not UTF-8; rename it")
        elif before is None:
            self.sources[key] = source
        elif source.row != before.row:
            self.reject(source.location, "duplicate", f"{source.row} names the same part as {before.row}")
        elif source != before:
            detail = "it is named a second time, with another domain or caption; the first one counts"
            self.reject(source.location, "duplicate", detail)

    def put_rows_first(self) -> None:
        """Where lists name a file or parts of it, they alone count: their rows take the place of the whole file."""
        rows: dict[str, list[Source]] = defaultdict(list)
        for source in self.sources.values():
            if source.row:
                rows[source.location].append(source)
        sources: dict[tuple[str, float, float, bool], Source] = {}
        for source in self.sources.values():
            if not source.row and source.location in rows:
                sources |= {_key(row): _both(row, source) for row in rows[source.location]}
            else:
                sources.setdefault(_key(source), source)
        self.sources = sources

    def accounted(self) -> tuple[list[Source], list[Reject]]:
        """All sources, and the rejects of what is neither a source nor holds captions of one."""
        sources = list(self.sources.values())
        used = {source.uri for source in sources}
        for source in sources:
            folder = split_location(source.location)[0]
            used |= {public_uri(below(folder, name)) for name in source.caption_files or ()}
        left = [r for r in self.rejects if r.reason not in ("not_video", "unused") or r.source not in used]
        return sources, [replace(r, source=printable(r.source), detail=printable(r.detail)) for r in left]


def _key(source: Source) -> tuple[str, float, float, bool]:
    """A part of a file, and whether a list names it."""
    return source.location, source.in_s, source.out_s, bool(source.row)


def _both(row: Source, other: Source) -> Source:
    """What a list's row says of a file, and where it says nothing what the folder's source says."""
    domain = other.domain if row.domain == _ANY_DOMAIN else row.domain
    files = row.caption_files if other.caption_files is None else other.caption_files
    return replace(row, domain=domain, caption=row.caption or other.caption, caption_files=files)


def written_by_jobs(storage: str) -> list[str]:
    """The folders or prefixes below a storage location that jobs and the service write."""
    location = Storage.open(storage)
    return [location.child(name).uri for name in _WRITTEN]


def find_sources(footage: Sequence[FootageSource], besides: Sequence[str] = ()) -> tuple[list[Source], list[Reject]]:
    """All sources in order, the same part of a file once, and what cannot be one.

    Folders are searched recursively, linked ones too, names in sorted order. Raises ConfigError for a list that cannot
    be read, and for a bucket that cannot be listed.

    Args:
        footage: of the configuration.
        besides: folders or prefixes that are passed over, unless a source names one, or something in it.
    """
    found = _Found()
    for source in footage:
        if is_remote(source.path):
            _remote(source, besides, found)
        else:
            _local(source, besides, found)
    found.put_rows_first()
    _find_caption_files(found)
    return found.accounted()


def matches(pattern: Path) -> list[Path]:
    """What an absolute glob matches, in sorted order, hidden files and folders apart unless it names them.

    `**` enters no linked folder.
    """
    matched = Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor)))
    named = set(pattern.parts)
    return sorted(path for path in matched if not any(p.startswith(".") and p not in named for p in path.parts))


def _not_written(matched: Iterable[Path], pattern: Path, besides: Sequence[str]) -> Iterator[Path]:
    """The matches that lie in none of the folders `besides`, but for those that the beginning of the pattern is in."""
    beginning = Path(*takewhile(lambda part: not glob.has_magic(part), pattern.parts)).resolve()
    passed_over = {Path(folder).resolve() for folder in besides} - {beginning, *beginning.parents}
    real = cache(Path.resolve)  # a folder may hold many of them
    for path in matched:
        folder = real(path if os.path.isdir(path) else path.parent)
        if passed_over.isdisjoint((folder, *folder.parents)):
            yield path


def _local(source: FootageSource, besides: Sequence[str], found: _Found) -> None:
    root = resolve_footage(source.path).absolute()
    if root.suffix.lower() in LIST_SUFFIXES and os.path.isfile(root):
        for row in read_list(root, source):
            found.add(row)
        return
    globbed = glob.has_magic(str(root)) and not os.path.lexists(root)
    roots = list(_not_written(matches(root), root, besides)) if globbed else [root]
    sources: list[Source] = []
    files: dict[str, list[str]] = defaultdict(list)
    for path in roots:
        if os.path.isdir(path):
            for folder, names, odd in walk_folder(str(path), besides):
                for thing in odd:
                    found.reject(thing.path, thing.reason, thing.detail)
                sources += _take(folder, names, caption_files(names), source, found)
        elif what := what_is_wrong(str(path)):
            found.reject(str(path), "unreadable", f"{path} {what}")
        elif path == root:  # it was named: whatever it is called, its content decides
            sources.append(Source(str(path), source.domain, source.caption))
        else:
            files[str(path.parent)].append(path.name)
    for folder, names in files.items():
        captions = _captions_in(folder)
        # A folder that may be entered, but not listed, is told of by `_find_caption_files`.
        missing = isinstance(captions, str)
        taken = _take(folder, names, {} if isinstance(captions, str) else captions, source, found)
        sources += [replace(item, caption_files=None) for item in taken] if missing else taken
    for item in sorted(sources, key=lambda item: item.location.split("/")):
        found.add(item)


def _remote(source: FootageSource, besides: Sequence[str], found: _Found) -> None:
    location = Storage.open(source.path)
    check_no_list(source.path)
    try:
        names = location.list("", recursive=True)
        if not names and location.filesystem.get_file_info(location.path).type == pafs.FileType.File:
            found.add(Source(source.path, source.domain, source.caption))
            return
    except OSError as e:
        raise ConfigError(f"footage: {public_uri(source.path)} cannot be listed: {e}") from e
    inside: dict[str, list[str]] = defaultdict(list)
    written = tuple(f"{b.removeprefix(f'{location.uri}/')}/" for b in besides if b.startswith(f"{location.uri}/"))
    for name in names:
        folder, _, last = name.rpartition("/")
        if not name.startswith(written) and not any(part.startswith(".") for part in name.split("/")):
            inside[folder].append(last)
    sources: list[Source] = []
    for folder, names in inside.items():
        where = Storage.below(source.path, folder) if folder else source.path
        sources += _take(where, names, caption_files(names), source, found)
    for item in sorted(sources, key=lambda item: item.location):
        found.add(item)


def _take(
    folder: str, names: Sequence[str], captions: Mapping[str, list[str]], source: FootageSource, found: _Found
) -> list[Source]:
    """The sources among `names`, by what they are called; the others become rejects.

    Args:
        folder: that holds the files.
        names: of the files in question.
        captions: the caption files of the folder.
        source: that names the folder.
        found: takes the rejects.
    """
    used: set[str] = set()
    sources = []
    for name in names:
        if not named_otherwise(name):
            files = caption_files_of(name, captions)
            used.update(files)
            sources.append(Source(below(folder, name), source.domain, source.caption, caption_files=files))
    for name in names:
        kind, suffix = named_otherwise(name), suffix_of(name)
        if not kind or name in used:
            continue
        if suffix in CAPTION_SUFFIXES:
            detail = "no video takes its caption from it: none is named like it, or another file goes before it"
            found.reject(below(folder, name), "unused", detail)
        elif suffix in LIST_SUFFIXES:
            found.reject(below(folder, name), "not_video", "a list in a folder is not read; name it in `footage`")
        else:
            found.reject(below(folder, name), "not_video", f"it is {kind}, as its name says ({suffix})")
    return sources


def _find_caption_files(found: _Found) -> None:
    """Look for the captions of what was named by itself; each folder is listed once."""
    missing = {key: source for key, source in found.sources.items() if source.caption_files is None}
    folders = sorted({split_location(source.location)[0] for source in missing.values()})
    with ThreadPoolExecutor(_LISTED_AT_ONCE) as pool:
        listed = dict(zip(folders, pool.map(_captions_in, folders), strict=True))
    for key, source in missing.items():
        folder, name = split_location(source.location)
        beside = listed[folder]
        if isinstance(beside, str):
            del found.sources[key]
            found.reject(source.location, "unreadable", f"captions beside {source.uri} cannot be looked for: {beside}")
        else:
            found.sources[key] = replace(source, caption_files=caption_files_of(name, beside))


def _captions_in(folder: str) -> dict[str, list[str]] | str:
    """The caption files of a folder, or why it cannot be listed. One that is not there holds none."""
    try:
        return caption_files(Storage.open(folder).list() if is_remote(folder) else os.listdir(folder))
    except FileNotFoundError:
        return {}
    except (OSError, StorageError) as e:
        return str(e)
