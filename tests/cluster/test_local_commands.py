"""`python -m cluster.local up|env|status|down`: heads that outlive the command, and end without a trace."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from cluster import local
from cluster.local import main
from cluster.local_head import MARK, HeadError, free_ports
from cluster.local_record import HeadRecord, heads_folder, held, read_record, write_record
from tests.conftest import REPOSITORY


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder of the test's own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def bystander() -> Iterator[psutil.Process]:
    """A process that is nobody's head."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield psutil.Process(process.pid)
    process.kill()
    process.wait()


@pytest.fixture
def folder() -> Iterator[Path]:
    """The folder of a head that is gone."""
    folder = Path(tempfile.mkdtemp(prefix="cs-", dir="/tmp"))
    yield folder
    if folder.exists():
        folder.rmdir()


def record_of(process: psutil.Process, folder: Path) -> HeadRecord:
    variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "secret", "RAY_ADDRESS": "127.0.0.1:1"}
    port = free_ports(1)[0]
    return HeadRecord(
        process.pid, process.create_time(), str(folder), variables, f"http://127.0.0.1:{port}", 1, "head.log"
    )


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit code, and what was printed."""
    with pytest.raises(SystemExit) as ended:
        main([*arguments])
    printed = capsys.readouterr()
    return int(str(ended.value.code)), printed.out + printed.err


def test_none_runs_at_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "status") == (1, "no head runs; start one: python -m cluster.local up\n")
    assert run(capsys, "status", "--name", "b") == (
        1,
        "b: not running; start it: python -m cluster.local up --name b\n",
    )
    assert run(capsys, "down") == (0, "no head 'local' runs; nothing was ended\n")
    code, printed = run(capsys, "env")
    assert code == 1
    assert "start one: python -m cluster.local up" in printed


def test_bad_arguments_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["up", "--name", "../x"], ["up", "--cpus", "0"], ["restart"]):
        code, printed = run(capsys, *arguments)
        assert code == 2
        assert arguments[-1] in printed


def test_a_process_that_got_a_heads_id_is_left_alone(
    capsys: pytest.CaptureFixture[str], bystander: psutil.Process, folder: Path
) -> None:
    earlier = replace(record_of(bystander, folder), created=bystander.create_time() - 60)
    write_record("local", earlier)
    code, printed = run(capsys, "status")
    assert code == 1
    assert "ended by itself" in printed
    assert run(capsys, "env")[0] == 1
    assert run(capsys, "down")[0] == 0
    assert bystander.is_running()
    assert bystander.status() != psutil.STATUS_ZOMBIE
    assert not folder.exists()
    assert read_record("local") is None


def test_what_a_dead_head_left_is_ended(
    capsys: pytest.CaptureFixture[str], bystander: psutil.Process, folder: Path
) -> None:
    sleeping = [sys.executable, "-c", "import time; time.sleep(600)"]
    dead = subprocess.Popen(sleeping)
    write_record("local", record_of(psutil.Process(dead.pid), folder))
    dead.kill()
    dead.wait()
    left = subprocess.Popen(sleeping, env={**os.environ, MARK: str(folder)})
    code, printed = run(capsys, "down")
    assert code == 0
    assert printed == "the head 'local' had ended by itself; what was left of it is ended (1 processes)\n"
    assert left.poll() is not None
    assert bystander.is_running()


def test_a_head_that_hangs_is_told_from_one_that_works(
    capsys: pytest.CaptureFixture[str], bystander: psutil.Process, folder: Path
) -> None:
    write_record("local", record_of(bystander, folder))
    code, printed = run(capsys, "status")
    assert code == 1
    assert f"it runs (process {bystander.pid}) but its dashboard does not answer" in printed


def test_a_record_that_was_changed_does_no_harm(
    capsys: pytest.CaptureFixture[str], bystander: psutil.Process, tmp_path: Path
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    write_record("local", record_of(bystander, precious))
    code, printed = run(capsys, "down")
    assert code == 1
    assert "which no head of ours has" in printed
    assert precious.is_dir()
    (heads_folder() / "local.json").write_text('{"pid": 1}')
    code, printed = run(capsys, "status")
    assert code == 1
    assert "no record of a head (KeyError: 'created'); remove the file" in printed


def test_two_commands_do_not_meet_on_one_head(capsys: pytest.CaptureFixture[str]) -> None:
    with held("local"):
        code, printed = run(capsys, "up")
        assert code == 1
        assert "another command starts or ends the head 'local'" in printed
        with pytest.raises(HeadError), held("local"):
            pass
        with held("other"):
            pass


@pytest.mark.slow
@pytest.mark.own_ray
def test_a_head_outlives_its_command_until_down(
    capsys: pytest.CaptureFixture[str], state: Path, bystander: psutil.Process
) -> None:
    command = [sys.executable, "-m", "cluster.local", "up", "--name", "t", "--cpus", "1"]
    started = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=180)
    assert started.returncode == 0, started.stderr
    record = read_record("t")
    assert record is not None
    try:
        path = state / "cinesynth" / "heads"
        assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o600}
        assert path.stat().st_mode & 0o777 == 0o700
        token = record.variables["RAY_AUTH_TOKEN"]
        assert f"export RAY_AUTH_TOKEN={token}" in started.stdout
        files = re.search(r"^Ray's files: (.+)$", started.stdout, re.MULTILINE)
        assert files is not None
        for named in ("prom_metrics_service_discovery.json", "session_latest/metrics/grafana/grafana.ini"):
            assert (Path(files[1]) / named).is_file()  # docs/monitoring.md names them
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{record.dashboard}/api/jobs/", timeout=5)
        assert refused.value.code == 401
        first = record.process()
        assert first is not None
        processes = [first, *first.children(recursive=True)]
        assert not any(token in argument for process in processes for argument in process.cmdline())
        listening = [c.laddr for process in processes for c in process.net_connections("tcp") if c.status == "LISTEN"]
        assert {ip for ip, _ in listening} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
        assert len({port for _, port in listening}) >= 8  # the GCS, the dashboard, the raylet and those for metrics

        code, printed = run(capsys, "status")
        assert code == 0
        assert f"address    {record.variables['RAY_ADDRESS']}" in printed
        assert f"Ray's files: {files[1]}\n" in printed
        assert "nodes      1 with 1 CPUs" in printed
        assert "jobs       none" in printed
        code, printed = run(capsys, "up", "--name", "t")
        assert code == 0
        assert "is running already" in printed
        assert token in printed
        code, printed = run(capsys, "up", "--name", "t", "--cpus", "2")
        assert code == 1
        assert "runs with 1 CPUs; end it first: python -m cluster.local down --name t" in printed
        assert read_record("t") == record
        _, exports = run(capsys, "env", "--name", "t")
        shell = subprocess.run(["sh", "-c", f'{exports}echo "$RAY_API_SERVER_ADDRESS"'], capture_output=True, text=True)
        assert shell.stdout.strip() == record.dashboard
    finally:
        code, printed = run(capsys, "down", "--name", "t")
    assert code == 0
    assert "the head 't' is ended" in printed
    assert not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert not Path(record.folder).exists()
    assert bystander.is_running()
    assert run(capsys, "down", "--name", "t") == (0, "no head 't' runs; nothing was ended\n")


def unanswered(status: int | None) -> Exception:
    """What httpx raises where the dashboard answers with a status, or not at all."""
    request = httpx.Request("GET", "http://127.0.0.1/api/v0/nodes")
    if status is None:
        return httpx.ReadTimeout("timed out", request=request)
    return httpx.HTTPStatusError(f"{status}", request=request, response=httpx.Response(status, request=request))


def test_a_head_whose_dashboard_does_not_answer_yet_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, bystander: psutil.Process, folder: Path
) -> None:
    node = {"state": "ALIVE"}
    answers: list[Any] = [unanswered(500), unanswered(None), [], [node]]

    def ask(self: HeadRecord, path: str) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return {"data": {"result": {"result": answer}}}

    monkeypatch.setattr(HeadRecord, "ask", ask)
    monkeypatch.setattr("cluster.local.time.sleep", lambda seconds: None)
    local._wait_for_a_node(record_of(bystander, folder))
    assert answers == []
    answers += [unanswered(503)]
    monkeypatch.setattr(local, "_NODE_S", -1.0)
    with pytest.raises(HeadError, match=r"was not there within .*HTTPStatusError: 503.*its log: head.log"):
        local._wait_for_a_node(record_of(bystander, folder))
