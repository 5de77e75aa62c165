"""SQLite is refused where its locks do not hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from cinesynth.errors import StorageError
from serve import mounts
from serve.jobs import JobStore
from serve.mounts import Mount, mount_of

MOUNTS = r"""proc /proc proc rw,relatime 0 0
/dev/vda1 / ext4 rw,relatime 0 0
tmpfs /dev/shm tmpfs rw 0 0
head:/export /data nfs4 rw,vers=4.2 0 0
/dev/nvme0n1 /data/local xfs rw 0 0
//nas/films /srv/my\040films\134\011x cifs rw 0 0
systemd-1 /auto autofs rw 0 0
head:/auto /auto nfs rw 0 0
/dev/sdb /covered/by/a\040disk ext4 rw 0 0
user@head: /home/user/remote fuse.sshfs rw 0 0
a line of another kind
"""


@pytest.mark.parametrize(
    ("path", "point", "kind", "network"),
    [
        ("/var/lib/jobs.db", "/", "ext4", False),
        ("/data/serve/jobs.db", "/data", "nfs4", True),
        ("/data", "/data", "nfs4", True),
        ("/database/jobs.db", "/", "ext4", False),
        ("/data/local/jobs.db", "/data/local", "xfs", False),
        ("/data/locally/jobs.db", "/data", "nfs4", True),
        ("/srv/my films\\\tx/jobs.db", "/srv/my films\\\tx", "cifs", True),
        ("/auto/jobs.db", "/auto", "nfs", True),
        ("/covered/by/a disk/jobs.db", "/covered/by/a disk", "ext4", False),
        ("/home/user/remote/jobs.db", "/home/user/remote", "fuse.sshfs", True),
    ],
)
def test_a_path_lies_on_the_longest_mount_point_above_it(path: str, point: str, kind: str, network: bool) -> None:
    mount = mount_of(path, MOUNTS)
    assert mount == Mount(point, kind)
    assert mount.network is network


def test_a_path_that_no_line_covers_lies_nowhere() -> None:
    assert mount_of("/a", "") is None
    assert mount_of("/a", "head:/b /b nfs rw 0 0") is None


@pytest.mark.parametrize(
    "kind",
    [
        *("nfs", "nfs4", "cifs", "smb3", "9p", "lustre", "beegfs", "ceph", "glusterfs", "gpfs", "afs"),
        *("fuse.sshfs", "fuse.glusterfs", "fuse.ceph-fuse", "fuse.s3fs", "fuse.gcsfuse"),
    ],
)
def test_file_systems_of_a_network_are_known(kind: str) -> None:
    assert Mount("/", kind).network


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "zfs", "overlay", "tmpfs", "fuse.fuse-overlayfs", "fuseblk"])
def test_local_file_systems_are_not_of_a_network(kind: str) -> None:
    assert not Mount("/", kind).network


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the list of mounts says is on NFS."""
    folder = tmp_path / "shared"
    folder.mkdir()
    listed = tmp_path / "mounts"
    listed.write_text(f"/dev/vda1 / ext4 rw 0 0\nhead:/export {folder} nfs4 rw 0 0\n")
    monkeypatch.setattr(mounts, "MOUNTS", listed)
    return folder


@pytest.mark.parametrize("url", ["sqlite:///{}/jobs.db", "sqlite:///file:{}/jobs.db?uri=true"])
def test_sqlite_on_a_network_file_system_is_refused_before_a_file_is_made(network: Path, url: str) -> None:
    with pytest.raises(StorageError) as refused:
        JobStore(url.format(network))
    for told in (f"{network}/jobs.db", "nfs4", "`database`", "local disk of the head", "PostgreSQL"):
        assert told in str(refused.value)
    assert list(network.iterdir()) == []


def test_a_link_to_a_network_file_system_is_seen_through(network: Path, tmp_path: Path) -> None:
    (tmp_path / "looks-local").symlink_to(network)
    with pytest.raises(StorageError, match="nfs4"):
        JobStore(f"sqlite:///{tmp_path / 'looks-local' / 'jobs.db'}")


def test_a_local_database_beside_it_and_one_in_memory_are_opened(network: Path, tmp_path: Path) -> None:
    assert JobStore(f"sqlite:///{tmp_path / 'jobs.db'}").ids() == set()
    assert JobStore("sqlite://").ids() == set()


def test_where_no_mounts_are_listed_a_path_counts_as_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "MOUNTS", tmp_path / "missing")
    assert JobStore(f"sqlite:///{tmp_path / 'jobs.db'}").ids() == set()
