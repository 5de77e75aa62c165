from __future__ import annotations

import hashlib
import hmac
import json
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cinesynth.errors import ConfigError
from serve.auth import KeyEntry, KeyRing, create_key, read_keys, revoke_key

REPOSITORY = Path(__file__).resolve().parents[2]


def owner(ring: KeyRing, header: str | None) -> str | None:
    key = ring.key(header)
    return None if key is None else key.owner


def test_the_command_prints_a_key_once_and_stores_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "keys.json"
    command = [sys.executable, "-m", "serve.keys", "create", "--file", str(path), "--name", "alice"]
    made = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    key = made.stdout.strip()
    stored = {"sha256": hashlib.sha256(key.encode()).hexdigest(), "scopes": ["videos"]}
    assert json.loads(path.read_text()) == {"alice": stored}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(p.name for p in path.parent.iterdir()) == [".keys.json.lock", "keys.json"]
    assert owner(KeyRing(path), f"Bearer {key}") == "alice"
    again = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert again.returncode == 2
    assert "alice" in again.stderr
    assert "Traceback" not in again.stderr


def test_only_the_exact_key_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    alice, bob = create_key(path, "alice"), create_key(path, "bob")
    ring = KeyRing(path)
    assert (owner(ring, f"Bearer {alice}"), owner(ring, f"bearer {bob}")) == ("alice", "bob")
    stored = json.loads(path.read_text())["alice"]["sha256"]
    for header in (None, "", "Bearer", "Bearer ", f"Basic {alice}", alice, f"Bearer {alice}x", f"Bearer {stored}"):
        assert owner(ring, header) is None


def test_a_running_server_notices_new_and_revoked_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    alice = create_key(path, "alice")
    ring = KeyRing(path)
    assert owner(ring, f"Bearer {alice}") == "alice"
    bob = create_key(path, "bob")
    revoke_key(path, "alice")
    assert owner(ring, f"Bearer {alice}") is None
    assert owner(ring, f"Bearer {bob}") == "bob"


class LateRing(KeyRing):
    """Another thread, which read the file before it changed, sets what it read after each first step of this one."""

    late: Callable[[], None] | None = None

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        late, self.__dict__["late"] = self.late, None
        if late is not None:
            late()


def test_a_thread_that_read_the_file_before_a_key_was_revoked_does_not_bring_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys.json"
    alice = create_key(path, "alice")
    ring = LateRing(path)
    has_read, may_go_on = threading.Event(), threading.Event()

    def read(given: Path) -> dict[str, KeyEntry]:
        keys = read_keys(given)
        if threading.current_thread() is thread:
            has_read.set()
            assert may_go_on.wait(30)
        return keys

    def end() -> None:
        may_go_on.set()
        thread.join(30)

    monkeypatch.setattr("serve.auth.read_keys", read)
    thread = threading.Thread(target=ring.key, args=(f"Bearer {alice}",))
    thread.start()
    assert has_read.wait(30)
    revoke_key(path, "alice")
    ring.__dict__["late"] = end
    ring.key(f"Bearer {alice}")
    for _ in range(2):
        assert owner(ring, f"Bearer {alice}") is None


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"alice": "plain text key"}',
        '{"alice": 1}',
        '{"alice": {"scopes": ["videos"]}}',
        '{"alice": {"sha256": "%s", "scopes": ["everything"]}}' % ("0" * 64),
        '{"alice": {"sha256": "%s", "scopes": []}}' % ("0" * 64),
        '{"alice": {"sha256": "%s", "max_flops_per_job": -1}}' % ("0" * 64),
        '{"alice": {"sha256": "%s", "key": "cs-x"}}' % ("0" * 64),
    ],
)
def test_a_damaged_keys_file_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"keys\.json"):
        KeyRing(path).key("Bearer x")


def test_bad_names_are_refused(tmp_path: Path) -> None:
    for name in ("", "Alice", "a b", "../x", "a" * 81):
        with pytest.raises(ConfigError, match="key name"):
            create_key(tmp_path / "keys.json", name)


def test_keys_made_at_once_are_all_kept(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: create_key(path, f"owner-{n}"), range(16)))
    assert len(read_keys(path)) == 16


def test_a_key_has_scopes_and_a_bound(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    command = [sys.executable, "-m", "serve.keys"]
    bounds = ["--scopes", "videos,review", "--max-flops-per-job", "1e18"]
    made = subprocess.run(
        [*command, "create", "--file", str(path), "--name", "alice", *bounds],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    key = KeyRing(path).key(f"Bearer {made.stdout.strip()}")
    assert key is not None
    assert (key.owner, key.scopes, key.max_flops_per_job) == ("alice", ("videos", "review"), 1e18)
    listed = subprocess.run([*command, "list", "--file", str(path)], cwd=REPOSITORY, capture_output=True, text=True)
    assert listed.stdout == "alice: videos, review, 1e+18 FLOPs a job\n"
    for scopes, most in ((["all"], None), ([], None), (["videos"], 0.0), (["videos"], float("inf"))):
        with pytest.raises(ConfigError, match=r"scopes|max_flops_per_job"):
            create_key(path, "bob", scopes, most)


def test_files_of_before_there_were_scopes_are_read_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"alice": hashlib.sha256(b"cs-old").hexdigest()}))
    bob = create_key(path, "bob", ["review"])
    ring = KeyRing(path)
    old = ring.key("Bearer cs-old")
    assert old is not None
    assert (old.owner, old.scopes, old.max_flops_per_job) == ("alice", ("videos",), None)
    assert owner(ring, f"Bearer {bob}") == "bob"


def test_a_key_is_compared_with_every_hash_in_constant_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys.json"
    keys = [create_key(path, name) for name in ("alice", "bob", "carol")]
    compared: list[str] = []
    real = hmac.compare_digest

    def compare(given: str, stored: str) -> bool:
        compared.append(stored)
        return real(given, stored)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    ring = KeyRing(path)
    for key in [keys[0], "cs-wrong"]:
        compared.clear()
        ring.key(f"Bearer {key}")
        assert sorted(compared) == sorted(entry.sha256 for entry in read_keys(path).values())
