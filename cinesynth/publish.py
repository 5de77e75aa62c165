"""The publish step: an adapter folder or a train run's adapter into the registry."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from cinesynth.config import ExportFormat, PublishConfig
from cinesynth.locate import adapter_chain, locate_adapter
from cinesynth.outline import Outline, state_of
from cinesynth.registry import Registry
from cinesynth.runs import Run, complete_result, records_its_end
from cinesynth.storage import Storage
from cinesynth.wan.card import AdapterCard, read_card

log = logging.getLogger("cinesynth")


@records_its_end
def publish(config: PublishConfig) -> dict[str, Any]:
    """Put an adapter into the registry as an immutable version, and move its alias.

    An adapter that was trained on top of others is published as one with them, as a service loads one adapter. A run
    that has published already writes its exports alone, where one that is asked for is missing.
    """
    storage = Storage.open(config.storage)
    folder, card = _adapter(config)
    chain = [(locate_adapter(storage, ref), scale) for ref, scale in adapter_chain(storage, [(config.adapter, 1.0)])]
    run = Run.open(config, {"adapter": card.sha256})
    registry = Registry(storage)
    published = _published(run, registry)
    if published is not None:
        wanted = {f"export/{format}" for format in config.exports}
        if (done := run.result()) is not None and wanted <= done["outputs"].keys():
            return done
        return _export_again(config, run, published, registry)
    with tempfile.TemporaryDirectory() as local:
        if len(chain) > 1:
            from cinesynth.wan.chain import concatenate  # loads PyTorch

            folder = Path(local) / "one"
            concatenate(chain, card.base_sha256, folder)
        entry = registry.publish(folder, config.adapter_name, config.version, config.alias)
        exported = _export(run, config.adapter_name, config.exports, folder, Path(local))
    return run.finish({"adapter": entry.ref, **exported}, {"sha256": entry.sha256})


def _published(run: Run, registry: Registry) -> dict[str, Any] | None:
    """The result of a run whose adapter is in the registry; exported files may be missing."""
    result = complete_result(run.folder)
    if result is None or result.get("inputs") != run.inputs or not registry.holds(result["outputs"]["adapter"]):
        return None
    return result


def _export_again(config: PublishConfig, run: Run, published: dict[str, Any], registry: Registry) -> dict[str, Any]:
    """Write the files that are asked for now, and those of before; returns the new result.

    The adapter is not published again: its alias may have been moved to another version meanwhile.
    """
    outputs = published["outputs"]
    formats = [format for format in get_args(ExportFormat) if format in config.exports or f"export/{format}" in outputs]
    with tempfile.TemporaryDirectory() as local:
        folder = registry.fetch(outputs["adapter"], Path(local) / "adapter")
        exported = _export(run, config.adapter_name, formats, folder, Path(local))
    return run.finish({"adapter": outputs["adapter"], **exported}, published["figures"])


def _export(
    run: Run, adapter_name: str, formats: Sequence[ExportFormat], adapter: Path, scratch: Path
) -> dict[str, str]:
    """Write the adapter for other programs into the run's folder; returns where, by output's name."""
    if not formats:
        return {}
    from cinesynth.wan.formats import LOADERS, export_adapter  # loads PyTorch

    made = {}
    for format in formats:
        name = f"exports/{adapter_name}-{format}.safetensors"
        export_adapter(adapter, format, scratch / format)
        run.folder.upload(scratch / format, name)
        made[f"export/{format}"] = run.folder.child(name).uri
        log.info("%s (%s)", made[f"export/{format}"], LOADERS[format])
    return made


def outline_publishing(config: PublishConfig) -> Outline:
    """Read the adapter's card. Raises CinesynthError as `publish` does before it copies anything."""
    folder, card = _adapter(config)
    version = config.version or "first 12 digits of its content hash"
    parents = ", ".join(f"{parent.sha256[:12]} x {parent.scale:g}" for parent in card.parents) or "none"
    return Outline(
        title=f"publish {config.name}",
        state=state_of(config, {"adapter": card.sha256}),
        inputs=[
            ("adapter", f"{folder} ({card.sha256[:12]})"),
            ("made by", f"stage {card.stage} on {card.base_model}, {card.step:,} steps on dataset {card.dataset}"),
            ("parents", parents),
        ],
        work=[
            (
                "publish",
                f"{config.adapter_name}@{version}{', as one adapter with its parents' if card.parents else ''}",
            ),
            *([("exports", ", ".join(config.exports))] if config.exports else []),
            ("alias", _told_alias(config, card)),
        ],
        resources=[("Ray", "not needed")],
    )


def _told_alias(config: PublishConfig, card: AdapterCard) -> str:
    if config.alias is None:
        return "none is moved"
    run, registry = Run.at(config, {"adapter": card.sha256}), Registry(Storage.open(config.storage))
    moves = "moves to it" if _published(run, registry) is None else "stays where it is"
    return f"{config.adapter_name}@{config.alias} {moves}"


def _adapter(config: PublishConfig) -> tuple[Path, AdapterCard]:
    folder = locate_adapter(Storage.open(config.storage), config.adapter)
    return folder, read_card(folder)
