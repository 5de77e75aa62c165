"""The adapters that requests name: resolved in the registry when the request is taken, with those below them."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from cinesynth.errors import AdapterError, StorageError
from cinesynth.locate import adapters_below
from cinesynth.registry import Published, Registry
from cinesynth.wan.card import DIFFUSERS_FILE, AdapterCard, Parent, check_base
from serve.errors import ApiError
from serve.request_id import request_log
from serve.schema import MAX_ADAPTERS, ServedAdapter

logger = request_log(__name__)

MAX_SCALE = 4.0
LISTED_S = 10.0
"""Seconds that a list of the adapters holds: each one is a few files of the registry."""


class AdapterBelow(BaseModel):
    """An adapter that another one was trained on top of."""

    id: str | None
    """`name@version`; None where it is not published."""
    scale: float


class Adapter(BaseModel):
    """A published adapter of the served base."""

    id: str
    """`name@version`, which never means another one."""
    object: Literal["adapter"] = "adapter"
    aliases: list[str]
    created_at: int
    parents: list[AdapterBelow]


class AdapterList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Adapter]


class Adapters:
    """The published adapters of one base. Methods that are not async block while files are read.

    Args:
        registry: where they are published.
        base_sha256: hash of the served transformer. An adapter of another base is refused.
    """

    def __init__(self, registry: Registry, base_sha256: str) -> None:
        self.registry, self.base_sha256 = registry, base_sha256
        self._listing = asyncio.Lock()
        self._listed: tuple[float, AdapterList] | None = None

    def chain(self, lora: str) -> list[ServedAdapter]:
        """What the field `lora` asks for, in the order it is applied: before each adapter those below it.

        One that is asked for twice, or is below several, is applied once.

        Raises ApiError: 400 for a bad scale, too many, or what does not fit the base or what is applied before it; 404
        for one that is not published; 503 for one whose files cannot be read.
        """
        chain: dict[str, ServedAdapter] = {}
        applied: list[Parent] = []
        for ref, scale in parse_lora(lora):
            entry = self._entry(ref)
            for found, at in [*self._below(entry), (entry, scale)]:
                standing = chain.setdefault(found.ref, ServedAdapter(ref=found.ref, sha256=found.sha256, scale=at))
                if standing.scale != at:
                    raise _bad_lora(f"{found.ref} is applied at the scales {standing.scale:g} and {at:g}; give one")
                if len(chain) == len(applied):
                    continue
                card = self._card(found)
                self._check(found, card, applied)
                applied.append(Parent(sha256=card.sha256, scale=at))
        if len(chain) > MAX_ADAPTERS:
            raise _bad_lora(f"{len(chain)} adapters with those below them; at most {MAX_ADAPTERS}")
        return list(chain.values())

    def check_published(self, adapters: list[ServedAdapter]) -> None:
        """Raise ApiError 404 for one that is published no more, 503 for one whose files cannot be read."""
        for adapter in adapters:
            self._entry(adapter.ref)

    async def listed(self) -> AdapterList:
        """All that may be named, by name and age, as read within the last `LISTED_S`. Raises ApiError 503."""
        async with self._listing:  # one reads, in a thread; those that wait hold none
            if self._listed is None or time.monotonic() - self._listed[0] > LISTED_S:
                listed = AdapterList(data=await asyncio.to_thread(self._read))
                self._listed = (time.monotonic(), listed)
            return self._listed[1]

    def _read(self) -> list[Adapter]:
        entries: list[tuple[Published, float]] = []
        aliases: dict[str, dict[str, str]] = {}
        with _reading("the list of adapters"):
            versions = {name: self.registry.versions(name) for name in self.registry.names()}
        for name in versions:
            for version in versions[name]:
                try:
                    with _reading(f"{name}@{version}"):
                        if name not in aliases:
                            aliases[name] = self.registry.aliases(name)
                        published_at = self.registry.published_at(name, version)
                    entries.append((self._resolved(f"{name}@{version}"), published_at))
                except (AdapterError, ApiError) as e:
                    logger.warning("%s@%s is not listed: %s", name, version, e)
        entries.sort(key=lambda one: (one[0].name, int(one[1]), one[0].ref))
        # Of two with the same weights the younger one, as the registry finds them.
        by_weights = {e.files.get(DIFFUSERS_FILE): e.ref for e, _ in sorted(entries, key=lambda one: one[1])}
        found = []
        for entry, published_at in entries:
            try:
                card = self._card(entry)
            except ApiError:  # it is in the log
                continue
            if card.base_sha256 not in ("", self.base_sha256):
                continue
            found.append(
                Adapter(
                    id=entry.ref,
                    aliases=sorted(a for a, meant in aliases[entry.name].items() if meant == entry.version),
                    created_at=int(published_at),
                    parents=[AdapterBelow(id=by_weights.get(p.sha256), scale=p.scale) for p in card.parents],
                )
            )
        return found

    def _resolved(self, ref: str) -> Published:
        with _reading(ref):
            entry = self.registry.resolve(ref)
            if not all(isinstance(digest, str) for digest in (entry.sha256, *entry.files.values())):
                raise TypeError("a sha256 is no string")
            return entry

    def _entry(self, ref: str) -> Published:
        try:
            return self._resolved(ref)
        except AdapterError as e:
            logger.info("lora %r: %s", ref, e)  # the log may name the others
            message = f"no published adapter {ref!r}; give name@version or name@alias"
            raise ApiError(404, "adapter_not_found", message, "lora") from e

    def _card(self, entry: Published) -> AdapterCard:
        try:
            return AdapterCard.model_validate(entry.card)
        except ValidationError as e:
            logger.error("%s: its card cannot be read: %s", entry.ref, e)
            raise _mismatch(f"{entry.ref}: its card cannot be read; publish it again") from e

    def _below(self, entry: Published) -> list[tuple[Published, float]]:
        card = self._card(entry)
        try:
            with _reading(f"what is below {entry.ref}"):
                below = adapters_below(entry.ref, card, self.registry.find)
        except AdapterError as e:
            raise _mismatch(f"{e}, which is not published here") from e
        return [(self._entry(ref), scale) for ref, scale in below]

    def _check(self, entry: Published, card: AdapterCard, applied: list[Parent]) -> None:
        if card.base_sha256 not in ("", self.base_sha256):
            raise _mismatch(
                f"{entry.ref} was trained on base {card.base_sha256[:12]}, not on the served {self.base_sha256[:12]}"
            )
        try:
            check_base(card, self.base_sha256, applied, Path(entry.ref))
        except AdapterError as e:
            raise _mismatch(str(e)) from e


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Tells files of the registry that are damaged, or cannot be read, as the operator's matter."""
    try:
        yield
    except AdapterError:
        raise
    except (StorageError, OSError, LookupError, TypeError, ValueError, AttributeError) as e:
        logger.error("%s: the registry's files cannot be read: %s: %s", what, type(e).__name__, e)
        message = f"{what}: the registry's files cannot be read; the server's operator has to mend them"
        raise ApiError(503, "adapter_unreadable", message, headers={"Retry-After": "30"}) from e


def parse_lora(lora: str) -> list[tuple[str, float]]:
    """(reference, scale) of each part of `a@1:0.8,b@2`. Raises ApiError 400 for a bad scale or an empty part."""
    parts = []
    for part in lora.split(","):
        ref, colon, given = (piece.strip() for piece in part.partition(":"))
        if not ref:
            raise _bad_lora(f"{lora!r}: write NAME@VERSION:SCALE, and a comma between two")
        try:
            scale = float(given) if colon else 1.0
        except ValueError:
            scale = math.nan
        if not 0 < scale <= MAX_SCALE:
            raise _bad_lora(f"{part.strip()!r}: the scale must be a number above 0, at most {MAX_SCALE:g}")
        parts.append((ref, scale))
    if len(parts) > MAX_ADAPTERS:
        raise _bad_lora(f"{len(parts)} adapters; at most {MAX_ADAPTERS}")
    return parts


def _bad_lora(message: str) -> ApiError:
    return ApiError(400, "invalid_value", f"lora: {message}", "lora")


def _mismatch(message: str) -> ApiError:
    return ApiError(400, "adapter_mismatch", message, "lora")
