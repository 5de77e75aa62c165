from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cinesynth.errors import ConfigError, StorageError
from cinesynth.settings import load_config, parse_config
from serve.config import ServeConfig
from serve.errors import ApiError
from serve.jobs import Job
from serve.schema import JobRequest, parse_create, resolve, video

REPOSITORY = Path(__file__).resolve().parents[2]


def asked(config: ServeConfig, **fields: Any) -> JobRequest:
    return resolve(parse_create({"prompt": "a car drives by", **fields}), config)


def refused(config: ServeConfig, **fields: Any) -> ApiError:
    with pytest.raises(ApiError) as error:
        asked(config, **fields)
    assert error.value.status == 400
    return error.value


@pytest.mark.parametrize(
    ("fields", "frames"),
    [
        ({"seconds": 1}, 17),
        ({"seconds": "2"}, 33),
        ({"seconds": "0.5"}, 9),
        ({"seconds": 0.25}, 5),
        ({"num_frames": 33}, 33),
        ({"num_frames": "21"}, 21),
        ({}, 17),
    ],
)
def test_frames_are_16_times_seconds_plus_1(config: ServeConfig, fields: dict[str, Any], frames: int) -> None:
    assert asked(config, **fields).num_frames == frames


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"seconds": "3"}, "seconds"),
        ({"seconds": "0.3"}, "seconds"),
        ({"seconds": 0.0625}, "seconds"),
        ({"num_frames": 16}, "num_frames"),
        ({"num_frames": 37}, "num_frames"),
        ({"num_frames": 1}, "num_frames"),
        ({"num_frames": 17, "seconds": 1}, "num_frames"),
        ({"size": "64x96x1"}, "size"),
        ({"size": "100x64"}, "size"),
        ({"size": "1280x720"}, "size"),
    ],
)
def test_a_shape_that_is_not_served_is_answered_with_the_table(
    config: ServeConfig, fields: dict[str, Any], param: str
) -> None:
    error = refused(config, **fields)
    assert error.param == param
    if param != "size" or fields["size"].count("x") == 1:
        frames = [5, 9, 13, 17, 21, 25, 29, 33]
        seconds = ["0.25", "0.5", "0.75", "1", "1.25", "1.5", "1.75", "2"]
        assert error.extra["allowed_shapes"] == [
            {"size": "96x64", "num_frames": frames, "seconds": seconds},
            {"size": "64x96", "num_frames": frames, "seconds": seconds},
        ]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": "  "}, "prompt"),
        ({"prompt": "x" * 10_001}, "prompt"),
        ({"steps": 3}, "steps"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"guidance_scale": "inf"}, "guidance_scale"),
        ({"seconds": "nan"}, "seconds"),
        ({"seconds": "two"}, "seconds"),
        ({"flow_shift": 0}, "flow_shift"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**31}, "seed"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_inference_steps": 101}, "num_inference_steps"),
        ({"fps": 24}, "fps"),
        ({"model": "sora-2"}, "model"),
        ({"input_reference": {"file_id": "file-1"}}, "input_reference.file_id"),
    ],
)
def test_bad_and_unknown_fields_are_named(config: ServeConfig, fields: dict[str, Any], param: str) -> None:
    error = refused(config, **fields)
    assert error.param == param
    assert param.split(".")[0] in error.message


def test_defaults_are_resolved_and_recorded(config: ServeConfig) -> None:
    plain = asked(config)
    assert (plain.height, plain.width, plain.sampler.steps, plain.sampler.guidance_scale) == (64, 96, 4, 1.0)
    assert asked(config).sampler.seed != asked(config).sampler.seed, "a seed is drawn for each"
    given = asked(config, size="64x96", seed=0, guidance_scale=5, num_inference_steps=8, flow_shift=7, fps=16)
    assert (given.height, given.width, given.sampler.seed, given.sampler.flow_shift) == (96, 64, 0, 7.0)
    assert given.work == plain.work * 2 * 2, "twice the steps, each with and without the prompt"


def test_the_response_has_openais_fields(config: ServeConfig) -> None:
    request = asked(config, seconds="0.5", size="64x96").model_dump(mode="json")
    job = Job(
        id="video_1",
        owner="alice",
        status="failed",
        request=request,
        adapter=None,
        image="x.png",
        work=1.0,
        progress=37,
        attempts=1,
        created_at=100.7,
        started_at=101.0,
        completed_at=102.9,
        expires_at=202.9,
        result=None,
        sha256=None,
        error_code="oom",
        error_message="too big",
    )
    assert video(job).model_dump() == {
        "id": "video_1",
        "object": "video",
        "model": "drawing",
        "prompt": "a car drives by",
        "status": "failed",
        "progress": 37,
        "created_at": 100,
        "completed_at": 102,
        "expires_at": 202,
        "seconds": "0.5",
        "size": "64x96",
        "remixed_from_video_id": None,
        "error": {"code": "oom", "message": "too big"},
        "seed": request["sampler"]["seed"],
        "lora": None,
        "num_inference_steps": 4,
        "guidance_scale": 1.0,
    }


# --- the service's configuration -----------------------------------------------------------------------------


def test_the_shipped_configuration_is_valid() -> None:
    config = load_config(ServeConfig, str(REPOSITORY / "serve" / "config" / "nano.yaml"), ["engine.max_replicas=2"])
    assert (config.model, config.host, config.sizes, config.engine.max_replicas) == ("nano", "127.0.0.1", [(64, 96)], 2)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"sizes": [[64, 100]]}, "multiple of 16"),
        ({"max_frames": 32}, "4n\\+1"),
        ({"max_frames": 17, "default_frames": 33}, "exceeds max_frames"),
        ({"engine": {"min_replicas": 2}}, "exceeds max_replicas"),
        ({"lease_s": 5, "heartbeat_s": 3}, "at least twice heartbeat_s"),
        ({"qeue_cap": 3}, "did you mean 'queue_cap'"),
        ({"port": 0}, "port"),
    ],
)
def test_a_bad_configuration_is_named(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        parse_config(ServeConfig, values)


def test_paths_become_absolute_and_an_object_store_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = parse_config(ServeConfig, {"storage": "here"}).resolved()
    assert config.storage == str(tmp_path / "here")
    assert config.database == f"sqlite:///{tmp_path}/here/serve/jobs.db"
    assert config.keys_file == f"{tmp_path}/here/serve/keys.json"
    with pytest.raises(ConfigError, match=r"serve\.keys create"):
        config.check_inputs()
    with pytest.raises(StorageError, match="local folder"):
        parse_config(ServeConfig, {"storage": "s3://bucket/x?region=eu-west-1"}).check_inputs()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["qeue_cap=3"], "did you mean 'queue_cap'"),
        (["storage=nowhere"], "serve.keys create"),
        (["keys_file={keys}"], "--address None: give HOST:PORT"),
    ],
)
def test_the_command_refuses_before_it_connects(tmp_path: Path, arguments: list[str], reason: str) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text("{}")
    command = [sys.executable, "-m", "serve.run", *(a.format(keys=keys) for a in arguments)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2
    assert reason in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
