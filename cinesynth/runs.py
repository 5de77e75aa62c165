"""A run: its folder, its identity, its events and its result.

`<storage>/runs/<name>/` holds `run.json` (identity and input hashes), `config.yaml` as resolved, numbered event
segments, `report.html` and, written last, `result.json`. A run ends `complete`, `failed` or `cut`. The same command on
a complete run does nothing; on any other it continues; another identity under the same name is refused.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

import cinesynth
from cinesynth.config import JobConfig
from cinesynth.errors import Cut, IdentityError, RunTaken, StorageError, user_error
from cinesynth.settings import differences, to_yaml
from cinesynth.storage import Storage

log = logging.getLogger(__name__)

RESULT_SCHEMA = 1
COMPLETE, FAILED, CUT = "complete", "failed", "cut"
_REASON_CHARACTERS = 2000

Parameters = ParamSpec("Parameters")
Outcome = TypeVar("Outcome")


class Run:
    """One named run. Make it with `Run.open`."""

    def __init__(self, folder: Storage, name: str, kind: str, inputs: dict[str, str]) -> None:
        self.folder = folder
        self.name = name
        self.kind = kind
        self.inputs = inputs

    @classmethod
    def open(cls, config: JobConfig, inputs: dict[str, str] | None = None) -> Run:
        """Create the run's folder, or re-open it if identity and input hashes match.

        An input that the record lacks is no difference: it is added, and a result without it is not complete.

        Args:
            config: the job's resolved configuration.
            inputs: name to sha256 of everything the run reads (dataset manifest, base model, adapters).

        Raises:
            IdentityError: the name belongs to another kind of run, or fields or inputs differ; lists them.
        """
        run = cls.at(config, inputs)
        given = {"kind": run.kind, "identity": json.loads(json.dumps(config.identity())), "inputs": run.inputs}
        run.folder.write_new("run.json", _json(given))
        recorded = run.check(config)  # one that was written just now, too: another writer's may stand there by now
        if run.inputs.keys() - recorded["inputs"].keys():
            run.folder.write_bytes("run.json", _json(recorded | {"inputs": recorded["inputs"] | run.inputs}))
        run.folder.write_text("config.yaml", to_yaml(config))
        if (opened := _OPENED.get()) is not None:
            opened.append(run)
        return run

    @classmethod
    def at(cls, config: JobConfig, inputs: dict[str, str] | None = None) -> Run:
        """The run that a configuration names, without making or changing anything."""
        folder = Storage.open(config.storage).child("runs", config.name)
        return cls(folder, config.name, config.kind, dict(inputs or {}))

    def check(self, config: JobConfig, with_inputs: bool = True) -> dict[str, Any]:
        """What is recorded of this run. Raises IdentityError when it is another run than `config` stands for.

        Args:
            config: the job's resolved configuration.
            with_inputs: compare the hashes of the inputs too; False where they are not known yet.
        """
        recorded = self.folder.read_json("run.json")
        if recorded["kind"] != self.kind:
            changed = [f"kind: recorded {recorded['kind']!r}, given {self.kind!r}"]
        else:
            changed = differences(recorded["identity"], config, "identity.")
            changed += [
                f"inputs.{name}: recorded {value!r}, given {self.inputs.get(name)!r}"
                for name, value in sorted(recorded["inputs"].items())
                if with_inputs and self.inputs.get(name) != value
            ]
        if changed:
            raise IdentityError(
                f"run {self.name!r} exists with another identity ({'; '.join(changed)}); "
                f"use another name, or restore these values to continue it ({self.folder.uri})"
            )
        return recorded

    def recorded_identity(self) -> dict[str, Any]:
        """The identity fields as they were first recorded: no later version adds one to them."""
        return self.folder.read_json("run.json")["identity"]

    def result(self) -> dict[str, Any] | None:
        """The recorded result if the run is complete for its inputs and its outputs are there, else None."""
        result = complete_result(self.folder)
        if result is None or result.get("inputs") != self.inputs:
            return None
        outputs = [value for value in result["outputs"].values() if isinstance(value, str)]
        return result if all(_is_there(self.folder, value) for value in outputs) else None

    def finish(
        self, outputs: dict[str, Any], figures: dict[str, Any], left_out: dict[str, str] | None = None
    ) -> dict[str, Any]:
        """Write `result.json`, last; returns it.

        Args:
            outputs: what was made: locations, and hashes or names of it.
            figures: numbers of the run.
            left_out: reason to what was left out for it, in words: how much, and an example.
        """
        result = self._ended(COMPLETE) | {"outputs": outputs, "figures": figures, "left_out": dict(left_out or {})}
        self.folder.write_json("result.json", result)
        return result

    def end(self, status: str, reason: str) -> None:
        """Record that the run ended `failed` or `cut`, and why. A complete result of before stays."""
        if complete_result(self.folder) is None:
            ended = self._ended(status) | {"reason": reason[:_REASON_CHARACTERS], "outputs": {}, "figures": {}}
            self.folder.write_json("result.json", ended)

    def _ended(self, status: str) -> dict[str, Any]:
        return {
            "schema": RESULT_SCHEMA,
            "kind": self.kind,
            "name": self.name,
            "code_version": cinesynth.__version__,
            "inputs": self.inputs,
            "status": status,
        }

    def write_events(self, segment: str, events: list[dict[str, Any]]) -> None:
        """Write one numbered segment of events (JSON lines); writing it again replaces it."""
        self.folder.write_text(f"events/{segment}.jsonl", "".join(json.dumps(e) + "\n" for e in events))

    def events(self) -> list[dict[str, Any]]:
        """All events, in segment order."""
        return read_events(self.folder)


_OPENED: ContextVar[list[Run] | None] = ContextVar("opened runs", default=None)


def records_its_end(job: Callable[Parameters, Outcome]) -> Callable[Parameters, Outcome]:
    """A job that records how the run that it opens ends.

    An error that leaves it makes the run `failed`; `Cut`, Ctrl-C, SIGTERM and any other exit make it `cut`.
    """

    @functools.wraps(job)
    def recorded(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Outcome:
        opened: list[Run] = []
        before = _OPENED.set(opened)
        try:
            return job(*args, **kwargs)
        except RunTaken:  # the run is another driver's to end
            raise
        except BaseException as error:
            status, reason = _end_of(error)
            for run in opened:
                try:
                    run.end(status, reason)
                except (OSError, StorageError) as unwritable:  # the error that ended the job is the one to tell
                    log.warning("how run %s ended cannot be recorded: %s", run.name, unwritable)
            raise
        finally:
            _OPENED.reset(before)

    return recorded


def _end_of(error: BaseException) -> tuple[str, str]:
    if not isinstance(error, Exception):
        return CUT, "stopped from outside (Ctrl-C or a signal)"
    found = user_error(error)
    if isinstance(found, Cut):
        return CUT, str(found)
    return FAILED, str(found) if found is not None else f"{type(error).__name__}: {error}"


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def _is_there(run: Storage, output: str) -> bool:
    """Whether an output is there: a file, or a folder that holds one. What is no location is not looked for.

    The location is taken below the storage that is open now, so a storage that was moved is still complete.
    """
    places = [place for part in ("/runs/", "/datasets/") if (place := output.rfind(part)) >= 0]
    if not places:
        return True
    storage = Storage(run.filesystem, run.path.rpartition("/runs/")[0], run.scheme)
    return storage.holds(output[max(places) + 1 :])


def complete_result(folder: Storage) -> dict[str, Any] | None:
    """The `result.json` in a run's folder if the run ended complete, else None."""
    if not folder.exists("result.json"):
        return None
    result = folder.read_json("result.json")
    # Runs of before there was a status have a result only where they are complete.
    is_complete = result.get("schema") == RESULT_SCHEMA and result.get("status", COMPLETE) == COMPLETE
    return result if is_complete else None


def read_events(folder: Storage) -> list[dict[str, Any]]:
    """All events of the run in `folder`, in segment order."""
    lines = [line for name in folder.list("events") for line in folder.read_text(name).splitlines()]
    return [json.loads(line) for line in lines if line]


def read_result(storage: Storage, name: str) -> dict[str, Any]:
    """The `result.json` of a complete run. Raises StorageError when there is none, with how the run ended."""
    folder = storage.child("runs", name)
    if (result := complete_result(folder)) is not None:
        return result
    if not folder.exists("result.json"):
        raise StorageError(f"run {name!r} in {storage.uri} has no result.json: it has not finished, or never ran")
    ended = folder.read_json("result.json")
    if ended.get("schema") != RESULT_SCHEMA:
        raise StorageError(
            f"run {name!r} in {storage.uri} has a result of schema {ended.get('schema')!r}; this version of cinesynth "
            f"reads {RESULT_SCHEMA}"
        )
    raise StorageError(
        f"run {name!r} in {storage.uri} has not finished: it ended {ended['status']} ({ended.get('reason')}); "
        "give its command again"
    )
