"""From footage to a dataset on a real Ray cluster: outcome, added footage, refusals, S3."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from cinesynth.config import PrepareConfig
from cinesynth.data.check import check_dataset
from cinesynth.data.dataset import SPLITS, ClipsDataset
from cinesynth.data.encode.commits import Commits
from cinesynth.data.plan.geometry import resize
from cinesynth.data.prepare import check_inputs, prepare
from cinesynth.data.records import CAPTION_PLACES, read_plan, row_id, write_plan
from cinesynth.data.scan.decoder_pyav import PyAVDecoder
from cinesynth.data.video import read_video, write_video
from cinesynth.data.withdraw import affected_adapters, withdraw
from cinesynth.errors import ConfigError, DatasetError, IdentityError
from cinesynth.settings import parse_config
from cinesynth.storage import Storage
from tests.data.preparing import location, prepare_config


def _files(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def _rejects(storage: Path) -> set[tuple[str, str]]:
    rows = pq.read_table(storage / "datasets/clips/rejected.parquet").to_pylist()
    return {(Path(r["source"]).name, r["reason"]) for r in rows} - {
        (Path(r["source"]).name, reason) for r in rows for reason in ("shot_too_short", "max_per_shot")
    }


def test_every_window_is_encoded_or_rejected_with_its_reason(footage: Path, prepared: Any) -> None:
    storage, result = prepared
    dataset = ClipsDataset.open(location(storage))
    rows = dataset.windows()
    figures = result["figures"]
    assert [row.window_id for row in rows] == sorted(w.window_id for w in read_plan(dataset.storage))
    assert figures["windows"] == len(rows) == sum(figures[f"{s}_windows"] for s in SPLITS)
    assert {row.split for row in rows} == set(SPLITS), "the salt above gives each split a scripted clip"
    assert {row.bucket for row in rows} >= {"48x32x13", "48x32x9", "32x48x13"}
    assert _rejects(storage) == {("broken.mp4", "unreadable"), ("zz-copy.mp4", "duplicate")}
    assert result["outputs"]["dataset"] == dataset.storage.uri
    assert result["outputs"]["manifest_sha256"] == dataset.manifest_sha256
    names = {Path(row.source_uri).name for row in rows}
    assert names == {p.name for p in footage.iterdir() if p.suffix in (".mp4", ".mkv")} - {"broken.mp4", "zz-copy.mp4"}
    assert all({"blur", "luma", "motion"} <= row.scores.keys() for row in rows)
    counts, findings = check_dataset(dataset.storage)
    assert findings == []
    assert counts["windows"] == len(rows)


def test_a_clip_and_its_encoded_copy_are_in_one_group(prepared: Any) -> None:
    rows = ClipsDataset.open(location(prepared[0])).windows()
    group = {Path(row.source_uri).name: row.group for row in rows}
    assert group["again.mkv"] == group["scripted-0002.mp4"]
    assert len(set(group.values())) == len(group) - 1, "and no other"


def test_the_page_shows_windows_by_bucket_cuts_and_rejects(prepared: Any) -> None:
    storage, result = prepared
    page = (storage / "datasets/clips/index.html").read_text()
    rows = ClipsDataset.open(location(storage)).windows()
    assert len(page) < 5_000_000
    assert page.count("data:image/jpeg;base64,") == len(rows)
    assert "http" not in page.replace("http-equiv", "")
    assert page.count('class="timeline"') == result["figures"]["sources"] - 1  # the broken one has none
    assert page.count(" window ") >= len(rows)
    for row in rows:
        assert row.caption in page
        assert f"<h3>{row.bucket} " in page
    assert "broken.mp4" in page
    assert "aesthetic (no weights are given" in page


def test_held_out_pixels_are_the_cropped_source_frames_bit_for_bit(prepared: Any, tmp_path: Path) -> None:
    storage, _ = prepared
    dataset = ClipsDataset.open(location(storage))
    windows = {w.window_id: w for w in read_plan(dataset.storage)}
    kept = {split: dataset.stage_pixels(tmp_path / split, split) for split in ("val", "test")}
    assert all(kept.values())
    on_disk = {path.stem for path in (storage / "datasets/clips/pixels").iterdir()}
    assert on_disk == {*kept["val"], *kept["test"]}
    for window_id, path in {**kept["val"], **kept["test"]}.items():
        frames, fps = read_video(path)
        w = windows[window_id]
        source = PyAVDecoder().read(w.source_uri, w.frame_pts)
        assert fps == 16
        assert np.array_equal(frames, resize(source, (w.width, w.height), w.box))


def test_latents_are_the_encoders_in_half_precision(prepared: Any, tmp_path: Path) -> None:
    from cinesynth.wan.condition import ConditionEncoder

    storage, _ = prepared
    dataset = ClipsDataset.open(location(storage))
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
            torch.testing.assert_close(item[name].float(), value, rtol=2e-3, atol=4e-4, msg=name)
    torch.testing.assert_close(dataset.empty_prompt_embeds().float(), encoder.prompt_embeds(""), rtol=1e-3, atol=2e-4)


def test_the_same_command_on_a_complete_dataset_does_nothing(footage: Path, prepared: Any) -> None:
    storage, result = prepared
    before = _files(storage / "datasets")
    assert prepare(prepare_config(footage, storage, shard_mb=1.0)) == result
    assert _files(storage / "datasets") == before


def test_added_moved_and_recaptioned_footage(footage: Path, prepared: Any, tmp_path: Path) -> None:
    """Only what is new is encoded; groups that are assigned stay where they are."""
    whole, result = prepared
    storage = Path(shutil.copytree(whole, tmp_path / "storage"))
    other = Path(shutil.copytree(footage, tmp_path / "footage"))
    before = {row.window_id: row for row in ClipsDataset.open(location(storage)).windows()}
    (other / "scripted-0003.mp4").rename(other / "renamed.mp4")
    (other / "scripted-0003.json").rename(other / "renamed.json")
    frames, fps = read_video(other / "scripted-0000.mp4")
    write_video(other / "added.mp4", frames[:, ::-1, ::-1], fps=fps)
    (other / "again.txt").write_text("other words")
    grown = prepare(prepare_config(other, storage))
    after = {row.window_id: row for row in ClipsDataset.open(location(storage)).windows()}
    assert before.keys() < after.keys()
    new = after.keys() - before.keys()
    assert {Path(after[key].source_uri).name for key in new} == {"added.mp4"}
    assert {key: (row.group, row.split) for key, row in before.items()} == {
        key: (after[key].group, after[key].split) for key in before
    }
    changed = {key for key in before if after[key].caption != before[key].caption}
    assert {after[key].caption for key in changed} == {"other words"}
    rows = [row["row_id"] for commit in Commits(location(storage)) for row in commit["rows"]]
    assert len(rows) == len(before) + len(new) + len(changed), "nothing else was encoded again"
    assert grown["outputs"]["manifest_sha256"] != result["outputs"]["manifest_sha256"]
    assert check_dataset(location(storage))[1] == []


def test_other_settings_or_encoders_under_the_same_name_are_refused(footage: Path, prepared: Any) -> None:
    storage, _ = prepared
    with pytest.raises(IdentityError, match=r"window\.max_per_shot: recorded 3, given 4"):
        prepare(
            prepare_config(
                footage, storage, window={"num_frames": [13, 9], "sizes": ["48x32", "32x48"], "max_per_shot": 4}
            )
        )
    with pytest.raises(IdentityError, match=r"vae_dtype: recorded 'fp32', given 'bf16'"):
        prepare(prepare_config(footage, storage, vae_dtype="bf16"))


def test_a_dataset_folder_of_another_run_is_refused(footage: Path, prepared: Any, tmp_path: Path) -> None:
    whole, _ = prepared
    storage = Path(shutil.copytree(whole, tmp_path / "storage"))
    shutil.rmtree(storage / "runs")
    with pytest.raises(DatasetError, match="another run made"):
        prepare(prepare_config(footage, storage, caption="another default"))


def test_a_withdrawn_source_is_gone_and_its_adapters_are_named(footage: Path, prepared: Any, tmp_path: Path) -> None:
    whole, result = prepared
    storage = Path(shutil.copytree(whole, tmp_path / "storage"))
    card = {"dataset_sha256": result["outputs"]["manifest_sha256"], "parents": [], "sha256": "a" * 64}
    cards = {
        "runs/style/adapter": card,
        "runs/motion/adapter": {
            "dataset_sha256": "x",
            "parents": [{"sha256": "a" * 64, "scale": 1.0}],
            "sha256": "b" * 64,
        },
        "registry/look/files/cc": {"dataset_sha256": "x", "parents": [], "sha256": "c" * 64},
    }
    for folder, content in cards.items():
        Storage.open(storage).write_json(f"{folder}/card.json", content)
    rows = ClipsDataset.open(location(storage)).windows()
    victim = next(row for row in rows if row.split != "train")
    own = [row for row in rows if row.source_sha256 == victim.source_sha256]
    manifest, affected = withdraw(Storage.open(storage), "clips", victim.source_uri)
    assert [(a.where, a.through) for a in affected] == [
        ("runs/motion/adapter", "a" * 64),
        ("runs/style/adapter", "dataset"),
    ]
    left = ClipsDataset.open(location(storage))
    assert left.manifest_sha256 == manifest["content_sha256"] != result["outputs"]["manifest_sha256"]
    assert len(left.windows()) == len(rows) - len(own)
    assert not any((storage / f"datasets/clips/pixels/{row.window_id}.mkv").exists() for row in own)
    assert check_dataset(location(storage))[1] == []
    again = prepare(prepare_config(footage, storage))
    assert again["outputs"]["manifest_sha256"] == manifest["content_sha256"]
    assert (Path(victim.source_uri).name, "withdrawn") in _rejects(storage)
    assert withdraw(Storage.open(storage), "clips", victim.source_uri)[1] == affected, "it can be asked again"
    with pytest.raises(DatasetError, match="is no source of"):
        withdraw(Storage.open(storage), "clips", "/nowhere.mp4")
    assert affected_adapters(Storage.open(storage), location(storage), "unknown") == []


def test_a_source_is_withdrawn_while_other_captions_wait_to_be_encoded(prepared: Any, tmp_path: Path) -> None:
    storage = Path(shutil.copytree(prepared[0], tmp_path / "storage"))
    dataset = location(storage)
    before = ClipsDataset.open(dataset).windows()
    write_plan(dataset, "of a run that was killed", [replace(w, caption="new words") for w in read_plan(dataset)])
    manifest, _ = withdraw(Storage.open(storage), "clips", before[0].source_sha256)
    after = ClipsDataset.open(dataset).windows()
    assert manifest["windows"] == len(after) < len(before)
    assert {w.window_id: w.caption for w in after}.items() < {w.window_id: w.caption for w in before}.items()
    assert check_dataset(dataset)[1] == []


def _damage(dataset: Path, kind: str) -> str:
    # Not any file of the folder: what was withdrawn may have been all that a shard held.
    shard = dataset / json.loads((dataset / "manifest.json").read_text())["shards"][0]["file"]
    if kind == "flipped":
        data = bytearray(shard.read_bytes())
        data[len(data) // 2] ^= 1
        shard.write_bytes(bytes(data))
        return f"{shard.name}: is damaged"
    if kind == "lost":
        shard.unlink()
        return f"{shard.name}: .*does not exist"
    if kind == "pixels":
        path = next((dataset / "pixels").iterdir())
        path.unlink()
        return f"{path.name}: is missing"
    if kind == "changed pixels":
        path = next((dataset / "pixels").iterdir())
        path.write_bytes(path.read_bytes()[:-10])
        return f"{path.name}: is damaged"
    manifest = dataset / "manifest.json"
    if kind == "split":
        manifest.write_text(re.sub(r'("train": {[^}]*"windows": )', r"\g<1>1", manifest.read_text()))
        return r"manifest\.json: says 1\d+ train windows"
    if kind == "content":
        manifest.write_text(re.sub(r'("content_sha256": ")....', r"\g<1>0000", manifest.read_text()))
        return r"manifest\.json: content_sha256 is 0000"
    if kind == "prompt":
        path = dataset / json.loads(manifest.read_text())["empty_prompt"]["file"]
        path.write_bytes(path.read_bytes()[:-10])
        return r"index: .*prompts/.*\.parquet is damaged"
    index = next((dataset / "index").iterdir())
    index.write_bytes(index.read_bytes()[:-10])
    return r"index: .*\.parquet is damaged"


@pytest.mark.parametrize("kind", ["flipped", "lost", "pixels", "changed pixels", "index", "split", "content", "prompt"])
def test_the_check_names_what_is_damaged(kind: str, prepared: Any, tmp_path: Path) -> None:
    storage = Path(shutil.copytree(prepared[0], tmp_path / "storage"))
    expected = _damage(storage / "datasets" / "clips", kind)
    found = [f"{finding.where}: {finding.what}" for finding in check_dataset(location(storage))[1]]
    assert any(re.search(expected, line) for line in found), found


def test_the_commands_that_check_and_withdraw(prepared: Any, tmp_path: Path) -> None:
    storage = Path(shutil.copytree(prepared[0], tmp_path / "storage"))
    dataset = str(storage / "datasets" / "clips")
    source = ClipsDataset.open(location(storage)).windows()[0].source_uri
    done = _job("--withdraw", source, "--dataset", dataset)
    assert done.returncode == 0, done.stderr
    assert re.search(rf"withdrew {re.escape(source)}: \d+ windows are left in {re.escape(dataset)}", done.stdout)
    assert "no adapter of this storage was trained on it" in done.stdout
    done = _job("--check", dataset)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"checked .* windows.*: all is well", done.stdout)
    expected = _damage(Path(dataset), "lost")
    done = _job("--check", dataset)
    assert done.returncode == 1, done.stderr
    assert re.search(expected, done.stdout), done.stdout


def _job(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs.prepare", *arguments]
    return subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120)


def test_footage_without_a_window_says_why(tmp_path: Path, ray_head: Any) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"nothing")
    with pytest.raises(DatasetError, match=r"no window came out of 1 files: 1 unreadable; first: .*clip\.mp4"):
        prepare(prepare_config(tmp_path, tmp_path / "storage"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"footage": [{"path": "package:no_such_package/clips"}]}, "is not installed"),
        ({"footage": [{"path": "/no/such/folder"}]}, r"footage\.0\.path: .* does not exist"),
        ({"footage": [{"path": "/no/such/*.mp4"}]}, "matches nothing"),
        ({"filters": {"text": {"max": 0.1}}}, r"filters\.text: this score is not measured"),
        ({"aesthetic": "/no/such/weights"}, r"aesthetic: .* is missing"),
    ],
)
def test_what_is_missing_is_refused_before_ray_starts(overrides: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").touch()
    given = {"footage": [{"path": str(tmp_path)}], "name": "clips", "storage": str(tmp_path), **overrides}
    with pytest.raises(ConfigError, match=message):
        check_inputs(parse_config(PrepareConfig, given), "nano")


@pytest.mark.slow
def test_a_dataset_is_prepared_from_s3_to_s3_and_read_back(
    footage: Path, prepared: Any, s3: str, tmp_path: Path, ray_head: Any
) -> None:
    _, local = prepared
    source = Storage.below(s3, "footage")
    Storage.open(source).upload_folder(footage)
    result = prepare(prepare_config(footage, s3, footage=[{"path": source, "domain": "scripted"}]))
    assert result["outputs"]["dataset"] == "s3://clips/studio/datasets/clips"
    assert result["outputs"]["manifest_sha256"] == local["outputs"]["manifest_sha256"]
    dataset = ClipsDataset.open(Storage.open(s3).child("datasets", "clips"))
    clips = dataset.stage(tmp_path / "staged", "test")
    assert len(clips) == result["figures"]["test_windows"]
    assert clips[0]["latents"].shape[0] == 16
    assert all("test:test" not in window.source_uri for window in clips.windows)
    assert check_dataset(dataset.storage)[1] == []


def test_the_result_says_where_captions_come_from_and_why_files_were_rejected(prepared: Any) -> None:
    storage, result = prepared
    manifest = location(storage).read_json("manifest.json")
    figures = result["figures"]
    assert sum(manifest["captions"].values()) == manifest["windows"]
    assert set(manifest["captions"]) <= set(CAPTION_PLACES[:-1])
    assert {f"captions/{place}": count for place, count in manifest["captions"].items()}.items() <= figures.items()
    left_out = result["left_out"]
    assert left_out.keys() == manifest["rejected"].keys()
    assert "broken.mp4" in left_out["unreadable"]
    assert "captions from" in location(storage).read_text("index.html")


def test_a_row_is_a_window_with_its_caption() -> None:
    assert row_id("w", "a") != row_id("w", "b") != row_id("x", "b")
