"""An error that a worker raised is found in whatever Ray made of it; a bug is not taken for one."""

from __future__ import annotations

import errno
import os
import pickle
import traceback
from typing import Any

import pytest

from cinesynth.errors import AdapterError, CinesynthError, MediaError, StorageError, user_error


def task_error(cause: Exception) -> Exception:
    from ray.exceptions import RayTaskError

    raised = "".join(traceback.format_exception_only(cause))
    text = f'Traceback (most recent call last):\n  File "w.py", line 1\n{raised}'
    return RayTaskError("work", text, cause, proctitle="w", pid=1, ip="127.0.0.1")


def of_a_task() -> Exception:
    return task_error(MediaError("a.png is damaged")).as_instanceof_cause()  # type: ignore[attr-defined]


def of_ray_data() -> Exception:
    from ray.data.exceptions import UserCodeException

    error = UserCodeException("UDF failed to process a data block.")
    error.__cause__ = MediaError("a.png is damaged")
    return task_error(error).as_instanceof_cause()  # type: ignore[attr-defined]


def of_ray_data_without_its_cause() -> Exception:
    from ray.data.exceptions import UserCodeException

    error = task_error(UserCodeException("UDF failed to process a data block."))
    error.traceback_str = (  # type: ignore[attr-defined]
        "Traceback\ncinesynth.errors.MediaError: a.png is damaged\n\n"
        "The above exception was the direct cause of the following exception:\n\n"
        "Traceback\nray.exceptions.UserCodeException: UDF failed to process a data block."
    )
    return error.as_instanceof_cause()  # type: ignore[attr-defined]


def of_ray_train(error: Exception | None = None) -> Exception:
    from ray.train import WorkerGroupError

    return WorkerGroupError("rank 1", {1: error or MediaError("a.png is damaged")})


def of_an_actor_that_did_not_start() -> Exception:
    from ray.exceptions import ActorDiedError, RayTaskError

    died = task_error(MediaError("a.png is damaged"))
    assert isinstance(died, RayTaskError)
    return ActorDiedError(died)


@pytest.mark.parametrize(
    "raised",
    [
        of_a_task,
        of_ray_data,
        of_ray_data_without_its_cause,
        of_ray_train,
        of_an_actor_that_did_not_start,
    ],
)
def test_an_error_of_a_worker_is_one_line(raised: Any) -> None:
    found = user_error(raised())
    assert type(found) is MediaError
    assert str(found) == "a.png is damaged"


def full_disk() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/runs/noir/events/train-00000000.jsonl")


def of_an_actor_on_a_full_disk() -> Exception:
    from ray.exceptions import ActorDiedError, RayTaskError

    died = task_error(full_disk())
    assert isinstance(died, RayTaskError)
    return ActorDiedError(died)


@pytest.mark.parametrize(
    "raised",
    [full_disk, lambda: task_error(full_disk()), lambda: of_ray_train(full_disk()), of_an_actor_on_a_full_disk],
)
def test_a_full_disk_is_told_wherever_it_was_met(raised: Any) -> None:
    found = user_error(raised())
    assert type(found) is StorageError
    assert str(found) == (
        "[Errno 28] No space left on device: '/data/runs/noir/events/train-00000000.jsonl'; make room, and give the "
        "command again: it goes on from what is stored"
    )
    assert user_error(FileNotFoundError(errno.ENOENT, "No such file", "a")) is None


def test_an_error_of_the_driver_is_itself() -> None:
    error = AdapterError("it changes nothing")
    assert user_error(error) is error


def test_what_came_up_while_an_error_was_handled_is_a_bug() -> None:
    bug = KeyError("a")
    bug.__context__ = MediaError("a.png is damaged")
    assert user_error(bug) is None
    told = task_error(bug)
    told.traceback_str = (  # type: ignore[attr-defined]
        "cinesynth.errors.MediaError: a.png is damaged\n\n"
        "During handling of the above exception, another exception occurred:\n\nKeyError: 'a'"
    )
    assert user_error(told) is None
    assert user_error(task_error(bug)) is None


def test_every_error_survives_its_way_from_a_worker() -> None:
    for kind in CinesynthError.__subclasses__():
        if kind.__module__ == "cinesynth.errors":
            assert str(pickle.loads(pickle.dumps(kind("what, where")))) == "what, where"
