"""The whole path as a job on a real Ray head: done, skipped when complete, or failed with the reason."""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from cinesynth.config import EvaluateConfig, GenerateConfig, PipelineConfig, TrainConfig
from cinesynth.data.dataset import WindowRow
from cinesynth.data.video import read_video
from cinesynth.errors import ConfigError, DatasetError, IdentityError
from cinesynth.generate.driver import generate
from cinesynth.metrics.evaluate import evaluate
from cinesynth.pipeline import run_pipeline, step_config, steps
from cinesynth.registry import Registry
from cinesynth.runs import read_events, read_result
from cinesynth.scripted.series import write_scripted_clips
from cinesynth.settings import load_config, parse_config
from cinesynth.storage import Storage
from tests.conftest import REPOSITORY, Head
from tests.generate.test_windows import ROW

pytestmark = pytest.mark.timeout(900)  # the first waits for five jobs, beside the tests that need no Ray

CONFIG = """
name: tiny
model: nano
prepare:
  footage: [{path: "FOOTAGE", domain: scripted}]
  window: {num_frames: 13, sizes: 96x64, max_per_shot: 1}
  split: {val: 0.2, test: 0.4, salt: tiny}
style:
  lora: {rank: 4, alpha: 8}
  optimizer: {steps: 4, lr: 1e-2, batch_size: 2}
  validation: {every: 4, sigmas: [0.5], max_windows: 2}
  checkpoint_every: 2
generate: {split: test, sampler: {steps: 2, guidance_scale: 1.0}, max_windows: 6}
evaluate: {metrics: [fvd, kvd, lpips]}
publish: {adapter_name: tiny}
"""


@dataclass
class Job:
    status: str
    log: str

    @property
    def last_line(self) -> str:
        return self.log.strip().splitlines()[-1]


def submit(head: Head, *overrides: str) -> Job:
    """Submit the pipeline as `ray job submit --working-dir .` does, and wait for its end."""
    from ray.job_submission import JobSubmissionClient

    client = JobSubmissionClient(head.dashboard)
    command = shlex.join([sys.executable, "-m", "jobs.pipeline", *overrides])
    job = client.submit_job(entrypoint=command, runtime_env={"working_dir": str(REPOSITORY)})

    async def drain() -> None:
        async for _ in client.tail_job_logs(job):
            pass

    asyncio.run(asyncio.wait_for(drain(), timeout=600))
    deadline = time.monotonic() + 20
    while not client.get_job_status(job).is_terminal() and time.monotonic() < deadline:
        time.sleep(0.1)  # the log ends a moment before the status is set
    return Job(client.get_job_status(job).value, client.get_job_logs(job))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline with a space")
    write_scripted_clips(folder / "footage", 14, seed=5)
    (folder / "footage" / "broken.mp4").write_bytes(b"not a video")
    (folder / "tiny.yaml").write_text(CONFIG.replace("FOOTAGE", str(folder / "footage")))
    return folder


@pytest.fixture(scope="module")
def options(folder: Path) -> list[str]:
    return ["--config", str(folder / "tiny.yaml"), f"storage={folder / 'storage'}"]


@pytest.fixture(scope="module")
def finished(ray_head: Head, options: list[str]) -> Job:
    return submit(ray_head, *options)


def test_the_submitted_pipeline_succeeds_and_every_step_left_its_result(finished: Job, folder: Path) -> None:
    assert finished.status == "SUCCEEDED", finished.log[-3000:]
    assert finished.last_line == "pipeline tiny: complete"
    storage = Storage.open(folder / "storage")
    for step in ("prepare", "style", "generate", "evaluate", "publish"):
        assert read_result(storage, f"tiny-{step}")["kind"]
    result = read_result(storage, "tiny")
    assert result["figures"]["prepare/rejected"] >= 1
    events = read_events(storage.child("runs", "tiny-style"))
    assert [e["step"] for e in events if "loss" in e] == [1, 2, 3, 4]
    published = Registry(storage).resolve("tiny@latest")
    assert published.ref == result["outputs"]["publish/adapter"]
    assert published.card["step"] == 4
    report = Path(result["outputs"]["report"])
    assert 10_000 < report.stat().st_size < 5_000_000


def test_the_metrics_record_covers_both_arms(finished: Job, folder: Path) -> None:
    outputs = read_result(Storage.open(folder / "storage"), "tiny")["outputs"]
    record: dict[str, Any] = json.loads(Path(outputs["evaluate/metrics"]).read_text())
    found = {(v["metric"], v["arm"]) for v in record["values"] if v["value"] is not None}
    assert {(m, a) for m in ("fvd", "kvd", "lpips") for a in ("base", "adapter")} <= found


def test_several_arms_are_generated_in_one_run(finished: Job, ray_head: Head, folder: Path) -> None:
    trained = {"ref": "tiny@latest"}
    values = {
        **{"name": "arms", "storage": str(folder / "storage"), "ray": {"address": ray_head.address}},
        **{
            "dataset": "tiny-prepare",
            "split": "test",
            "max_windows": 1,
            "sampler": {"steps": 1, "guidance_scale": 1.0},
        },
        "arms": {"base": [], "style": [trained], "off": [{**trained, "scale": 0.0}]},
    }
    result = generate(parse_config(GenerateConfig, values))
    assert result["figures"]["videos"] == 3
    frames = {path.parent.name: read_video(path)[0] for path in Path(result["outputs"]["videos"]).glob("*/*.mkv")}
    assert set(frames) == {"real", "base", "style", "off"}
    assert (frames["off"] == frames["base"]).all()
    assert (frames["style"] != frames["base"]).any()


def test_a_split_of_the_dataset_is_the_real_side_as_well_as_its_copy(finished: Job, folder: Path) -> None:
    storage = folder / "storage"
    videos = storage / "runs" / "tiny-generate" / "videos"
    arms = {arm: str(videos / arm) for arm in ("base", "adapter")}
    sides = {
        "copy": {"real": str(videos / "real"), "groups": str(videos.parent / "groups.csv")},
        "split": {"real": {"dataset": "tiny-prepare", "split": "test"}},
    }
    figures = {}
    for name, side in sides.items():
        values = {"name": f"real-{name}", "storage": str(storage), "metrics": ["lpips"], "arms": arms, **side}
        figures[name] = evaluate(parse_config(EvaluateConfig, values))["figures"]
    assert figures["split"] == figures["copy"]
    elsewhere = {"real": {"dataset": "tiny-prepare", "split": "val"}, "name": "none", "storage": str(storage)}
    with pytest.raises(DatasetError, match="no video of base or adapter is named like a window of the val split"):
        evaluate(parse_config(EvaluateConfig, {"arms": arms, **elsewhere}))


def test_a_complete_pipeline_is_skipped_even_with_other_workers(
    finished: Job, ray_head: Head, options: list[str], folder: Path
) -> None:
    before = read_result(Storage.open(folder / "storage"), "tiny")
    config = load_config(
        PipelineConfig, options[1], [*options[2:], "style.workers=2", f"ray.address={ray_head.address}"]
    )
    made = _written(folder / "storage")
    again = run_pipeline(config)
    assert _written(folder / "storage") == made, "nothing was trained, generated or evaluated again"
    assert again["outputs"] == before["outputs"]
    assert again["figures"] == before["figures"]


def _written(storage: Path) -> dict[str, int]:
    """Times of all files of the steps, but the resolved configurations, which each try writes."""
    files = [p for p in storage.rglob("*") if p.is_file() and p.name != "config.yaml" and "runs/tiny/" not in str(p)]
    return {str(p): p.stat().st_mtime_ns for p in files}


def test_another_identity_under_the_same_name_is_refused(finished: Job, options: list[str]) -> None:
    config = load_config(PipelineConfig, options[1], [*options[2:], "style.lora.rank=2"])
    with pytest.raises(IdentityError, match=r"style\.lora\.rank: recorded 4, given 2"):
        run_pipeline(config)


def test_a_motion_stage_lies_on_the_style_stage(options: list[str]) -> None:
    given = options[2:]
    config = load_config(PipelineConfig, options[1], [*given, "motion={lora: {rank: 2}}"])
    made = steps(config)
    assert list(made) == ["prepare", "style", "motion", "generate", "evaluate", "publish"]
    motion = step_config(config, "motion", made["motion"])
    assert isinstance(motion, TrainConfig)
    assert (motion.stage, [p.ref for p in motion.parents], motion.lora.rank) == ("motion", ["tiny-style"], 2)
    assert made["generate"].ties["arms"] == {
        **{"base": [], "style": [{"ref": "tiny-style", "scale": 1.0}]},
        "style-motion": [{"ref": "tiny-motion", "scale": 1.0}],
    }
    assert list(made["evaluate"].ties["arms"]) == ["base", "style", "style-motion"]
    assert made["publish"].ties["adapter"] == "tiny-motion"
    assert "motion" not in steps(load_config(PipelineConfig, options[1], given))
    for override, message in (
        ("motion={parents: [{ref: a}]}", "motion.parents is the adapter of the style step"),
        ("motion={mode: full}", "motion.mode is 'full', but a pipeline publishes an adapter"),
        ("generate.adapters=[{ref: a}]", "generate.adapters are what the steps before it trained"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config(PipelineConfig, options[1], [*given, override])


def test_windows_too_short_for_the_metrics_are_refused_before_anything_is_prepared(options: list[str]) -> None:
    config = load_config(PipelineConfig, options[1], [*options[2:], "name=short", "prepare.window.num_frames=9"])
    with pytest.raises(DatasetError, match="at least 10 frames a video, these have 9"):
        run_pipeline(config)
    assert not Storage.open(config.storage).exists("runs/short")


def test_held_out_windows_too_short_for_the_metrics_are_refused_before_anything_is_trained(
    options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The longest windows that may be cut would do; the dataset's held-out ones turned out shorter."""
    given = ["name=mixed", "prepare.window.num_frames=[9, 13]"]
    config = load_config(PipelineConfig, options[1], [*options[2:], *given])
    lengths: list[int] = []

    class Dataset:
        def windows(self, split: str) -> list[WindowRow]:
            assert split == "test"
            return [replace(ROW, window_id=str(i), group=str(i), num_frames=n) for i, n in enumerate(lengths)]

    monkeypatch.setattr("cinesynth.pipeline.locate_dataset", lambda storage, name: {"mixed-prepare": Dataset()}[name])
    done = {"outputs": {}, "figures": {}}
    monkeypatch.setattr("cinesynth.pipeline.prepare", lambda step: done)
    monkeypatch.setattr("cinesynth.pipeline.train", _never)
    monkeypatch.setattr("cinesynth.pipeline.ray_session", lambda config: nullcontext())
    lengths[:] = [13, 13, 9]
    with pytest.raises(DatasetError, match="at least 10 frames a video, these have 9"):
        run_pipeline(config)
    lengths[:] = [13, 13, 13]
    with pytest.raises(AssertionError, match="trained"):
        run_pipeline(config)


def _never(step: TrainConfig) -> None:
    raise AssertionError("it was trained")


def test_a_bad_option_ends_failed_with_the_reason_as_the_last_line(ray_head: Head, options: list[str]) -> None:
    job = submit(ray_head, *options, "style.lora.rank=0")
    assert job.status == "FAILED"
    assert job.last_line.startswith("error: ")
    assert "style.lora.rank = 0: input should be greater than or equal to 1" in job.last_line


# --- what its steps are configured with ----------------------------------------------------------------------


def test_shots_which_nothing_can_be_compared_with_are_refused_before_anything_runs() -> None:
    shot = {"image": "a.png", "prompt": "a street at night"}
    values = {**yaml.safe_load(CONFIG), "storage": "/x", "generate": {"shots": [shot]}}
    with pytest.raises(
        ConfigError, match=r"generate\.shots have no real videos .* give generate\.split \(val or test\)"
    ):
        parse_config(PipelineConfig, values)


def two_stages(motion: dict[str, Any]) -> PipelineConfig:
    values = {**yaml.safe_load(CONFIG), "storage": "/x", "motion": motion}
    return parse_config(PipelineConfig, values)


def motion_step(config: PipelineConfig) -> TrainConfig:
    step = step_config(config, "motion", steps(config)["motion"])
    assert isinstance(step, TrainConfig)
    return step


@pytest.mark.parametrize(
    "motion", [{}, {"lora": {"rank": 4}}, {"stage": "motion"}], ids=["nothing", "a rank", "its stage"]
)
def test_the_motion_step_trains_self_attention_whether_or_not_its_stage_is_said(motion: dict[str, Any]) -> None:
    step = motion_step(two_stages(motion))
    assert (step.stage, step.lora.targets) == ("motion", ("self",))


def test_targets_of_the_motion_step_stay_as_they_are_said_and_recorded() -> None:
    config = two_stages({"lora": {"targets": "cross_attention"}})
    step = motion_step(config)
    assert (step.stage, step.lora.targets) == ("motion", "cross_attention")
    assert config.identity()["motion"]["stage"] == "style"
    joint = motion_step(two_stages({"stage": "joint"}))
    assert (joint.stage, joint.lora.targets) == ("joint", "attention")
