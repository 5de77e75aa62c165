"""Storage locations: a local folder, S3 or GCS behind one small surface, through pyarrow.fs.

An object store has no rename and no append. So objects get final, unique names, and a small manifest
object written last commits them. What needs a POSIX path asks for it with `posix_path` and is refused,
with its reason, on an object store.
"""

from __future__ import annotations

import builtins
import errno
import hashlib
import json
import os
import tempfile
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow.fs as pafs

from cinesynth.errors import ConfigError, StorageError

_CHUNK = 1 << 20
HIDDEN = ".tmp-"
"""What the name of a file begins with while it is written."""


def cache_folder(*parts: str) -> Path:
    """A folder for what can be fetched or made again: `$CINESYNTH_CACHE/...`, else `~/.cache/cinesynth/...`."""
    root = os.environ.get("CINESYNTH_CACHE")
    return (Path(root).expanduser() if root else Path.home() / ".cache" / "cinesynth").joinpath(*parts)


def scratch_folder(*parts: str) -> Path:
    """A folder of this user's own below the system's temporary one, for what outlives a process but may go any time.

    Raises StorageError when another user made it.
    """
    root = Path(tempfile.gettempdir()) / f"cinesynth-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    if root.stat().st_uid != os.getuid():
        raise StorageError(f"{root} belongs to another user; remove it, or set TMPDIR to a folder of your own")
    folder = root.joinpath(*parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def replace_synced(temporary: Path, target: Path) -> None:
    """Give a file that is synced its name, which a power cut takes from it no more."""
    os.replace(temporary, target)
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    except OSError as e:
        if e.errno != errno.EINVAL:  # of file systems that sync no folder
            raise
    finally:
        os.close(folder)


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Hex sha256 of a local file, read in chunks."""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while chunk := f.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Hex sha256 of a JSON-serialisable value in canonical form (sorted keys, no spaces)."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def split_options(uri: str) -> tuple[str, str]:
    """A location, and its query options with their question mark; no options of a local path."""
    path, mark, options = uri.rpartition("?") if "://" in uri else ("", "", "")
    return (path, mark + options) if "=" in options else (uri, "")


def public_uri(uri: str) -> str:
    """A location without credentials and options, for messages and records."""
    return without_credentials(split_options(uri)[0])


def without_credentials(uri: str) -> str:
    """A location, or any other URI, without the user and password before its host."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return uri
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def check_lasting(storage: str, key: str = "storage") -> None:
    """Raise ConfigError, naming the option, for a relative path in a submitted job: what is written there is lost.

    Ray unpacks a job's working directory below its session's `runtime_resources`, and removes it after the job.
    """
    relative = "://" not in storage and not Path(storage).expanduser().is_absolute()
    if relative and "runtime_resources" in Path.cwd().parts:
        raise ConfigError(
            f"{key}: {storage!r} is relative to the copy of the working directory that Ray made for this job and "
            "removes after it; give an absolute path that every node sees, or s3://bucket/prefix"
        )


class Storage:
    """One location (a folder or an object-store prefix) and the objects below it.

    Args:
        filesystem: the pyarrow filesystem that holds it.
        path: path inside that filesystem, without a trailing slash.
        scheme: "" for local folders, else "s3" or "gs".
    """

    def __init__(self, filesystem: pafs.FileSystem, path: str, scheme: str) -> None:
        self.filesystem = filesystem
        self.path = path.rstrip("/") or "/"
        self.scheme = scheme

    @classmethod
    def open(cls, uri: str | os.PathLike[str]) -> Storage:
        """Open a local path, `s3://bucket/prefix?...` or `gs://bucket/prefix`.

        S3 takes pyarrow's query options (`endpoint_override`, `scheme`, `region`) and the usual AWS
        variables, `AWS_ENDPOINT_URL` included. Raises StorageError for any other scheme.
        """
        text = os.fspath(uri)
        if text.startswith("file://"):
            text = text[len("file://") :]
        scheme, separator, _ = text.partition("://")
        if not separator:
            return cls(pafs.LocalFileSystem(), str(Path(text).expanduser().absolute()), "")
        if scheme not in ("s3", "gs"):
            raise StorageError(
                f"storage {public_uri(text)!r}: unknown scheme {scheme!r}; use a local path, s3:// or gs://"
            )
        location, options = split_options(text)
        host, slash, key = location[len(scheme) + 3 :].partition("/")
        try:
            # An object's name stands in our locations as it is; in pyarrow's it is quoted.
            filesystem, path = pafs.FileSystem.from_uri(f"{scheme}://{host}{slash}{quote(key)}{options}")
        except (OSError, ValueError) as e:
            raise StorageError(f"storage {public_uri(text)!r} cannot be opened: {e}") from e
        return cls(filesystem, path, scheme)

    @property
    def uri(self) -> str:
        """The location without credentials or query options, for messages and records."""
        return f"{self.scheme}://{self.path}" if self.scheme else self.path

    @property
    def is_local(self) -> bool:
        return not self.scheme

    def __repr__(self) -> str:
        return f"Storage({self.uri!r})"

    def reference(self) -> tuple[pafs.FileSystem, str, str]:
        """What `Storage(*reference)` makes the same location of, in another process too."""
        return self.filesystem, self.path, self.scheme

    def child(self, *parts: str) -> Storage:
        """The location below this one."""
        return Storage(self.filesystem, "/".join([self.path.rstrip("/"), *parts]), self.scheme)

    @staticmethod
    def below(uri: str, *parts: str) -> str:
        """The URI of a location below `uri`, with its query options kept."""
        path, options = split_options(uri)
        return "/".join([path.rstrip("/"), *parts]) + options

    def posix_path(self, purpose: str) -> Path:
        """This location as a local path. Raises StorageError, naming the purpose, on an object store."""
        if not self.is_local:
            raise StorageError(f"{purpose} needs a local folder (POSIX locks and appends), not {self.uri}")
        return Path(self.path)

    def _at(self, name: str) -> str:
        return f"{self.path.rstrip('/')}/{name}" if name else self.path

    def exists(self, name: str = "") -> bool:
        """True for a file, or for a folder or prefix that holds something."""
        return self.filesystem.get_file_info(self._at(name)).type != pafs.FileType.NotFound

    def holds(self, name: str = "") -> bool:
        """True for a file, or for a folder or prefix with a file in it, at any depth."""
        kind = self.filesystem.get_file_info(self._at(name)).type
        return kind == pafs.FileType.File or (kind == pafs.FileType.Directory and bool(self.list(name, recursive=True)))

    def size(self, name: str) -> int:
        """Size of an object in bytes."""
        info = self.filesystem.get_file_info(self._at(name))
        if info.type != pafs.FileType.File:
            raise StorageError(f"{self._at(name)} does not exist")
        return int(info.size)

    def modified(self, name: str) -> float:
        """When an object was written; seconds since 1970."""
        info = self.filesystem.get_file_info(self._at(name))
        if info.type != pafs.FileType.File:
            raise StorageError(f"{self._at(name)} does not exist")
        return info.mtime_ns / 1e9

    def list(self, folder: str = "", recursive: bool = False) -> list[str]:
        """Names of the files below `folder`, relative to this location, sorted; empty if it is missing."""
        return [*self._files(folder, recursive)]

    def versions(self, folder: str = "") -> dict[str, tuple[int, int]]:
        """Names of the files directly in `folder`, as `list` has them, each with its size in bytes and when it was
        written, in ns since 1970: what tells that it was written anew."""
        return {name: (info.size, info.mtime_ns) for name, info in self._files(folder, recursive=False).items()}

    def _files(self, folder: str, recursive: bool) -> dict[str, pafs.FileInfo]:
        selector = pafs.FileSelector(self._at(folder), recursive=recursive, allow_not_found=True)
        prefix = len(self.path.rstrip("/")) + 1
        found = {i.path[prefix:]: i for i in self.filesystem.get_file_info(selector) if i.type == pafs.FileType.File}
        return {n: found[n] for n in sorted(found) if not n.rsplit("/", 1)[-1].startswith(HIDDEN)}

    def folders(self, folder: str = "") -> builtins.list[str]:
        """Names of the folders directly below `folder`, sorted."""
        selector = pafs.FileSelector(self._at(folder), allow_not_found=True)
        infos = self.filesystem.get_file_info(selector)
        return sorted(i.base_name for i in infos if i.type == pafs.FileType.Directory)

    def read_bytes(self, name: str) -> bytes:
        """Whole content of an object. Raises StorageError when it is missing."""
        try:
            with self.filesystem.open_input_file(self._at(name)) as f:
                return f.read()
        except FileNotFoundError as e:
            raise StorageError(f"{self._at(name)} does not exist") from e

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write an object whole: readers see the old one or the new one, never a part of it."""
        if not self.is_local:
            with self.filesystem.open_output_stream(self._at(name)) as f:
                f.write(data)
            return
        target = Path(self._at(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f"{HIDDEN}{uuid.uuid4().hex}")
        try:
            with open(temporary, "wb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
            replace_synced(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

    def write_new(self, name: str, data: bytes) -> bool:
        """Write an object that must not exist yet; False if it does.

        Exclusive on a local disk. An object store offers no exclusive create through pyarrow: there two
        writers in the same instant both succeed and the last one stays, so callers read back what stands.
        """
        if self.exists(name):
            return False
        if not self.is_local:
            self.write_bytes(name, data)
            return True
        folder, slash, _ = name.rpartition("/")
        staged = f"{folder}{slash}{HIDDEN}{uuid.uuid4().hex}"
        self.write_bytes(staged, data)
        try:
            os.link(self._at(staged), self._at(name))
        except FileExistsError:
            return False
        finally:
            os.unlink(self._at(staged))
        return True

    def read_text(self, name: str) -> str:
        return self.read_bytes(name).decode()

    def write_text(self, name: str, text: str) -> None:
        self.write_bytes(name, text.encode())

    def read_json(self, name: str) -> Any:
        """Parsed JSON. Raises StorageError when it is missing or damaged."""
        data = self.read_bytes(name)
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as e:
            raise StorageError(f"{self._at(name)} is not valid JSON: {e}") from e

    def write_json(self, name: str, value: Any) -> None:
        self.write_text(name, json.dumps(value, indent=2, sort_keys=True) + "\n")

    def sha256(self, name: str) -> str:
        """Hex sha256 of an object."""
        digest = hashlib.sha256()
        with self.filesystem.open_input_stream(self._at(name)) as f:
            while chunk := f.read(_CHUNK):
                digest.update(chunk)
        return digest.hexdigest()

    def delete(self, name: str) -> None:
        """Delete one object; a missing one is no error."""
        if self.exists(name):
            self.filesystem.delete_file(self._at(name))

    def delete_folder(self, folder: str) -> None:
        """Delete a folder or prefix and all below it; a missing one is no error."""
        if self.filesystem.get_file_info(self._at(folder)).type == pafs.FileType.Directory:
            self.filesystem.delete_dir(self._at(folder))

    def sweep(self, folder: str) -> None:
        """Delete what killed writers left in a folder of a local disk; an object store shows no part of an object."""
        if self.is_local:
            for path in Path(self._at(folder)).glob(f"{HIDDEN}*"):
                path.unlink(missing_ok=True)

    def upload(self, source: str | os.PathLike[str], name: str) -> None:
        """Copy a local file to the object `name`, whole or not at all."""
        if self.is_local:
            target = Path(self._at(name))
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f"{HIDDEN}{uuid.uuid4().hex}")
            try:
                pafs.copy_files(str(source), str(temporary), self._local(), self._local(), chunk_size=_CHUNK)
                with open(temporary, "rb") as f:
                    os.fsync(f.fileno())
                replace_synced(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)
        else:
            pafs.copy_files(str(source), self._at(name), self._local(), self.filesystem, chunk_size=_CHUNK)

    def download(self, name: str, target: str | os.PathLike[str]) -> Path:
        """Copy the object `name` to a local file, whole or not at all; its folders are made."""
        if not self.exists(name):
            raise StorageError(f"{self._at(name)} does not exist")
        target = Path(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=HIDDEN) as folder:
            temporary = Path(folder) / "part"
            pafs.copy_files(self._at(name), str(temporary), self.filesystem, self._local(), chunk_size=_CHUNK)
            os.replace(temporary, target)
        return target

    def upload_folder(self, folder: str | os.PathLike[str], name: str = "") -> builtins.list[str]:
        """Copy every file of a local folder below `name`; returns the object names."""
        root = Path(folder)
        names = []
        for path in sorted(p for p in root.rglob("*") if p.is_file()):
            target = "/".join([*([name] if name else []), *path.relative_to(root).parts])
            self.upload(path, target)
            names.append(target)
        return names

    def download_folder(self, name: str, target: str | os.PathLike[str]) -> Path:
        """Copy every object below `name` into a local folder. Raises StorageError when there is none."""
        names = self.list(name, recursive=True)
        if not names:
            raise StorageError(f"{self._at(name)} holds no files")
        for item in names:
            self.download(item, Path(target) / item[len(name) :].lstrip("/"))
        return Path(target)

    @staticmethod
    def _local() -> pafs.FileSystem:
        return pafs.LocalFileSystem()
