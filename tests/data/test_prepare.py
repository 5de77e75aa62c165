"""From footage to a dataset on a real Ray cluster: outcome, continuation after a kill, refusals, S3."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from cinesynth.config import PrepareConfig
from cinesynth.data.encode import Commits, EncodeWindows, WriteShards, to_rows
from cinesynth.data.footage import PyAVDecoder, crop_resize
from cinesynth.data.prepare import prepare
from cinesynth.data.shards import ClipsDataset
from cinesynth.data.video import read_video
from cinesynth.data.windows import Source, Window, index_source
from cinesynth.errors import ConfigError, DatasetError, IdentityError
from cinesynth.settings import parse_config
from cinesynth.storage import Storage, sha256_file

SPLITS = ("train", "val", "test")
WINDOW = {"num_frames": 9, "height": 32, "width": 48, "stride": 20, "max_per_shot": 2}


def _config(footage: Path, storage: Path | str, **overrides: Any) -> PrepareConfig:
    values = {
        "name": "clips",
        "storage": str(storage),
        "footage": [{"path": str(footage), "domain": "scripted"}],
        "window": WINDOW,
        "split": {"val": 0.3, "test": 0.4, "salt": "6"},
        "shard_windows": 2,
        **overrides,
    }
    return parse_config(PrepareConfig, values)


@pytest.fixture(scope="module")
def footage(small_footage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips, a copy of one under another name, and a broken file."""
    folder = Path(shutil.copytree(small_footage, tmp_path_factory.mktemp("footage") / "with a space"))
    shutil.copy(folder / "scripted-0001.mp4", folder / "zz-copy.mp4")
    (folder / "broken.mp4").write_bytes(b"\0" * 2000)
    return folder


@pytest.fixture(scope="module")
def prepared(footage: Path, tmp_path_factory: pytest.TempPathFactory, ray_head: Any) -> tuple[Path, dict[str, Any]]:
    """A storage folder with the prepared dataset `clips`, and the run's result."""
    storage = tmp_path_factory.mktemp("storage")
    return storage, prepare(_config(footage, storage))


def _files(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_every_window_is_encoded_or_rejected_with_its_reason(footage: Path, prepared: Any, tmp_path: Path) -> None:
    storage, result = prepared
    dataset = ClipsDataset.open(Storage.open(storage).child("datasets", "clips"))
    config = _config(footage, storage)
    expected: dict[str, Window] = {}
    for path in sorted(footage.glob("scripted-*.mp4")):
        for window in index_source(Source(str(path), sha256_file(path), "scripted", None), config, PyAVDecoder())[0]:
            expected[window.window_id] = window
    rows = dataset.windows()
    assert [row.window_id for row in rows] == sorted(expected)
    assert result["figures"]["windows"] == len(expected) == sum(result["figures"][f"{s}_windows"] for s in SPLITS)
    assert {row.split for row in rows} == set(SPLITS), "the salt above gives each split a group"
    rejected = pq.read_table(storage / "datasets/clips/rejected.parquet").to_pylist()
    assert {(Path(r["source"]).name, r["reason"]) for r in rejected if r["reason"] != "shot_too_short"} == {
        ("broken.mp4", "unreadable"),
        ("zz-copy.mp4", "duplicate"),
    }
    assert result["outputs"]["dataset"] == dataset.storage.uri
    assert result["outputs"]["manifest_sha256"] == dataset.manifest_sha256
    page = (storage / "datasets/clips/index.html").read_text()
    assert len(page) < 5_000_000
    assert page.count("data:image/jpeg;base64,") == len(rows)
    assert "http" not in page.replace("http-equiv", "")
    for row in rows:
        assert row.caption in page


def test_held_out_pixels_are_the_cropped_source_frames_bit_for_bit(prepared: Any, tmp_path: Path) -> None:
    storage, _ = prepared
    dataset = ClipsDataset.open(Storage.open(storage).child("datasets", "clips"))
    windows = {row["window_id"]: row for row in pq.read_table(storage / "datasets/clips/windows.parquet").to_pylist()}
    kept = {split: dataset.stage_pixels(tmp_path / split, split) for split in ("val", "test")}
    assert all(kept.values())
    on_disk = {path.stem for path in (storage / "datasets/clips/pixels").iterdir()}
    assert on_disk == {*kept["val"], *kept["test"]}
    for window_id, path in {**kept["val"], **kept["test"]}.items():
        frames, fps = read_video(path)
        row = windows[window_id]
        source = PyAVDecoder().read(row["source_uri"], row["frame_pts"])
        assert fps == 16
        assert np.array_equal(frames, crop_resize(source, 32, 48))


def test_latents_are_the_encoders_in_half_precision(prepared: Any, tmp_path: Path) -> None:
    from cinesynth.wan.condition import ConditionEncoder

    storage, _ = prepared
    dataset = ClipsDataset.open(Storage.open(storage).child("datasets", "clips"))
    encoder = ConditionEncoder("nano")
    assert dataset.manifest["encoder_hash"] == encoder.encoder_hash
    clips = dataset.stage(tmp_path / "staged", "test")
    pixels = dataset.stage_pixels(tmp_path / "pixels", "test")
    for item in (clips[i] for i in range(len(clips))):
        frames, _ = read_video(pixels[item["window_id"]])
        expected = {
            "latents": encoder.latents(frames),
            "condition_latents": encoder.condition_latents(frames[0], len(frames)),
            "image_embeds": encoder.image_embeds(frames[0]),
            "prompt_embeds": encoder.prompt_embeds(item["caption"]),
        }
        for name, value in expected.items():
            assert item[name].shape == value.shape
            torch.testing.assert_close(item[name].float(), value, rtol=1e-3, atol=2e-4, msg=name)
    torch.testing.assert_close(dataset.empty_prompt_embeds().float(), encoder.prompt_embeds(""), rtol=1e-3, atol=2e-4)


def test_the_same_command_on_a_complete_dataset_does_nothing(footage: Path, prepared: Any) -> None:
    storage, result = prepared
    before = _files(storage / "datasets")
    assert prepare(_config(footage, storage, encode_workers=2)) == result
    assert _files(storage / "datasets") == before


def test_an_interrupted_run_encodes_only_what_no_commit_holds(
    footage: Path, prepared: Any, tmp_path: Path, ray_head: Any
) -> None:
    """As a kill leaves it: some commits, a shard that no commit names, no manifest, no result."""
    whole, result = prepared
    storage = Path(shutil.copytree(whole, tmp_path / "storage"))
    dataset = storage / "datasets" / "clips"
    commits = sorted((dataset / "commits").iterdir())
    for path in [*commits[1:], dataset / "manifest.json", storage / "runs/clips/result.json"]:
        path.unlink()
    kept = Commits(Storage.open(dataset))
    surviving = next(iter(kept))["shard"]["file"]
    mark = (dataset / surviving).stat().st_mtime_ns
    continued = prepare(_config(footage, storage, encode_workers=2, shard_windows=64))
    assert (dataset / surviving).stat().st_mtime_ns == mark
    opened = ClipsDataset.open(Storage.open(dataset))
    assert {path.name for path in (dataset / "shards").iterdir()} == {
        Path(shard["file"]).name for shard in opened.manifest["shards"]
    }, "shards of no commit are removed"
    encoded_again = sum(shard["rows"] for shard in opened.manifest["shards"]) - len(kept.done)
    assert encoded_again == result["figures"]["windows"] - len(kept.done) > 0
    # Neither the interruption, nor the workers, nor the size of shards show in the content.
    assert continued["outputs"]["manifest_sha256"] == result["outputs"]["manifest_sha256"]


def test_changed_footage_or_settings_under_the_same_name_are_refused(
    footage: Path, prepared: Any, tmp_path: Path
) -> None:
    storage, _ = prepared
    other = Path(shutil.copytree(footage, tmp_path / "footage"))
    (other / "scripted-0002.mp4").unlink()
    same_path = _config(footage, storage).model_copy(update={"footage": _config(other, storage).footage})
    with pytest.raises(IdentityError, match="footage"):
        prepare(same_path)
    with pytest.raises(IdentityError, match=r"window\.stride: recorded 20, given 40"):
        prepare(_config(footage, storage, window={**WINDOW, "stride": 40}))


def test_a_dataset_folder_of_another_run_is_refused(footage: Path, prepared: Any, tmp_path: Path) -> None:
    whole, _ = prepared
    storage = Path(shutil.copytree(whole, tmp_path / "storage"))
    shutil.rmtree(storage / "runs")
    with pytest.raises(DatasetError, match="another run made"):
        prepare(_config(footage, storage, caption="another default"))


def test_footage_without_a_window_says_why(tmp_path: Path, ray_head: Any) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"nothing")
    with pytest.raises(DatasetError, match=r"no window came out of 1 files: 1 unreadable; first: .*clip\.mp4"):
        prepare(_config(tmp_path, tmp_path / "storage"))


def test_a_package_that_is_missing_is_refused_before_ray_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not installed"):
        _config(Path("package:no_such_package/clips"), tmp_path).check_inputs()


def test_a_window_that_fails_is_rejected_and_the_others_are_encoded(small_footage: Path, tmp_path: Path) -> None:
    path = small_footage / "scripted-0000.mp4"
    config = _config(small_footage, tmp_path)
    windows = index_source(Source(str(path), sha256_file(path), "d", None), config, PyAVDecoder())[0][:2]
    lost = Window(**{**vars(windows[1]), "frame_pts": (1, 2, 3, 4, 5, 6, 7, 8, 9)})
    batch = pa.Table.from_pylist(to_rows([windows[0], lost]))
    encoded = EncodeWindows("nano", "cpu", str(tmp_path), "d")(batch)
    commits = Commits(Storage.open(tmp_path / "datasets" / "d"))
    commit = json.loads(WriteShards(str(tmp_path), "d", "hash")(encoded)["commit"][0].as_py())
    assert commits.add(commit) == 2
    assert commits.add(commit) == 0, "a commit that arrives twice counts once"
    assert [r.window_id for r in commits.rejects()] == [lost.window_id]
    assert commits.rejects()[0].reason == "undecodable"
    assert commit["shard"]["rows"] == 1
    again = Commits(Storage.open(tmp_path / "datasets" / "d"))
    assert again.done == {windows[0].window_id, lost.window_id}


@pytest.mark.slow
def test_a_dataset_is_prepared_on_s3_and_read_back(
    footage: Path, prepared: Any, s3: str, tmp_path: Path, ray_head: Any
) -> None:
    _, local = prepared
    result = prepare(_config(footage, s3))
    assert result["outputs"]["dataset"] == "s3://clips/studio/datasets/clips"
    assert result["outputs"]["manifest_sha256"] == local["outputs"]["manifest_sha256"]
    dataset = ClipsDataset.open(Storage.open(s3).child("datasets", "clips"))
    clips = dataset.stage(tmp_path / "staged", "test")
    assert len(clips) == result["figures"]["test_windows"]
    assert clips[0]["latents"].shape == (16, 3, 4, 6)
    pixels = dataset.stage_pixels(tmp_path / "pixels", "test")
    assert sorted(pixels) == [window.window_id for window in clips.windows]


def _shards(commits: list[dict[str, Any]]) -> list[str]:
    return [commit["shard"]["file"] for commit in commits if "shard" in commit]


@pytest.mark.slow
def test_kill_of_the_driver_loses_and_doubles_nothing(
    footage: Path, prepared: Any, tmp_path: Path, ray_head: Any
) -> None:
    """SIGKILL once the first commit is there, then the same command."""
    _, result = prepared
    storage = tmp_path / "storage"
    config = tmp_path / "prepare.yaml"
    values = _config(footage, storage, shard_windows=1).model_dump(mode="json") | {"ray": {"address": ray_head.address}}
    config.write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "jobs.prepare", "--config", str(config)]
    root = Path(__file__).resolve().parents[2]
    commits = storage / "datasets/clips/commits"
    log = tmp_path / "killed.log"
    with open(log, "w") as output, subprocess.Popen(command, cwd=root, stdout=output, stderr=output) as process:
        deadline = time.monotonic() + 200
        while not any(commits.glob("0*.json")):
            late = time.monotonic() > deadline
            if late or process.poll() is not None:
                process.kill()
                pytest.fail(f"no commit {'after 200 s' if late else 'at its end'}:\n{log.read_text()}")
            time.sleep(0.02)
        process.kill()
    assert not (storage / "datasets/clips/manifest.json").exists()
    committed = [json.loads(path.read_text()) for path in commits.glob("0*.json")]
    kept = {name: (storage / "datasets/clips" / name).stat().st_mtime_ns for name in _shards(committed)}
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    dataset = ClipsDataset.open(Storage.open(storage / "datasets/clips"))
    assert dataset.manifest_sha256 == result["outputs"]["manifest_sha256"]
    assert sum(shard["rows"] for shard in dataset.manifest["shards"]) == result["figures"]["windows"]
    assert kept
    assert {name: (storage / "datasets/clips" / name).stat().st_mtime_ns for name in kept} == kept
