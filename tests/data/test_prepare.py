"""From footage to a dataset on a real Ray cluster: outcome, added footage, continuation after a kill, refusals, S3."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from cinesynth.config import PrepareConfig
from cinesynth.data.assemble import read_plan
from cinesynth.data.check import check_dataset
from cinesynth.data.commits import Commits, row_id
from cinesynth.data.decoder import PyAVDecoder
from cinesynth.data.geometry import resize
from cinesynth.data.prepare import prepare
from cinesynth.data.shards import ClipsDataset
from cinesynth.data.video import read_video, write_video
from cinesynth.data.withdraw import affected_adapters, withdraw
from cinesynth.errors import ConfigError, DatasetError, IdentityError, StorageError
from cinesynth.settings import parse_config
from cinesynth.storage import Storage

SPLITS = ("train", "val", "test")
RESOURCES = {
    "decode": 0.5,
    "vae": {"workers": 1, "cpus": 0.5},
    "clip": {"workers": 1, "cpus": 0.5},
    "text": {"workers": 1, "cpus": 0.5},
}


def _config(footage: Path, storage: Path | str, /, **overrides: Any) -> PrepareConfig:
    values = {
        "name": "clips",
        "storage": str(storage),
        "footage": [{"path": str(footage), "domain": "scripted"}],
        "window": {"num_frames": [13, 9], "sizes": ["48x32", "32x48"], "max_per_shot": 3},
        "split": {"val": 0.3, "test": 0.4, "salt": "27"},
        "resources": RESOURCES,
        "shard_mb": 0.05,
        **overrides,
    }
    return parse_config(PrepareConfig, values)


@pytest.fixture(scope="module")
def footage(small_footage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips, a copy of one under another name, another one encoded anew, a portrait, and a broken file."""
    folder = Path(shutil.copytree(small_footage, tmp_path_factory.mktemp("footage") / "with a space"))
    shutil.copy(folder / "scripted-0001.mp4", folder / "zz-copy.mp4")
    frames, fps = read_video(folder / "scripted-0002.mp4")
    write_video(folder / "again.mkv", frames[:, 2:-2, 2:-2], fps=fps, codec="ffv1")
    write_video(folder / "portrait.mp4", np.rot90(frames[:40], axes=(1, 2)), fps=fps)
    (folder / "broken.mp4").write_bytes(b"\0" * 2000)
    return folder


@pytest.fixture(scope="module")
def prepared(footage: Path, tmp_path_factory: pytest.TempPathFactory, ray_head: Any) -> tuple[Path, dict[str, Any]]:
    """A storage folder with the prepared dataset `clips`, and the run's result."""
    storage = tmp_path_factory.mktemp("storage")
    return storage, prepare(_config(footage, storage))


def _location(storage: Path) -> Storage:
    return Storage.open(storage).child("datasets", "clips")


def _files(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def _rejects(storage: Path) -> set[tuple[str, str]]:
    rows = pq.read_table(storage / "datasets/clips/rejected.parquet").to_pylist()
    return {(Path(r["source"]).name, r["reason"]) for r in rows} - {
        (Path(r["source"]).name, reason) for r in rows for reason in ("shot_too_short", "max_per_shot")
    }


def test_every_window_is_encoded_or_rejected_with_its_reason(footage: Path, prepared: Any) -> None:
    storage, result = prepared
    dataset = ClipsDataset.open(_location(storage))
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
    rows = ClipsDataset.open(_location(prepared[0])).windows()
    group = {Path(row.source_uri).name: row.group for row in rows}
    assert group["again.mkv"] == group["scripted-0002.mp4"]
    assert len(set(group.values())) == len(group) - 1, "and no other"


def test_the_page_shows_windows_by_bucket_cuts_and_rejects(prepared: Any) -> None:
    storage, result = prepared
    page = (storage / "datasets/clips/index.html").read_text()
    rows = ClipsDataset.open(_location(storage)).windows()
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
    dataset = ClipsDataset.open(_location(storage))
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
    dataset = ClipsDataset.open(_location(storage))
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
    assert prepare(_config(footage, storage, shard_mb=1.0)) == result
    assert _files(storage / "datasets") == before


def test_an_interrupted_run_encodes_only_what_no_commit_holds(footage: Path, prepared: Any, tmp_path: Path) -> None:
    """As a kill leaves it: some commits, a shard that no commit names, no manifest, no result."""
    whole, result = prepared
    storage = Path(shutil.copytree(whole, tmp_path / "storage"))
    dataset = storage / "datasets" / "clips"
    commits = sorted((dataset / "commits").iterdir())
    for path in [*commits[1:], dataset / "manifest.json", storage / "runs/clips/result.json"]:
        path.unlink()
    (dataset / "shards" / "lost.parquet").write_bytes(b"of no commit")
    kept = Commits(Storage.open(dataset))
    surviving = next(iter(kept))["shard"]["file"]
    mark = (dataset / surviving).stat().st_mtime_ns
    continued = prepare(_config(footage, storage))
    assert (dataset / surviving).stat().st_mtime_ns == mark
    opened = ClipsDataset.open(Storage.open(dataset))
    assert {path.name for path in (dataset / "shards").iterdir()} == {
        Path(shard["file"]).name for shard in opened.manifest["shards"]
    }, "shards of no commit are removed"
    again = sum(len(commit["rows"]) for commit in Commits(Storage.open(dataset))) - len(kept.done)
    assert again == result["figures"]["windows"] - len(kept.done)
    # Neither the interruption, nor the workers, nor the size of shards show in the content.
    assert continued["outputs"]["manifest_sha256"] == result["outputs"]["manifest_sha256"]


def test_added_moved_and_recaptioned_footage(footage: Path, prepared: Any, tmp_path: Path) -> None:
    """Only what is new is encoded; groups that are assigned stay where they are."""
    whole, result = prepared
    storage = Path(shutil.copytree(whole, tmp_path / "storage"))
    other = Path(shutil.copytree(footage, tmp_path / "footage"))
    before = {row.window_id: row for row in ClipsDataset.open(_location(storage)).windows()}
    (other / "scripted-0003.mp4").rename(other / "renamed.mp4")
    (other / "scripted-0003.json").rename(other / "renamed.json")
    frames, fps = read_video(other / "scripted-0000.mp4")
    write_video(other / "added.mp4", frames[:, ::-1, ::-1], fps=fps)
    (other / "again.txt").write_text("other words")
    grown = prepare(_config(other, storage))
    after = {row.window_id: row for row in ClipsDataset.open(_location(storage)).windows()}
    assert before.keys() < after.keys()
    new = after.keys() - before.keys()
    assert {Path(after[key].source_uri).name for key in new} == {"added.mp4"}
    assert {key: (row.group, row.split) for key, row in before.items()} == {
        key: (after[key].group, after[key].split) for key in before
    }
    changed = {key for key in before if after[key].caption != before[key].caption}
    assert {after[key].caption for key in changed} == {"other words"}
    rows = [row["row_id"] for commit in Commits(_location(storage)) for row in commit["rows"]]
    assert len(rows) == len(before) + len(new) + len(changed), "nothing else was encoded again"
    assert grown["outputs"]["manifest_sha256"] != result["outputs"]["manifest_sha256"]
    assert check_dataset(_location(storage))[1] == []


def test_other_settings_or_encoders_under_the_same_name_are_refused(footage: Path, prepared: Any) -> None:
    storage, _ = prepared
    with pytest.raises(IdentityError, match=r"window\.max_per_shot: recorded 3, given 4"):
        prepare(
            _config(footage, storage, window={"num_frames": [13, 9], "sizes": ["48x32", "32x48"], "max_per_shot": 4})
        )
    with pytest.raises(IdentityError, match=r"vae_dtype: recorded 'fp32', given 'bf16'"):
        prepare(_config(footage, storage, vae_dtype="bf16"))


def test_a_dataset_folder_of_another_run_is_refused(footage: Path, prepared: Any, tmp_path: Path) -> None:
    whole, _ = prepared
    storage = Path(shutil.copytree(whole, tmp_path / "storage"))
    shutil.rmtree(storage / "runs")
    with pytest.raises(DatasetError, match="another run made"):
        prepare(_config(footage, storage, caption="another default"))


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
    rows = ClipsDataset.open(_location(storage)).windows()
    victim = next(row for row in rows if row.split != "train")
    own = [row for row in rows if row.source_sha256 == victim.source_sha256]
    manifest, affected = withdraw(Storage.open(storage), "clips", victim.source_uri)
    assert [(a.where, a.through) for a in affected] == [
        ("runs/motion/adapter", "a" * 64),
        ("runs/style/adapter", "dataset"),
    ]
    left = ClipsDataset.open(_location(storage))
    assert left.manifest_sha256 == manifest["content_sha256"] != result["outputs"]["manifest_sha256"]
    assert len(left.windows()) == len(rows) - len(own)
    assert not any((storage / f"datasets/clips/pixels/{row.window_id}.mkv").exists() for row in own)
    assert check_dataset(_location(storage))[1] == []
    again = prepare(_config(footage, storage))
    assert again["outputs"]["manifest_sha256"] == manifest["content_sha256"]
    assert (Path(victim.source_uri).name, "withdrawn") in _rejects(storage)
    assert withdraw(Storage.open(storage), "clips", victim.source_uri)[1] == affected, "it can be asked again"
    with pytest.raises(DatasetError, match="is no source of"):
        withdraw(Storage.open(storage), "clips", "/nowhere.mp4")
    assert affected_adapters(Storage.open(storage), _location(storage), "unknown") == []


def _damage(dataset: Path, kind: str) -> str:
    shard = next(iter(sorted((dataset / "shards").iterdir())))
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
    index = next((dataset / "index").iterdir())
    index.write_bytes(index.read_bytes()[:-10])
    return r"index: .*\.parquet is damaged"


@pytest.mark.parametrize("kind", ["flipped", "lost", "pixels", "changed pixels", "index"])
def test_the_check_names_what_is_damaged(kind: str, prepared: Any, tmp_path: Path) -> None:
    storage = Path(shutil.copytree(prepared[0], tmp_path / "storage"))
    expected = _damage(storage / "datasets" / "clips", kind)
    command = [sys.executable, "-m", "jobs.prepare", "--check", str(storage / "datasets/clips")]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert re.search(expected, done.stdout), done.stdout


def test_footage_without_a_window_says_why(tmp_path: Path, ray_head: Any) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"nothing")
    with pytest.raises(DatasetError, match=r"no window came out of 1 files: 1 unreadable; first: .*clip\.mp4"):
        prepare(_config(tmp_path, tmp_path / "storage"))


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
        parse_config(PrepareConfig, given).check_inputs()


@pytest.mark.slow
def test_a_dataset_is_prepared_from_s3_to_s3_and_read_back(
    footage: Path, prepared: Any, s3: str, tmp_path: Path, ray_head: Any
) -> None:
    _, local = prepared
    source = Storage.below(s3, "footage")
    Storage.open(source).upload_folder(footage)
    result = prepare(_config(footage, s3, footage=[{"path": source, "domain": "scripted"}]))
    assert result["outputs"]["dataset"] == "s3://clips/studio/datasets/clips"
    assert result["outputs"]["manifest_sha256"] == local["outputs"]["manifest_sha256"]
    dataset = ClipsDataset.open(Storage.open(s3).child("datasets", "clips"))
    clips = dataset.stage(tmp_path / "staged", "test")
    assert len(clips) == result["figures"]["test_windows"]
    assert clips[0]["latents"].shape[0] == 16
    assert all("test:test" not in window.source_uri for window in clips.windows)
    assert check_dataset(dataset.storage)[1] == []


@pytest.mark.slow
def test_kill_of_the_driver_loses_and_doubles_nothing(
    footage: Path, prepared: Any, tmp_path: Path, ray_head: Any
) -> None:
    """SIGKILL once the first commit is there, then the same command. What comes before encoding is there already."""
    whole, result = prepared
    storage = Path(shutil.copytree(whole, tmp_path / "storage"))
    for name in ("manifest.json", "commits", "shards", "index", "pixels", "history"):
        path = storage / "datasets/clips" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (storage / "runs/clips/result.json").unlink()
    config = tmp_path / "prepare.yaml"
    values = _config(footage, storage, shard_mb=0.02, shard_s=0.2).model_dump(mode="json")
    config.write_text(yaml.safe_dump(values | {"ray": {"address": ray_head.address}}))
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


def _shards(commits: list[dict[str, Any]]) -> list[str]:
    return [commit["shard"]["file"] for commit in commits if "shard" in commit]


def test_two_runs_that_write_one_dataset_find_each_other_out(tmp_path: Path) -> None:
    ours, theirs = (Commits(Storage.open(tmp_path)) for _ in range(2))
    commit: dict[str, Any] = {"rejected": {}, "rows": [], "cpu_s": {}}
    ours.add(commit)
    with pytest.raises(DatasetError, match=r"another run of prepare writes .* at the same time"):
        theirs.add(commit)
    ours.add(commit)
    assert len(list(Commits(Storage.open(tmp_path)))) == 2


def test_a_row_is_a_window_with_its_caption() -> None:
    assert row_id("w", "a") != row_id("w", "b") != row_id("x", "b")


@pytest.mark.slow
def test_four_nodes_of_which_one_dies_and_a_worker_make_the_same_dataset(
    footage: Path, prepared: Any, tmp_path: Path, ray_head: Any
) -> None:
    """SIGKILL of a process that encodes latents at the first commit, and of a node at the third.

    The same ids, splits and scores; latents within one step of fp16, as threads may add up in another order.
    """
    _, alone = prepared
    nodes = [ray_head.cluster.add_node(num_cpus=2) for _ in range(3)]
    storage = tmp_path / "storage"
    commits = storage / "datasets/clips/commits"
    killed: list[int] = []

    def commits_are(count: int) -> bool:
        deadline = time.monotonic() + 120
        while len(list(commits.glob("0*.json"))) < count and time.monotonic() < deadline:
            time.sleep(0.02)
        return time.monotonic() < deadline

    def kill() -> None:
        if commits_are(1):
            workers = psutil.Process().children(recursive=True)
            victim = next(p for p in workers if "EncodeLatents" in " ".join(p.cmdline()))
            victim.kill()
            killed.append(victim.pid)
        if commits_are(3):
            ray_head.cluster.remove_node(nodes.pop(0), allow_graceful=False)
            killed.append(0)

    killer = threading.Thread(target=kill)
    try:
        killer.start()
        resources = RESOURCES | {"vae": {"workers": 3, "cpus": 1.0}}
        result = prepare(_config(footage, storage, resources=resources, shard_mb=0.01, shard_s=0.2))
    finally:
        killer.join()
        for node in nodes:
            ray_head.cluster.remove_node(node)
    assert len(killed) == 2
    rows = [row["row_id"] for commit in Commits(_location(storage)) for row in commit["rows"]]
    assert len(rows) == len(set(rows)) == result["figures"]["windows"]
    whole, spread = (ClipsDataset.open(_location(place)) for place in (prepared[0], storage))
    facts = [[(w.window_id, w.split, w.group, w.scores, w.caption) for w in d.windows()] for d in (whole, spread)]
    assert facts[0] == facts[1]
    assert check_dataset(spread.storage)[1] == []
    assert result["figures"]["windows"] == alone["figures"]["windows"]
    staged = [d.stage(tmp_path / name, "test") for name, d in (("a", whole), ("b", spread))]
    for i in range(len(staged[0])):
        ours, theirs = (s[i]["latents"] for s in staged)
        step = torch.nextafter(ours.abs(), torch.tensor(torch.inf, dtype=torch.half)) - ours.abs()
        assert ((ours - theirs).abs() <= step).all()


@pytest.mark.slow
def test_a_disk_that_fills_up_is_an_error_and_the_dataset_stays_valid(
    footage: Path, prepared: Any, tmp_path: Path, ray_head: Any
) -> None:
    disk = tmp_path / "small"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    few = [{"path": str(footage / "scripted-000[01].mp4"), "domain": "scripted"}]
    try:
        with pytest.raises(StorageError, match=r"No space left on device while preparing 'clips'"):
            prepare(_config(footage, disk))
        assert not (disk / "datasets/clips/manifest.json").exists()
        _resize(disk, "64m")
        started = prepare(_config(footage, disk, footage=few))
        # Now it fills up while a dataset that is complete grows: readers go on with what they had.
        room = os.statvfs(disk)
        _resize(disk, str((room.f_blocks - room.f_bfree) * room.f_frsize + 8192))
        with pytest.raises(StorageError, match=r"No space left on device while preparing 'clips'"):
            prepare(_config(footage, disk))
        assert ClipsDataset.open(_location(disk)).manifest_sha256 == started["outputs"]["manifest_sha256"]
        assert check_dataset(_location(disk))[1] == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def _resize(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)
