"""The registry: immutable versions, moving aliases, checked files."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from cinesynth.errors import AdapterError, StorageError
from cinesynth.registry import Registry
from cinesynth.storage import Storage, sha256_file
from cinesynth.wan.card import DIFFUSERS_FILE


def adapter(folder: Path, content: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "card.json").write_text(json.dumps({"stage": "style"}))
    (folder / DIFFUSERS_FILE).write_text(content)
    return folder


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(Storage.open(tmp_path / "storage"))


def test_a_published_adapter_is_found_by_version_alias_and_name(registry: Registry, tmp_path: Path) -> None:
    first = registry.publish(adapter(tmp_path / "a", "one"), "noir", alias="latest")
    second = registry.publish(adapter(tmp_path / "b", "two"), "noir", version="2.0", alias="latest")
    assert first.version == first.sha256[:12]
    assert registry.resolve("noir") == registry.resolve("noir@latest") == registry.resolve("noir@2.0") == second
    assert registry.resolve(first.ref).sha256 == first.sha256
    assert registry.versions("noir") == sorted([first.version, "2.0"])
    assert registry.names() == ["noir"]
    folder = registry.fetch("noir@latest", tmp_path / "cache")
    assert (folder / DIFFUSERS_FILE).read_text() == "two"


def test_versions_are_immutable_and_publishing_again_is_no_error(registry: Registry, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a", "one")
    assert registry.publish(folder, "noir", "1") == registry.publish(folder, "noir", "1")
    with pytest.raises(AdapterError, match="noir@1 is already published with other content"):
        registry.publish(adapter(tmp_path / "b", "two"), "noir", "1")
    assert registry.fetch("noir@1", tmp_path / "cache").joinpath(DIFFUSERS_FILE).read_text() == "one"


def test_unknown_references_list_what_there_is(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="there are: none"):
        registry.resolve("noir")
    registry.publish(adapter(tmp_path / "a", "one"), "noir", "1")
    with pytest.raises(AdapterError, match="'sepia' is not published; there are: noir"):
        registry.resolve("sepia")
    with pytest.raises(AdapterError, match="noir has the versions 1"):
        registry.resolve("noir@3")
    with pytest.raises(AdapterError, match="not published"):
        registry.resolve("../../etc@passwd")
    with pytest.raises(AdapterError, match="adapter name 'No Caps'"):
        registry.publish(tmp_path / "a", "No Caps")
    with pytest.raises(AdapterError, match="not an adapter folder"):
        registry.publish(tmp_path, "noir")


def test_a_damaged_file_is_fetched_again_or_refused(registry: Registry, tmp_path: Path) -> None:
    entry = registry.publish(adapter(tmp_path / "a", "one"), "noir", "1")
    cached = registry.fetch("noir@1", tmp_path / "cache") / DIFFUSERS_FILE
    cached.write_text("bitten")
    registry.fetch("noir@1", tmp_path / "cache")
    assert cached.read_text() == "one"
    stored = tmp_path / "storage" / "registry" / "noir" / "files" / entry.sha256 / DIFFUSERS_FILE
    stored.write_text("bitten")
    with pytest.raises(AdapterError, match="does not match its sha256"):
        registry.fetch("noir@1", tmp_path / "other cache")


def test_an_alias_is_named_like_no_version(registry: Registry, tmp_path: Path) -> None:
    registry.publish(adapter(tmp_path / "a", "one"), "noir", version="2", alias="latest")
    other = adapter(tmp_path / "b", "two")
    with pytest.raises(AdapterError, match="alias '2': noir has a version of this name"):
        registry.publish(other, "noir", version="3", alias="2")
    with pytest.raises(AdapterError, match="version 'latest': noir has an alias of this name"):
        registry.publish(other, "noir", version="latest", alias=None)
    with pytest.raises(AdapterError, match="alias '4': noir has a version of this name"):
        registry.publish(other, "noir", version="4", alias="4")
    assert registry.versions("noir") == ["2"]


@pytest.mark.parametrize("late", ["version", "alias"])
def test_a_name_that_another_process_takes_meanwhile_is_given_back(
    late: str, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the check of the names and the writing of the late one, another process writes the other one."""
    one, two = adapter(tmp_path / "a", "one"), adapter(tmp_path / "b", "two")
    registry.publish(one, "noir", version="1")
    upload = Storage.upload

    def other_process(storage: Storage, *arguments: Any) -> None:
        monkeypatch.setattr(Storage, "upload", upload)
        if late == "version":
            registry.publish(one, "noir", version="1", alias="2")
        else:
            registry.publish(one, "noir", version="best")
        upload(storage, *arguments)

    monkeypatch.setattr(Storage, "upload", other_process)
    with pytest.raises(AdapterError, match=f"{late} .*: noir has just got .* of this name"):
        registry.publish(two, "noir", version="2", alias="best" if late == "alias" else None)
    versions, aliases = registry.versions("noir"), registry.aliases("noir")
    assert not set(versions) & aliases.keys()
    assert (versions, aliases) == ((["1"], {"2": "1"}) if late == "version" else (["1", "2", "best"], {}))


def test_weights_are_found_by_their_hash_with_and_without_the_index(registry: Registry, tmp_path: Path) -> None:
    registry.publish(adapter(tmp_path / "a", "one"), "noir", version="1")
    registry.publish(adapter(tmp_path / "b", "two"), "sepia", version="1")
    sha256 = sha256_file(tmp_path / "b" / DIFFUSERS_FILE)
    assert registry.names() == ["noir", "sepia"]
    assert registry.find(sha256) == "sepia@1"
    registry.folder.delete_folder("@weights")
    assert registry.find(sha256) == "sepia@1"
    assert registry.find("0" * 64) is None


def test_aliases_and_the_time_of_publishing_are_told(registry: Registry, tmp_path: Path) -> None:
    before = time.time() - 2
    first = registry.publish(adapter(tmp_path / "a", "one"), "noir", alias="latest")
    registry.publish(adapter(tmp_path / "b", "two"), "noir", version="2.0", alias="best")
    assert registry.aliases("noir") == {"latest": first.version, "best": "2.0"}
    assert registry.aliases("nothing") == {}
    assert before < registry.published_at("noir", "2.0") < time.time() + 2
    with pytest.raises(StorageError, match="does not exist"):
        registry.published_at("noir", "3.0")
