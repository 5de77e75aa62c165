"""What the command line of a job refuses before Ray starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from cinesynth.config import PublishConfig
from jobs.entry import check_storage, run_job


def _never(config: PublishConfig) -> dict[str, object]:
    raise AssertionError("the job must not start")


def test_a_bad_option_ends_with_code_2_and_the_reason_last(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run_job(PublishConfig, _never, ["name=P", "adapter=a", "adapter_name=a"])
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
        run_job(PublishConfig, _never, ["name=p", "adapter=a", "adapter_name=a"])
    assert end.value.code == 2
    assert "error: storage: 'storage' is relative" in capsys.readouterr().err
    for durable in ("s3://bucket/prefix", str(tmp_path), "~/cinesynth"):
        check_storage(durable)
    monkeypatch.chdir(tmp_path)
    check_storage("storage")
