"""Model families: what all models of a kind have in common, and what one model's own files add to it. Without PyTorch.

A `Family` is known before any model is found: the configuration, the datasets and the service are checked by it. A
`ModelSpec` adds what differs between the members of a family (those of Wan2.1-I2V are the 14B models and nano), as the
JSON files in a model's folder state it.

To add a family, see docs/model_families.md: a record, an entry in `FAMILIES`, and what is not yet one of its fields.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cinesynth.errors import ConfigError, ModelError

Size = tuple[int, int]
"""(width, height)"""


@dataclass(frozen=True)
class Resolution:
    """Sizes of about one area, at common aspects, and the flow shift that the family uses there."""

    sizes: tuple[Size, ...]
    flow_shift: float


@dataclass(frozen=True)
class Family:
    """What every model of a family has.

    Attributes:
        name: as a dataset's manifest records it.
        title: as messages say it.
        experts: components that denoise, from high noise to low; where there are two, the model says at which timestep
            the second takes over.
        image_encoder: whether an image encoder sees the first frame, too; its tokens precede those of the text.
        fps: frames a second of every video.
        temporal_stride, spatial_stride: of the VAE, in frames and pixels; the first frame is coded alone.
        patch: latent rows (and columns) of one token of the transformer.
        latent_channels: of the VAE.
        mask_channels: that tell the transformer which frames are given.
        input_layout: parts of the transformer's input channels, in order: `noisy`, `mask`, `condition`.
        timesteps: the timestep of pure noise.
        text_tokens: that a prompt is cut and filled to.
        trained_frames: of the longest videos that the family was trained on.
        resolutions: tables of sizes by name. A name means the same sizes in every family.
        default_size: (width, height) where nothing is asked for.
        negative_prompt: where a request gives none.
        adapter_targets: group of linear layers (`TARGET_GROUPS`) to the ends of their names in a transformer; `image`
            where there is an image encoder.
    """

    name: str
    title: str
    experts: tuple[str, ...]
    image_encoder: bool
    fps: int
    temporal_stride: int
    spatial_stride: int
    patch: int
    latent_channels: int
    mask_channels: int
    input_layout: tuple[str, ...]
    timesteps: float
    text_tokens: int
    trained_frames: int
    resolutions: Mapping[str, Resolution]
    default_size: Size
    negative_prompt: str
    adapter_targets: Mapping[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        if not {"noisy", "condition"} <= set(self.input_layout):
            raise ValueError(
                f"family {self.name!r}: input_layout {self.input_layout} lacks noisy or condition; a model whose first "
                "frame takes the place of noise needs another sampler and another loss (docs/model_families.md)"
            )

    # --- components and tensors ------------------------------------------------------------------------------

    @property
    def encoders(self) -> tuple[str, ...]:
        """Components that encode a dataset's rows; their order is part of `encoder_hash`."""
        image = ("image_encoder", "image_processor") if self.image_encoder else ()
        return ("vae", *image, "text_encoder", "tokenizer")

    @property
    def components(self) -> tuple[str, ...]:
        """All of a model's components; their order is part of `model_hash`."""
        return (*self.experts, "scheduler", *self.encoders)

    @property
    def pixel_tensors(self) -> tuple[str, ...]:
        """Tensors of a dataset's row that are made of a window's pixels."""
        return ("latents", "condition_latents", *(("image_embeds",) if self.image_encoder else ()))

    @property
    def tensors(self) -> tuple[str, ...]:
        """All tensors of a dataset's row; their order is part of a row's hash."""
        return (*self.pixel_tensors, "prompt_embeds")

    @property
    def in_channels(self) -> int:
        """Input channels of the transformer."""
        channels = {"noisy": self.latent_channels, "mask": self.mask_channels, "condition": self.latent_channels}
        return sum(channels[part] for part in self.input_layout)

    # --- sizes and lengths -----------------------------------------------------------------------------------

    @property
    def side_step(self) -> int:
        """Heights and widths are multiples of so many pixels."""
        return self.spatial_stride * self.patch

    @property
    def flow_shift(self) -> float:
        """That of the first of `resolutions`; the others' are larger."""
        return next(iter(self.resolutions.values())).flow_shift

    @property
    def least_frames(self) -> int:
        """The shortest video: a first frame, and what one more latent frame holds."""
        return self.temporal_stride + 1

    @property
    def frame_rule(self) -> str:
        """Which lengths there are, as messages say it: 4n+1."""
        return f"{self.temporal_stride}n+1"

    def takes_frames(self, num_frames: int) -> bool:
        """Whether the VAE codes a video of so many frames, and there is something beyond its first one."""
        return num_frames >= self.least_frames and (num_frames - 1) % self.temporal_stride == 0

    def takes_side(self, pixels: int) -> bool:
        """Whether a height or width is a whole number of the transformer's tokens."""
        return pixels > 0 and pixels % self.side_step == 0

    def frame_counts(self, most: int) -> list[int]:
        """All lengths up to `most` frames."""
        return list(range(self.least_frames, most + 1, self.temporal_stride))

    def frames_of(self, seconds: float) -> float:
        """Frames of a video of so many seconds: the first frame, and `fps` for each second after it."""
        return self.fps * seconds + 1

    def seconds_of(self, num_frames: int) -> float:
        """The inverse of `frames_of`."""
        return (num_frames - 1) / self.fps

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """[C, F, h, w] of the latents of a video of `num_frames` x `height` x `width`."""
        frames = (num_frames - 1) // self.temporal_stride + 1
        return self.latent_channels, frames, height // self.spatial_stride, width // self.spatial_stride

    def tokens(self, latent_frames: int, rows: int, columns: int) -> int:
        """Tokens of the transformer for latents of F x h x w."""
        return latent_frames * (rows // self.patch) * (columns // self.patch)

    def video_shape(self, latent_frames: int, rows: int, columns: int) -> tuple[int, int, int]:
        """(num_frames, height, width) of the video that latents of F x h x w are decoded to."""
        return self.temporal_stride * (latent_frames - 1) + 1, rows * self.spatial_stride, columns * self.spatial_stride


@dataclass(frozen=True)
class ModelSpec:
    """One model: its family, and what its own configuration states.

    Attributes:
        model: as it was asked for.
        family: that it belongs to.
        heads: of the transformer's attention.
        positions: length of the transformer's table of positions, in tokens along each of time, height and width.
        text_dim: features of a text token.
        image_tokens, image_dim: that the image encoder makes of a frame; 0 where there is none.
        latents_mean, latents_std: of each latent channel: latents are normalised by them.
        boundary: share of the timesteps below which the second expert denoises; None with one expert.
    """

    model: str
    family: Family
    heads: int
    positions: int
    text_dim: int
    image_tokens: int
    image_dim: int
    latents_mean: tuple[float, ...]
    latents_std: tuple[float, ...]
    boundary: float | None

    def expert_at(self, timestep: float) -> str:
        """The component that denoises at a timestep, from `family.timesteps` (noise) to 0."""
        first, *others = self.family.experts
        if not others or self.boundary is None or timestep >= self.boundary * self.family.timesteps:
            return first
        return others[0]

    def tensor_shapes(self, num_frames: int, height: int, width: int) -> dict[str, tuple[int | None, ...]]:
        """Shape of each tensor of a dataset's row; None is the length of a prompt."""
        latents = self.family.latent_shape(num_frames, height, width)
        shapes: dict[str, tuple[int | None, ...]] = {
            "latents": latents,
            "condition_latents": latents,
            "image_embeds": (self.image_tokens, self.image_dim),
            "prompt_embeds": (None, self.text_dim),
        }
        return {name: shapes[name] for name in self.family.tensors}

    def check_size(self, num_frames: int, height: int, width: int, where: str) -> None:
        """Raise ConfigError, naming `where`, for a video that the model cannot make.

        Args:
            num_frames: of the video.
            height, width: pixels.
            where: the field that asks for it.
        """
        family = self.family
        most_frames, most_side = family.temporal_stride * (self.positions - 1) + 1, self.positions * family.side_step
        if not family.takes_frames(num_frames):
            raise ConfigError(f"{where}: {num_frames} frames: {family.title} makes {family.frame_rule} frames")
        if not (family.takes_side(height) and family.takes_side(width)):
            raise ConfigError(f"{where}: {width}x{height}: {family.title} has sides in multiples of {family.side_step}")
        if num_frames > most_frames or max(height, width) > most_side:
            raise ConfigError(
                f"{where}: {num_frames} frames of {width}x{height} are more than model {self.model!r} has positions "
                f"for; at most {most_frames} frames of {most_side}x{most_side}"
            )


# --- the families --------------------------------------------------------------------------------------------

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_IMAGE_ATTENTION = ("add_k_proj", "add_v_proj")


TARGET_GROUPS = ("cross", "image", "self", "ffn")
TARGET_ALIASES = {
    "cross_attention": ("cross", "image"),
    "attention": ("cross", "image", "self"),
    "all": ("cross", "image", "self", "ffn"),
}
"""Names of 0.1.0 for several groups of layers. They are what is recorded, however the same groups are asked for."""


def adapter_targets(value: Any) -> str | tuple[str, ...]:
    """The one form of what an adapter is put on: an alias, else groups in their order, else a regular expression.

    Args:
        value: any of these; one group may be given without a list.

    Raises ValueError for an empty list, an unknown group, or a text that is neither a name nor a regular expression.
    """
    if isinstance(value, str) and value not in TARGET_GROUPS:
        if value not in TARGET_ALIASES:
            try:
                re.compile(value)
            except re.error as e:
                raise ValueError(
                    f"is neither a group ({', '.join(TARGET_GROUPS)}) nor a regular expression: {e}"
                ) from e
        return value
    asked = {value} if isinstance(value, str) else set(value)
    if unknown := sorted(asked - set(TARGET_GROUPS)):
        raise ValueError(f"has no group {unknown[0]!r}; there are {', '.join(TARGET_GROUPS)}")
    if not asked:
        raise ValueError(f"names no group; there are {', '.join(TARGET_GROUPS)}")
    groups = tuple(name for name in TARGET_GROUPS if name in asked)
    return next((alias for alias, meant in TARGET_ALIASES.items() if meant == groups), groups)


def wan_adapter_targets(image_encoder: bool) -> dict[str, tuple[str, ...]]:
    """The linear layers of diffusers' `WanTransformer3DModel` that adapters are put on, by group."""
    groups = {
        "cross": tuple(f"attn2.{name}" for name in _ATTENTION),
        "image": tuple(f"attn2.{name}" for name in _IMAGE_ATTENTION),
        "self": tuple(f"attn1.{name}" for name in _ATTENTION),
        "ffn": ("ffn.net.0.proj", "ffn.net.2"),
    }
    return groups if image_encoder else {name: layers for name, layers in groups.items() if name != "image"}


WAN21_I2V = Family(
    name="wan2.1-i2v",
    title="Wan2.1 image-to-video",
    experts=("transformer",),
    image_encoder=True,
    fps=16,
    temporal_stride=4,
    spatial_stride=8,
    patch=2,
    latent_channels=16,
    mask_channels=4,
    input_layout=("noisy", "mask", "condition"),
    timesteps=1000.0,
    text_tokens=512,  # fixed by diffusers' transformer: it splits image from text tokens 512 from the end
    trained_frames=81,
    resolutions={
        # The areas 480 x 832 and 720 x 1280 at common aspects. The order is part of a dataset's identity.
        "480p": Resolution(((960, 416), (832, 480), (720, 544), (624, 624), (544, 720), (480, 832), (416, 960)), 3.0),
        "720p": Resolution(
            ((1472, 624), (1280, 720), (1104, 832), (960, 960), (832, 1104), (720, 1280), (624, 1472)), 5.0
        ),
    },
    default_size=(832, 480),
    negative_prompt="",
    adapter_targets=wan_adapter_targets(image_encoder=True),
)


@dataclass(frozen=True)
class Signature:
    """What tells the families apart, as `model_index.json` and the transformer's configuration state it."""

    transformer: str
    """its class in diffusers"""
    in_channels: int
    image_projections: bool
    experts: int


FAMILIES: dict[Signature, Family] = {
    Signature("WanTransformer3DModel", in_channels=36, image_projections=True, experts=1): WAN21_I2V,
}
DEFAULT_FAMILY = WAN21_I2V
"""Whose values the configuration's defaults are, and that of datasets that name none."""


def find_family(model: str, index: Mapping[str, Any], transformer: Mapping[str, Any]) -> Family:
    """The family of a model, of its `model_index.json` and its transformer's `config.json`.

    Raises ModelError where it belongs to none.
    """
    signature = Signature(
        transformer.get("_class_name") or "WanTransformer3DModel",
        transformer.get("in_channels") or 0,
        transformer.get("image_dim") is not None,
        2 if (index.get("transformer_2") or [None])[0] else 1,
    )
    if signature in FAMILIES:
        return FAMILIES[signature]
    known = "; ".join(f"not a {f.title} transformer ({_described(s)})" for s, f in FAMILIES.items())
    raise ModelError(f"model {model!r}: {_described(signature)}: {known}")


def _described(signature: Signature) -> str:
    projections = "with" if signature.image_projections else "without"
    experts = "" if signature.experts == 1 else f", {signature.experts} experts"
    return f"{signature.transformer}, {signature.in_channels} channels {projections} image projections{experts}"


def family_named(name: str) -> Family:
    """The family of a name. Raises ModelError for one that this version does not have."""
    for family in FAMILIES.values():
        if family.name == name:
            return family
    known = ", ".join(family.name for family in FAMILIES.values())
    raise ModelError(f"model family {name!r} is not known to this version of cinesynth; it has {known}")


def size_tables() -> dict[str, tuple[Size, ...]]:
    """The sizes of every named table of all families. Raises ValueError where two families differ in a table."""
    tables: dict[str, tuple[Size, ...]] = {}
    for family in FAMILIES.values():
        for name, table in family.resolutions.items():
            if tables.setdefault(name, table.sizes) != table.sizes:
                raise ValueError(f"family {family.name!r}: {name} names other sizes in another family; rename it")
    return tables
