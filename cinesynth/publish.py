"""The publish step: an adapter folder or a train run's adapter into the registry."""

from __future__ import annotations

from typing import Any

from cinesynth.config import PublishConfig
from cinesynth.locate import locate_adapter
from cinesynth.registry import Registry
from cinesynth.runs import Run, records_its_end
from cinesynth.storage import Storage
from cinesynth.wan.card import read_card


@records_its_end
def publish(config: PublishConfig) -> dict[str, Any]:
    """Put an adapter into the registry as an immutable version, and move its alias."""
    storage = Storage.open(config.storage)
    folder = locate_adapter(storage, config.adapter)
    run = Run.open(config, {"adapter": read_card(folder).sha256})
    registry = Registry(storage)
    if (done := run.result()) is not None and registry.holds(done["outputs"]["adapter"]):
        return done
    entry = registry.publish(folder, config.adapter_name, config.version, config.alias)
    return run.finish({"adapter": entry.ref}, {"sha256": entry.sha256})
