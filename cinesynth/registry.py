"""Published adapters: immutable `name@version`, and aliases that move.

Below `<storage>/registry/<name>/`: the files under `files/<content hash>/` (so two publishers never mix theirs),
`versions/<version>.json` written once, last, which commits them, and `aliases/<alias>.json`. Beside the names,
`@weights/<sha256>.json` says which version has weights of a hash, as the cards of adapters name their parents.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cinesynth.errors import AdapterError
from cinesynth.settings import NAME_PATTERN
from cinesynth.storage import Storage, sha256_file, sha256_json
from cinesynth.wan.card import CARD_FILE, DIFFUSERS_FILE

_BY_WEIGHTS = "@weights"
"""No adapter has this name: names hold no @."""


@dataclass(frozen=True)
class Published:
    """One published adapter version."""

    name: str
    version: str
    sha256: str
    """Hash over the names and contents of its files."""
    files: dict[str, str]
    """File name to sha256."""
    card: dict[str, Any]

    @property
    def ref(self) -> str:
        return f"{self.name}@{self.version}"


class Registry:
    """The registry of a storage location."""

    def __init__(self, storage: Storage) -> None:
        self.folder = storage.child("registry")

    def publish(
        self, adapter: str | os.PathLike[str], name: str, version: str | None = None, alias: str | None = None
    ) -> Published:
        """Copy an adapter folder in and commit it as `name@version`; then move `alias` to it.

        Publishing the same content again is no error. The default version is the first 12 digits of the content
        hash, so publishers of different content never meet.

        Raises:
            AdapterError: no adapter in the folder, a bad name, an alias with the name of a version or the other way
                round, or the version is taken by other content.
        """
        root = Path(adapter)
        if not (root / CARD_FILE).is_file():
            raise AdapterError(f"{root} is not an adapter folder: {CARD_FILE} is missing")
        for label, value in (("name", name), ("version", version), ("alias", alias)):
            if value is not None and not re.match(NAME_PATTERN, value):
                raise AdapterError(f"adapter {label} {value!r}: use lower-case letters, digits, '.', '_' and '-'")
        files = {p.relative_to(root).as_posix(): sha256_file(p) for p in sorted(root.rglob("*")) if p.is_file()}
        content = sha256_json(files)
        version = version or content[:12]
        entry = {"schema": 1, "version": version, "sha256": content, "files": files}
        home = self.folder.child(name)
        if alias is not None and (alias == version or home.exists(f"versions/{alias}.json")):
            raise AdapterError(f"alias {alias!r}: {name} has a version of this name; call the alias something else")
        if home.exists(f"aliases/{version}.json"):
            raise AdapterError(f"version {version!r}: {name} has an alias of this name; call the version another name")
        for file in files:
            home.upload(root / file, f"files/{content}/{file}")
        written = home.write_new(
            f"versions/{version}.json", (json.dumps(entry, indent=2, sort_keys=True) + "\n").encode()
        )
        if written and home.exists(f"aliases/{version}.json"):  # another process was between the check and the writing
            home.delete(f"versions/{version}.json")
            raise AdapterError(f"version {version!r}: {name} has just got an alias of this name; choose another")
        standing = home.read_json(f"versions/{version}.json")
        if standing["sha256"] != content:
            raise AdapterError(
                f"{name}@{version} is already published with other content ({standing['sha256'][:12]}); "
                "versions are immutable: choose another"
            )
        if DIFFUSERS_FILE in files:
            self.folder.write_json(f"{_BY_WEIGHTS}/{files[DIFFUSERS_FILE]}.json", {"name": name, "version": version})
        if alias:
            home.write_json(f"aliases/{alias}.json", {"version": version})
            if home.exists(f"versions/{alias}.json"):
                home.delete(f"aliases/{alias}.json")
                raise AdapterError(
                    f"alias {alias!r}: {name} has just got a version of this name; {name}@{version} is "
                    "published without it"
                )
        return self.resolve(f"{name}@{version}")

    def resolve(self, ref: str) -> Published:
        """The entry that `name@version` or `name@alias` names; plain `name` means `name@latest`.

        Raises AdapterError, listing what there is, when nothing has that name.
        """
        name, _, label = ref.partition("@")
        label = label or "latest"
        home = self.folder.child(name) if re.match(NAME_PATTERN, name) and re.match(NAME_PATTERN, label) else None
        if home is None or not home.exists():
            raise AdapterError(f"adapter {ref!r} is not published; there are: {', '.join(self.names()) or 'none'}")
        version = label
        if home.exists(f"aliases/{label}.json"):
            version = home.read_json(f"aliases/{label}.json")["version"]
        if not home.exists(f"versions/{version}.json"):
            raise AdapterError(f"adapter {ref!r}: {name} has the versions {', '.join(self.versions(name)) or 'none'}")
        entry = home.read_json(f"versions/{version}.json")
        card = home.read_json(f"files/{entry['sha256']}/{CARD_FILE}")
        return Published(name, version, entry["sha256"], entry["files"], card)

    def find(self, sha256: str) -> str | None:
        """`name@version` of a published adapter whose weights have this hash, if there is one."""
        if self.folder.exists(f"{_BY_WEIGHTS}/{sha256}.json"):
            found = self.folder.read_json(f"{_BY_WEIGHTS}/{sha256}.json")
            return f"{found['name']}@{found['version']}"
        # Versions of before there was an index.
        for name in self.names():
            for version in self.versions(name):
                files = self.folder.child(name).read_json(f"versions/{version}.json")["files"]
                if files.get(DIFFUSERS_FILE) == sha256:
                    return f"{name}@{version}"
        return None

    def holds(self, ref: str) -> bool:
        """Whether `name@version` is published."""
        name, _, version = ref.partition("@")
        return self.folder.child(name).exists(f"versions/{version}.json")

    def fetch(self, ref: str, cache: str | os.PathLike[str]) -> Path:
        """A local folder with the adapter's files, each checked against its sha256.

        Raises AdapterError when a file is missing or differs.
        """
        entry = self.resolve(ref)
        target = Path(cache) / entry.sha256
        home = self.folder.child(entry.name)
        for file, digest in entry.files.items():
            path = target / file
            if not path.is_file() or sha256_file(path) != digest:
                home.download(f"files/{entry.sha256}/{file}", path)
            if sha256_file(path) != digest:
                raise AdapterError(f"{entry.ref}: {file} does not match its sha256; publish the adapter again")
        return target

    def names(self) -> list[str]:
        """Names with at least one version."""
        return [name for name in self.folder.folders() if self.versions(name)]

    def versions(self, name: str) -> list[str]:
        """Versions of an adapter, sorted."""
        listed = self.folder.child(name).list("versions")
        return [n.removeprefix("versions/").removesuffix(".json") for n in listed if n.endswith(".json")]

    def aliases(self, name: str) -> dict[str, str]:
        """Each alias of an adapter, with the version that it means."""
        home = self.folder.child(name)
        files = [file for file in home.list("aliases") if file.endswith(".json")]
        return {f.removeprefix("aliases/").removesuffix(".json"): home.read_json(f)["version"] for f in files}

    def published_at(self, name: str, version: str) -> float:
        """When a version was published; seconds since 1970."""
        return self.folder.child(name).modified(f"versions/{version}.json")
