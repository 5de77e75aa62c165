"""What a submitted job is called, and the command that submits it."""

from __future__ import annotations

import json
import shlex
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from cinesynth.errors import ConfigError
from jobs import metadata, submit
from jobs.metadata import JOBS, metadata_of, read_config
from jobs.submit import command_of
from tests.conftest import REPOSITORY

NOW = datetime(2026, 11, 28, 6, 45, 49, tzinfo=UTC)
TRAIN = ["--config", "jobs/configs/nano/style.yaml", "storage=/data", "name=noir", "dataset=my-clips"]
NANO = Path("jobs/configs/nano")


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)


def test_the_command_names_the_job_and_passes_what_was_written(capsys: pytest.CaptureFixture[str]) -> None:
    command = command_of(["--no-wait"], "train", TRAIN, NOW)
    assert command[:4] == ["ray", "job", "submit", "--no-wait"]
    assert command[4:8] == ["--working-dir", ".", "--submission-id", "train-noir-20261128-064549"]
    assert command[8] == "--metadata-json"
    assert json.loads(command[9]) == {
        "job_name": "train noir",
        "run": "noir",
        "storage": "/data",
        "report": "/data/runs/noir/report.html",
    }
    assert command[10:] == ["--", "python", "-m", "jobs.train", *TRAIN]
    odd = [*TRAIN, "dataset=/clips of 'mine'"]
    submit.main(["--print", "train", *odd])
    printed = shlex.split(capsys.readouterr().out)
    assert printed[printed.index("--") :] == ["--", "python", "-m", "jobs.train", *odd]


def test_what_the_caller_sets_is_not_set_again() -> None:
    given = ["--runtime-env-json={}", "--submission-id", "mine", "--metadata-json={}"]
    assert command_of(given, "train", TRAIN, NOW)[3:8] == [*given, "--"]


@pytest.mark.parametrize("job", JOBS)
def test_each_job_has_a_name_and_the_page_that_it_will_write(job: str) -> None:
    needed = {
        "train": ["--config", str(NANO / "style.yaml"), "dataset=d", "name=x"],
        "publish": ["name=x", "adapter=a", "adapter_name=a"],
        "study": ["rank_quality", "--config", str(NANO / "study.yaml"), "name=x"],
        "pipeline": ["--config", str(NANO / "pipeline.yaml"), "name=x", "prepare.footage=[{path: /a}]"],
        "prepare": ["--config", str(NANO / "prepare.yaml"), "name=x", "footage=[{path: /a}]"],
        "evaluate": ["--config", str(NANO / "evaluate.yaml"), "name=x"],
    }.get(job, ["--config", str(NANO / f"{job}.yaml"), "name=x", "dataset=d"])
    told = metadata_of(read_config(job, [*needed, "storage=s3://key:secret@bucket/p/"]))
    run = "x-rank_quality" if job == "study" else "x"
    assert told["job_name"] == f"{job} {run}"
    assert told["storage"] == "s3://bucket/p"  # credentials stay out of the dashboard
    page = {"prepare": f"datasets/{run}/index.html", "publish": None}.get(job, f"runs/{run}/report.html")
    assert told.get("report") == (page and f"s3://bucket/p/{page}")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train", *TRAIN[:2], "storage=/data", "name=No", "dataset=d"], "error: jobs/configs/nano/style.yaml: name"),
        (["train", *TRAIN[:2], "storage=here", "name=n", "dataset=d"], "error: storage: 'here' is relative"),
        (["publish", "name=n", "adapter=a", "adapter_name=a", "storage=/s", "loud=1"], "loud: unknown key"),
    ],
)
def test_a_bad_configuration_is_refused_before_anything_is_uploaded(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("it was submitted"))
    with pytest.raises(SystemExit) as end:
        submit.main(words)
    assert end.value.code == 2
    assert told in capsys.readouterr().err


def test_another_folder_than_the_repository_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["name=n", "adapter=a", "adapter_name=a", "storage=/s"]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="not the root of the repository"):
        command_of([], "publish", words, NOW)
    command_of(["--working-dir=/elsewhere"], "publish", words, NOW)


def test_a_word_that_is_no_job_is_answered_with_the_jobs(capsys: pytest.CaptureFixture[str]) -> None:
    for main in (submit.main, metadata.main):
        with pytest.raises(SystemExit, match="prepare, train, generate"):
            main(["trian"])


def test_the_metadata_is_printed_for_what_takes_it(capsys: pytest.CaptureFixture[str]) -> None:
    metadata.main(["train", *TRAIN])
    assert json.loads(capsys.readouterr().out)["job_name"] == "train noir"


@pytest.mark.parametrize(
    ("status", "driver", "cli", "code"),
    [
        ("SUCCEEDED", 0, 0, 0),
        ("FAILED", 2, 1, 2),  # a mistake of the user's
        ("FAILED", None, 1, 1),  # it never began
        ("STOPPED", None, 0, 143),  # `ray job stop`
        ("RUNNING", None, 0, 0),  # --no-wait
        ("unknown", None, 1, 1),  # it was not submitted
        ("lost", None, 1, 1),
    ],
)
def test_it_ends_with_the_exit_code_of_the_job(
    status: str,
    driver: int | None,
    cli: int,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from ray import job_submission

    class Client:
        def __init__(self, address: str | None) -> None:
            assert address == "http://head:8265"

        def get_job_info(self, submission: str) -> SimpleNamespace:
            assert submission.startswith("train-noir-")
            if status in ("unknown", "lost"):
                raise {"unknown": RuntimeError, "lost": ConnectionError}[status]
            return SimpleNamespace(status=job_submission.JobStatus(status), driver_exit_code=driver)

    monkeypatch.setattr(job_submission, "JobSubmissionClient", Client)
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, cli))
    with pytest.raises(SystemExit) as ended:
        submit.main(["--address", "http://head:8265", "train", *TRAIN])
    assert ended.value.code == code
    assert ("the cluster does not answer" in capsys.readouterr().err) == (status == "lost")
