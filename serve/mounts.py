"""On which file system a path lies, and whether SQLite can be trusted there.

SQLite's write-ahead log is shared memory, and its locks are the file system's. Over a network neither holds between
two machines, and a database that two of them open is damaged sooner or later (https://sqlite.org/wal.html,
https://sqlite.org/howtocorrupt.html).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cinesynth.errors import StorageError

MOUNTS = Path("/proc/self/mounts")
"""Where Linux lists the mounts of this process. Elsewhere it is missing, and every path counts as local."""

NETWORK = {
    *("nfs", "nfs4", "cifs", "smb", "smb2", "smb3", "smbfs", "ncpfs", "afs", "9p"),
    *("lustre", "beegfs", "ceph", "glusterfs", "gpfs", "pvfs2", "orangefs", "panfs", "wekafs", "moosefs", "quobyte"),
    *("sshfs", "ceph-fuse", "davfs", "davfs2", "rclone", "s3fs", "gcsfuse", "goofys", "mountpoint-s3", "juicefs"),
}
"""Types of network file systems. One that runs in user space is listed by Linux with `fuse.` before its name."""


@dataclass(frozen=True)
class Mount:
    """A mounted file system: where, and of which type."""

    point: str
    type: str

    @property
    def network(self) -> bool:
        """Whether other machines may have it mounted, too."""
        return self.type.removeprefix("fuse.") in NETWORK


def mount_of(path: str, mounts: str) -> Mount | None:
    """The mount that a path lies on, or None where no line says.

    The longest mount point wins. Of two at the same place the later does, which hides the earlier.

    Args:
        path: absolute, without symbolic links.
        mounts: the text of /proc/mounts. Blanks and the like in a mount point are octal there: `\\040`.
    """
    found: Mount | None = None
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        mount = Mount(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields[1]), fields[2])
        inside = PurePosixPath(path).is_relative_to(mount.point)
        if inside and (found is None or len(mount.point) >= len(found.point)):
            found = mount
    return found


def check_local(database: Path) -> None:
    """Raise StorageError where an SQLite database would lie on a network file system."""
    path = os.path.realpath(database)
    try:
        mount = mount_of(path, MOUNTS.read_text(errors="surrogateescape"))
    except OSError:
        return
    if mount is not None and mount.network:
        raise StorageError(
            f"the job database {path!r} would lie on the network file system {mount.type!r} (at {mount.point!r}), "
            "where SQLite is not safe: give `database` a path on a local disk of the head "
            "(sqlite:////var/lib/cinesynth/jobs.db), or a PostgreSQL URL"
        )
