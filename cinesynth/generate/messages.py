"""What a group of ranks is told, and what it tells. Needs no PyTorch: who only directs a group loads none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cinesynth.config import SamplerSettings

Place = tuple[Any, str, str]
"""A storage that another process opens: `Storage.reference()`."""


@dataclass(frozen=True)
class VideoRequest:
    """A video to make, from a first frame and a prompt, or a held-out window again.

    Attributes:
        storage: where runs and the registry lie, as a storage reference; every node reads it.
        file: where the video goes, below `output`. MP4 is h264; MKV is lossless.
        output: a storage reference.
        sampler: steps, guidance, shift, seed. A window's noise depends on the seed and the window.
        adapters: (reference, scale) in the order in which they are applied, those below them among them.
        adapter_sha256: hash of each one's weights, as they were checked; (): the references cannot come to mean others.
        image: bytes of an image file.
        prompt, num_frames, height, width: of a video from an image.
        start_sigma: noise level that the image, held still, is denoised from; None: noise alone.
        window: (dataset, split, window id), where it is a window; the dataset is a storage reference.
        state: file below `output` that a state is kept in, and gone on from where there is one.
        drop_state: delete the state once the video is written; False: the caller does.
        keep_every: denoising steps between two states; 0: none is kept.
        told: what the video's metadata says beside, or in place of, what the generator says.
    """

    storage: Place
    output: Place
    file: str
    sampler: SamplerSettings
    adapters: tuple[tuple[str, float], ...] = ()
    adapter_sha256: tuple[str, ...] = ()
    image: bytes | None = None
    prompt: str = ""
    num_frames: int = 0
    height: int = 0
    width: int = 0
    window: tuple[Place, Literal["val", "test"], str] | None = None
    start_sigma: float | None = None
    state: str | None = None
    drop_state: bool = True
    keep_every: int = 0
    told: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Status:
    """How far a rank is.

    Attributes:
        stage: `idle`, `adapters`, `conditions`, `denoise`, `decode` or `write`.
        step, total: denoising steps done, and in all.
        quiet_s: seconds since the rank got something done.
    """

    stage: str = "idle"
    step: int = 0
    total: int = 0
    quiet_s: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """How a rank's work ended.

    Attributes:
        kind: `made`; `cancelled`; `refused`: the request is at fault, and the rank takes the next one; `broken`: the
            rank is of no use any more.
        reason: of anything but `made`.
        error: class of `cinesynth.errors` that the error is raised as.
        made: of rank 0: `sha256`, `provenance`, and `seconds` by stage.
    """

    kind: Literal["made", "cancelled", "refused", "broken"]
    reason: str = ""
    error: str = ""
    made: dict[str, Any] = field(default_factory=dict)
