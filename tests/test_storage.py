"""Storage on a local disk and on S3 (moto's server): the same surface, whole objects, named errors."""

from __future__ import annotations

import errno
import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cinesynth.errors import StorageError
from cinesynth.storage import Storage, scratch_folder, sha256_file


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """URI of a bucket on a local S3 server."""
    import boto3
    from moto.server import ThreadedMotoServer

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
        server.start()
        try:
            host, port = server.get_host_and_port()
            boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1").create_bucket(
                Bucket="footage"
            )
            yield f"s3://footage/a%20prefix?endpoint_override={host}:{port}&scheme=http&region=us-east-1"
        finally:
            server.stop()


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return Storage.open(tmp_path / "with a space")
    return Storage.open(request.getfixturevalue("s3")).child(tmp_path.name)


def _owned_by(user: int) -> Callable[..., os.stat_result]:
    """`Path.stat`, as if every file were a user's: only root could give one away."""

    def stat(path: Path, **options: bool) -> os.stat_result:
        found = os.stat(path, **options)
        return os.stat_result((*found[:4], user, *found[5:]))

    return stat


def test_what_outlives_a_process_lies_in_a_folder_of_each_user_that_no_other_one_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for user in (4711, 4712):
        with monkeypatch.context() as patch:
            patch.setattr(os, "getuid", lambda user=user: user)
            patch.setattr(Path, "stat", _owned_by(user))
            assert scratch_folder("adapters", "a") == tmp_path / f"cinesynth-{user}" / "adapters" / "a"
        assert (tmp_path / f"cinesynth-{user}" / "adapters" / "a").is_dir()
        assert (tmp_path / f"cinesynth-{user}").stat().st_mode & 0o777 == 0o700


def test_a_folder_that_another_user_made_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / f"cinesynth-{os.getuid()}"
    root.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(Path, "stat", _owned_by(os.getuid() + 1))
    with pytest.raises(StorageError, match=f"{root} belongs to another user; remove it, or set TMPDIR"):
        scratch_folder("adapters")
    assert not list(root.iterdir())


def test_objects_are_written_read_listed_and_deleted(storage: Storage, tmp_path: Path) -> None:
    assert not storage.exists("a/b.json")
    storage.write_json("a/b.json", {"x": [1, 2]})
    storage.write_bytes("a/c/d.bin", b"\0\1")
    assert storage.read_json("a/b.json") == {"x": [1, 2]}
    assert storage.list("a") == ["a/b.json"]
    assert storage.list(recursive=True) == ["a/b.json", "a/c/d.bin"]
    assert storage.list("nothing") == []
    versions = storage.versions("a")
    assert list(versions) == ["a/b.json"]
    assert versions["a/b.json"][0] == storage.size("a/b.json")
    assert storage.versions("a") == versions
    assert storage.versions("nothing") == {}
    assert storage.folders("a") == ["c"]
    assert storage.size("a/c/d.bin") == 2
    storage.write_bytes("a/c/d.bin", b"new")
    assert storage.read_bytes("a/c/d.bin") == b"new"
    path = storage.download("a/c/d.bin", tmp_path / "copy" / "d.bin")
    assert path.read_bytes() == b"new"
    assert storage.sha256("a/c/d.bin") == sha256_file(path)
    storage.delete("a/b.json")
    storage.delete("a/b.json")
    assert not storage.exists("a/b.json")


def test_folders_travel_both_ways(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "f" / "sub").mkdir(parents=True)
    (tmp_path / "f" / "sub" / "y.txt").write_text("y")
    (tmp_path / "f" / "x.txt").write_text("x")
    assert storage.upload_folder(tmp_path / "f", "up") == ["up/sub/y.txt", "up/x.txt"]
    assert (storage.download_folder("up", tmp_path / "down") / "sub" / "y.txt").read_text() == "y"
    with pytest.raises(StorageError, match="holds no files"):
        storage.download_folder("none", tmp_path / "down2")


def test_write_new_does_not_replace(storage: Storage) -> None:
    assert storage.write_new("once", b"1")
    assert not storage.write_new("once", b"2")
    assert storage.read_bytes("once") == b"1"
    assert storage.list() == ["once"]


def test_what_a_killed_writer_leaves_is_no_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage.open(tmp_path)
    with monkeypatch.context() as killed:
        killed.setattr(os, "unlink", lambda path: None)
        assert storage.write_new("a/once.json", b"1")
    assert len(list((tmp_path / "a").iterdir())) == 2
    assert storage.list("a") == ["a/once.json"]
    storage.sweep("a")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["once.json"]


def test_what_was_written_outlives_a_power_cut_with_its_name(tmp_path: Path, synced: list[tuple[str, Path]]) -> None:
    (tmp_path / "source").write_bytes(b"1")
    storage = Storage.open(tmp_path / "objects")
    for write in (lambda: storage.write_bytes("a/b", b"1"), lambda: storage.upload(tmp_path / "source", "a/b")):
        synced.clear()
        write()
        (file, written), *named = synced
        folder = tmp_path / "objects" / "a"
        assert (file, written.parent, written.name[:5]) == ("file", folder, ".tmp-")
        assert named == [("replace", folder / "b"), ("folder", folder)]


def test_a_file_system_that_syncs_no_folder_takes_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync, refusal = os.fsync, [errno.EINVAL]

    def refusing(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(refusal[0], "no")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refusing)
    Storage.open(tmp_path).write_bytes("a", b"1")
    assert (tmp_path / "a").read_bytes() == b"1"
    refusal[0] = errno.EIO
    with pytest.raises(OSError, match="no"):
        Storage.open(tmp_path).write_bytes("b", b"1")


def test_missing_and_damaged_objects_are_named(storage: Storage) -> None:
    for read in (storage.read_bytes, storage.read_json, storage.size):
        with pytest.raises(StorageError, match=r"none\.json does not exist"):
            read("none.json")
    storage.write_text("bad.json", "{")
    with pytest.raises(StorageError, match="not valid JSON"):
        storage.read_json("bad.json")
    for damaged in (b'{"a": "\xff"}', b"[" * 200_000):
        storage.write_bytes("bad.json", damaged)
        with pytest.raises(StorageError, match="not valid JSON"):
            storage.read_json("bad.json")


def test_object_stores_are_refused_where_posix_is_needed(s3: str, tmp_path: Path) -> None:
    assert Storage.open(tmp_path).posix_path("SQLite") == tmp_path
    with pytest.raises(StorageError, match="SQLite needs a local folder"):
        Storage.open(s3).posix_path("SQLite")
    assert "endpoint" not in Storage.open(s3).uri


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(StorageError, match="unknown scheme 'ftp'"):
        Storage.open("ftp://host/x")


def _claim(path: str, index: int) -> bool:
    return Storage.open(path).write_new("claim", str(index).encode())


def test_of_many_writers_at_once_one_creates(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        results = pool.starmap(_claim, [(str(tmp_path), i) for i in range(16)])
    assert sum(results) == 1
    assert Storage.open(tmp_path).read_bytes("claim") == str(results.index(True)).encode()
