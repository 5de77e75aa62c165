"""The card of an adapter: its base, the adapters below it, and what it was trained on. Needs no PyTorch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from reprlib import repr as shortened
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

import cinesynth
from cinesynth.errors import AdapterError
from cinesynth.storage import sha256_file, sha256_json

DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
PEFT_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
CARD_FILE = "card.json"
ADAPTER_FILES = (DIFFUSERS_FILE, PEFT_FILE, CONFIG_FILE, CARD_FILE)
"""What an adapter's folder holds; it is an adapter from its card on."""

_SETTINGS = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "target_modules")
"""Settings of PEFT that change what an adapter computes."""
_LONGEST_HEADER = 100_000_000
"""Bytes; no header of a safetensors file is longer."""


class Parent(BaseModel):
    """An adapter that was under the new one, frozen, while that was trained."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    sha256: str
    scale: float


class AdapterCard(BaseModel):
    """Provenance of an adapter."""

    model_config = ConfigDict(extra="forbid")
    schema_version: Literal[1] = 1
    base_model: str
    base_sha256: str
    """Hash of the transformer's files, without parents; empty where it is not known, as of an imported adapter."""
    base_revision: str | None = None
    parents: list[Parent] = []
    stage: str
    dataset: str
    dataset_sha256: str
    config: dict[str, Any]
    metrics: dict[str, float] = {}
    step: int
    sha256: str = ""
    """Of `pytorch_lora_weights.safetensors`; filled in by `save_adapter`."""
    code_version: str = cinesynth.__version__

    @property
    def trained_on(self) -> str:
        """Hash of what the adapter was trained on: the base and the adapters under it."""
        return merged_base_hash(self.base_sha256, self.parents)


def check_adapters(adapters: list[tuple[Path, float]], base_sha256: str) -> list[Parent]:
    """Check adapters (folder, scale) by their cards, before any model is loaded; returns their hashes and scales.

    Raises AdapterError as `read_card` and `check_base` do.
    """
    applied: list[Parent] = []
    for folder, scale in adapters:
        card = read_card(folder)
        check_base(card, base_sha256, applied, folder)
        applied.append(Parent(sha256=card.sha256, scale=scale))
    return applied


def merged_base_hash(base_sha256: str, parents: list[Parent]) -> str:
    """The hash of a base and the adapters on it: that of the base where there are none, else one over all of them."""
    if not parents:
        return base_sha256
    return sha256_json([base_sha256, [[p.sha256, p.scale] for p in parents]])


def read_card(folder: str | os.PathLike[str]) -> AdapterCard:
    """The adapter's card, with its weights' hash and its configuration checked.

    Raises AdapterError naming what is wrong.
    """
    folder = Path(folder)
    if not (folder / CARD_FILE).is_file():
        raise AdapterError(
            f"adapter {folder}: it has no {CARD_FILE}, so it is not an adapter folder that cinesynth wrote; a train "
            "run's is runs/<name>/adapter in its storage"
        )
    for file in (DIFFUSERS_FILE, PEFT_FILE, CONFIG_FILE):
        if not (folder / file).is_file():
            raise AdapterError(f"adapter {folder}: {file} is missing")
    try:
        card = AdapterCard.model_validate_json((folder / CARD_FILE).read_text())
    except ValueError as e:
        raise AdapterError(f"adapter {folder}: {CARD_FILE} cannot be read: {e}") from e
    if sha256_file(folder / DIFFUSERS_FILE) != card.sha256:
        raise AdapterError(f"adapter {folder}: {DIFFUSERS_FILE} does not match the sha256 on its card; copy it again")
    _check_settings(folder)
    return card


def _check_settings(folder: Path) -> None:
    """Raise AdapterError where the configuration, which no hash covers, says otherwise than the hashed file itself.

    A file of another program that has no settings of its own goes by the configuration.
    """
    hashed = _settings_of(folder / DIFFUSERS_FILE)
    if not hashed:
        return
    try:
        given = dict(json.loads((folder / CONFIG_FILE).read_text()))
    except (ValueError, TypeError) as e:
        raise AdapterError(f"adapter {folder}: {CONFIG_FILE} cannot be read: {e}") from e
    for name in _SETTINGS:
        ours, theirs = given.get(name), hashed.get(name)
        if name == "target_modules" and isinstance(ours, list) and isinstance(theirs, list):
            ours, theirs = sorted(ours), sorted(theirs)
        if (ours or None) != (theirs or None):  # what is left out is false or empty
            raise AdapterError(
                f"adapter {folder}: {name} is {shortened(ours)} in {CONFIG_FILE}, but {shortened(theirs)} in "
                f"{DIFFUSERS_FILE}, whose hash is on the card; restore it, and set another strength by the adapter's "
                "scale"
            )


def _settings_of(file: Path) -> dict[str, Any]:
    """PEFT's configuration as diffusers keeps it in a safetensors file's header; empty where there is none."""
    with file.open("rb") as stored:
        length = int.from_bytes(stored.read(8), "little")
        header = stored.read(length) if length <= _LONGEST_HEADER else b""
    try:
        said = json.loads(json.loads(header)["__metadata__"]["lora_adapter_metadata"])
        return {key.removeprefix("transformer."): value for key, value in said.items()}
    except (ValueError, KeyError, TypeError, AttributeError):  # what is no safetensors file is told where it is loaded
        return {}


def check_base(card: AdapterCard, base_sha256: str, applied: list[Parent], folder: Path) -> None:
    """Raise AdapterError unless the adapter fits the base and the adapters applied before it.

    An adapter with parents needs exactly these, in order, before it; one without may follow any others. One whose card
    does not know its base is judged by its layers when it is loaded.
    """
    if card.base_sha256 and card.base_sha256 != base_sha256:
        raise AdapterError(
            f"adapter {folder} was trained on base {card.base_model} ({card.base_sha256[:12]}), "
            f"not on this one ({base_sha256[:12]})"
        )
    if card.parents and card.parents != applied:
        wanted = ", ".join(f"{p.sha256[:12]} x {p.scale}" for p in card.parents)
        given = ", ".join(f"{p.sha256[:12]} x {p.scale}" for p in applied) or "none"
        raise AdapterError(f"adapter {folder} was trained on top of [{wanted}]; before it comes [{given}]")
