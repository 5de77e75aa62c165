"""Errors that a user can act on: each says what, where, which value and what to do.

They are `ValueError`s. A job prints the message as the last line of its log, without a traceback;
any other exception is a bug or a broken machine and keeps its traceback. `user_error` finds one that a worker raised
inside what Ray made of it.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator


class CinesynthError(ValueError):
    """Base of all errors that are the user's to resolve."""


class ConfigError(CinesynthError):
    """A configuration that cannot run: unknown key, wrong type, value out of range, missing input."""


class IdentityError(CinesynthError):
    """A run name that is already taken by a run with another identity."""


class StorageError(CinesynthError):
    """A storage location that is missing, of the wrong kind or unreadable."""


class DatasetError(CinesynthError):
    """A clips dataset that is missing, incomplete, of another schema version or too small."""


class ModelError(CinesynthError):
    """A base model folder or hub id that is missing, damaged or not a Wan image-to-video model."""


class AdapterError(CinesynthError):
    """An adapter that is missing, damaged, made for another base, or that changes nothing."""


class MediaError(CinesynthError):
    """A video or image that cannot be read or written."""


class MetricError(CinesynthError):
    """A metric that gives a number of no use: a score that is not finite."""


class RunTaken(CinesynthError):
    """A run that another driver is working on."""


class TrainingError(CinesynthError):
    """A training that would fail again as it is: a loss that is not finite, too little memory."""


class GenerationError(CinesynthError):
    """A video that comes out of no use however often it is made: latents that are not finite."""


class OutOfMemory(GenerationError):
    """A video, or a model, that a device has no room for: every device of its kind would refuse it."""


class Cut(CinesynthError):
    """A run that was ended on purpose before it was through, and may go on."""


class AttemptFailed(CinesynthError):
    """What says nothing about its input, and may succeed the next time: a time limit, a crash, memory, a store."""


class RankLost(AttemptFailed):
    """A group of ranks that ended: a process died, hung, or failed once the ranks had begun to wait for each other."""


class StorageFailed(RankLost):
    """A group that ended because a file could not be read or written, which is no fault of its video."""


class StateOfAnother(MediaError):
    """A kept state that another request left, or the same one on another kind of device."""


class WeightsUnavailable(CinesynthError):
    """Metric weights that are neither in the cache, nor fetchable, nor given by path."""


_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
_NO_ROOM_TOLD = re.compile(rf"^OSError: (\[Errno (?:{'|'.join(map(str, sorted(_NO_ROOM)))})\] .+)$", re.MULTILINE)

_HANDLING = "During handling of the above exception"
_RAISED = re.compile(r"^cinesynth\.errors\.(\w+): (.+)$", re.MULTILINE)


def user_error(error: BaseException) -> CinesynthError | None:
    """The error of ours that `error` is, or that Ray wrapped on its way from a worker; None where there is none.

    A disk or a quota that is full is one, wherever it was met.

    Only Ray's own exceptions are looked into: an exception that came up while another was handled is a bug, whatever
    the other was.
    """
    waiting: list[BaseException] = [error]
    of_ray: list[BaseException] = []
    for found in waiting:
        if _is_of_ray(found):
            of_ray.append(found)
            waiting += [inner for inner in _inside(found) if all(inner is not known for known in waiting)]
        elif isinstance(found, CinesynthError):
            return found
        elif isinstance(found, OSError) and found.errno in _NO_ROOM:
            return _no_room(str(found))
    return next((told for found in of_ray if (told := _told_by(str(found))) is not None), None)


def _is_of_ray(error: BaseException) -> bool:
    return any(kind.__module__.partition(".")[0] == "ray" for kind in type(error).__mro__)


def _inside(error: BaseException) -> Iterator[BaseException]:
    """The exceptions that an exception of Ray carries: of a task, of a worker group by rank, of a controller."""
    ranks = getattr(error, "worker_failures", None)
    carried = [
        getattr(error, "cause", None),
        *(ranks.values() if isinstance(ranks, dict) else ()),
        getattr(error, "controller_failure", None),
        error.__cause__,
    ]
    yield from (found for found in carried if isinstance(found, BaseException))


def _told_by(text: str) -> CinesynthError | None:
    """Ray keeps the text alone of an actor whose constructor failed, and of a cause that was not sent along.

    What follows ours may be an exception that it caused, and none that came up while it was handled.
    """
    if (full := _NO_ROOM_TOLD.search(text)) is not None:
        return _no_room(full[1])
    found = list(_RAISED.finditer(text))
    if not found or _HANDLING in text[found[-1].end() :]:
        return None
    kind = globals().get(found[-1][1])
    return kind(found[-1][2]) if isinstance(kind, type) and issubclass(kind, CinesynthError) else None


def _no_room(told: str) -> StorageError:
    return StorageError(f"{told}; make room, and give the command again: it goes on from what is stored")
