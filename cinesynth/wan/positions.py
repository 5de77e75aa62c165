"""How large a video a model has positions for: its rotary table, as its configuration states it."""

from __future__ import annotations

from cinesynth.errors import ConfigError
from cinesynth.wan.folder import model_folder, model_shapes, read_json

_DEFAULT_POSITIONS, _DEFAULT_PATCH = (
    1024,
    (1, 2, 2),
)  # diffusers' WanTransformer3DModel, where a configuration is silent


def check_size(model: str, num_frames: int, height: int, width: int, where: str) -> None:
    """Raise ConfigError, naming `where`, for a video beyond the model's position table; reads no weights.

    Args:
        model: 'nano', a folder or a hub id.
        num_frames: 4n+1.
        height, width: pixels.
        where: what the size belongs to.
    """
    shapes = model_shapes(model)
    transformer = read_json(model_folder(model) / "transformer" / "config.json", model)
    positions = int(transformer.get("rope_max_seq_len") or _DEFAULT_POSITIONS)
    frames_a_patch, rows_a_patch, columns_a_patch = transformer.get("patch_size") or _DEFAULT_PATCH
    most_frames = (positions * frames_a_patch - 1) * shapes.temporal_stride + 1
    most_rows, most_columns = (positions * patch * shapes.spatial_stride for patch in (rows_a_patch, columns_a_patch))
    if num_frames > most_frames or height > most_rows or width > most_columns:
        raise ConfigError(
            f"{where}: {num_frames} frames of {width}x{height} are more than model {model!r} has positions for; "
            f"at most {most_frames} frames of {most_columns}x{most_rows}"
        )
