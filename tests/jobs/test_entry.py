"""What the command line of a job refuses before Ray starts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cinesynth.config import PublishConfig, TrainConfig
from cinesynth.errors import MediaError
from cinesynth.publish import outline_publishing
from cinesynth.storage import check_lasting, sha256_file
from cinesynth.wan.card import CONFIG_FILE, DIFFUSERS_FILE, PEFT_FILE, AdapterCard, Parent
from jobs.entry import run_job
from jobs.prepare import main

CONFIGS = Path(__file__).parent.parent.parent / "jobs" / "configs" / "nano"


def _never(config: PublishConfig) -> dict[str, object]:
    raise AssertionError("the job must not start")


def test_a_bad_option_ends_with_code_2_and_the_reason_last(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run_job(PublishConfig, _never, outline_publishing, ["name=P", "adapter=a", "adapter_name=a"])
    assert end.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: configuration: name = 'P': ")


def test_storage_in_the_copy_of_the_working_directory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A submitted job runs below `runtime_resources`: what it wrote there would be removed with it."""
    job = tmp_path / "session" / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    job.mkdir(parents=True)
    monkeypatch.chdir(job)
    with pytest.raises(SystemExit) as end:
        run_job(PublishConfig, _never, outline_publishing, ["name=p", "adapter=a", "adapter_name=a"])
    assert end.value.code == 2
    assert "error: storage: 'storage' is relative" in capsys.readouterr().err
    for durable in ("s3://bucket/prefix", str(tmp_path), "~/cinesynth"):
        check_lasting(durable)
    monkeypatch.chdir(tmp_path)
    check_lasting("storage")


def test_a_dry_run_prints_what_would_be_done_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--config", str(CONFIGS / "prepare.yaml"), "name=p", f"storage={tmp_path / 's'}", "dry_run=true"]
    (tmp_path / "take.mp4").write_bytes(b"not a video")
    main([*options, f"footage=[{{path: '{tmp_path}', domain: film}}]"])
    printed = capsys.readouterr().out
    assert "prepare p: new" in printed
    assert "footage  1 file of domain film" in printed
    assert "scan     1 file by content" in printed
    assert "vae      2 of 0.5 CPUs each" in printed
    assert not (tmp_path / "s").exists()


def test_a_dry_run_of_publish_says_what_would_be_published_from_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "noir"
    folder.mkdir()
    for name in (DIFFUSERS_FILE, PEFT_FILE, CONFIG_FILE):
        (folder / name).write_bytes(b"weights")
    sha256 = sha256_file(folder / DIFFUSERS_FILE)
    card = AdapterCard(
        **{"base_model": "nano", "base_sha256": "ab", "dataset": "clips", "dataset_sha256": "cd", "config": {}},
        **{"stage": "motion", "step": 1200, "sha256": sha256, "parents": [Parent(sha256="12" * 32, scale=0.5)]},
    )
    (folder / "card.json").write_text(card.model_dump_json())
    options = ["name=p", f"storage={tmp_path / 's'}", f"adapter={folder}", "adapter_name=noir", "dry_run=true"]
    run_job(
        PublishConfig, _never, outline_publishing, [*options, "version=2.0", "alias=best", "exports=[comfyui, kohya]"]
    )
    assert capsys.readouterr().out.splitlines() == [
        "publish p: new",
        "  inputs",
        f"    adapter  {folder} ({sha256[:12]})",
        "    made by  stage motion on nano, 1,200 steps on dataset clips",
        "    parents  121212121212 x 0.5",
        "  work",
        "    publish  noir@2.0, as one adapter with its parents",
        "    exports  comfyui, kohya",
        "    alias    noir@best moves to it",
        "  resources",
        "    Ray      not needed",
        "dry run: nothing was started or written",
    ]
    assert not (tmp_path / "s").exists()
    (folder / "card.json").write_text(card.model_copy(update={"parents": []}).model_dump_json())
    run_job(PublishConfig, _never, outline_publishing, [*options, "alias=null"])
    told = capsys.readouterr().out
    assert "parents  none" in told
    assert "publish  noir@first 12 digits of its content hash\n" in told
    assert "alias    none is moved" in told
    assert "exports" not in told


def test_help_lists_the_fields_by_group_with_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_job(TrainConfig, _never, outline_publishing, ["--help"])
    printed = capsys.readouterr().out
    assert "  lr: number > 0 (default 3e-05); learning rate after the warm-up" in printed
    assert "  dataset: text (required); name below <storage>/datasets" in printed


@pytest.mark.parametrize(
    ("raised", "code", "last"),
    [
        (KeyboardInterrupt(), 130, "stopped; the same command goes on"),
        (SystemExit(15), 143, "stopped; the same command goes on"),
        (SystemExit(0), 130, "stopped; the same command goes on"),
        (MediaError("a.png is damaged"), 2, "error: a.png is damaged"),
    ],
)
def test_a_job_that_is_stopped_or_refused_ends_with_one_line(
    raised: BaseException,
    code: int,
    last: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os._exit", sys.exit)

    def job(config: PublishConfig) -> dict[str, object]:
        raise raised

    with pytest.raises(SystemExit) as end:
        run_job(PublishConfig, job, outline_publishing, ["name=p", "adapter=a", "adapter_name=a"])
    assert end.value.code == code
    assert capsys.readouterr().err.splitlines()[-1].startswith(last)


def test_the_summary_says_why_something_was_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    def job(config: PublishConfig) -> dict[str, object]:
        return {"figures": {"windows": 3}, "outputs": {}, "left_out": {"too_small": "2 (the first: a.mp4: 16x16)"}}

    run_job(PublishConfig, job, outline_publishing, ["name=p", "adapter=a", "adapter_name=a"])
    assert "  left out:\n    too_small: 2 (the first: a.mp4: 16x16)\n" in capsys.readouterr().out
