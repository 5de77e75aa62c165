"""The command line of `jobs.evaluate`."""

from __future__ import annotations

from pathlib import Path

from cinesynth.config import EvaluateConfig
from cinesynth.settings import load_config
from jobs.evaluate import overrides_of


def _config(argv: list[str]) -> EvaluateConfig:
    return load_config(EvaluateConfig, None, overrides_of(argv))


def test_require_is_a_flag_that_needs_no_value(tmp_path: Path) -> None:
    argv = ["--real", str(tmp_path), "--fake", str(tmp_path), "--name", "n"]
    assert _config(argv).require is False
    assert _config([*argv, "--require", "frames=4"]).require is True
    assert _config([*argv, "require=true"]).require is True


def test_require_may_change_when_a_run_goes_on(tmp_path: Path) -> None:
    argv = ["--real", str(tmp_path), "--fake", str(tmp_path), "--name", "n"]
    assert _config(argv).identity() == _config([*argv, "--require"]).identity()
