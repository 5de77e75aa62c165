"""A run: its folder, its identity, its events and its result.

`<storage>/runs/<name>/` holds `run.json` (identity and input hashes), `config.yaml` as resolved, numbered event
segments, `report.html` and, written last, `result.json`. The same command on a complete run does nothing; on a
partial one it continues; another identity under the same name is refused.
"""

from __future__ import annotations

import json
from typing import Any

import cinesynth
from cinesynth.config import JobConfig
from cinesynth.errors import IdentityError, StorageError
from cinesynth.settings import differences, to_yaml
from cinesynth.storage import Storage

RESULT_SCHEMA = 1


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

        Args:
            config: the job's resolved configuration.
            inputs: name to sha256 of everything the run reads (dataset manifest, base model, adapters).

        Raises:
            IdentityError: the name belongs to another kind of run, or fields or inputs differ; lists them.
        """
        inputs = dict(inputs or {})
        run = cls(Storage.open(config.storage).child("runs", config.name), config.name, config.kind, inputs)
        given = {"kind": config.kind, "identity": json.loads(json.dumps(config.identity())), "inputs": inputs}
        if not run.folder.write_new("run.json", (json.dumps(given, indent=2, sort_keys=True) + "\n").encode()):
            changed = differences(run.folder.read_json("run.json"), given)
            if changed:
                raise IdentityError(
                    f"run {config.name!r} exists with another identity ({'; '.join(changed)}); "
                    f"use another name, or restore these values to continue it ({run.folder.uri})"
                )
        run.folder.write_text("config.yaml", to_yaml(config))
        return run

    def result(self) -> dict[str, Any] | None:
        """The recorded result if the run is complete for its inputs, else None."""
        if not self.folder.exists("result.json"):
            return None
        result = self.folder.read_json("result.json")
        if result.get("schema") != RESULT_SCHEMA or result.get("inputs") != self.inputs:
            return None
        return result

    def finish(self, outputs: dict[str, Any], figures: dict[str, Any]) -> dict[str, Any]:
        """Write `result.json`, last; returns it."""
        result = {
            "schema": RESULT_SCHEMA,
            "kind": self.kind,
            "name": self.name,
            "code_version": cinesynth.__version__,
            "inputs": self.inputs,
            "outputs": outputs,
            "figures": figures,
        }
        self.folder.write_json("result.json", result)
        return result

    def write_events(self, segment: str, events: list[dict[str, Any]]) -> None:
        """Write one numbered segment of events (JSON lines); writing it again replaces it."""
        self.folder.write_text(f"events/{segment}.jsonl", "".join(json.dumps(e) + "\n" for e in events))

    def events(self) -> list[dict[str, Any]]:
        """All events, in segment order."""
        return read_events(self.folder)


def read_events(folder: Storage) -> list[dict[str, Any]]:
    """All events of the run in `folder`, in segment order."""
    lines = [line for name in folder.list("events") for line in folder.read_text(name).splitlines()]
    return [json.loads(line) for line in lines if line]


def read_result(storage: Storage, name: str) -> dict[str, Any]:
    """The `result.json` of a complete run. Raises StorageError when there is none."""
    folder = storage.child("runs", name)
    if not folder.exists("result.json"):
        raise StorageError(f"run {name!r} in {storage.uri} has no result.json: it has not finished, or never ran")
    return folder.read_json("result.json")
