"""Families of models make the same windows behind one interface; the models here are tiny, with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cinesynth.config import SamplerSettings
from cinesynth.data.video import read_video, write_video
from cinesynth.errors import ModelError
from cinesynth.settings import parse_config
from cinesynth.studies.cells import Cells
from cinesynth.studies.driver import complete
from cinesynth.studies.families import AnimateDiffMaker, FamilyConfig, WanMaker, folder_hash, make_family_videos
from cinesynth.studies.latency_quality import findings, timing_of
from tests.generate.test_windows import ROW, Held
from tests.studies.fake_jobs import FakeJobs, grid_of, study_config

SAMPLER = SamplerSettings(steps=2, guidance_scale=2.0)


@pytest.fixture(scope="module")
def animatediff(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `AnimateDiffPipeline.save_pretrained` leaves it."""
    from diffusers import AnimateDiffPipeline, AutoencoderKL, DDIMScheduler, MotionAdapter, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("animatediff")
    words = ["<|startoftext|>", "<|endoftext|>", "a</w>", "dog</w>"]
    (folder / "vocab.json").write_text(json.dumps({word: place for place, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    channels = (8, 8)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=channels,
        layers_per_block=1,
        norm_num_groups=2,
        cross_attention_dim=8,
        attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    motion = MotionAdapter(
        block_out_channels=channels, motion_layers_per_block=1, motion_norm_num_groups=2, motion_num_attention_heads=2
    )
    vae = AutoencoderKL(
        block_out_channels=channels,
        norm_num_groups=2,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=4, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, eos_token_id=1
        )
    )
    pipeline = AnimateDiffPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77),
        unet=unet,
        motion_adapter=motion,
        scheduler=DDIMScheduler(beta_schedule="linear", clip_sample=False),
    )
    pipeline.save_pretrained(folder / "model")
    return folder / "model"


def test_both_families_answer_alike(animatediff: Path) -> None:
    first = np.full((32, 48, 3), 90, np.uint8)
    for maker in (AnimateDiffMaker(str(animatediff), "cpu"), WanMaker("nano", "cpu")):
        made = maker.make("a dog", first, 5, SAMPLER)
        assert (made.shape, made.dtype) == ((5, 32, 48, 3), np.uint8)
        assert np.array_equal(made, maker.make("a dog", first, 5, SAMPLER))
        assert not np.array_equal(made, maker.make("a dog", first, 5, SAMPLER.model_copy(update={"seed": 1})))


def test_windows_are_made_once_and_timed(animatediff: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(tmp_path / "data", "abc")
    held.manifest_sha256 = "hash"  # type: ignore[attr-defined]
    for row in held.rows:
        write_video(
            tmp_path / "data" / "pixels" / f"{row.window_id}.mkv", np.zeros((5, 32, 48, 3), np.uint8), 16, "ffv1"
        )
    monkeypatch.setattr("cinesynth.studies.families.locate_dataset", lambda storage, name: held)
    monkeypatch.setattr("cinesynth.studies.families.ClipsDataset.open", lambda storage: held)
    given = {"family": "animatediff", "folder": str(animatediff), "frames": 4, "dataset": "d", "split": ROW.split}
    config = parse_config(
        FamilyConfig,
        {**given, "name": "cell", "storage": str(tmp_path), "max_windows": 2, "sampler": SAMPLER.model_dump()},
    )
    assert make_family_videos(config)["figures"] == {"videos": 2}
    folder = tmp_path / "runs" / "cell"
    assert {path.stem for path in (folder / "videos" / "video").iterdir()} == {"w0", "w1"}
    assert len(read_video(folder / "videos" / "video" / "w0.mkv")[0]) == 4
    made = json.loads((folder / "seconds.json").read_text())["videos"]
    found = timing_of(made, 5)
    assert found is not None
    assert (found.count, found.seconds) == (1, made[1]["seconds"]["video"])

    (folder / "result.json").unlink()
    (folder / "videos" / "video" / "w1.mkv").unlink()
    make_family_videos(config)
    again = json.loads((folder / "seconds.json").read_text())["videos"]
    assert [(row["attempt"], Path(row["file"]).stem) for row in again] == [(1, "w0"), (1, "w1"), (2, "w1")]


def test_what_is_no_model_is_refused(tmp_path: Path, animatediff: Path) -> None:
    with pytest.raises(ModelError, match="is no folder of an AnimateDiffPipeline"):
        AnimateDiffMaker(str(tmp_path), "cpu")
    with pytest.raises(ModelError, match="there is no such folder"):
        folder_hash("/no/such/folder")
    assert folder_hash("nano") == "named nano"
    assert len(folder_hash(str(animatediff))) == 64


def test_families_have_a_table_of_their_own_where_there_are_any(tmp_path: Path, animatediff: Path) -> None:
    families = {"other": {"family": "animatediff", "folder": str(animatediff)}}
    grid = grid_of(study_config(tmp_path, "latency_quality", latency={"step_factors": [1], "families": families}))
    done = complete(grid, None)
    assert [cell.what for cell, _ in done.values() if cell.kind == "family"] == ["videos of home: other, 40 steps"]
    assert findings(grid).tables[1].rows[0][:5] == ["other", "animatediff", "40", "16", "7.00 (7.00 to 7.00, of 2)"]
    plain = study_config(tmp_path, "latency_quality")
    assert len(findings(grid_of(plain, FakeJobs())).tables) == 1
    assert isinstance(grid.cells, Cells)


def test_families_of_one_folder_have_cells_of_their_own_settings(tmp_path: Path, animatediff: Path) -> None:
    given = {"family": "animatediff", "folder": str(animatediff)}
    families = {"short": {**given, "frames": 8}, "long": {**given, "frames": 16}, "other": {**given, "family": "wan"}}
    families["alike"] = families["short"]
    config = study_config(tmp_path, "latency_quality", latency={"step_factors": [1], "families": families})
    grid = grid_of(config)
    made = {name: grid.family_videos(name, 40) for name in families}
    settings = {name: (cell.config.family, cell.config.frames) for name, cell in made.items()}  # type: ignore[attr-defined]
    assert settings == {name: (of.family, of.frames) for name, of in config.latency.families.items()}
    assert len({cell.name for cell in made.values()}) == 3
    assert made["alike"].name == made["short"].name
    for name, cell in made.items():
        alone = study_config(tmp_path, "latency_quality", latency={"families": {name: families[name]}})
        assert grid_of(alone).family_videos(name, 40).name == cell.name  # as it is by itself
